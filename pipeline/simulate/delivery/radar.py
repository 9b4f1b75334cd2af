"""Write Sentinel-1 GRD files: amplitudes in radar geometry, located by ground control points.

Rows run along the track and columns across it, so the pixels lie on no map grid; a table for each
polarisation turns amplitudes into sigma nought. The simulated ground is flat for the radar: the
points have height 0, and nothing is displaced by terrain.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.control import GroundControlPoint

from pipeline.products.model import Band
from pipeline.raster.zones import to_sphere
from pipeline.simulate.delivery.orbits import Scene
from pipeline.simulate.delivery.shelves import Shelf
from pipeline.simulate.delivery.stac_items import Written
from pipeline.simulate.truth.ground import STEP, band_values, view
from pipeline.simulate.truth.noise import Place

_PIXEL_M = 10
_BLOCK_PX = 512
#: Amplitude whose power is 1: what the calibration tables hold, a little more at the far edge.
_NEAR, _FAR = 400.0, 440.0
#: Power of the noise.
_NOISE = 25.0
#: Control points of the real files: 21 across and about 10 along.
_POINTS = (21, 10)
_PER_M = sqrt(85)


def write_grd(folder: Path, shelf: Shelf, scenes: Sequence[Scene], seed: int) -> list[Written]:
    """Write the polarisations of GRD scenes and their calibration; see `files.write_scenes`."""
    return [Written(_write(folder, shelf, scene, seed), {}) for scene in scenes]


def _write(folder: Path, shelf: Shelf, scene: Scene, seed: int) -> dict[str, str]:
    home = f"files/{shelf.provider}/{scene.product}/{scene.when:%Y/%m/%d}/{scene.item}"
    (folder / home).mkdir(parents=True, exist_ok=True)
    paths = {}
    for band in shelf.product.bands:
        (image,) = shelf.facts.assets[band.name]
        paths[image.asset] = f"{home}/iw-{band.name.lower()}.tiff"
        _write_image(folder / paths[image.asset], shelf, scene, band, seed)
        for name in shelf.product.coefficients(band.name):
            (entry,) = shelf.facts.assets[name]
            kind = name.partition(" ")[0]
            paths[entry.asset] = f"{home}/{kind}-iw-{band.name.lower()}.xml"
            _write_table(folder / paths[entry.asset], scene, kind)
    return paths


def shape_px(scene: Scene) -> tuple[int, int]:
    """Return rows and columns of a scene in radar geometry."""
    along = scene.along or (0, 0)
    rows = (along[1] - along[0]) / _PER_M / _PIXEL_M
    return int(rows), int((scene.across[1] - scene.across[0]) / _PER_M / _PIXEL_M)


def places(
    scene: Scene, rows: npt.ArrayLike, columns: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return easting and northing of pixel positions (0.5 is the middle of the first)."""
    along = scene.along or (0, 0)
    a = scene.across[0] + np.asarray(columns, np.float64) * _PIXEL_M * _PER_M
    b = along[1] - np.asarray(rows, np.float64) * _PIXEL_M * _PER_M
    return (9 * a + 2 * b) / 85, (9 * b - 2 * a) / 85


def gain(scene: Scene, columns: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return what the calibration table says at some columns: linear from near to far."""
    share = np.asarray(columns, np.float64) / (shape_px(scene)[1] - 1)
    return _NEAR + (_FAR - _NEAR) * share


def _write_image(path: Path, shelf: Shelf, scene: Scene, band: Band, seed: int) -> None:
    height, width = shape_px(scene)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=1,
        dtype="uint16",
        nodata=shelf.product.nodata,
        gcps=_points(scene),
        crs="EPSG:4326",
        tiled=True,
        blockxsize=_BLOCK_PX,
        blockysize=_BLOCK_PX,
        compress="deflate",
        num_threads=1,
    ) as raster:
        for top in range(0, height, _BLOCK_PX):
            for left in range(0, width, _BLOCK_PX):
                rows = np.arange(top, min(height, top + _BLOCK_PX))
                columns = np.arange(left, min(width, left + _BLOCK_PX))
                power = _power(shelf, scene, band, rows, columns, seed)
                numbers = np.clip(np.rint(np.sqrt(power) * gain(scene, columns)), 1, 65_535)
                window = ((top, top + len(rows)), (left, left + len(columns)))
                raster.write(numbers.astype(np.uint16), 1, window=window)


def _power(
    shelf: Shelf,
    scene: Scene,
    band: Band,
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    seed: int,
) -> npt.NDArray[np.float64]:
    """Return what comes back from the ground of some pixels, of the zone's 10 m cells."""
    x_m, n_m = places(scene, rows[:, None] + 0.5, columns + 0.5)
    column, row = (np.floor(v / _PIXEL_M).astype(np.int64) for v in (x_m, n_m))
    xs, at_x = np.unique(column, return_inverse=True)
    ns, at_n = np.unique(row, return_inverse=True)
    middle = _PIXEL_M // 2
    place = Place(scene.zone, xs * _PIXEL_M + middle, ns * _PIXEL_M + middle, seed)
    echoes = band_values(view(place, scene.when), shelf.product, [band])[0]
    found: npt.NDArray[np.float64] = echoes[at_n, at_x].reshape(x_m.shape) * STEP["backscatter"]
    return found


def _points(scene: Scene) -> list[Any]:
    """Return the control points: pixel positions with longitude, latitude and height 0."""
    height, width = shape_px(scene)
    rows, columns = np.meshgrid(
        np.linspace(0, height, _POINTS[1]), np.linspace(0, width, _POINTS[0]), indexing="ij"
    )
    lon, lat = to_sphere(*places(scene, rows, columns), scene.zone)
    numbers = (rows.ravel(), columns.ravel(), lon.ravel(), lat.ravel())
    return [
        GroundControlPoint(row=row, col=column, x=x, y=y, z=0)
        for row, column, x, y in zip(*(n.tolist() for n in numbers), strict=True)
    ]


def _write_table(path: Path, scene: Scene, kind: str) -> None:
    """Write a table as ESA's processor does: vectors along the track, values across it.

    `calibration` holds amplitudes whose power is 1, `noise` (as it was until 2018) powers.
    """
    height, width = shape_px(scene)
    pixels = np.unique(np.append(np.arange(0, width, 40), width - 1))
    columns = {"pixel": [str(pixel) for pixel in pixels.tolist()]}
    if kind == "noise":
        columns["noiseLut"] = [f"{_NOISE:.6e}"] * len(pixels)
    else:
        columns["sigmaNought"] = [f"{value:.6e}" for value in gain(scene, pixels).tolist()]
    root = ElementTree.Element(kind)
    lines = (0, height // 2, height - 1)
    vectors = ElementTree.SubElement(root, f"{kind}VectorList", count=str(len(lines)))
    for line in lines:
        vector = ElementTree.SubElement(vectors, f"{kind}Vector")
        ElementTree.SubElement(vector, "azimuthTime").text = f"{scene.when:%Y-%m-%dT%H:%M:%S.%f}"
        ElementTree.SubElement(vector, "line").text = str(line)
        for tag, values in columns.items():
            ElementTree.SubElement(vector, tag, count=str(len(pixels))).text = " ".join(values)
    ElementTree.ElementTree(root).write(path, encoding="UTF-8", xml_declaration=True)

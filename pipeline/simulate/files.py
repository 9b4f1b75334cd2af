"""Write the files of simulated scenes, in the forms their providers use.

Scenes that share a raster (one frame or tile on many days) are written together, block by block,
so that the unchanging ground is computed once. GDAL compresses in the writing thread, so a file's
bytes depend on nothing but its contents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio import Affine
from rasterio.windows import Window

from pipeline.products.catalogue import FILL_INT16, LEGEND, Product
from pipeline.simulate.ground import codes, view
from pipeline.simulate.landscape import landscape
from pipeline.simulate.noise import Place
from pipeline.simulate.orbits import Scene
from pipeline.simulate.scenes import (
    ENMAP_LAYERS,
    defective,
    enmap_layers,
    enmap_values,
    label_values,
    scene_classes,
    sentinel_values,
)
from pipeline.simulate.stac_items import Written, enmap_folder, sentinel_folder

#: Block edges of the real files: 512 in DLR's COGs, 1024 in Sentinel-2's JPEG 2000 and its COGs.
ENMAP_BLOCK_PX = 512
SENTINEL_BLOCK_PX = 1024

_ENMAP_NAMES = {
    "image": "SPECTRAL_IMAGE",
    "quality_classes": "QL_QUALITY_CLASSES",
    "quality_cloud": "QL_QUALITY_CLOUD",
    "quality_cloud_shadow": "QL_QUALITY_CLOUDSHADOW",
    "quality_haze": "QL_QUALITY_HAZE",
    "quality_cirrus": "QL_QUALITY_CIRRUS",
    "quality_snow": "QL_QUALITY_SNOW",
    "quality_testflags": "QL_QUALITY_TESTFLAGS",
    "defective_pixel_mask": "QL_PIXELMASK",
}
_ENMAP_KEYS = dict(zip(ENMAP_LAYERS, list(_ENMAP_NAMES)[1:8], strict=True))


def write_enmap(
    folder: Path, product: Product, scenes: Sequence[Scene], seed: int
) -> list[Written]:
    """Write all files of EnMAP scenes that share one raster."""
    files = [
        {
            key: f"{enmap_folder(scene)}/{scene.item}-{name}_COG.TIF"
            for key, name in _ENMAP_NAMES.items()
        }
        for scene in scenes
    ]
    tallies = [_Tally() for _ in scenes]
    with ExitStack() as stack:
        rasters = [
            {
                key: stack.enter_context(_create(folder / path, scene, **_enmap_kind(key, product)))
                for key, path in paths.items()
            }
            for scene, paths in zip(scenes, files, strict=True)
        ]
        for window, place in _blocks(scenes[0], 30, seed):
            land = landscape(place)
            for scene, raster, tally in zip(scenes, rasters, tallies, strict=True):
                seen = view(place, scene.when, land=land)
                raster["image"].write(enmap_values(scene, product, seen), window=window)
                marked = defective(scene, product, place)
                raster["defective_pixel_mask"].write(marked, window=window)
                for name, layer in enmap_layers(scene, seen).items():
                    raster[_ENMAP_KEYS[name]].write(layer, 1, window=window)
                tally.add(codes(seen), scene.seen(place))
    return [Written(paths, tally.percent()) for paths, tally in zip(files, tallies, strict=True)]


def write_sentinel(
    folder: Path, product: Product, scenes: Sequence[Scene], seed: int
) -> list[Written]:
    """Write all bands and the scene classification of Sentinel-2 scenes of one tile."""
    sizes = {band.name: round(band.pixel_m) for band in product.bands} | {"SCL": 20}
    files = [
        {
            key: f"{sentinel_folder(scene)}/R{size}m/"
            f"T{scene.tile}_{scene.when:%Y%m%dT%H%M%S}_{key}_{size}m.tif"
            for key, size in sizes.items()
        }
        for scene in scenes
    ]
    tallies = [_Tally() for _ in scenes]
    for pixel_m in sorted(set(sizes.values())):
        _write_resolution(folder, product, scenes, files, tallies, pixel_m, seed)
    return [Written(paths, tally.percent()) for paths, tally in zip(files, tallies, strict=True)]


def _write_resolution(
    folder: Path,
    product: Product,
    scenes: Sequence[Scene],
    files: Sequence[dict[str, str]],
    tallies: Sequence[_Tally],
    pixel_m: int,
    seed: int,
) -> None:
    """Write the bands of one pixel size; with those of 20 m also the scene classification."""
    bands = [band for band in product.bands if round(band.pixel_m) == pixel_m]
    names = [band.name for band in bands] + (["SCL"] if pixel_m == 20 else [])
    with ExitStack() as stack:
        rasters = [
            {
                name: stack.enter_context(
                    _create(folder / paths[name], scene, **_sentinel_kind(name, pixel_m))
                )
                for name in names
            }
            for scene, paths in zip(scenes, files, strict=True)
        ]
        for window, place in _blocks(scenes[0], pixel_m, seed):
            land = landscape(place)
            for scene, raster, tally in zip(scenes, rasters, tallies, strict=True):
                seen = view(place, scene.when, land=land)
                values = sentinel_values(scene, product, bands, seen)
                for band, layer in zip(bands, values, strict=True):
                    raster[band.name].write(layer, 1, window=window)
                if "SCL" in raster:
                    raster["SCL"].write(scene_classes(scene, product, seen), 1, window=window)
                    tally.add(codes(seen), scene.seen(place))


def write_labels(folder: Path, scene: Scene, seed: int) -> Written:
    """Write the map of arrangements."""
    path = f"files/labels/{scene.item}.tif"
    with _create(folder / path, scene, pixel_m=30, count=1, dtype="uint8") as raster:
        for window, place in _blocks(scene, 30, seed):
            raster.write(label_values(landscape(place)), 1, window=window)
    return Written({"labels": path}, {})


class _Tally:
    """Counts the codes of a scene, block by block."""

    def __init__(self) -> None:
        self._codes: Counter[str] = Counter()
        self._unseen = 0

    def add(self, code: npt.NDArray[np.uint8], seen: npt.NDArray[np.bool_]) -> None:
        """Add one block."""
        self._unseen += int((~seen).sum())
        for name, value in LEGEND.items():
            self._codes[name] += int(((code == value) & seen).sum())

    def percent(self) -> dict[str, float]:
        """Return the shares of the seen pixels, and of all pixels what was not seen."""
        seen = self._codes.total()
        words = {
            "cloud": "cloud",
            "cirrus": "thin-cloud",
            "haze": "thin-cloud",
            "shadow": "cloud-shadow",
            "snow": "snow",
            "water": "water",
        }
        shares = {word: 100 * self._codes[name] / max(seen, 1) for word, name in words.items()}
        return shares | {"nodata": 100 * self._unseen / (seen + self._unseen)}


def block_edge(scene: Scene, pixel_m: int) -> int:
    """Return the edge of a file's blocks in pixels.

    That of the real files, except where a raster is so small that most of the last blocks would be
    padding: then the next multiple of 16 that divides the raster evenly.
    """
    nominal = SENTINEL_BLOCK_PX if scene.product == "sentinel-2-l2a" else ENMAP_BLOCK_PX
    size = max(scene.width_m, scene.height_m) // pixel_m
    if 4 * size > 9 * nominal:
        return nominal
    return ceil(size / ceil(size / nominal) / 16) * 16


def _blocks(scene: Scene, pixel_m: int, seed: int) -> Iterator[tuple[Window, Place]]:
    """Yield the blocks of a scene's raster in file order, with their pixel centres."""
    width, height = scene.width_m // pixel_m, scene.height_m // pixel_m
    block_px = block_edge(scene, pixel_m)
    x_m = scene.x_min_m + pixel_m // 2 + pixel_m * np.arange(width, dtype=np.int64)
    n_m = scene.n_max_m - pixel_m // 2 - pixel_m * np.arange(height, dtype=np.int64)
    for top in range(0, height, block_px):
        for left in range(0, width, block_px):
            columns, rows = x_m[left : left + block_px], n_m[top : top + block_px]
            window = Window(left, top, len(columns), len(rows))
            yield window, Place(scene.zone, columns, rows, seed)


def _create(path: Path, scene: Scene, *, pixel_m: int, **profile: Any) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    edge = block_edge(scene, pixel_m)
    return rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=scene.width_m // pixel_m,
        height=scene.height_m // pixel_m,
        crs=f"EPSG:{scene.epsg}",
        transform=Affine(pixel_m, 0, scene.x_min_m, 0, -pixel_m, scene.y_max_m),
        tiled=True,
        blockxsize=edge,
        blockysize=edge,
        compress="deflate",
        zlevel=1,
        num_threads=1,
        **profile,
    )


def _enmap_kind(key: str, product: Product) -> dict[str, Any]:
    spectral = {"pixel_m": 30, "count": len(product.bands), "interleave": "pixel"}
    if key == "image":
        return {**spectral, "dtype": "int16", "nodata": FILL_INT16, "predictor": 2}
    if key == "defective_pixel_mask":
        return {**spectral, "dtype": "uint8"}
    nodata = {"nodata": 3} if key == "quality_classes" else {}
    return {"pixel_m": 30, "count": 1, "dtype": "uint8", **nodata}


def _sentinel_kind(name: str, pixel_m: int) -> dict[str, Any]:
    kind = {"pixel_m": pixel_m, "count": 1, "nodata": 0}
    return (
        {**kind, "dtype": "uint8"} if name == "SCL" else {**kind, "dtype": "uint16", "predictor": 2}
    )

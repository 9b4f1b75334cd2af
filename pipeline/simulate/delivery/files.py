"""Write the files of simulated scenes: which bands lie in which file, the product file says.

Scenes that share a raster (one frame or tile on many days) are written together, block by block,
so that the unchanging ground is computed once. GDAL compresses in the writing thread, so a file's
bytes depend on nothing but its contents.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.shutil
from rasterio import Affine
from rasterio.windows import Window

from pipeline.products.model import LEGEND, Band, BandAsset, MaskLayer, Product
from pipeline.simulate.delivery.orbits import Scene
from pipeline.simulate.delivery.scenes import defective, image, mtl, quality, seen_by
from pipeline.simulate.delivery.shelves import File, Shelf, files_of
from pipeline.simulate.delivery.stac_items import Written
from pipeline.simulate.truth.ground import View, codes, view
from pipeline.simulate.truth.landscape import landscape
from pipeline.simulate.truth.noise import Place

#: Block edges of the real files: 512 in DLR's COGs, 1024 in Sentinel-2's JPEG 2000 and its COGs;
#: others are written with those of EnMAP.
_BLOCK_PX = 512
_SENTINEL_BLOCK_PX = 1024


def write_scenes(folder: Path, shelf: Shelf, scenes: Sequence[Scene], seed: int) -> list[Written]:
    """Write all files of scenes that share one raster; paths are relative to the folder."""
    files = files_of(shelf)
    paths = [
        {file.key: _path(shelf, scene, file.key, _ending(shelf)) for file in files}
        for scene in scenes
    ]
    tallies = [_Tally() for _ in scenes]
    counted = _counted(files)
    for grid in sorted({(file.pixel_m, file.inset_m) for file in files}):
        here = [file for file in files if (file.pixel_m, file.inset_m) == grid]
        _write_grid(folder, shelf, here, scenes, paths, tallies if grid == counted else None, seed)
    for scene, keys in zip(scenes, paths, strict=True):
        keys |= _write_coefficients(folder, shelf, scene)
    return [Written(keys, tally.percent()) for keys, tally in zip(paths, tallies, strict=True)]


def _path(shelf: Shelf, scene: Scene, key: str, ending: str) -> str:
    home = f"files/{shelf.provider}/{scene.product}/{scene.when:%Y/%m/%d}/{scene.item}"
    return f"{home}/{scene.item}_{key}{ending}"


def _ending(shelf: Shelf) -> str:
    """Return the ending of a shelf's files: Copernicus serves Sentinel-2 as ESA writes it."""
    optical = shelf.product.id.startswith("sentinel-2")
    return ".jp2" if optical and shelf.provider == "copernicus" else ".tif"


def _counted(files: Sequence[File]) -> tuple[float, float]:
    """Return the grid on which a scene's clouds are counted: that of its quality, or else image."""
    masks = [file for file in files if isinstance(file.members[0], MaskLayer)]
    first = (masks or list(files))[0]
    return first.pixel_m, first.inset_m


def _write_grid(
    folder: Path,
    shelf: Shelf,
    files: Sequence[File],
    scenes: Sequence[Scene],
    paths: Sequence[dict[str, str]],
    tallies: Sequence[_Tally] | None,
    seed: int,
) -> None:
    """Write the files of one pixel grid."""
    with ExitStack() as stack:
        rasters = [
            {
                f.key: stack.enter_context(_create(folder / keys[f.key], scene, f, shelf.product))
                for f in files
            }
            for scene, keys in zip(scenes, paths, strict=True)
        ]
        for window, place in _blocks(scenes[0], files[0], seed):
            land = landscape(place)
            for number, scene in enumerate(scenes):
                seen = view(place, scene.when, land=land)
                layers = quality(scene, shelf.product, seen) if _has_layers(files) else {}
                for file in files:
                    values = _values(shelf, scene, file, seen, layers)
                    rasters[number][file.key].write(values, window=window)
                if tallies is not None:
                    tallies[number].add(codes(seen), seen_by(scene, place))
    for keys in paths:
        for file in files:
            if keys[file.key].endswith(".jp2"):
                _as_jpeg2000(folder / keys[file.key])


def _has_layers(files: Sequence[File]) -> bool:
    return any(isinstance(file.members[0], MaskLayer) and not file.per_band for file in files)


def _values(
    shelf: Shelf, scene: Scene, file: File, seen: View, layers: dict[str, npt.NDArray[Any]]
) -> npt.NDArray[Any]:
    if file.per_band:
        return defective(scene, shelf.product, seen.place)
    bands = [member for member in file.members if isinstance(member, Band)]
    if bands:
        return image(scene, shelf.product, bands, seen, offset=shelf.offset(scene))
    return np.stack([layers[member.name] for member in file.members])


def _write_coefficients(folder: Path, shelf: Shelf, scene: Scene) -> dict[str, str]:
    """Write the file with a scene's coefficients, if it has one, and return its key and path."""
    calibration = shelf.product.calibration
    if calibration is None or calibration.method != "landsat-toa":
        return {}
    entry: BandAsset = shelf.facts.assets[calibration.file][0]
    path = _path(shelf, scene, "MTL", ".json")
    (folder / path).write_text(json.dumps(mtl(scene, shelf.product), indent=1) + "\n")
    return {entry.asset: path}


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


def shape_px(scene: Scene, pixel_m: float, inset_m: float = 0) -> tuple[int, int]:
    """Return rows and columns of a scene's raster of some pixel size."""
    return (
        round((scene.height_m - 2 * inset_m) / pixel_m),
        round((scene.width_m - 2 * inset_m) / pixel_m),
    )


def block_edge(scene: Scene, pixel_m: float, inset_m: float = 0) -> int:
    """Return the edge of a file's blocks in pixels.

    That of the real files, except where a raster is so small that most of the last blocks would be
    padding: then the next multiple of 16 that divides the raster evenly.
    """
    nominal = _SENTINEL_BLOCK_PX if scene.product.startswith("sentinel-2") else _BLOCK_PX
    size = max(shape_px(scene, pixel_m, inset_m))
    if 4 * size > 9 * nominal:
        return nominal
    return ceil(size / ceil(size / nominal) / 16) * 16


def _blocks(scene: Scene, file: File, seed: int) -> Iterator[tuple[Window, Place]]:
    """Yield the blocks of a scene's raster in file order, with their pixel centres."""
    height, width = shape_px(scene, file.pixel_m, file.inset_m)
    block_px = block_edge(scene, file.pixel_m, file.inset_m)
    first_m = file.inset_m + file.pixel_m / 2
    x_m = (scene.x_min_m + first_m + file.pixel_m * np.arange(width)).astype(np.int64)
    n_m = (scene.n_max_m - first_m - file.pixel_m * np.arange(height)).astype(np.int64)
    for top in range(0, height, block_px):
        for left in range(0, width, block_px):
            columns, rows = x_m[left : left + block_px], n_m[top : top + block_px]
            window = Window(left, top, len(columns), len(rows))
            yield window, Place(scene.zone, columns, rows, seed)


def _as_jpeg2000(path: Path) -> None:
    """Write the GeoTIFF beside a path as lossless JPEG 2000, in the same blocks, and remove it.

    GDAL cannot write that format block by block. Like the real files it has no nodata tag.
    """
    written = path.with_suffix(".tif")
    with rasterio.open(written) as raster:
        edge = raster.block_shapes[0][0]
    options = {"QUALITY": "100", "REVERSIBLE": "YES", "YCBCR420": "NO"}
    options |= {"BLOCKXSIZE": str(edge), "BLOCKYSIZE": str(edge)}
    rasterio.shutil.copy(written, path, driver="JP2OpenJPEG", **options)
    written.unlink()


def _create(path: Path, scene: Scene, file: File, product: Product) -> Any:
    """Open a new GeoTIFF, whatever the ending of the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    edge = block_edge(scene, file.pixel_m, file.inset_m)
    height, width = shape_px(scene, file.pixel_m, file.inset_m)
    corner = scene.x_min_m + file.inset_m, scene.y_max_m - file.inset_m
    count = len(product.bands) if file.per_band else len(file.members)
    return rasterio.open(
        path.with_suffix(".tif"),
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=count,
        dtype=file.dtype,
        crs=f"EPSG:{scene.epsg}",
        transform=Affine(file.pixel_m, 0, corner[0], 0, -file.pixel_m, corner[1]),
        tiled=True,
        blockxsize=edge,
        blockysize=edge,
        interleave="pixel",
        compress="deflate",
        zlevel=1,
        num_threads=1,
        predictor={"float32": 3, "uint8": 1}.get(file.dtype, 2),
        **_nodata(file, product),
    )


def _nodata(file: File, product: Product) -> dict[str, float]:
    """Return the nodata tag: of images the product's, of a few layers their own, else none."""
    first = file.members[0]
    if isinstance(first, Band):
        return {} if product.nodata is None else {"nodata": product.nodata}
    of_layers = {"classes": 3, "scl": 0, "qa_pixel": 1}
    return {"nodata": of_layers[first.name]} if first.name in of_layers else {}

"""What the extraction is measured against; each function does one process's share of patches."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import rasterio
from _extract_archives import EPSG, Patch
from numcodecs.blosc import BITSHUFFLE, compress
from rasterio.windows import Window

from pipeline.recipe import Shards


def by_rasterio(patches: list[Patch]) -> None:
    """Open each file, read the patch's window, close it: the usual loop."""
    for patch in patches:
        for _, path, _ in patch.files:
            with rasterio.open(path) as file:
                file.read(window=_window(file, patch))


def by_odc_stac(patches: list[Patch]) -> None:
    """Load each location by itself with `odc.stac.load`, on its own pixels."""
    import odc.stac
    from odc.geo.geobox import GeoBox
    from odc.geo.geom import BoundingBox

    for patch in patches:
        top, left = patch.y_max_m, patch.x_min_m
        box = BoundingBox(left, top - patch.size_m, left + patch.size_m, top, f"EPSG:{EPSG}")
        geobox = GeoBox.from_bbox(box, shape=(patch.size_px, patch.size_px))
        item, names = _item(patch)
        loaded = odc.stac.load([item], bands=names, geobox=geobox, resampling="nearest")
        if any(not np.any(loaded[name].values) for name in names):
            raise SystemExit("odc-stac read nothing")


def bound(patches: list[Patch]) -> None:
    """Decode every touched block once with GDAL, and encode every patch once: nothing else."""
    by_file: dict[Path, list[Patch]] = defaultdict(list)
    for patch in patches:
        for _, path, _ in patch.files:
            by_file[path].append(patch)
    layers = []
    edge = patches[0].size_px
    for path, own in by_file.items():
        with rasterio.open(path) as file:
            for block in sorted(_touched(file, own)):
                pixels = file.read(window=Window(*block))
            layers.append(np.resize(pixels[:, :edge, :edge], (len(pixels), edge, edge)))
    # One patch's worth of real pixels stands for each: the encoder does the same work.
    sample = np.concatenate(layers).astype("int16")
    for _ in patches:
        compress(sample.reshape(-1), b"zstd", Shards().compression_level, BITSHUFFLE, 0, 2)


def _touched(file: rasterio.DatasetReader, patches: list[Patch]) -> set[tuple[int, ...]]:
    """Return the blocks that some patches lie in, as windows (column, row, width, height)."""
    height, width = file.block_shapes[0]
    found = set()
    for window in (_window(file, patch) for patch in patches):
        for row in range(window.row_off // height, -(-(window.row_off + window.height) // height)):
            for col in range(window.col_off // width, -(-(window.col_off + window.width) // width)):
                left, top = col * width, row * height
                right, bottom = min(left + width, file.width), min(top + height, file.height)
                found.add((left, top, right - left, bottom - top))
    return found


def _window(file: rasterio.DatasetReader, patch: Patch) -> Window:
    edge = round(patch.size_m / file.transform.a)
    col = round((patch.x_min_m - file.transform.c) / file.transform.a)
    row = round((file.transform.f - patch.y_max_m) / file.transform.a)
    return Window(col, row, edge, edge)


def _item(patch: Patch) -> tuple[object, list[str]]:
    """Return a STAC item of the patch's scene, with its bands by name."""
    import pystac
    from pyproj import Transformer
    from shapely.geometry import box, mapping
    from shapely.ops import transform

    assets: dict[str, pystac.Asset] = {}
    names: list[str] = []
    outline = None
    for name, path, _ in patch.files:
        with rasterio.open(path) as file:
            fields = {
                "proj:epsg": EPSG,
                "proj:shape": list(file.shape),
                "proj:transform": list(file.transform)[:6],
                "raster:bands": [{"data_type": file.dtypes[0]} for _ in range(file.count)],
                "eo:bands": [{"name": f"{name}.{k}"} for k in range(file.count)],
            }
            outline = outline or box(*file.bounds)
            names += [name] if file.count == 1 else [f"{name}.{k}" for k in range(file.count)]
        if len(fields["eo:bands"]) == 1:
            fields["eo:bands"] = [{"name": name}]
        assets[name] = pystac.Asset(
            str(path), media_type="image/tiff; application=geotiff", roles=["data"],
            extra_fields=fields,
        )  # fmt: skip
    to_degrees = Transformer.from_crs(EPSG, 4326, always_xy=True).transform
    ground = transform(to_degrees, outline)
    from datetime import UTC, datetime

    item = pystac.Item(
        "scene", mapping(ground), list(ground.bounds), datetime(2021, 7, 1, tzinfo=UTC), {}
    )
    item.stac_extensions = [
        "https://stac-extensions.github.io/projection/v1.1.0/schema.json",
        "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
        "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
    ]
    for name, asset in assets.items():
        item.add_asset(name, asset)
    return item, names

"""What a plan will cost: counted from its first candidates, without asking anyone."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.products.catalogue import Band, BandAsset, MaskLayer
from pipeline.raster.masks import native_dtype
from pipeline.raster.zones import FALSE_NORTHING_SOUTH_M, Floats, Ints
from pipeline.recipe import LoadedRecipe
from pipeline.stages.extract import choose_file
from pipeline.stages.plan.plan import Plan
from pipeline.stages.plan.ragged import codes_of

#: Edge of the compressed blocks that are assumed, in pixels: the largest that providers use
#: (Sentinel-2 of Earth Search and JPEG 2000 of ESA 1024, Planetary Computer and EnMAP 512).
_BLOCK_PX = 1024

#: What a worker needs beside the shard it builds (design, section 7).
_WORKER_BYTES = 10**9


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a plan will cost if every first candidate is taken."""

    samples: int
    """Locations."""
    patches: int
    """Planned patches that have candidates."""
    without_candidates: int
    """Planned patches that have none."""
    scenes: int
    """Scenes that are read."""
    shards: int
    requests: int
    """One to open each file of a shard, and one for each row of blocks touched in it."""
    bytes_to_download: int
    """Blocks of 1024 pixels that windows touch, once per shard: by the sizes of files where the
    catalogue states them, else uncompressed."""
    bytes_on_disk: int
    """Uncompressed, so an upper bound."""
    peak_memory_bytes: int
    """Of each worker: its largest shard, and 1 GB."""

    def hours(self, mbit_per_s: float) -> float:
        """Return how long the download takes at a bandwidth in megabits per second."""
        return self.bytes_to_download * 8 / (mbit_per_s * 1e6) / 3600


@dataclass(frozen=True, slots=True)
class _File:
    """A file of each scene of a product."""

    asset: str
    pixel_m: float
    pixel_bytes: int
    """Of all bands in it, uncompressed."""


@dataclass(frozen=True, slots=True, eq=False)
class _Windows:
    """The windows of first candidates: columns of one length, in metres from a scene's corner."""

    shard: Ints
    scene: Ints
    """Row of `Plan.scenes`."""
    east: Floats
    """Of the window's western edge, from the scene's."""
    south: Floats
    """Of its northern edge, from the scene's."""
    size: Floats


def estimate(loaded: LoadedRecipe, plan: Plan) -> Estimate:
    """Count what a plan will cost."""
    read = np.zeros(plan.scenes.num_rows, dtype=bool)
    requests, download = 0, 0.0
    corners, extents = _corners(plan.scenes), _extents(plan.scenes)
    for product in loaded.products:
        windows = _windows(plan, product, corners)
        read[windows.scene] = True
        for pixel_m, files in groupby(_files(loaded, product), lambda file: file.pixel_m):
            asked, shares = _blocks(pixel_m, windows, extents)
            for file in files:
                whole = extents.prod(axis=1) / pixel_m**2 * file.pixel_bytes
                stated = _stated(plan.scenes, file.asset)
                requests += asked
                download += float((shares * np.where(np.isnan(stated), whole, stated)).sum())
    filled = sum(_count(batch) for batch in plan.patches.to_batches())
    return Estimate(
        samples=pc.count_distinct(plan.patches.column("location")).as_py(),
        patches=filled,
        without_candidates=plan.patches.num_rows - filled,
        scenes=int(read.sum()),
        shards=len(plan.shard_rows),
        requests=requests,
        bytes_to_download=round(download),
        bytes_on_disk=int(plan.shard_bytes.sum()),
        peak_memory_bytes=int(plan.shard_bytes.max(initial=0)) + _WORKER_BYTES,
    )


def _count(batch: pa.RecordBatch) -> int:
    return int((pc.list_value_length(batch.column("candidates")).to_numpy() > 0).sum())


def _corners(scenes: pa.Table) -> Floats:
    """Return north-western corners, northings from the equator: shape (scene, 2)."""
    south = scenes.column("epsg").to_numpy() // 100 == 327
    top = scenes.column("y_max_m").to_numpy() - np.where(south, FALSE_NORTHING_SOUTH_M, 0.0)
    return np.stack([scenes.column("x_min_m").to_numpy(), top], axis=1)


def _extents(scenes: pa.Table) -> Floats:
    """Return width and height in metres: shape (scene, 2)."""
    west, south, east, north = (
        scenes.column(f"{name}_m").to_numpy() for name in ("x_min", "y_min", "x_max", "y_max")
    )
    return np.stack([east - west, north - south], axis=1)


def _windows(plan: Plan, product: str, corners: Floats) -> _Windows:
    names = plan.scenes.column("scene")
    parts = [_of_batch(batch, product, names) for batch in plan.patches.to_batches()]
    none = [np.empty((5, 0))]
    shard, scene, west, top, size = np.concatenate(none + parts, axis=1)
    scene = scene.astype(np.int64)
    return _Windows(
        shard.astype(np.int64), scene, west - corners[scene, 0], corners[scene, 1] - top, size
    )


def _of_batch(batch: pa.RecordBatch, product: str, names: pa.ChunkedArray) -> Floats:
    """Return shard, scene, western and northern edge, and size of each window: shape (5, n)."""
    batch = batch.filter(pc.equal(batch.column("product"), product))
    candidates = batch.column("candidates")
    batch = batch.filter(pc.greater(pc.list_value_length(candidates), 0))
    first = pc.list_element(batch.column("candidates"), 0)
    row = pc.list_parent_indices(first).to_numpy()
    scene = pc.index_in(pc.list_flatten(first), names).to_numpy()
    south = batch.column("epsg").to_numpy() // 100 == 327
    top = batch.column("y_max_m").to_numpy() - np.where(south, FALSE_NORTHING_SOUTH_M, 0.0)
    shard, west, size = (batch.column(n).to_numpy() for n in ("shard", "x_min_m", "size_m"))
    return np.stack([shard[row], scene, west[row], top[row], size[row]])


def _blocks(pixel_m: float, windows: _Windows, extents: Floats) -> tuple[int, Floats]:
    """Return requests, and the share of each scene's blocks that are read, over all shards.

    Parameters
    ----------
    extents : float array, shape (scene, 2)
        In metres.
    """
    block_m = _BLOCK_PX * pixel_m
    last = np.maximum(np.ceil(extents / block_m) - 1, 0)[windows.scene]
    start = np.stack([windows.east, windows.south], axis=1)
    low = np.clip(np.floor(start / block_m), 0, last).astype(np.int64)
    high = np.ceil((start + windows.size[:, None]) / block_m) - 1
    high = np.clip(high, low, last).astype(np.int64)
    # Blocks right and down of each window's first, as far as the widest window reaches.
    steps = np.arange(int((high - low).max(initial=0)) + 1)
    touched = (steps <= (high - low)[:, :1])[:, :, None] & (steps <= (high - low)[:, 1:])[:, None]
    window, right, down = np.nonzero(touched)
    col, row = low[window, 0] + right, low[window, 1] + down
    opened, files = codes_of(windows.shard, windows.scene)
    rows, requests = codes_of(opened[window], row)
    _, first = np.unique(codes_of(rows, col)[0], return_index=True)
    scene, corner = windows.scene[window[first]], np.stack([col, row], axis=1)[first] * block_m
    area = np.minimum(extents[scene] - corner, block_m).prod(axis=1) / extents[scene].prod(axis=1)
    shares = np.bincount(scene, area, minlength=len(extents))
    return files + requests, shares.astype(np.float64)


def _stated(scenes: pa.Table, asset: str) -> Floats:
    """Return the lengths of one file of each scene, NaN where the catalogue does not say."""
    length = np.full(scenes.num_rows, np.nan)
    if "assets" not in scenes.column_names:
        return length
    start = 0
    for chunk in scenes.column("assets").chunks:
        mine = pc.equal(pc.struct_field(pc.list_flatten(chunk), "name"), asset)
        parents = pc.list_parent_indices(chunk).filter(mine).to_numpy()
        found = pc.struct_field(pc.list_flatten(chunk), "size_bytes").filter(mine)
        length[start + parents] = found.cast(pa.float64()).to_numpy(zero_copy_only=False)
        start += len(chunk)
    return length


def _files(loaded: LoadedRecipe, product: str) -> list[_File]:
    """Return the files that are read of each scene of a product, by pixel size."""
    facts, wish = loaded.products[product], loaded.wishes[product]
    served = facts.providers.get(wish.providers[0])
    entries = {} if served is None else served.assets
    bands = [facts.band(name) for name in loaded.bands(product)]
    wanted: list[tuple[Band | MaskLayer, tuple[BandAsset, ...]]] = [
        (band, entries.get(band.name, entries.get("*", ()))) for band in bands
    ]
    layers = [layer for layer in facts.mask_layers if entries.get(layer.name)]
    wanted += [(layer, entries[layer.name]) for layer in layers]
    if facts.mask is not None and not layers:
        more = [facts.band(name) for name in facts.mask.names if name not in loaded.bands(product)]
        wanted += [(band, entries.get(band.name, entries.get("*", ()))) for band in more]
    found: dict[tuple[float, str], int] = {}
    for number, (layer, there) in enumerate(wanted):
        stored = number < len(bands)
        file = choose_file(
            there,
            native_m=layer.pixel_m,
            stored_m=loaded.pixel_m(product),
            finer=wish.resampling is not None or not stored,
        )
        asset, pixel_m = (layer.name, None) if file is None else (file.asset, file.pixel_m)
        image = isinstance(layer, Band)
        kind = np.dtype(facts.stored_dtype) if image else native_dtype(facts)
        key = pixel_m or layer.pixel_m, asset
        found[key] = found.get(key, 0) + kind.itemsize
    return [_File(asset, pixel_m, size) for (pixel_m, asset), size in sorted(found.items())]

"""What a plan will cost: counted from its first candidates, without asking anyone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from numpy.typing import NDArray

from pipeline.products.model import Band, BandAsset, MaskLayer, ProviderFacts
from pipeline.raster.masks import native_dtype
from pipeline.raster.sentinel1 import may_have_border_noise
from pipeline.raster.zones import FALSE_NORTHING_SOUTH_M, Floats, Ints
from pipeline.recipe import LoadedRecipe
from pipeline.stages.extract import choose_file
from pipeline.stages.plan.plan import Plan
from pipeline.stages.plan.ragged import codes_of

#: Edge of the compressed blocks that are assumed, in pixels: the largest that providers use
#: (Sentinel-2 of Earth Search and JPEG 2000 of ESA 1024, Planetary Computer and EnMAP 512).
_BLOCK_PX = 1024

#: Pixels that are read around a cell where files are warped (`pipeline.raster.warp`).
_MARGIN_PX = 4
#: What the first request for a file brings (`pipeline.sources.bytes.remote`).
_HEAD_BYTES = 2**16
#: What files that are warped are read by, from where the decoder asks (`pipeline.raster.warp`).
_PAGE_BYTES = 2**18
#: Files with a scene's coefficients where the catalogue states no length: a calibration or noise
#: table of Sentinel-1 has 1 to 2 MB, an MTL.json 20 kB, a METADATA.XML of EnMAP 4 MB.
_TABLE_BYTES = {
    "sentinel-1-sigma0": 1_500_000,
    "landsat-toa": 20_000,
    "enmap-radiance": 4_200_000,
}
#: Delivered pixels of what has coefficients are 16 bits, whatever is stored (Sentinel-1 Product
#: Specification: amplitude; Landsat Collection 2 Level 1 Data Format Control Book: numbers).
_RAW_BYTES = 2
#: Radius of the sphere with the Earth's surface (WGS 84), in metres.
_AUTHALIC_M = 6_371_007.2
#: Widest UTM zone by eastings, doubled: so cells of two zones share no block.
_ZONE_M = 2_000_000

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
    """One to open each file of a shard, and one for each row of blocks touched in it, where the
    file is warped for each block. Of Earth Engine one for each window; none for files on this
    machine."""
    bytes_to_download: int
    """Heads of files (64 kB), and blocks of 1024 pixels that windows touch, once per shard: by the
    sizes of files where the catalogue states them, else uncompressed. Where files are warped, in
    whole pages of 256 kB. Of Earth Engine the windows alone; of files on this machine nothing."""
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

    def of(self, those: NDArray[np.bool_]) -> _Windows:
        """Return those windows."""
        return _Windows(
            self.shard[those],
            self.scene[those],
            self.east[those],
            self.south[those],
            self.size[those],
        )

    def wider(self, margin_m: float) -> _Windows:
        """Return the windows with as much more around them."""
        east, south = self.east - margin_m, self.south - margin_m
        return _Windows(self.shard, self.scene, east, south, self.size + 2 * margin_m)


@dataclass(frozen=True, slots=True, eq=False)
class _Opened:
    """Files that are opened, once for each shard: columns of one length."""

    scene: Ints
    """Row of `Plan.scenes`."""
    rows: Ints
    """Rows of blocks that are read."""
    blocks: Ints
    share: Floats
    """Of the whole file."""


def estimate(loaded: LoadedRecipe, plan: Plan) -> Estimate:
    """Count what a plan will cost."""
    read = np.zeros(plan.scenes.num_rows, dtype=bool)
    requests, download = 0, 0.0
    for product in loaded.products:
        windows = _windows(plan, product, warped=loaded.products[product].warp is not None)
        read[windows.scene] = True
        for asked, came in _costs(loaded, product, plan.scenes, windows):
            requests += asked
            download += came
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


def _costs(
    loaded: LoadedRecipe, product: str, scenes: pa.Table, windows: _Windows
) -> Iterator[tuple[int, float]]:
    """Yield requests and bytes of each kind of file of a product."""
    warped, stored_m = loaded.products[product].warp is not None, loaded.pixel_m(product)
    scheme = _schemes(scenes)[windows.scene]
    asked, there = windows.of(scheme == "ee"), windows.of((scheme != "ee") & (scheme != ""))
    extents = np.full((scenes.num_rows, 2), np.inf) if warped else _extents(scenes)
    ground = _ground(scenes) if warped else extents.prod(axis=1)
    for pixel_m, group in groupby(_files(loaded, product), lambda file: file.pixel_m):
        files = list(group)
        # What is computed for a cell comes on its own pixels.
        pixels = float(((asked.size / (stored_m if warped else pixel_m)) ** 2).sum())
        yield len(asked.scene), pixels * sum(file.pixel_bytes for file in files)
        near = there.wider(_MARGIN_PX * pixel_m) if warped else there
        opened = _blocks(pixel_m, near, extents, ground)
        for file in files:
            size = _sizes(scenes, file.asset, ground / pixel_m**2 * file.pixel_bytes)[opened.scene]
            yield _paged(opened, size) if warped else _ranged(opened, size)
    _, first = np.unique(codes_of(there.shard, there.scene)[0], return_index=True)
    yield from _tables(loaded, product, scenes, there.scene[first])


def _ranged(opened: _Opened, size: Floats) -> tuple[int, float]:
    """Return requests and bytes of files of which blocks are fetched after the head, by row."""
    more = size > _HEAD_BYTES
    came = np.where(more, _HEAD_BYTES + opened.share * size, size)
    return len(size) + int(opened.rows[more].sum()), float(came.sum())


def _paged(opened: _Opened, size: Floats) -> tuple[int, float]:
    """Return requests and bytes of files of which pages are fetched, block by block.

    After its head comes the file's first page. Bytes that stand together begin and end somewhere
    in a page, so they need one more page than they fill.
    """
    pages = opened.share * size + (opened.rows + 1) * _PAGE_BYTES
    came = np.where(size > _HEAD_BYTES, _HEAD_BYTES + np.minimum(size, pages), size)
    steps = np.minimum(np.ceil(size / _PAGE_BYTES), opened.blocks + 1)
    return len(size) + int(steps[size > _HEAD_BYTES].sum()), float(came.sum())


def _tables(
    loaded: LoadedRecipe, product: str, scenes: pa.Table, read: Ints
) -> Iterator[tuple[int, float]]:
    """Yield requests and bytes of each file of coefficients, of scenes as often as they are read.

    They are taken whole, after their heads.
    """
    facts = loaded.products[product]
    if facts.calibration is None:
        return
    noise, noisy = facts.calibration.noise, read
    if noise is not None:
        when = scenes.column("acquired").take(pa.array(read)).to_pylist()
        noisy = read[np.array([may_have_border_noise(moment) for moment in when], dtype=bool)]
    assets = _served(loaded, product).assets
    names = [name for band in loaded.bands(product) for name in facts.coefficients(band)]
    unknown = np.full(scenes.num_rows, _TABLE_BYTES[facts.calibration.method], dtype=np.float64)
    for name in dict.fromkeys(names):
        which = noisy if noise is not None and name.startswith(f"{noise} ") else read
        asset = assets[name][0].asset if assets.get(name) else name
        size = _sizes(scenes, asset, unknown)[which]
        more = size > _HEAD_BYTES
        yield len(size) + int(more.sum()), float((size + more * _HEAD_BYTES).sum())


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


def _ground(scenes: pa.Table) -> Floats:
    """Return the area of footprints in square metres: shape (scene,)."""
    shapes = shapely.from_wkb(scenes.column("geometry").to_numpy())

    def equal_area(lonlat: Floats) -> Floats:
        lon, lat = np.radians(lonlat).T
        return _AUTHALIC_M * np.stack([lon, np.sin(lat)], axis=1)

    area: Floats = shapely.area(shapely.transform(shapes, equal_area))
    return area


def _schemes(scenes: pa.Table) -> NDArray[np.str_]:
    """Return how the files of each scene are addressed: shape (scene,).

    `ee` are computed for each window, and without one they are on this machine. Where the table
    does not say, they are on the network.
    """
    scheme = np.full(scenes.num_rows, "https", dtype="<U8")
    if "assets" not in scenes.column_names:
        return scheme
    start = 0
    for chunk in scenes.column("assets").chunks:
        some = pc.list_value_length(chunk).to_numpy() > 0
        first = pc.list_element(chunk.filter(pa.array(some)), 0)
        found = pc.extract_regex(pc.struct_field(first, "href"), r"^(?P<scheme>[a-z0-9]{1,8})://")
        named = pc.fill_null(pc.struct_field(found, "scheme"), "")
        scheme[start + np.flatnonzero(some)] = named.to_numpy(zero_copy_only=False)
        start += len(chunk)
    return scheme


def _windows(plan: Plan, product: str, *, warped: bool) -> _Windows:
    """Return the windows of a product's first candidates.

    No scene that is warped has a corner in the plane of the cells: there the corner is that of the
    plane, and blocks are counted as if the file's grid were the plane's. It lies otherwise under
    the cells, but its blocks are as large.
    """
    names = plan.scenes.column("scene")
    parts = [_of_batch(batch, product, names) for batch in plan.patches.to_batches()]
    none = [np.empty((6, 0))]
    shard, scene, west, top, size, zone = np.concatenate(none + parts, axis=1)
    shard, scene = shard.astype(np.int64), scene.astype(np.int64)
    if warped:
        return _Windows(shard, scene, west + zone * _ZONE_M, FALSE_NORTHING_SOUTH_M - top, size)
    corners = _corners(plan.scenes)
    return _Windows(shard, scene, west - corners[scene, 0], corners[scene, 1] - top, size)


def _of_batch(batch: pa.RecordBatch, product: str, names: pa.ChunkedArray) -> Floats:
    """Return shard, scene, western and northern edge, size, zone of each window: shape (6, n)."""
    batch = batch.filter(pc.equal(batch.column("product"), product))
    candidates = batch.column("candidates")
    batch = batch.filter(pc.greater(pc.list_value_length(candidates), 0))
    first = pc.list_element(batch.column("candidates"), 0)
    row = pc.list_parent_indices(first).to_numpy()
    scene = pc.index_in(pc.list_flatten(first), names).to_numpy()
    epsg = batch.column("epsg").to_numpy()
    top = batch.column("y_max_m").to_numpy() - np.where(
        epsg // 100 == 327, FALSE_NORTHING_SOUTH_M, 0.0
    )
    shard, west, size = (batch.column(n).to_numpy() for n in ("shard", "x_min_m", "size_m"))
    return np.stack([shard[row], scene, west[row], top[row], size[row], epsg[row] % 100])


def _blocks(pixel_m: float, windows: _Windows, extents: Floats, ground: Floats) -> _Opened:
    """Return what is read of each file, once for each shard.

    Parameters
    ----------
    extents : float array, shape (scene, 2)
        In metres.
    ground : float array, shape (scene,)
        What a whole file shows, in square metres.
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
    rows, _ = codes_of(opened[window], row)
    _, one = np.unique(rows, return_index=True)
    _, first = np.unique(codes_of(rows, col)[0], return_index=True)
    scene, corner = windows.scene[window[first]], np.stack([col, row], axis=1)[first] * block_m
    area = np.minimum(extents[scene] - corner, block_m).prod(axis=1) / ground[scene]
    of = opened[window[first]]
    scene_of = np.zeros(files, dtype=np.int64)
    scene_of[opened] = windows.scene
    return _Opened(
        scene_of,
        np.bincount(opened[window[one]], minlength=files),
        np.bincount(of, minlength=files),
        np.minimum(np.bincount(of, area, minlength=files), 1.0),
    )


def _sizes(scenes: pa.Table, asset: str, otherwise: Floats) -> Floats:
    """Return the length of one file of each scene, as stated or else another."""
    stated = _stated(scenes, asset)
    return np.where(np.isnan(stated), otherwise, stated)


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


def _served(loaded: LoadedRecipe, product: str) -> ProviderFacts:
    """Return the names of the product's first provider."""
    provider = loaded.wishes[product].providers[0]
    return loaded.products[product].providers.get(provider, ProviderFacts(collection=""))


def _files(loaded: LoadedRecipe, product: str) -> list[_File]:
    """Return the files that are read of each scene of a product, by pixel size."""
    facts, wish = loaded.products[product], loaded.wishes[product]
    served = _served(loaded, product)
    bands = [facts.band(name) for name in loaded.bands(product)]
    wanted: list[tuple[Band | MaskLayer, tuple[BandAsset, ...]]] = [
        (band, served.entries(band)) for band in bands
    ]
    parts = dict.fromkeys(band.part for band in bands)
    layers = [
        (layer, files)
        for layer in facts.mask_layers
        for files in dict.fromkeys(served.marks(layer.name, part) for part in parts)
        if files
    ]
    wanted += layers
    if facts.mask is not None and not layers:
        more = [facts.band(name) for name in facts.mask.names if name not in loaded.bands(product)]
        wanted += [(band, served.entries(band)) for band in more]
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
        size = (np.dtype(facts.stored_dtype) if image else native_dtype(facts)).itemsize
        key = pixel_m or layer.pixel_m, asset
        found[key] = found.get(key, 0) + (_RAW_BYTES if image and facts.calibration else size)
    return [_File(asset, pixel_m, size) for (pixel_m, asset), size in sorted(found.items())]

"""Write the shards of a data set straight from the truth, without scenes, network or GDAL.

The root that results is like any other: locations, scenes, a plan, shards, commits with their
ledger; publish it and train on it. Only numpy and what the store needs are imported, so a machine
that trains can make its own test data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil, floor, isqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import RecipeError
from pipeline.ports import ObjectStore
from pipeline.products.catalogue import LEGEND, Product, lattice
from pipeline.raster.masks import decode, native_dtype, pack
from pipeline.raster.statistics import moments
from pipeline.recipe import LoadedRecipe
from pipeline.records import LedgerRow, Location, PlannedPatch, Scene
from pipeline.simulate.clouds import is_fair, sun
from pipeline.simulate.globe import lon_lat, square_wkb
from pipeline.simulate.ground import pixel_centres, reflectance, view
from pipeline.simulate.landscape import landscape
from pipeline.simulate.noise import Place
from pipeline.simulate.scenes import quality_layers
from pipeline.stages.slots import Slot, slots_of
from pipeline.store import layout
from pipeline.store.commit import Commit, write_commit
from pipeline.store.shard import ArraySpec, Encoded, ShardWriter, encode_patch, store_shard
from pipeline.store.tables import append, create_same, encode_table, from_rows

#: Where the block of cells begins: zone, easting, northing (Brandenburg, where the demo is).
_ZONE, _CORNER_M = 33, (300_000, 5_700_000)
_THREADS = 2
_PLAN = 1


@dataclass(frozen=True, slots=True)
class ShardsReport:
    """What was written."""

    locations: int
    patches: int
    shards: int
    size_bytes: int


def write_shards(
    store: ObjectStore,
    loaded: LoadedRecipe,
    *,
    locations: int,
    seed: int = 0,
    advance: Callable[[int], None] | None = None,
) -> ShardsReport:
    """Fill a new root with a compact block of cells, each product at one fair hour per slot.

    Parameters
    ----------
    store : ObjectStore
        The root; it must be empty.
    loaded : LoadedRecipe
        Says cells, slots, products and bands; where its samples lie is not asked.
    locations : int
        How many cells.
    seed : int
        Which world.
    advance : callable or None
        Called with a number of locations when they are written.

    Raises
    ------
    RecipeError
        The root is not empty, or the recipe has a product that cannot be simulated.
    """
    if next(iter(store.list()), None) is not None:
        raise RecipeError(f"{store.url} is not empty; simulated shards need a new root.")
    layout.claim(store, loaded)
    cells = _cells(loaded, locations)
    times = _times(loaded, seed)
    patches = _planned(loaded, cells, times)
    scenes = _scenes(loaded, times)
    append(store, layout.LOCATIONS, from_rows(cells, Location), Location)
    append(store, layout.SCENES, from_rows(scenes, Scene), Scene)
    digest = _write_plan(store, loaded, patches, scenes)
    size_bytes = 0
    per_shard = _per_shard(loaded, len(times))
    for number, first in enumerate(range(0, len(cells), per_shard)):
        here = cells[first : first + per_shard]
        size_bytes += _write_shard(store, loaded, number, here, times, seed, digest)
        if advance is not None:
            advance(len(here))
    return ShardsReport(len(cells), len(patches), ceil(len(cells) / per_shard), size_bytes)


# --- what is where and when -----------------------------------------------------------------------


def _cells(loaded: LoadedRecipe, count: int) -> list[Location]:
    """Return a square block of cells of the recipe's lattice."""
    grid, size = loaded.lattice, loaded.recipe.cell.size_px
    size_m, side = loaded.cell_m, isqrt(count - 1) + 1
    first_col = floor((_CORNER_M[0] - grid.x_phase_m) / size_m)
    first_row = floor((_CORNER_M[1] - grid.y_phase_north_m) / size_m)
    cells = []
    for index in range(count):
        col, row = first_col + index % side, first_row + index // side
        x_min_m = grid.x_phase_m + col * size_m
        y_max_m = grid.y_phase_north_m + (row + 1) * size_m
        lon, lat = lon_lat(_ZONE, x_min_m + size_m / 2, y_max_m - size_m / 2)
        cells.append(
            Location(
                location=f"{_ZONE}N-{grid.id}-{size}-{col:05d}-{row:05d}",
                index=index,
                zone=f"{_ZONE}N",
                epsg=32600 + _ZONE,
                x_min_m=x_min_m,
                y_max_m=y_max_m,
                size_m=size_m,
                lon_deg=lon,
                lat_deg=lat,
                stratum="simulated",
                geometry=square_wkb(_ZONE, x_min_m, y_max_m, size_m),
            )
        )
    return cells


def _times(loaded: LoadedRecipe, seed: int) -> list[tuple[Slot, datetime]]:
    """Return for each slot the first fair hour at nine from its middle on."""
    times = []
    for slot in slots_of(loaded.recipe.slots, settling_days=0, cutoff=None):
        when = slot.middle.replace(hour=9, minute=30, second=0, microsecond=0)
        while not is_fair(_ZONE, when, seed):
            when += timedelta(days=1)
        times.append((slot, when))
    return times


def _scene_id(product: str, when: datetime) -> str:
    return f"{product}/simulated-{when:%Y%m%dT%H%M%S}/all"


def _scenes(loaded: LoadedRecipe, times: list[tuple[Slot, datetime]]) -> list[Scene]:
    """Return one scene without files for each product and time: it stands for what was seen."""
    elevation = {when: sun(_ZONE, _CORNER_M[1], when)[0] for _, when in times}
    return [
        Scene(
            scene=_scene_id(product, when),
            product=product,
            provider="simulated",
            item=f"{product}-{when:%Y%m%dT%H%M%S}",
            datatake=f"simulated-{when:%Y%m%dT%H%M%S}",
            tile="all",
            acquired=when,
            baseline="",
            offset_add=0,
            cloud_percent=0.0,
            sun_elevation_deg=elevation[when],
            epsg=32600 + _ZONE,
            x_min_m=200_000.0,
            y_min_m=0.0,
            x_max_m=800_000.0,
            y_max_m=9_000_000.0,
            geometry=square_wkb(_ZONE, *_CORNER_M, 1000.0),
            assets=[],
        )
        for product in loaded.products
        for _, when in times
    ]


def _planned(
    loaded: LoadedRecipe, cells: list[Location], times: list[tuple[Slot, datetime]]
) -> list[PlannedPatch]:
    per_shard = _per_shard(loaded, len(times))
    patches = [
        PlannedPatch(
            shard=cell.index // per_shard,
            sample=cell.index % per_shard,
            time=time,
            location=cell.location,
            product=product,
            slot=slot.id,
            group=loaded.leader[product],
            candidates=[[_scene_id(product, when)]],
            epsg=cell.epsg,
            x_min_m=cell.x_min_m,
            y_max_m=cell.y_max_m,
            size_m=cell.size_m,
            lon_deg=cell.lon_deg,
            lat_deg=cell.lat_deg,
        )
        for cell in cells
        for product in loaded.products
        for time, (slot, when) in enumerate(times)
    ]
    return sorted(patches, key=lambda p: (p.shard, p.product, p.sample, p.time))


def _per_shard(loaded: LoadedRecipe, times: int) -> int:
    """Return how many locations fill a shard."""
    patch_bytes = sum(
        len(loaded.bands(key)) * loaded.size_px(key) ** 2 * np.dtype(facts.stored_dtype).itemsize
        for key, facts in loaded.products.items()
    )
    return max(1, int(loaded.recipe.shards.shard_mb * 1e6) // (patch_bytes * times))


def _write_plan(
    store: ObjectStore, loaded: LoadedRecipe, patches: list[PlannedPatch], scenes: list[Scene]
) -> str:
    """Write the lock and return the digest of its table."""
    shards = [patch.shard for patch in patches]
    table = encode_table(from_rows(patches, PlannedPatch), row_groups=np.bincount(shards).tolist())
    named = encode_table(from_rows(scenes, Scene))
    digest = hashlib.sha256(table).hexdigest()
    create_same(store, layout.plan(_PLAN), table)
    create_same(store, layout.plan_scenes(_PLAN), named)
    header = {
        "format": layout.FORMAT,
        "number": _PLAN,
        "identity": loaded.identity,
        "recipe": loaded.dump(),
        "cutoff": None,
        "shards": max(shards) + 1,
        "patches": len(patches),
        "scenes": len(scenes),
        "bytes": 0,
        "patches_sha256": digest,
        "scenes_sha256": hashlib.sha256(named).hexdigest(),
    }
    create_same(store, layout.plan_header(_PLAN), layout.dump_json(header))
    return digest


# --- pixels ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Patch:
    """One finished patch and its row."""

    encoded: Encoded
    row: LedgerRow


def _write_shard(
    store: ObjectStore,
    loaded: LoadedRecipe,
    number: int,
    cells: list[Location],
    times: list[tuple[Slot, datetime]],
    seed: int,
    plan_digest: str,
) -> int:
    specs = {key: _spec(loaded, key, len(cells), len(times)) for key in loaded.products}
    writer, rows = ShardWriter(specs), []
    wanted = [
        (key, sample, time)
        for key in specs
        for sample in range(len(cells))
        for time in range(len(times))
    ]

    def make(place: tuple[str, int, int]) -> _Patch:
        key, sample, time = place
        return _patch(loaded, specs[key], cells[sample], sample, time, times[time], seed)

    with ThreadPoolExecutor(_THREADS) as pool:
        for (key, sample, time), patch in zip(wanted, pool.map(make, wanted), strict=True):
            writer.put(key, sample, time, patch.encoded)
            rows.append(patch.row)
    for key, spec in specs.items():
        corners = [_corner(loaded.products[key], spec.pixel_m, cell) for cell in cells]
        writer.set_coordinates(
            key,
            location=[cell.location for cell in cells],
            epsg=[cell.epsg for cell in cells],
            x_origin_m=[x for x, _ in corners],
            y_origin_m=[y for _, y in corners],
            scene=[[_scene_id(key, when) for _, when in times]] * len(cells),
            acquired=np.array(
                [[np.datetime64(when.replace(tzinfo=None), "us") for _, when in times]] * len(cells)
            ),
        )
    name = layout.shard_name(_PLAN, number)
    objects = store_shard(store, layout.shard_folder(name, 1), writer)
    write_commit(
        store,
        Commit(
            shard=name,
            revision=1,
            plan=_PLAN,
            identity=loaded.identity,
            plan_digest=plan_digest,
            objects=objects,
            specs=specs,
            ledger=from_rows(rows, LedgerRow),
        ),
    )
    return sum(size for _, size in objects.values())


def _spec(loaded: LoadedRecipe, key: str, samples: int, times: int) -> ArraySpec:
    facts, bands = loaded.products[key], loaded.bands(key)
    return ArraySpec(
        product=key,
        samples=samples,
        times=times,
        bands=bands,
        size_px=loaded.size_px(key),
        dtype=facts.stored_dtype,
        fill=facts.fill,
        scale=facts.scale,
        offset=facts.offset,
        unit=facts.unit,
        wavelength_nm=tuple(facts.band(name).wavelength_nm for name in bands),
        pixel_m=loaded.pixel_m(key),
        native_dtype=native_dtype(facts).name if facts.mask_layers else None,
        compression_level=loaded.recipe.shards.compression_level,
    )


def _patch(
    loaded: LoadedRecipe,
    spec: ArraySpec,
    cell: Location,
    sample: int,
    time: int,
    slot_time: tuple[Slot, datetime],
    seed: int,
) -> _Patch:
    """Compute, encode and describe one patch."""
    facts, (slot, when) = loaded.products[spec.product], slot_time
    x_min_m, y_max_m = _corner(facts, spec.pixel_m, cell)
    step = (np.arange(spec.size_px) + 0.5) * spec.pixel_m
    place = Place(
        _ZONE,
        np.floor(x_min_m + step).astype(np.int64),
        np.floor(y_max_m - step).astype(np.int64),
        seed,
    )
    bands = stored_values(facts, spec.bands, place, when)
    mask, native = _masks(facts, place, when)
    encoded = encode_patch(spec, bands, mask, native)
    unseen = np.broadcast_to(bands == facts.fill, bands.shape)
    found = moments(bands, unseen)
    row = LedgerRow(
        sample=sample,
        time=time,
        location=cell.location,
        product=spec.product,
        slot=slot.id,
        state="written",
        reason="",
        detail="",
        rank=0,
        scenes=[_scene_id(spec.product, when)],
        acquired=when,
        clear_fraction=1.0,
        valid_fraction=1.0,
        mask_source="product" if facts.mask_layers else "none",
        absent_bands=[],
        defective_fraction=None,
        saturated_count=0,
        shift_x_px=(x_min_m - cell.x_min_m) / spec.pixel_m,
        shift_y_px=(cell.y_max_m - y_max_m) / spec.pixel_m,
        resampling="none",
        pixel_digest=encoded.digest,
        count=found.count.tolist(),
        mean=found.mean.tolist(),
        m2=found.m2.tolist(),
        minimum=found.minimum.tolist(),
        maximum=found.maximum.tolist(),
        sources=[],
    )
    return _Patch(encoded, row)


def stored_values(
    product: Product, bands: tuple[str, ...], place: Place, when: datetime
) -> npt.NDArray[Any]:
    """Return what a data set stores of a product where everything was seen, shape (band, y, x)."""
    dtype = np.dtype(product.stored_dtype)
    if product.kind == "labels":
        ground = landscape(pixel_centres(place, product, product.bands[0].pixel_m))
        return ground.arrangement[None].astype(dtype)
    return reflectance(product, bands, place, when).astype(dtype)


def _masks(
    product: Product, place: Place, when: datetime
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any] | None]:
    if not product.mask_layers:
        return np.full(place.shape, LEGEND["valid"], np.uint8), None
    centres = pixel_centres(place, product, product.mask_layers[0].pixel_m)
    layers = quality_layers(product, view(centres, when))
    return decode(layers, product), pack(layers, product)


def _corner(product: Product, pixel_m: float, cell: Location) -> tuple[float, float]:
    """Return the upper left corner of the product's pixels nearest to the cell's.

    Halves go east and south (`floor(x + 1/2)` of the pixel position), as everywhere.
    """
    grid = lattice(product.lattice)
    x_px = floor((cell.x_min_m - grid.x_phase_m) / pixel_m + 0.5)
    y_px = -floor(-(cell.y_max_m - grid.y_phase_north_m) / pixel_m + 0.5)
    return grid.x_phase_m + x_px * pixel_m, grid.y_phase_north_m + y_px * pixel_m

"""Write the shards of a data set straight from the truth, without scenes, network or GDAL.

The root that results is like any other: locations, scenes, a plan, shards, commits with their
ledger; publish it and train on it. Only numpy and what the store needs are imported, so a machine
that trains can make its own test data.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from math import ceil, floor
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import RecipeError
from pipeline.ports import ObjectStore
from pipeline.products.catalogue import lattice
from pipeline.products.model import LEGEND, Product
from pipeline.raster.masks import decode, native_dtype, pack
from pipeline.raster.statistics import moments
from pipeline.recipe import LoadedRecipe
from pipeline.records import LedgerRow, Location, Scene
from pipeline.simulate.delivery.scenes import quality_layers
from pipeline.simulate.plans import (
    PLAN,
    ZONE,
    Times,
    block_of_cells,
    fair_times,
    per_shard,
    planned,
    scene_id,
    scenes_of,
    write_plan,
)
from pipeline.simulate.truth.ground import STEP, kind_of, pixel_centres, reflectance, view
from pipeline.simulate.truth.noise import Place
from pipeline.stages.slots import Slot
from pipeline.store import layout
from pipeline.store.commit import Commit, write_commit
from pipeline.store.shard import (
    ArraySpec,
    Encoded,
    ShardWriter,
    band_facts,
    encode_patch,
    store_shard,
)
from pipeline.store.tables import append, from_rows

_THREADS = 2


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
    warped = sorted(key for key, facts in loaded.products.items() if facts.lattice is None)
    if warped:
        raise RecipeError(
            f"recipe {loaded.name}: cannot simulate shards of {', '.join(warped)}, which lie on no "
            "lattice; `terrashard simulate` without `--shards` makes their files."
        )
    layout.claim(store, loaded)
    cells = block_of_cells(loaded, locations)
    times = fair_times(loaded, seed)
    patches = planned(loaded, cells, times)
    scenes = scenes_of(loaded, times)
    append(store, layout.LOCATIONS, from_rows(cells, Location), Location)
    append(store, layout.SCENES, from_rows(scenes, Scene), Scene)
    digest = write_plan(store, loaded, patches, scenes)
    size_bytes = 0
    share = per_shard(loaded, len(times))
    for number, first in enumerate(range(0, len(cells), share)):
        here = cells[first : first + share]
        size_bytes += _write_shard(store, loaded, number, here, times, seed, digest)
        if advance is not None:
            advance(len(here))
    return ShardsReport(len(cells), len(patches), ceil(len(cells) / share), size_bytes)


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
    times: Times,
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
            scene=[[scene_id(key, when) for _, when in times]] * len(cells),
            acquired=np.array(
                [[np.datetime64(when.replace(tzinfo=None), "us") for _, when in times]] * len(cells)
            ),
        )
    name = layout.shard_name(PLAN, number)
    objects = store_shard(store, layout.shard_folder(name, 1), writer)
    write_commit(
        store,
        Commit(
            shard=name,
            revision=1,
            plan=PLAN,
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
        **band_facts(facts, bands),
        pixel_m=loaded.pixel_m(key),
        native_dtype=native_dtype(facts).name if facts.mask_layers else None,
        codec=loaded.recipe.shards.codec,
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
        ZONE,
        np.floor(x_min_m + step).astype(np.int64),
        np.floor(y_max_m - step).astype(np.int64),
        seed,
    )
    bands = stored_values(facts, spec.bands, place, when)
    mask, native = _masks(facts, spec.bands, place, when)
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
        scenes=[scene_id(spec.product, when)],
        acquired=when,
        clear_fraction=1.0,
        valid_fraction=1.0,
        mask_source="product" if facts.mask_layers else "none",
        offset_audit="none" if facts.offsets else "",
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
        residual=[],
        sources=[],
    )
    return _Patch(encoded, row)


def stored_values(
    product: Product, bands: tuple[str, ...], place: Place, when: datetime
) -> npt.NDArray[Any]:
    """Return what a data set stores of a product where everything was seen, shape (band, y, x)."""
    values = reflectance(product, bands, place, when).astype(np.float64)
    for layer, name in zip(values, bands, strict=True):
        layer *= STEP[kind_of(product, product.band(name))]
    if product.calibration is None:  # else physical values are stored
        values = (values - product.offset) / product.scale
    dtype = np.dtype(product.stored_dtype)
    return values.astype(dtype) if dtype.kind == "f" else np.rint(values).astype(dtype)


def _masks(
    product: Product, bands: tuple[str, ...], place: Place, when: datetime
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any] | None]:
    if not product.mask_layers:
        return np.full(place.shape, LEGEND["valid"], np.uint8), None
    centres = pixel_centres(place, product, product.mask_layers[0].pixel_m)
    layers = quality_layers(product, view(centres, when))
    return decode(layers, product, bands), pack(layers, product)


def _corner(product: Product, pixel_m: float, cell: Location) -> tuple[float, float]:
    """Return the upper left corner of the product's pixels nearest to the cell's.

    Halves go east and south (`floor(x + 1/2)` of the pixel position), as everywhere.
    """
    grid = lattice(product.lattice or "")
    x_px = floor((cell.x_min_m - grid.x_phase_m) / pixel_m + 0.5)
    y_px = -floor(-(cell.y_max_m - grid.y_phase_north_m) / pixel_m + 0.5)
    return grid.x_phase_m + x_px * pixel_m, grid.y_phase_north_m + y_px * pixel_m

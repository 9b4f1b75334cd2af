"""What a data set without scenes holds and when: cells, hours, one scene for each, and the plan."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from math import floor, isqrt

import numpy as np

from pipeline.ports import ObjectStore
from pipeline.recipe import LoadedRecipe
from pipeline.records import Location, PlannedPatch, Scene
from pipeline.simulate.truth.clouds import is_fair, sun
from pipeline.simulate.truth.globe import lon_lat, square_wkb
from pipeline.stages.slots import Slot, slots_of
from pipeline.store import layout
from pipeline.store.tables import create_same, encode_table, from_rows

#: Where the block of cells begins: zone, easting, northing (Brandenburg, where the demo is).
ZONE, _CORNER_M = 33, (300_000, 5_700_000)
#: Number of the only plan.
PLAN = 1

Times = list[tuple[Slot, datetime]]


def block_of_cells(loaded: LoadedRecipe, count: int) -> list[Location]:
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
        lon, lat = lon_lat(ZONE, x_min_m + size_m / 2, y_max_m - size_m / 2)
        cells.append(
            Location(
                location=f"{ZONE}N-{grid.id}-{size}-{col:05d}-{row:05d}",
                index=index,
                zone=f"{ZONE}N",
                epsg=32600 + ZONE,
                x_min_m=x_min_m,
                y_max_m=y_max_m,
                size_m=size_m,
                lon_deg=lon,
                lat_deg=lat,
                stratum="simulated",
                geometry=square_wkb(ZONE, x_min_m, y_max_m, size_m),
            )
        )
    return cells


def fair_times(loaded: LoadedRecipe, seed: int) -> Times:
    """Return for each slot the first fair hour at nine from its middle on."""
    times = []
    for slot in slots_of(loaded.recipe.slots, settling_days=0, cutoff=None):
        when = slot.middle.replace(hour=9, minute=30, second=0, microsecond=0)
        while not is_fair(ZONE, when, seed):
            when += timedelta(days=1)
        times.append((slot, when))
    return times


def scene_id(product: str, when: datetime) -> str:
    """Return the identity of the one scene of a product at a time."""
    return f"{product}/simulated-{when:%Y%m%dT%H%M%S}/all"


def scenes_of(loaded: LoadedRecipe, times: Times) -> list[Scene]:
    """Return one scene without files for each product and time: it stands for what was seen."""
    elevation = {when: sun(ZONE, _CORNER_M[1], when)[0] for _, when in times}
    return [
        Scene(
            scene=scene_id(product, when),
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
            epsg=32600 + ZONE,
            x_min_m=200_000.0,
            y_min_m=0.0,
            x_max_m=800_000.0,
            y_max_m=9_000_000.0,
            geometry=square_wkb(ZONE, *_CORNER_M, 1000.0),
            assets=[],
            band_indexes=[],
        )
        for product in loaded.products
        for _, when in times
    ]


def planned(loaded: LoadedRecipe, cells: list[Location], times: Times) -> list[PlannedPatch]:
    """Return one patch for each cell, product and slot, in the order of a plan."""
    share = per_shard(loaded, len(times))
    patches = [
        PlannedPatch(
            shard=cell.index // share,
            sample=cell.index % share,
            time=time,
            location=cell.location,
            product=product,
            slot=slot.id,
            group=loaded.leader[product],
            candidates=[[scene_id(product, when)]],
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


def per_shard(loaded: LoadedRecipe, times: int) -> int:
    """Return how many locations fill a shard."""
    patch_bytes = sum(
        len(loaded.bands(key)) * loaded.size_px(key) ** 2 * np.dtype(facts.stored_dtype).itemsize
        for key, facts in loaded.products.items()
    )
    return max(1, int(loaded.recipe.shards.shard_mb * 1e6) // (patch_bytes * times))


def write_plan(
    store: ObjectStore, loaded: LoadedRecipe, patches: list[PlannedPatch], scenes: list[Scene]
) -> str:
    """Write the lock and return the digest of its table."""
    shards = [patch.shard for patch in patches]
    table = encode_table(from_rows(patches, PlannedPatch), row_groups=np.bincount(shards).tolist())
    named = encode_table(from_rows(scenes, Scene))
    digest = hashlib.sha256(table).hexdigest()
    create_same(store, layout.plan(PLAN), table)
    create_same(store, layout.plan_scenes(PLAN), named)
    header = {
        "format": layout.FORMAT,
        "number": PLAN,
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
    create_same(store, layout.plan_header(PLAN), layout.dump_json(header))
    return digest

"""Plan: lock which scenes may fill every wanted slot, and what goes into which shard.

::

    locations ─► ground ──────────────┐
    scenes ────► shortlist ─► acquisitions ─► candidates (+ companions) ─► packing ─► rows
    earlier plans ─► growth ──────────┘

Nothing here touches the network or the clock, and nothing depends on the order of the rows that
come in. Every wanted patch gets a row, with candidates or without.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.raster.zones import Ints
from pipeline.recipe import LoadedRecipe
from pipeline.stages.plan.candidates import Chosen, Group
from pipeline.stages.plan.ground import Ground, ground_of
from pipeline.stages.plan.growth import Past, nested, past_of
from pipeline.stages.plan.packing import Packed, pack, patch_bytes
from pipeline.stages.plan.ragged import offsets, place_in_run, spans
from pipeline.stages.plan.shortlist import SceneList, list_scenes
from pipeline.stages.slots import Slot, is_wanted, slots_of

#: Rows of the result written out at a time: strings are long, numbers are not.
_ROWS = 1 << 18

#: Columns of `pipeline.records.PlannedPatch`.
PLAN_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("sample", pa.int64(), nullable=False),
        pa.field("time", pa.int64(), nullable=False),
        pa.field("location", pa.string(), nullable=False),
        pa.field("product", pa.string(), nullable=False),
        pa.field("slot", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("candidates", pa.list_(pa.list_(pa.string())), nullable=False),
        pa.field("epsg", pa.int64(), nullable=False),
        pa.field("x_min_m", pa.float64(), nullable=False),
        pa.field("y_max_m", pa.float64(), nullable=False),
        pa.field("size_m", pa.float64(), nullable=False),
        pa.field("lon_deg", pa.float64(), nullable=False),
        pa.field("lat_deg", pa.float64(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What is to be done."""

    patches: pa.Table
    """Rows of `PlannedPatch`, sorted by shard, product, sample, time."""
    scenes: pa.Table
    """Those rows of the scenes that candidates name, with the columns that came in, by id."""
    shard_rows: Ints
    """By shard: how many rows it has."""
    shard_bytes: Ints
    """By shard: uncompressed size of the patches that have candidates, in bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class _Wanted:
    """The slots of one group of products that this plan fills."""

    leader: str
    products: list[str]
    chosen: Chosen
    slot_names: pa.Array
    patch_bytes: dict[str, int]


def plan(
    loaded: LoadedRecipe,
    locations: pa.Table,
    scenes: pa.Table,
    *,
    cutoff: datetime | None,
    done: pa.Table | None = None,
) -> Plan:
    """Return what is to be done that earlier plans have not settled.

    A slot of a location is wanted once it is closed. Its candidates are acquisitions of the
    leading product that lie in the slot, pass the recipe's limits, are in the cell's own zone and
    show the cell; for each, every follower must have an acquisition of its own beside it.

    Parameters
    ----------
    loaded : LoadedRecipe
    locations : table of `Location` rows
        Only `ground.LOCATION_COLUMNS` are read.
    scenes : table of `Scene` rows
        Only `shortlist.SCENE_COLUMNS` are read. A scene that is listed twice counts with its
        newest baseline.
    cutoff : datetime or None
        What counts as now, for closing slots; None: all are closed.
    done : table of `growth.DONE_SCHEMA`, or None
        What earlier plans hold and what became of it. A slot is planned again only if all its
        patches were rejected and its candidates are others now.

    Raises
    ------
    IntegrityError
        A location is listed twice.
    """
    ground = ground_of(locations)
    listed = list_scenes(scenes)
    leaders = [product for product, leader in loaded.leader.items() if product == leader]
    wanted = [_wanted(loaded, leader, ground, listed, cutoff, done) for leader in leaders]
    packed, cost = _pack(wanted, loaded)
    batches = _batches(wanted, packed, ground, listed)
    patches = pa.Table.from_batches(batches, PLAN_SCHEMA)
    members = np.concatenate(
        [np.zeros(0, dtype=np.int64)]
        + [np.full(len(part.chosen.cell), len(part.products)) for part in wanted]
    )
    shards = int(packed.shard.max(initial=-1)) + 1
    rows = np.bincount(packed.shard, members[packed.order], minlength=shards)
    size = np.bincount(packed.shard, cost[packed.order], minlength=shards)
    return Plan(
        patches, _used(wanted, listed, scenes), rows.astype(np.int64), size.astype(np.int64)
    )


def _wanted(
    loaded: LoadedRecipe,
    leader: str,
    ground: Ground,
    scenes: SceneList,
    cutoff: datetime | None,
    done: pa.Table | None,
) -> _Wanted:
    """Return the slots of a leader that are new or open again, with candidates."""
    slots = closed_slots(loaded, leader, cutoff)
    every = loaded.recipe.slots.kind == "all"
    slot_names = scenes.datatakes if every else pa.array([s.id for s in slots], pa.string())
    group = Group(loaded, leader, scenes, slots)
    past: Past = past_of(done, group.products, ground, slot_names)
    chosen = group.choose(ground, None if every else past.wanted(len(ground)))
    if done is not None:
        chosen = chosen.take(past.news(chosen, scenes.names))
    sizes = {product: patch_bytes(loaded, product) for product in group.products}
    return _Wanted(leader, group.products, chosen, slot_names, sizes)


def closed_slots(loaded: LoadedRecipe, leader: str, cutoff: datetime | None) -> tuple[Slot, ...]:
    """Return the slots of a leading product that nothing can be added to, in order of time.

    Its followers must have settled too, and theirs may be as much later as `within_days` allows.
    """
    settling_days = max(
        loaded.products[product].settling_days + loaded.wishes[product].within_days
        for product, its_leader in loaded.leader.items()
        if its_leader == leader
    )
    slots = slots_of(loaded.recipe.slots, settling_days=settling_days, cutoff=cutoff)
    wanted = [slot for slot in slots if is_wanted(slot, loaded, leader)]
    return tuple(sorted(wanted, key=lambda slot: (slot.start, slot.end, slot.id)))


def _pack(wanted: Sequence[_Wanted], loaded: LoadedRecipe) -> tuple[Packed, Ints]:
    """Pack the slots of all groups together; also return what each costs, in bytes."""
    none = [np.zeros(0, dtype=np.int64)]
    cost = np.concatenate(
        none + [(w.chosen.counts > 0) * sum(w.patch_bytes.values()) for w in wanted]
    )
    packed = pack(
        np.concatenate(none + [w.chosen.cell for w in wanted]),
        np.concatenate(none + [w.chosen.time for w in wanted]),
        np.repeat(np.arange(len(wanted)), [len(w.chosen.cell) for w in wanted]),
        cost,
        limit_bytes=loaded.recipe.shards.shard_mb * 1e6,
    )
    return packed, cost


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Rows of the result for one product: columns of one length, in the order of shards."""

    wanted: _Wanted
    product: str
    row: Ints
    """Which of the wanted slots."""
    shard: Ints
    sample: Ints
    time: Ints


def _batches(
    wanted: Sequence[_Wanted], packed: Packed, ground: Ground, scenes: SceneList
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of the result, sorted by shard, product, sample, time."""
    rows = sorted(_rows(wanted, packed), key=lambda part: part.product)
    shard = np.concatenate([np.zeros(0, dtype=np.int64), *(part.shard for part in rows)])
    part_of = np.repeat(np.arange(len(rows)), [len(part.row) for part in rows])
    place = np.concatenate([shard[:0], *(np.arange(len(part.row)) for part in rows)])
    # Products follow one another within a shard; the rest is in order already.
    order = np.argsort(shard, kind="stable")
    for start in range(0, len(order), _ROWS):
        some = order[start : start + _ROWS]
        parts = [
            _batch(rows[number], place[some[part_of[some] == number]], ground, scenes)
            for number in np.unique(part_of[some])
        ]
        batch = pa.concat_batches(parts)
        back = np.argsort(np.argsort(part_of[some], kind="stable"), kind="stable")
        yield batch if len(parts) == 1 else batch.take(pa.array(back))


def _rows(wanted: Sequence[_Wanted], packed: Packed) -> Iterator[_Rows]:
    """Yield the rows of each product in the order of shards, cells and times."""
    first = offsets(np.array([len(w.chosen.cell) for w in wanted]))
    for number, part in enumerate(wanted):
        mine = (packed.order >= first[number]) & (packed.order < first[number + 1])
        row = packed.order[mine] - first[number]
        shard, sample = packed.shard[mine], packed.sample[mine]
        time = place_in_run(shard, sample)
        for product in part.products:
            yield _Rows(part, product, row, shard, sample, time)


def _batch(rows: _Rows, which: Ints, ground: Ground, scenes: SceneList) -> pa.RecordBatch:
    """Write out some rows of a product."""
    chosen, row = rows.wanted.chosen, rows.row[which]
    cells = ground.table.take(pa.array(chosen.cell[row]))
    _, candidates = spans(offsets(chosen.counts)[row], chosen.counts[row])
    views = chosen.scenes[rows.product].take(candidates)
    columns: dict[str, Any] = {
        "shard": pa.array(rows.shard[which]),
        "sample": pa.array(rows.sample[which]),
        "time": pa.array(rows.time[which]),
        "product": pa.repeat(rows.product, len(row)),
        "slot": rows.wanted.slot_names.take(pa.array(chosen.slot[row])),
        "group": pa.repeat(rows.wanted.leader, len(row)),
        "candidates": nested(chosen.counts[row], views, scenes.names),
    }
    columns |= {name: cells.column(name).combine_chunks() for name in cells.column_names}
    arrays = [columns[field.name].cast(field.type) for field in PLAN_SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=PLAN_SCHEMA)


def _used(wanted: Sequence[_Wanted], listed: SceneList, scenes: pa.Table) -> pa.Table:
    """Return the scenes that candidates name, by id."""
    used = np.zeros(len(listed.row), dtype=bool)
    for part in wanted:
        for views in part.chosen.scenes.values():
            used[views.values] = True
    rows = listed.row[used]
    # In parts: the texts of all assets together may be too long for one Arrow array.
    parts = [scenes.take(pa.array(rows[k : k + _ROWS])) for k in range(0, len(rows), _ROWS)]
    return pa.concat_tables([scenes.schema.empty_table(), *parts])

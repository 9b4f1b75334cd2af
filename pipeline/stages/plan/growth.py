"""What earlier plans have settled: the same slot is planned again only if that can help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.raster.zones import Bools, Ints
from pipeline.stages.plan.candidates import Chosen
from pipeline.stages.plan.ground import Ground
from pipeline.stages.plan.ragged import Ragged, offsets, spans, starts_of_runs

#: Columns of the table of planned patches that `plan` takes as `done`: those of `PlannedPatch`,
#: the number of the plan, and `State` of the patch, null as long as its shard is not committed.
DONE_SCHEMA = pa.schema(
    [
        pa.field("plan", pa.int64(), nullable=False),
        pa.field("location", pa.string(), nullable=False),
        pa.field("product", pa.string(), nullable=False),
        pa.field("slot", pa.string(), nullable=False),
        pa.field("candidates", pa.list_(pa.list_(pa.string())), nullable=False),
        pa.field("state", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """What is known of the wanted slots of one group of products."""

    slots: int
    """How many names of slots there are: a slot of a cell is number `cell * slots + slot`."""
    settled: Ints
    """Slots of cells that stay as they are: written, failed (for `retry`) or still to be done."""
    rejected: Ints
    """Slots of cells all of whose products were rejected, sorted."""
    tried: Mapping[str, pa.Array]
    """By product: the candidates of these, as text."""

    def wanted(self, cells: int) -> Bools:
        """Return which slots may be planned: shape (cell, slot)."""
        wanted = np.ones(cells * self.slots, dtype=bool)
        wanted[self.settled] = False
        return wanted.reshape(cells, self.slots)

    def news(self, chosen: Chosen, names: pa.Array) -> Ints:
        """Return the rows that are new, or were rejected with other candidates than now.

        `names` are the ids of scenes by number.
        """
        key = chosen.cell * self.slots + chosen.slot
        new = ~np.isin(key, self.settled)
        old = np.flatnonzero(np.isin(key, self.rejected))
        place = np.searchsorted(self.rejected, key[old])
        again = np.zeros(len(old), dtype=bool)
        _, candidates = spans(offsets(chosen.counts)[old], chosen.counts[old])
        for product, texts in self.tried.items():
            scenes = chosen.scenes[product].take(candidates)
            now = _text(nested(chosen.counts[old], scenes, names))
            before = texts.take(pa.array(place))
            again |= pc.fill_null(pc.not_equal(now, before), True).to_numpy(zero_copy_only=False)
        new[old] &= again
        return np.flatnonzero(new)


def past_of(
    done: pa.Table | None, products: list[str], ground: Ground, slot_names: pa.Array
) -> Past:
    """Return what earlier plans have settled for a group of products.

    Parameters
    ----------
    done : table of `DONE_SCHEMA`, or None
        A patch that was planned several times counts by its last plan.
    products : list of str
        The leader and its followers, which stand and fall together.
    ground, slot_names
        What cells and slots are numbered by; others are of no interest.
    """
    done = DONE_SCHEMA.empty_table() if done is None else done
    done = done.filter(pc.is_in(done.column("product"), pa.array(products)))
    cell = pc.index_in(done.column("location"), ground.ids)
    slot = pc.index_in(done.column("slot"), slot_names.cast(pa.string()))
    known = pc.and_(pc.is_valid(cell), pc.is_valid(slot))
    done, cell, slot = (column.filter(known) for column in (done, cell, slot))
    key = cell.to_numpy().astype(np.int64) * len(slot_names) + slot.to_numpy()
    member = pc.index_in(done.column("product"), pa.array(products)).to_numpy()
    order = np.lexsort((done.column("plan").to_numpy(), member, key))
    runs = starts_of_runs(key[order], member[order])
    last = order[np.append(runs[1:], len(order)) - 1] if len(order) else order
    done, key, member = done.take(pa.array(last)), key[last], member[last]
    rejected = pc.fill_null(pc.equal(done.column("state"), "rejected"), False).to_numpy()
    settled = np.unique(key[~rejected])
    open_keys = np.setdiff1d(key, settled)
    texts = {
        product: _tried(done, key, open_keys, member == number)
        for number, product in enumerate(products)
    }
    return Past(len(slot_names), settled, open_keys, texts)


def nested(counts: Ints, scenes: Ragged, names: pa.Array) -> pa.Array:
    """Return candidates as Arrow lists of lists of scene ids.

    Parameters
    ----------
    counts : int array, shape (row,)
        Candidates of each row.
    scenes : Ragged, shape (candidate, ...)
        Numbers of scenes.
    names : string array
        Ids of scenes by number.
    """
    flat = names.take(pa.array(scenes.values)).cast(pa.string())
    inner = pa.ListArray.from_arrays(pa.array(offsets(scenes.counts), pa.int32()), flat)
    return pa.ListArray.from_arrays(pa.array(offsets(counts), pa.int32()), inner)


def _tried(done: pa.Table, key: Ints, wanted: Ints, mine: Bools) -> pa.Array:
    """Return the candidates of the wanted slots, as text; null where there was no such row."""
    rows = np.flatnonzero(mine & np.isin(key, wanted))
    texts = _text(done.column("candidates").take(pa.array(rows)))
    place = np.full(len(wanted), -1)
    place[np.searchsorted(wanted, key[rows])] = np.arange(len(rows))
    return texts.take(pa.array(place, mask=place < 0))


def _text(candidates: Any) -> pa.Array:
    """Write lists of lists of ids as one string each."""
    if isinstance(candidates, pa.ChunkedArray):
        candidates = candidates.combine_chunks()
    counts = pc.list_value_length(candidates).to_numpy(zero_copy_only=False).astype(np.int64)
    inner = pc.binary_join(candidates.flatten(), "\n")
    rows = pa.ListArray.from_arrays(pa.array(offsets(counts), pa.int32()), inner)
    return pc.binary_join(rows, "\n\n")

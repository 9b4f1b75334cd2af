"""Pack wanted slots into shards: whole cells, neighbours together, never above the limit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.raster.masks import native_dtype
from pipeline.raster.zones import Ints
from pipeline.recipe import LoadedRecipe
from pipeline.stages.plan.ragged import starts_of_runs

#: What a row without candidates counts as, in bytes: it stores no pixels, but a line in the
#: ledger and an entry in the shard's index.
_EMPTY_ROW_BYTES = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """Wanted slots in their shards: columns of one length, in the order of the shards."""

    order: Ints
    """Which of the wanted slots stands here."""
    shard: Ints
    """From 0."""
    sample: Ints
    """Position of the cell in the shard."""


def patch_bytes(loaded: LoadedRecipe, product: str) -> int:
    """Return the uncompressed size of a patch: bands, mask, and mask as delivered."""
    facts = loaded.products[product]
    pixel = len(loaded.bands(product)) * np.dtype(facts.stored_dtype).itemsize + 1
    if facts.mask_layers:
        pixel += native_dtype(facts).itemsize
    return int(pixel * loaded.size_px(product) ** 2)


def pack(cell: Ints, time: Ints, group: Ints, cost: Ints, *, limit_bytes: float) -> Packed:
    """Cut wanted slots into shards by bytes.

    Cells with a similar number of slots stand together (a shard is as long as its longest
    series), and among these neighbours (they share blocks of scenes). A cell is kept whole where
    it fits into a shard; else it is cut between slots. Members of a group are one item here, so
    they are never split.

    Parameters
    ----------
    cell, time, group : int arrays, shape (item,)
        Which cell (in an order in which neighbours are near), and what sorts its items.
    cost : int array, shape (item,)
        Bytes of the item; 0 for an item without candidates.
    limit_bytes : float
        Only an item that is larger by itself exceeds it.
    """
    if len(cell) == 0:
        return Packed(cell, cell, cell)
    cost, limit = np.where(cost > 0, cost, _EMPTY_ROW_BYTES), int(limit_bytes)
    likeness = np.floor(2 * np.log2(np.bincount(cell)[cell])).astype(np.int64)
    order = np.lexsort((group, time, cell, likeness))
    cell, cost = cell[order], cost[order]
    whole = np.bincount(cell, cost)[cell] <= limit
    # Items that stay together: all of a cell, or one by one where the cell is too large.
    unit = starts_of_runs(cell, np.where(whole, -1, np.arange(len(cell))))
    shard = _cut(unit, cost, limit)
    first = starts_of_runs(shard, cell)
    sample = np.zeros(len(cell), dtype=np.int64)
    sample[first] = 1
    sample = np.cumsum(sample) - 1
    return Packed(order, shard, sample - sample[starts_of_runs(shard)][shard])


def _cut(unit: Ints, cost: Ints, limit: int) -> Ints:
    """Return the shard of each item: as many units as fit, in order, and at least one."""
    ends = np.cumsum(np.add.reduceat(cost, unit))
    edges, done = [0], 0
    while edges[-1] < len(unit):
        fits = int(np.searchsorted(ends, done + limit, "right"))
        edges.append(max(fits, edges[-1] + 1))
        done = int(ends[edges[-1] - 1])
    lengths = np.diff(np.append(unit, len(cost))[edges])
    return np.repeat(np.arange(len(lengths)), lengths)

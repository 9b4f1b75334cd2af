"""Cutting wanted slots into shards, on bare numbers."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.stages.plan.packing import Packed, pack

ITEMS = st.lists(
    st.tuples(
        st.integers(0, 30),
        st.integers(0, 12),
        st.integers(0, 1),
        st.sampled_from([0, 0, 5_000, 40_000]),
    ),
    max_size=120,
    unique_by=lambda item: item[:3],
)
LIMITS = st.sampled_from([3_000, 41_000, 100_000, 1_000_000])


def packed(items: list[tuple[int, int, int, int]], limit: int) -> Packed:
    columns = np.array(items, dtype=np.int64).reshape(-1, 4).T
    return pack(*columns, limit_bytes=limit)


@given(ITEMS, LIMITS)
def test_every_item_is_in_one_shard(items: list[tuple[int, int, int, int]], limit: int) -> None:
    found = packed(items, limit)
    assert sorted(found.order.tolist()) == list(range(len(items)))
    assert (np.diff(found.shard) >= 0).all()
    assert set(found.shard.tolist()) == set(range(int(found.shard.max(initial=-1)) + 1))


@given(ITEMS, LIMITS)
def test_no_shard_is_larger_than_the_limit(
    items: list[tuple[int, int, int, int]], limit: int
) -> None:
    found = packed(items, limit)
    for shard in np.unique(found.shard):
        mine = [items[k] for k in found.order[found.shard == shard]]
        assert sum(cost for *_, cost in mine) <= limit or len(mine) == 1


@given(ITEMS, LIMITS)
def test_a_cell_that_fits_is_not_cut(items: list[tuple[int, int, int, int]], limit: int) -> None:
    found = packed(items, limit)
    shard_of: dict[int, set[int]] = {}
    for place, shard in zip(found.order.tolist(), found.shard.tolist(), strict=True):
        shard_of.setdefault(items[place][0], set()).add(shard)
    for cell, shards in shard_of.items():
        # Items without candidates weigh a little too.
        weight = sum(cost or 1024 for c, *_, cost in items if c == cell)
        assert len(shards) == 1 or weight > limit


@given(ITEMS, LIMITS)
def test_shards_are_filled(items: list[tuple[int, int, int, int]], limit: int) -> None:
    """Two shards that follow one another would not have fitted into one."""
    found = packed(items, limit)
    weights = np.array([cost or 1024 for *_, cost in items], dtype=np.int64)
    sums = np.bincount(found.shard, weights[found.order]) if items else np.empty(0)
    assert (sums[:-1] + sums[1:] > limit).all()


def test_neighbours_and_cells_alike_stand_together() -> None:
    one = [(cell, 0, 0, 5_000) for cell in range(0, 20, 2)]
    many = [(cell, time, 0, 5_000) for cell in range(1, 21, 2) for time in range(12)]
    found = packed(many + one, 1_000_000)
    cells = np.array(many + one)[found.order, 0]
    assert cells.tolist() == list(range(0, 20, 2)) + [c for c in range(1, 21, 2) for _ in range(12)]

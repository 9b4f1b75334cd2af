"""The split deals blocks of ground, and statistics of parts add up to those of the whole."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import IntegrityError
from pipeline.raster.statistics import Moments, merge
from pipeline.recipe import Split
from pipeline.stages.publish.index import Places, deal, describe, make_index, sum_moments

points = st.lists(
    st.tuples(
        st.sampled_from([32601, 32633, 32660, 32733, 3031]),
        st.floats(2e5, 8e5),
        st.floats(-4e6, 9e6),
    ),
    min_size=1,
    max_size=40,
)


def dealt(places: list[tuple[int, float, float]], split: Split, seed: int) -> list[str]:
    epsg, x, y = (np.array(column) for column in zip(*places, strict=True))
    return deal(epsg, x, y, split=split, seed=seed).tolist()


@settings(deadline=None, max_examples=50)
@given(points, st.integers(0, 99), st.randoms(use_true_random=False))
def test_a_place_keeps_its_part_whatever_else_there_is(places: Any, seed: int, random: Any) -> None:
    parts = dict(zip(places, dealt(places, Split(), seed), strict=True))
    shuffled = list(places)
    random.shuffle(shuffled)
    some = shuffled[: len(shuffled) // 2 + 1]
    assert dealt(some, Split(), seed) == [parts[place] for place in some]


@settings(deadline=None, max_examples=50)
@given(points, st.floats(1, 200))
def test_a_block_is_never_split(places: Any, block_km: float) -> None:
    parts = dealt(places, Split(block_km=block_km), 0)
    blocks: dict[Any, set[str]] = {}
    for (epsg, x, y), part in zip(places, parts, strict=True):
        south = epsg // 100 == 327
        zone = epsg % 100 if epsg // 100 in (326, 327) else epsg
        north = y - 10_000_000 if south else y
        block = (zone, x // (block_km * 1000), north // (block_km * 1000))
        blocks.setdefault(block, set()).add(part)
    assert all(len(parts) == 1 for parts in blocks.values())


def test_both_codes_of_a_zone_share_one_grid() -> None:
    x, y = np.array([5e5, 5e5]), np.array([-1.5e6, 8.5e6])
    for seed in range(20):
        north, south = deal(np.array([32633, 32733]), x, y, split=Split(), seed=seed)
        assert north == south


def test_shares_are_met_over_many_blocks_and_change_with_the_seed() -> None:
    x, y = np.meshgrid(np.arange(60) * 5e4 + 1, np.arange(100) * 5e4 + 1)
    epsg = np.full(x.size, 32633)
    split = Split(train=0.7, val=0.2, test=0.1)
    parts = deal(epsg, x.ravel(), y.ravel(), split=split, seed=1)
    for name, share in (("train", 0.7), ("val", 0.2), ("test", 0.1)):
        sigma = np.sqrt(share * (1 - share) / x.size)
        assert abs((parts == name).mean() - share) < 4 * sigma
    other = deal(epsg, x.ravel(), y.ravel(), split=split, seed=2)
    assert (parts != other).mean() > 0.3


def test_a_share_of_nothing_or_all_is_met_exactly() -> None:
    x = np.arange(200) * 1e5
    everything = Split(train=1, val=0, test=0)
    assert set(deal(np.full(200, 32633), x, x, split=everything, seed=0)) == {"train"}
    assert len(deal(np.empty(0, int), x[:0], x[:0], split=everything, seed=0)) == 0


def rows_of(patches: list[np.ndarray]) -> pa.Table:
    values: dict[str, list[Any]] = {k: [] for k in ("count", "mean", "m2", "minimum", "maximum")}
    for patch in patches:
        values["count"].append([band.size for band in patch])
        values["mean"].append([float(band.mean()) if band.size else 0.0 for band in patch])
        values["m2"].append([float(band.var() * band.size) if band.size else 0.0 for band in patch])
        values["minimum"].append([float(band.min()) if band.size else np.inf for band in patch])
        values["maximum"].append([float(band.max()) if band.size else -np.inf for band in patch])
    types = {name: pa.list_(pa.int64() if name == "count" else pa.float64()) for name in values}
    return pa.table({name: pa.array(values[name], types[name]) for name in values})


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.integers(1, 11), st.integers(0, 2**31))
def test_moments_of_patches_are_those_of_all_their_pixels(n: int, cut: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    patches = [rng.normal(2000, 300, (2, rng.integers(0, 50))) for _ in range(n)]
    whole = np.concatenate(patches, axis=1)
    rows = rows_of(patches)
    found = merge(sum_moments(rows.slice(0, cut), 2), sum_moments(rows.slice(cut), 2))
    assert found.count.tolist() == [whole.shape[1]] * 2
    if whole.shape[1]:
        np.testing.assert_allclose(found.mean, whole.mean(axis=1), rtol=1e-12)
        np.testing.assert_allclose(found.m2, whole.var(axis=1) * whole.shape[1], rtol=1e-9, atol=1)
        np.testing.assert_array_equal(found.minimum, whole.min(axis=1))
        np.testing.assert_array_equal(found.maximum, whole.max(axis=1))


def test_a_ledger_with_another_number_of_bands_is_refused() -> None:
    with pytest.raises(IntegrityError, match="another number of bands"):
        sum_moments(rows_of([np.ones((2, 5))]), 3)


def test_what_was_never_seen_has_no_statistics() -> None:
    nothing = Moments(
        np.array([0, 4]),
        np.array([0.0, 2]),
        np.array([0.0, 4]),
        *np.array([[np.inf, 1], [-np.inf, 3]]),
    )
    first, second = describe(nothing, ["a", "b"])
    assert first == {
        "name": "a",
        "count": 0,
        "mean": None,
        "std": None,
        "minimum": None,
        "maximum": None,
    }
    assert second == {
        "name": "b",
        "count": 4,
        "mean": 2.0,
        "std": 1.0,
        "minimum": 1.0,
        "maximum": 3.0,
    }


def locations(names: list[str]) -> pa.Table:
    count = len(names)
    numbers = np.arange(count)
    return pa.table(
        {
            "location": names,
            "index": numbers,
            "epsg": np.full(count, 32633),
            "x_min_m": numbers * 1e5,
            "y_max_m": numbers * 1e5,
            "size_m": np.full(count, 2640.0),
            "lon_deg": numbers * 0.1,
            "lat_deg": numbers * 0.1,
            "geometry": [b"x"] * count,
        }
    )


def written(keys: list[tuple[str, str, str]]) -> pa.Table:
    count = len(keys)
    return pa.table(
        {
            "location": [k[0] for k in keys],
            "product": [k[1] for k in keys],
            "slot": [k[2] for k in keys],
            "shard": ["p000001-s00000/r1"] * count,
            "sample": list(range(count)),
            "time": [0] * count,
            "scenes": [["s"]] * count,
            "acquired": pa.array(
                [datetime(2021, int(k[2]), 1, tzinfo=UTC) for k in keys], pa.timestamp("us", "UTC")
            ),
            "clear_fraction": pa.array([None] * count, pa.float64()),
            "valid_fraction": [1.0] * count,
            "mask_source": ["product"] * count,
            "absent_bands": pa.array([[]] * count, pa.list_(pa.string())),
            "residual": pa.array([[]] * count, pa.list_(pa.float64())),
            "facts": pa.array([["{}"]] * count, pa.list_(pa.string())),
            "pixel_digest": [""] * count,
        }
    )


def test_the_index_is_sorted_and_counts_written_locations_only() -> None:
    places = Places(locations(["c", "b", "a", "d"]), Split(), 0)
    keys = [
        ("d", "two", "1"),
        ("a", "one", "2"),
        ("d", "one", "3"),
        ("a", "one", "1"),
        ("c", "one", "1"),
    ]
    index = make_index(written(keys), places, ["two", "one"]).to_pylist()
    assert [(r["row"], r["location"], r["product"], r["slot"]) for r in index] == [
        (0, "c", "one", "1"),
        (1, "a", "one", "1"),
        (1, "a", "one", "2"),
        (2, "d", "two", "1"),
        (2, "d", "one", "3"),
    ]
    assert index[1]["lon_deg"] == pytest.approx(0.2)
    assert np.isnan(index[0]["clear_fraction"])
    for row in index:
        others = {r["split"] for r in index if r["location"] == row["location"]}
        assert others == {row["split"]}


def test_a_patch_that_is_there_twice_or_from_nowhere_is_refused() -> None:
    places = Places(locations(["a", "b"]), Split(), 0)
    with pytest.raises(IntegrityError, match="was written twice"):
        make_index(written([("a", "one", "1"), ("a", "one", "1")]), places, ["one"])
    with pytest.raises(IntegrityError, match="location zz, which was never sampled"):
        make_index(written([("zz", "one", "1")]), places, ["one"])

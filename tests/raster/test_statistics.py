"""Moments: equal to the textbook's, exact for integers, and mergeable in any order."""

from __future__ import annotations

from functools import reduce
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.raster.statistics import Moments, merge, moments

PATCHES = arrays(np.int16, (2, 3, 4), elements=st.integers(-32768, 32767))
FILLS = arrays(np.bool_, (2, 3, 4))


def _same(a: Moments, b: Moments, tolerance: float) -> None:
    np.testing.assert_array_equal(a.count, b.count)
    np.testing.assert_allclose(a.mean, b.mean, rtol=tolerance, atol=1e-9)
    np.testing.assert_allclose(a.m2, b.m2, rtol=tolerance, atol=1e-3)
    np.testing.assert_array_equal(a.minimum, b.minimum)
    np.testing.assert_array_equal(a.maximum, b.maximum)


@given(PATCHES, FILLS)
def test_moments_are_the_textbooks(stored: np.ndarray, fill: np.ndarray) -> None:
    found = moments(stored, fill)
    for band in range(2):
        seen = stored[band][~fill[band]].astype(np.float64)
        assert found.count[band] == seen.size
        if seen.size:
            assert found.mean[band] == pytest.approx(seen.mean(), rel=1e-12, abs=1e-9)
            assert found.m2[band] == pytest.approx(((seen - seen.mean()) ** 2).sum(), rel=1e-10)
            assert found.minimum[band] == seen.min()
            assert found.maximum[band] == seen.max()


@given(
    st.lists(st.tuples(PATCHES, FILLS), min_size=2, max_size=5),
    st.randoms(use_true_random=False),
)
def test_merging_in_any_order_equals_counting_at_once(
    patches: list[tuple[np.ndarray, np.ndarray]], random: Random
) -> None:
    whole = moments(
        np.concatenate([stored for stored, _ in patches], axis=2),
        np.concatenate([fill for _, fill in patches], axis=2),
    )
    parts = [moments(stored, fill) for stored, fill in patches]
    random.shuffle(parts)
    _same(reduce(merge, parts), whole, 1e-9)


@given(PATCHES, FILLS)
def test_nothing_merged_changes_nothing(stored: np.ndarray, fill: np.ndarray) -> None:
    some = moments(stored, fill)
    none = moments(stored, np.ones_like(fill))
    for both in (merge(some, none), merge(none, some)):
        _same(both, some, 0)


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_integer_sums_are_exact_whatever_the_order_of_pixels(seed: int) -> None:
    generator = np.random.default_rng(seed)
    stored = generator.integers(-32767, 32767, (1, 64, 64), dtype=np.int16)
    nowhere = np.zeros(stored.shape, bool)
    turned = generator.permutation(stored.ravel()).reshape(stored.shape)
    a, b = moments(stored, nowhere), moments(turned, nowhere)
    assert (a.mean[0], a.m2[0]) == (b.mean[0], b.m2[0])


def test_a_small_spread_on_a_large_mean_does_not_cancel() -> None:
    stored = np.full((1, 256, 256), 30000, np.int16)
    stored[0, 0, 0] = 30001
    found = moments(stored, np.zeros(stored.shape, bool))
    n = stored.size
    assert found.m2[0] == pytest.approx(1 - 1 / n, rel=1e-12)


def test_float_patches_and_std() -> None:
    stored = np.array([[[1.0, 3.0, np.nan]]], np.float32)
    found = moments(stored, np.isnan(stored))
    assert (found.count[0], found.mean[0], found.m2[0]) == (2, 2.0, 2.0)
    assert found.std[0] == 1.0
    assert np.isnan(moments(stored, np.ones(stored.shape, bool)).std[0])

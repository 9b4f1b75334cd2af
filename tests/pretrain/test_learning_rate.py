"""Warm up, then half a cosine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pretrain.schedule import learning_rate


@given(st.integers(1, 300), st.integers(0, 300))
def test_it_rises_to_the_peak_then_falls_and_stays_positive(steps, warmup):
    warmup = min(warmup, steps - 1)
    rates = [learning_rate(s, peak=2.0, steps=steps, warmup_steps=warmup) for s in range(steps)]
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert max(rates) == pytest.approx(2.0)
    assert min(rates) > 0


def test_it_falls_over_the_whole_run():
    assert learning_rate(55, peak=1.0, steps=100, warmup_steps=10) == pytest.approx(0.5)

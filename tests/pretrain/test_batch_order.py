"""The order of an epoch is a function of (seed, epoch) alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pretrain.data.order import Order

LOCATIONS = st.lists(st.integers(0, 9), min_size=1, max_size=40).map(np.array)
SEEDS = st.integers(0, 2**32)


def order(location, views, batch=4, seed=0):
    return Order(location, views=views, batch_size=batch, seed=seed)


@given(LOCATIONS, SEEDS, st.integers(0, 5))
def test_with_one_view_an_epoch_has_every_patch_once(location, seed, epoch):
    patches = order(location, 1, seed=seed).epoch(epoch)
    assert sorted(patches[0]) == list(range(len(location)))


@given(LOCATIONS, SEEDS, st.integers(0, 5))
def test_with_two_views_an_epoch_has_every_location_once_at_two_times(location, seed, epoch):
    first, second = order(location, 2, seed=seed).epoch(epoch)
    assert sorted(location[first]) == sorted(set(location))
    assert (location[first] == location[second]).all()
    times = np.bincount(location)[location[first]]
    assert ((first != second) == (times > 1)).all()


@given(LOCATIONS, SEEDS, st.integers(1, 7), st.integers(1, 2))
def test_batches_are_full_and_run_through_the_epochs(location, seed, batch, views):
    stream = order(location, views, batch, seed)
    epochs = np.concatenate([stream.epoch(e) for e in range(8)], axis=1)
    steps = epochs.shape[1] // batch
    batches = [stream.batch(step) for step in range(steps)]
    assert all(b.shape == (views, batch) for b in batches)
    together = np.concatenate([*batches, np.empty((views, 0), np.int64)], axis=1)
    assert (together == epochs[:, : steps * batch]).all()


@given(LOCATIONS, SEEDS, st.permutations(range(6)))
def test_a_batch_depends_on_its_step_and_not_on_what_was_read_before(location, seed, steps):
    straight = order(location, 2, seed=seed)
    wanted = [straight.batch(step) for step in range(6)]
    jumping = order(location, 2, seed=seed)
    for step in steps:
        assert (jumping.batch(step) == wanted[step]).all()


def test_every_pair_of_times_comes_up():
    pairs = order(np.zeros(3, int), 2)
    seen = {tuple(pairs.epoch(e)[:, 0]) for e in range(100)}
    assert seen == {(a, b) for a in range(3) for b in range(3) if a != b}


def test_epochs_and_seeds_differ():
    location = np.arange(50)
    assert (order(location, 1).epoch(0) != order(location, 1).epoch(1)).any()
    assert (order(location, 1).epoch(0) != order(location, 1, seed=1).epoch(0)).any()


def test_nothing_cannot_be_put_in_order():
    with pytest.raises(ValueError, match="no patches"):
        order(np.empty(0, int), 1)

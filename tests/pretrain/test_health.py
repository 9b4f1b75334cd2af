"""Runs that really collapse are stopped, and one that does not is let through."""

from __future__ import annotations

import pytest

from benchmarks import decur_factors
from benchmarks.health import TIMES, without
from pipeline.errors import RecipeError
from pipeline.recipe import Pretrain

#: A hundred steps of SimSiam, 16 items each.
RUN = {"steps": 100, "batch_size": 16, "projector_width": 64, "health_every": 10, "warmup_steps": 0}
#: The paper's, for 256 items.
RATE = Pretrain(method="simsiam", batch_size=256).learning_rate


@pytest.mark.slow
def test_simsiam_without_its_stopped_gradient_is_stopped_at_a_hundred_times_the_rate(tiny_run):
    tiny = tiny_run("simsiam", learning_rate=TIMES * RATE, **RUN)
    with without("simsiam"), pytest.raises(RecipeError, match="compared vectors"):
        tiny.go_on(100)
    assert 30 <= tiny.run.step < 100


@pytest.mark.slow
def test_simsiam_as_published_is_let_through(tiny_run):
    tiny = tiny_run("simsiam", learning_rate=RATE, **RUN)
    tiny.go_on(100)
    assert tiny.run.step == 100
    assert tiny.run.log[-1]["loss"] < tiny.run.log[0]["loss"]


@pytest.mark.slow
def test_decur_parts_what_two_modalities_share_from_what_each_has_alone():
    found = decur_factors.explained(*decur_factors.train(0), 0)
    for modality in decur_factors.MODALITIES:
        assert found[modality, "common", "common"] > found[modality, "common", "unique"] + 0.2
        assert found[modality, "own", "unique"] > found[modality, "own", "common"] + 0.1

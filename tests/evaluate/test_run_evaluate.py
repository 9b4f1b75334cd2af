"""From a model to a report: baselines beside it, win or lose in plain words."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
import pytest

from pipeline.errors import RecipeError
from pipeline.evaluate.report import judge
from pipeline.evaluate.scores import MODEL
from pipeline.evaluate.windows import Windows
from pipeline.run.evaluate import run_evaluate
from pipeline.run.pretrain import run_pretrain
from pipeline.store.reader import open_dataset

PRETRAIN = {"backbone": "small", "steps": 2, "batch_size": 4, "crop_px": 8, "queue": 8}
EVALUATE = {"labels": "labels", "window_px": 8}


@pytest.fixture
def trained(published):
    loaded = published.recipe(pretrain=PRETRAIN, evaluate=EVALUATE)
    run_pretrain(loaded, published.store)
    return published, loaded


def test_a_report_has_every_baseline_under_both_probes_and_says_who_wins(trained):
    published, loaded = trained
    report = run_evaluate(loaded, published.store, device="cpu")
    kinds = {"model", "untrained", "image-statistics", "random-filters"}
    assert {(r.features, r.probe) for r in report.results} == {
        (kind, probe) for kind in kinds for probe in ("knn", "linear")
    }
    assert all(0 <= r.macro.low <= r.macro.value <= r.macro.high <= 1 for r in report.results)
    assert {c.baseline for c in report.comparisons} == kinds - {"model"}
    for c in report.comparisons:
        wanted = "win" if c.difference.low > 0 else "lose" if c.difference.high < 0 else "draw"
        assert c.verdict == wanted

    stored = json.loads(published.store.get(report.path))
    assert stored == json.loads(json.dumps(report.to_json()))
    table = published.store.get(report.path.replace(".json", ".md")).decode()
    assert str(report).startswith(table)
    assert report.path.removesuffix(".json") in str(report)
    assert "random filters (RCF)" in table
    assert "Transductive" not in table
    assert "New sensor" not in table
    assert "**New sensor**: pretraining saw no image" in str(replace(report, new_product=True))


def test_a_report_counts_windows_and_what_was_taken_for_what(trained):
    published, loaded = trained
    report = run_evaluate(loaded, published.store, device="cpu")
    test = report.windows["test"]
    assert {name: sum(row.values()) for name, row in report.confusion.items()} == test
    right = sum(row.get(name, 0) for name, row in report.confusion.items())
    (linear,) = [r for r in report.results if (r.features, r.probe) == ("model", "linear")]
    assert right / report.sizes["test"] == pytest.approx(linear.micro.value)
    rows = open_dataset(published.store).patches(report.product).rows
    for part, count in report.locations.items():
        there = rows.filter(pc.equal(rows["split"], part))["location"]
        assert 0 < count <= len(there.unique())
    lacking = {part: dict(names) for part, names in report.windows.items()}
    gone = next(iter(lacking["test"]))
    del lacking["test"][gone]
    assert f"**Not in the test part**: {gone};" in str(replace(report, windows=lacking))


def test_patterns_are_invisible_to_statistics_and_plain_to_filters(trained):
    """Equal histograms: what tells the classes apart is where values lie."""
    published, loaded = trained
    report = run_evaluate(loaded, published.store)
    linear = {r.features: r.macro for r in report.results if r.probe == "linear"}
    assert linear["image-statistics"].low < 0.55
    assert linear["random-filters"].value > 0.95


def test_maps_of_a_year_label_the_slot_that_they_were_planned_for(published_yearly):
    """Taken for static, the second slot had the first one's labels, all of them wrong."""
    loaded = published_yearly.recipe(pretrain=PRETRAIN, evaluate=EVALUATE)
    run_pretrain(loaded, published_yearly.store)
    report = run_evaluate(loaded, published_yearly.store, device="cpu")
    linear = {r.features: r.macro.value for r in report.results if r.probe == "linear"}
    assert linear["random-filters"] > 0.95


def test_evaluating_twice_gives_the_same_report(trained):
    published, loaded = trained
    first, second = (run_evaluate(loaded, published.store) for _ in range(2))
    assert first == second


def test_a_transductive_model_is_called_so(published):
    pretrain = {**PRETRAIN, "transductive": True, "steps": 1}
    loaded = published.recipe(pretrain=pretrain, evaluate=EVALUATE)
    name = run_pretrain(loaded, published.store).model
    assert "**Transductive**" in str(run_evaluate(loaded, published.store, model=name))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": "image"}, r"`evaluate\.labels` is 'image'; allowed .*: labels"),
        ({"product": "radar"}, r"learned from image and not from radar"),
        ({"product": "labels"}, r"'labels' is no image product"),
        ({"labels": "other"}, r"`evaluate\.labels` is 'other'; allowed .*: labels"),
        ({"min_label_fraction": 1.0, "window_px": 16}, "no labelled windows"),
    ],
)
def test_what_cannot_be_evaluated_is_explained(trained, wrong, message):
    published, _ = trained
    with pytest.raises(RecipeError, match=message):
        run_evaluate(
            published.recipe(pretrain=PRETRAIN, evaluate={**EVALUATE, **wrong}), published.store
        )


def test_without_a_model_or_a_table_the_recipe_must_change(published):
    loaded = published.recipe(pretrain=PRETRAIN, evaluate=EVALUATE)
    with pytest.raises(RecipeError, match="no model"):
        run_evaluate(loaded, published.store)
    with pytest.raises(RecipeError, match=r"no \[evaluate\] table"):
        run_evaluate(published.recipe(pretrain=PRETRAIN), published.store)


def windows_of(label, part, location):
    count = len(label)
    zeros = np.zeros(count, dtype=np.int64)
    return Windows(zeros, zeros, zeros, label, location, part, 8)


def test_a_better_model_wins_a_worse_one_loses_and_an_equal_one_draws():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 300)
    part = np.repeat(["train", "val", "test"], 100)
    telling = (label[:, None] * 4 + rng.normal(0, 1, (300, 3))).astype("float32")
    noise = rng.normal(0, 1, (300, 3)).astype("float32")
    windows = windows_of(label, part, np.arange(300) // 4)

    def verdicts(mine, other):
        features = {MODEL: mine, "other": other}
        return {c.probe: c.verdict for c in judge(features, windows, k=5, seed=0).comparisons}

    assert verdicts(telling, noise) == {"knn": "win", "linear": "win"}
    assert verdicts(noise, telling) == {"knn": "lose", "linear": "lose"}
    assert verdicts(telling, telling) == {"knn": "draw", "linear": "draw"}

"""Sets of labels: what a window holds, scores by scikit-learn's own, a report from end to end."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.metrics import average_precision_score, f1_score
from sklearn.neighbors import KNeighborsClassifier

from pipeline.errors import RecipeError
from pipeline.evaluate.multi_label import (
    SetBootstrap,
    neighbours_that_hold,
    one_vs_rest,
    set_scores,
)
from pipeline.evaluate.probes import STRENGTHS, Parts, interval
from pipeline.evaluate.report import judge
from pipeline.evaluate.scores import MODEL
from pipeline.evaluate.windows import Windows, check_parts, cut_windows
from pipeline.recipe.training import Evaluate
from pipeline.run.evaluate import run_evaluate
from pipeline.run.labelled import labelled_windows
from pipeline.run.pretrain import run_pretrain
from pipeline.store.reader import open_dataset

PRETRAIN = {"backbone": "small", "steps": 1, "batch_size": 4, "crop_px": 8, "queue": 8}
EVALUATE = {"labels": "labels", "window_px": 8, "task": "multi-label"}
GROUPS = {"rows": (1,), "columns": (2,), "neither": (7,)}


def cut(published, *, window_px=16, least=0.5, share=0.0, groups=GROUPS):
    dataset = open_dataset(published.store)
    images, labels = dataset.patches("image"), dataset.patches("labels")
    windows = cut_windows(
        images,
        labels,
        window_px=window_px,
        min_label_fraction=least,
        ignore=0,
        static=True,
        groups=groups,
        min_group_fraction=share,
    )
    return windows, images, labels


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_window_holds_the_groups_that_cover_enough_of_it(published, share):
    windows, images, labels = cut(published, share=share)
    codes = labels.read(slice(None))[0][:, 0]
    row_of = {name: i for i, name in enumerate(labels.rows["location"].to_pylist())}
    names = images.rows["location"].to_pylist()
    assert windows.groups == tuple(GROUPS)
    assert len(windows) == len(images)
    for k, patch in enumerate(windows.patch):
        inside = codes[row_of[names[patch]]]
        cover = np.array([(inside == 1).mean(), (inside == 2).mean(), 0])
        assert windows.holds[k].tolist() == ((cover > 0) & (cover >= share)).astype(int).tolist()
    assert (windows.holds.sum(axis=1) == 2).any()
    assert (windows.label == -1).all()
    some = windows.at(np.array([0, 3]))
    assert some.holds.tolist() == windows.holds[[0, 3]].tolist()


def test_windows_that_hold_nothing_or_are_hardly_labelled_are_left_out(published):
    whole, *_ = cut(published, window_px=8)
    # One of 16 label pixels of each patch's first window is unlabelled.
    assert len(cut(published, window_px=8, least=1.0)[0]) == len(whole) * 3 / 4
    rows, *_ = cut(published, window_px=8, groups={"rows": (1,)})
    assert len(rows) == whole.holds[:, 0].sum()


def test_parts_whose_windows_hold_the_same_cannot_be_judged(published):
    windows, *_ = cut(published, window_px=8)
    check_parts(windows)
    with pytest.raises(RecipeError, match=r"'train' .* no two windows that hold other"):
        check_parts(cut(published, window_px=8, groups={"rows": (1,)})[0])


def table(seed=0, windows=60, groups=4):
    rng = np.random.default_rng(seed)
    truth = (rng.random((windows, groups)) < [0.5, 0.2, 0.8, 0.1][:groups]).astype(int)
    # Few distinct values, so that many are equal.
    said = np.round(0.3 * truth + 0.7 * rng.random(truth.shape), 1)
    return said, truth


def test_scores_are_scikit_learns_also_with_weights_and_equal_values():
    said, truth = table()
    weights = np.random.default_rng(1).integers(0, 4, (5, len(said))).astype(float)
    found = set_scores(said, truth, weights)
    for draw, weight in enumerate(weights):
        how = {"sample_weight": weight}
        wanted = [
            *(average_precision_score(truth, said, average=a, **how) for a in ("macro", "micro")),
            *(f1_score(truth, said > 0.5, average=a, **how) for a in ("macro", "micro")),
        ]
        np.testing.assert_allclose([part[draw] for part in found], wanted, rtol=1e-9)


def test_macro_is_over_groups_that_occur_and_micro_over_all():
    said = np.array([[0.9, 0.8], [0.1, 0.7]])
    truth = np.array([[1, 0], [0, 0]])
    found = set_scores(said, truth, np.ones((1, 2)))
    assert found.macro_map[0] == found.macro_f1[0] == 1
    assert found.micro_f1[0] == pytest.approx(2 * 1 / (3 + 1))


def parts_of(seed=0, *, separation=3.0, groups=3):
    rng = np.random.default_rng(seed)
    holds = rng.integers(0, 2, (160, groups))
    directions = rng.normal(0, separation, (groups, 8))
    features = (holds @ directions + rng.normal(0, 1, (160, 8))).astype("float32")
    return Parts.standardised(features, holds, *np.split(np.arange(160), [80, 120])), holds[120:]


@pytest.mark.parametrize("k", [1, 5])
def test_neighbours_are_scikit_learns(k):
    parts, _ = parts_of()
    theirs = KNeighborsClassifier(k, metric="cosine").fit(parts.train, parts.train_label)
    wanted = np.stack([column[:, 1] for column in theirs.predict_proba(parts.test)], axis=1)
    np.testing.assert_allclose(neighbours_that_hold(parts, k), wanted)


def test_one_vs_rest_finds_what_is_linear_and_chooses_without_the_test_part():
    parts, truth = parts_of()
    found = one_vs_rest(parts)
    assert ((found.said > 0.5) == truth).mean() > 0.9
    assert found.strength in STRENGTHS
    assert found.converged
    other = Parts(parts.train, parts.val, -parts.test, parts.train_label, parts.val_label)
    assert one_vs_rest(other).strength == found.strength


def test_a_group_that_training_never_held_is_never_said():
    parts, _ = parts_of()
    held = parts.train_label.copy()
    held[:, 1] = 0
    other = Parts(parts.train, parts.val, parts.test, held, parts.val_label)
    said = one_vs_rest(other).said
    assert (said[:, 1] == 0).all()
    assert np.ptp(said[:, 0]) > 0.5


def test_windows_of_one_location_are_redrawn_together():
    said, truth = table(windows=20)
    group = np.arange(20)
    alone = SetBootstrap(truth, group, seed=0)
    copies = np.repeat(np.arange(20), 15)
    together = SetBootstrap(truth[copies], copies, seed=0)
    one, several = alone.scores(said), together.scores(said[copies])
    for mine, theirs in zip(one[1], several[1], strict=True):
        np.testing.assert_allclose(interval(mine), interval(theirs))
    narrow = SetBootstrap(truth[copies], np.arange(300), seed=0).scores(said[copies])
    assert np.ptp(interval(several[1].micro_map)) > 2 * np.ptp(interval(narrow[1].micro_map))
    assert not SetBootstrap(truth, group * 0, seed=0).by_location


def test_redraws_without_anything_held_are_left_out():
    truth = np.zeros((6, 2), dtype=int)
    truth[0] = 1
    many = SetBootstrap(truth, np.arange(6), seed=0).scores(truth.astype(float))[1]
    assert 0 < len(many.macro_map) < 1000
    assert (many.macro_map == 1).all()


def test_a_better_model_wins_a_worse_one_loses_and_an_equal_one_draws():
    rng = np.random.default_rng(0)
    holds = rng.integers(0, 2, (300, 3))
    part = np.repeat(["train", "val", "test"], 100)
    zeros = np.zeros(300, dtype=np.int64)
    windows = Windows(zeros, zeros, zeros, zeros, np.arange(300) // 4, part, 8, tuple("abc"), holds)
    telling = (holds @ rng.normal(0, 4, (3, 6)) + rng.normal(0, 1, (300, 6))).astype("float32")
    noise = rng.normal(0, 1, (300, 6)).astype("float32")

    def verdicts(mine, other):
        features = {MODEL: mine, "other": other}
        return {c.probe: c.verdict for c in judge(features, windows, k=5, seed=0).comparisons}

    assert verdicts(telling, noise) == {"knn": "win", "linear": "win"}
    assert verdicts(noise, telling) == {"knn": "lose", "linear": "lose"}
    assert verdicts(telling, telling) == {"knn": "draw", "linear": "draw"}


def test_a_report_has_map_and_f1_of_every_baseline(published):
    loaded = published.recipe(pretrain=PRETRAIN, evaluate=EVALUATE)
    run_pretrain(loaded, published.store)
    report = run_evaluate(loaded, published.store, device="cpu")
    kinds = {"model", "untrained", "image-statistics", "random-filters"}
    assert {(r.features, r.probe) for r in report.results} == {
        (kind, probe) for kind in kinds for probe in ("knn", "linear")
    }
    for r in report.results:
        for score in (r.macro_map, r.micro_map, r.macro_f1, r.micro_f1):
            assert 0 <= score.low <= score.value <= score.high <= 1
    assert {c.baseline for c in report.comparisons} == kinds - {"model"}
    linear = {r.features: r for r in report.results if r.probe == "linear"}
    # Stripes: filters see them, statistics do not.
    assert linear["random-filters"].macro_map.value > 0.95
    assert linear["random-filters"].micro_f1.value > 0.9
    assert linear["image-statistics"].macro_map.low < 0.6
    assert report.windows["test"].keys() == {"rows", "columns"}
    assert json.loads(published.store.get(report.path)) == json.loads(json.dumps(report.to_json()))
    assert "| macro mAP % (95% interval) | micro mAP % | macro F1 % | micro F1 % |" in str(report)
    assert "each with a set of 2 groups" in str(report)
    # Pretraining goes by majority classes all the same.
    dataset = open_dataset(published.store)
    seen = labelled_windows(loaded, dataset, dataset.patches("image"))
    assert seen.holds is None
    assert set(seen.label) == {1, 2}


def test_few_labels_are_of_one_class_each():
    with pytest.raises(ValidationError, match="leave them out"):
        Evaluate(labels="labels", task="multi-label", few_labels=3)

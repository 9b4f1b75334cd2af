"""Probes by scikit-learn's own, scores by hand, intervals that hold what they say."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from pipeline.evaluate.probes import STRENGTHS, Bootstrap, Parts, accuracy, interval, knn, linear


def parts(seed=0, *, separation=1.5, classes=3, train=60, val=30, test=40):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, train + val + test) * 10
    centres = rng.normal(0, separation, (classes, 8))
    features = (centres[label // 10] + rng.normal(0, 1, (len(label), 8))).astype("float32")
    numbers = np.split(np.arange(len(label)), [train, train + val])
    return Parts.standardised(features, label, *numbers), label[numbers[2]]


@pytest.mark.parametrize("k", [1, 5, 59])
def test_knn_is_scikit_learns_where_there_are_no_ties(k):
    both, _ = parts(classes=2)
    theirs = KNeighborsClassifier(k, metric="cosine").fit(both.train, both.train_label)
    assert (knn(both, k) == theirs.predict(both.test)).all()


def test_of_equal_votes_the_nearer_neighbours_win():
    train = np.array([[1.0, 0.1], [1.0, 0.3], [1.0, -0.2], [1.0, -0.25]])
    tie = Parts(train, train, np.array([[1.0, 0.0]]), np.array([7, 7, 8, 8]), np.array([7] * 4))
    similar = {7: (1 / np.hypot(1, 0.1) + 1 / np.hypot(1, 0.3))}
    similar[8] = 1 / np.hypot(1, 0.2) + 1 / np.hypot(1, 0.25)
    assert knn(tie, 4).tolist() == [max(similar, key=similar.__getitem__)]


def test_the_linear_probe_finds_what_is_linear():
    easy, truth = parts(separation=4)
    found = linear(easy)
    assert (found.predicted == truth).mean() > 0.95
    assert found.converged
    assert found.strength in STRENGTHS


def test_the_strength_is_chosen_without_the_test_part():
    sample, _ = parts()
    other = Parts(sample.train, sample.val, -sample.test, sample.train_label, sample.val_label)
    assert linear(sample).strength == linear(other).strength


def test_features_are_standardised_by_the_training_part_alone():
    sample, _ = parts()
    np.testing.assert_allclose(sample.train.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(sample.train.std(axis=0), 1, atol=1e-6)
    assert abs(sample.test.mean()) > 1e-6


def test_a_feature_that_never_varies_does_no_harm():
    constant = np.ones((9, 2), "float32")
    sample = Parts.standardised(constant, np.arange(9) % 2, *np.split(np.arange(9), 3))
    assert not sample.train.any()


def test_accuracy_by_hand_and_by_scikit_learn():
    truth = np.array([1, 1, 1, 2])
    predicted = np.array([1, 1, 2, 2])
    assert accuracy(predicted, truth) == (0.75, pytest.approx((2 / 3 + 1) / 2))
    assert accuracy(predicted, truth)[1] == pytest.approx(balanced_accuracy_score(truth, predicted))


def test_redraws_of_what_is_always_right_have_no_spread():
    truth = np.arange(20) % 3
    low, high = interval(Bootstrap(truth, np.arange(20), seed=0).scores(truth)[1])
    assert low == high == 1


def test_an_interval_is_as_wide_as_the_binomial_says():
    rng = np.random.default_rng(0)
    truth = np.zeros(400, int)
    predicted = (rng.random(400) < 0.25).astype(int)
    micro = Bootstrap(truth, np.arange(400), seed=0).scores(predicted)[0]
    share = (predicted == 0).mean()
    assert micro.std() == pytest.approx((share * (1 - share) / 400) ** 0.5, rel=0.1)


def test_windows_of_one_location_are_drawn_together():
    truth = np.zeros(400, int)
    group = np.repeat(np.arange(20), 20)
    predicted = group % 2
    together = Bootstrap(truth, group, seed=0)
    alone = Bootstrap(truth, np.arange(400), seed=0)
    assert together.by_location
    widths = [np.ptp(interval(b.scores(predicted)[0])) for b in (together, alone)]
    assert widths[0] > 3 * widths[1]
    assert not Bootstrap(truth, np.zeros(400, int), seed=0).by_location


def test_redraws_are_paired():
    truth = np.arange(50) % 4
    redraw = Bootstrap(truth, np.arange(50), seed=0)
    predicted = np.where(np.arange(50) % 5, truth, 9)
    assert (redraw.scores(predicted) == redraw.scores(predicted)).all()
    assert (redraw.scores(truth) >= redraw.scores(predicted)).all()

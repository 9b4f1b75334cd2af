"""Probes of frozen features, scores of what they predict, and how sure one can be of them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]

#: Strengths among which the validation part chooses.
STRENGTHS = tuple(10.0**power for power in range(-4, 3))
#: Iterations of L-BFGS before it is stopped, which the report then says.
MOST_ITERATIONS = 500
#: Redraws of the test part, and the share of them that an interval holds.
DRAWS = 1000
CONFIDENCE = 0.95
#: Test windows compared with the training part at a time.
CHUNK = 1024


@dataclass(frozen=True)
class Parts:
    """Features and labels of the three parts, standardised by the training part alone."""

    train: Floats
    val: Floats
    test: Floats
    train_label: Numbers
    """Classes, shape (window,); or what is held of groups, shape (window, group)."""
    val_label: Numbers

    @classmethod
    def standardised(
        cls,
        features: NDArray[np.float32],
        label: Numbers,
        train: Numbers,
        val: Numbers,
        test: Numbers,
    ) -> Parts:
        """Take the parts of a feature table (window, width) by their window numbers."""
        values = features.astype(np.float64)
        mean, std = values[train].mean(axis=0), values[train].std(axis=0)
        values = (values - mean) / np.where(std > 0, std, 1.0)
        return cls(values[train], values[val], values[test], label[train], label[val])


@dataclass(frozen=True)
class Linear:
    """What the linear probe predicts, and how it was found."""

    predicted: Numbers
    strength: float
    """Inverse regularisation that did best on the validation part."""
    converged: bool


def knn(parts: Parts, k: int) -> Numbers:
    """Classify test windows by the majority of their k most similar training windows (cosine).

    Of classes with equally many votes the one with the more similar neighbours wins.
    """
    classes, codes = np.unique(parts.train_label, return_inverse=True)
    near, cosine = nearest(parts, k)
    # Cosines add up to at most k in size, so a vote always outweighs them.
    votes = np.zeros((len(near), len(classes)))
    places = (np.arange(len(near))[:, None], codes[near])
    np.add.at(votes, places, 2 * near.shape[1] + 1 + cosine)
    found: Numbers = classes[votes.argmax(axis=1)]
    return found


def nearest(parts: Parts, k: int) -> tuple[Numbers, Floats]:
    """Return each test window's k most similar training windows, in any order.

    Returns
    -------
    (numbers, cosines)
        Of the training windows, shape (test window, k), or as many as there are.
    """
    train, test = _unit(parts.train), _unit(parts.test)
    k = min(k, len(train))
    numbers, cosines = np.empty((len(test), k), dtype=np.int64), np.empty((len(test), k))
    for start in range(0, len(test), CHUNK):
        rows = slice(start, start + CHUNK)
        cosine = test[rows] @ train.T
        numbers[rows] = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        cosines[rows] = np.take_along_axis(cosine, numbers[rows], axis=1)
    return numbers, cosines


def linear(parts: Parts) -> Linear:
    """Fit logistic regressions on the training part, choose one on the validation part, predict.

    The test part takes no part in the choice.
    """
    best: tuple[float, float, LogisticRegression] | None = None
    for strength in STRENGTHS:
        probe = LogisticRegression(C=strength, max_iter=MOST_ITERATIONS)
        with warnings.catch_warnings():
            # A probe that was stopped is still a probe; `converged` reports it.
            warnings.simplefilter("ignore", ConvergenceWarning)
            probe.fit(parts.train, parts.train_label)
        score = accuracy(probe.predict(parts.val), parts.val_label)[1]
        if best is None or score > best[0]:
            best = (score, strength, probe)
    if best is None:
        raise ValueError("there is no strength to choose from")
    _, strength, probe = best
    converged = bool(np.max(probe.n_iter_) < MOST_ITERATIONS)
    return Linear(probe.predict(parts.test), strength, converged)


def accuracy(predicted: Numbers, truth: Numbers) -> tuple[float, float]:
    """Return micro accuracy (share of windows) and macro accuracy (mean over classes).

    Macro is over the classes that occur in `truth`.
    """
    right = predicted == truth
    classes = np.unique(truth)
    return float(right.mean()), float(np.mean([right[truth == c].mean() for c in classes]))


def redrawn(group: Numbers) -> tuple[bool, Numbers]:
    """Return whether locations are redrawn, and what each window is drawn with, from 0."""
    by_location = len(np.unique(group)) > 1
    if not by_location:
        return False, np.arange(len(group))
    return True, np.unique(group, return_inverse=True)[1].astype(np.int64)


class Bootstrap:
    """Redraws of a test part, the same for every prediction, so that differences are paired.

    Whole groups are drawn with replacement: windows of one location are alike, and to draw them one
    by one would make intervals too narrow.

    Parameters
    ----------
    truth : int array, shape (window,)
    group : int array, shape (window,)
        Location of each window; if there is but one, windows are drawn one by one.
    seed : int
    """

    def __init__(self, truth: Numbers, group: Numbers, *, seed: int) -> None:
        self.by_location, self._group = redrawn(group)
        self._classes, self._class = np.unique(truth, return_inverse=True)
        self._truth = truth
        self._seed = seed
        self._count = self._draw(np.ones(len(truth)))

    def scores(self, predicted: Numbers) -> Floats:
        """Return micro and macro accuracy of every redraw, shape (2, draw)."""
        right = self._draw((predicted == self._truth).astype(np.float64))
        micro = right.sum(axis=1) / self._count.sum(axis=1)
        some = self._count > 0
        share = np.divide(right, self._count, out=np.zeros_like(right), where=some)
        return np.stack([micro, share.sum(axis=1) / some.sum(axis=1)])

    def _draw(self, weight: Floats) -> Floats:
        """Return the sum of weights by class in every redraw, shape (draw, class)."""
        groups = int(self._group.max()) + 1
        table = np.zeros((groups, len(self._classes)))
        np.add.at(table, (self._group, self._class), weight)
        random = np.random.default_rng(self._seed)
        shares = np.full(groups, 1 / groups)
        rows = [random.multinomial(groups, shares) @ table for _ in range(DRAWS)]
        return np.stack(rows)


def interval(draws: Floats) -> tuple[float, float]:
    """Return the central interval that holds `CONFIDENCE` of the redraws."""
    rest = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [rest, 1 - rest])
    return float(low), float(high)


def _unit(values: Floats) -> Floats:
    length = np.linalg.norm(values, axis=1, keepdims=True)
    unit: Floats = values / np.where(length > 0, length, 1.0)
    return unit

"""Windows that hold several class groups at once: probes, scores and their redraws.

The task of BigEarthNet and of SpectralEarth's CORINE set. Average precision (AP) asks how well the
windows that hold a group are ranked before the others, F1 what a threshold of one half makes of it.
Macro is the mean over the groups that occur in the test part, micro is of all pairs of window and
group together; both are of the whole part: a mean over batches, as SSL4EO-S12's evaluation takes
it, is another number.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from pipeline.evaluate.features import Features
from pipeline.evaluate.probes import (
    DRAWS,
    MOST_ITERATIONS,
    STRENGTHS,
    Floats,
    Numbers,
    Parts,
    interval,
    nearest,
    redrawn,
)
from pipeline.evaluate.scores import Score
from pipeline.evaluate.windows import PARTS, Windows

#: Weights of pairs of window and group that are held at a time.
CHUNK_VALUES = 4_000_000


@dataclass(frozen=True, slots=True)
class SetResult:
    """How one kind of features did under one probe."""

    features: str
    probe: Literal["knn", "linear"]
    macro_map: Score
    """Mean average precision over the groups."""
    micro_map: Score
    macro_f1: Score
    micro_f1: Score
    strength: float | None = None
    """Linear probe: inverse regularisation chosen on the validation part."""
    converged: bool | None = None
    """Linear probe: whether all of its fits came to an end."""


class SetScores(NamedTuple):
    """Four scores, or so many of each."""

    macro_map: Floats
    micro_map: Floats
    macro_f1: Floats
    micro_f1: Floats


@dataclass(frozen=True)
class OneVsRest:
    """What logistic regressions say, one for each group."""

    said: Floats
    """Probabilities of the test windows, shape (window, group)."""
    strength: float
    converged: bool


def judge_sets(
    features: Mapping[str, Features], windows: Windows, *, k: int, seed: int
) -> tuple[list[SetResult], dict[tuple[str, Literal["knn", "linear"]], tuple[float, Floats]], bool]:
    """Probe every kind of features on the same parts.

    Parameters
    ----------
    features : mapping of str to array (window, width)
    windows : Windows
        With `holds`.
    k : int
        Neighbours of the kNN probe.
    seed : int
        Of the redraws.

    Returns
    -------
    (results, draws, by_location)
        Macro mAP of each kind and probe with its redraws, and whether these draw locations.
    """
    if windows.holds is None:
        raise ValueError("these windows have one class each")
    train, val, test = (windows.of(part) for part in PARTS)
    redraw = SetBootstrap(windows.holds[test], windows.location[test], seed=seed)
    results: list[SetResult] = []
    draws: dict[tuple[str, Literal["knn", "linear"]], tuple[float, Floats]] = {}
    for kind, values in features.items():
        parts = Parts.standardised(values, windows.holds, train, val, test)
        fitted = one_vs_rest(parts)
        votes = OneVsRest(neighbours_that_hold(parts, k), np.nan, True)
        for probe, found in (("knn", votes), ("linear", fitted)):
            once, many = redraw.scores(found.said)
            is_linear = probe == "linear"
            scored = (Score(float(one), *interval(m)) for one, m in zip(once, many, strict=True))
            macro_map, micro_map, macro_f1, micro_f1 = scored
            result = SetResult(
                kind,
                "linear" if is_linear else "knn",
                macro_map,
                micro_map,
                macro_f1,
                micro_f1,
                strength=found.strength if is_linear else None,
                converged=found.converged if is_linear else None,
            )
            results.append(result)
            draws[kind, result.probe] = (result.macro_map.value, many.macro_map)
    return results, draws, redraw.by_location


def neighbours_that_hold(parts: Parts, k: int) -> Floats:
    """Return the share of each test window's k most similar training windows that hold a group."""
    share: Floats = parts.train_label[nearest(parts, k)[0]].mean(axis=1)
    return share


def one_vs_rest(parts: Parts) -> OneVsRest:
    """Fit logistic regressions of every group, all of one strength, and let them speak.

    The strength is the one with the highest sum of macro mAP and macro F1 on the validation part:
    by mAP alone it is often so strong that no probability crosses one half. A group that all
    training windows hold, or none, has that as its constant probability.
    """
    best: tuple[float, float, list[LogisticRegression | None]] | None = None
    for strength in STRENGTHS:
        probes = [_fit(parts.train, held, strength) for held in parts.train_label.T]
        said = _said(probes, parts.val, parts)
        one = np.ones((1, len(said)))
        scores = set_scores(said, parts.val_label, one)
        score = float(scores.macro_map[0] + scores.macro_f1[0])
        if best is None or score > best[0]:
            best = (score, strength, probes)
    if best is None:
        raise ValueError("there is no strength to choose from")
    _, strength, probes = best
    most = max((int(probe.n_iter_.max()) for probe in probes if probe is not None), default=0)
    return OneVsRest(_said(probes, parts.test, parts), strength, most < MOST_ITERATIONS)


def set_scores(said: Floats, truth: Numbers, weights: Floats) -> SetScores:
    """Score what was said of windows, as often as there are weights.

    Parameters
    ----------
    said : float array, shape (window, group)
        More is more likely, one half is the threshold.
    truth : int array, shape (window, group)
        1 where the group is held, else 0.
    weights : float array, shape (draw, window)
        How often each window counts.

    Returns
    -------
    SetScores
        Each of shape (draw,); not a number where no window of a draw holds anything.
    """
    ap = np.stack([_average_precision(s, t, weights) for s, t in zip(said.T, truth.T, strict=True)])
    positive = said > 0.5
    hit, alarms, held = (weights @ part for part in (positive & (truth > 0), positive, truth > 0))
    occurs = held > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = np.where(occurs, 2 * hit / (alarms + held), 0.0)
        count = occurs.sum(axis=1)
        return SetScores(
            np.where(occurs.T, ap, 0.0).sum(axis=0) / count,
            _average_precision(said.ravel(), truth.ravel(), weights, said.shape[1]),
            f1.sum(axis=1) / count,
            2 * hit.sum(axis=1) / (alarms.sum(axis=1) + held.sum(axis=1)),
        )


class SetBootstrap:
    """Redraws of a test part, of whole locations, the same for every prediction.

    Parameters
    ----------
    truth : int array, shape (window, group)
    group : int array, shape (window,)
        Location of each window; if there is but one, windows are drawn one by one.
    seed : int
    """

    def __init__(self, truth: Numbers, group: Numbers, *, seed: int) -> None:
        self.by_location, self._group = redrawn(group)
        self._truth, self._seed = truth, seed

    def scores(self, said: Floats) -> tuple[SetScores, SetScores]:
        """Return the scores of the part as it is, and of every redraw in which one was held."""
        random = np.random.default_rng(self._seed)
        groups = int(self._group.max()) + 1
        shares = np.full(groups, 1 / groups)
        rows = max(CHUNK_VALUES // self._truth.size, 1)
        found = []
        for start in range(0, DRAWS, rows):
            times = random.multinomial(groups, shares, min(rows, DRAWS - start))
            found.append(set_scores(said, self._truth, times[:, self._group].astype(np.float64)))
        many = SetScores(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
        some = np.isfinite(many.macro_map)
        once = set_scores(said, self._truth, np.ones((1, len(said))))
        return SetScores(*(part[0] for part in once)), SetScores(*(part[some] for part in many))


def _average_precision(said: Floats, truth: Numbers, weights: Floats, repeat: int = 1) -> Floats:
    """Return the average precision of one ranking under each row of weights, shape (draw,).

    The sum over thresholds of precision times the gain in recall; equal values share a threshold.
    Each weight is of `repeat` values that follow one another.
    """
    order = np.argsort(-said, kind="stable")
    ranked, hit = said[order], truth[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    weight = weights[:, order // repeat]
    taken = np.cumsum(weight, axis=1)[:, ends]
    right = np.cumsum(weight * hit, axis=1)[:, ends]
    precision = np.divide(right, taken, out=np.zeros_like(right), where=taken > 0)
    gain = np.diff(right, axis=1, prepend=0)
    with np.errstate(invalid="ignore"):
        average: Floats = (precision * gain).sum(axis=1) / right[:, -1]
    return average


def _fit(values: Floats, held: Numbers, strength: float) -> LogisticRegression | None:
    """Fit one group; None if all windows hold it, or none."""
    if held.all() or not held.any():
        return None
    probe = LogisticRegression(C=strength, max_iter=MOST_ITERATIONS)
    with warnings.catch_warnings():
        # A probe that was stopped is still a probe; `converged` reports it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return probe.fit(values, held)


def _said(probes: list[LogisticRegression | None], values: Floats, parts: Parts) -> Floats:
    """Return probabilities, shape (window, group)."""
    always = parts.train_label.mean(axis=0)
    columns = [
        np.full(len(values), constant) if probe is None else probe.predict_proba(values)[:, 1]
        for probe, constant in zip(probes, always, strict=True)
    ]
    return np.stack(columns, axis=1)

"""Say what was learned: scores beside baselines, win or lose in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from pipeline.evaluate.features import Features
from pipeline.evaluate.few_labels import FewLabels
from pipeline.evaluate.multi_label import SetResult, judge_sets
from pipeline.evaluate.probes import (
    CONFIDENCE,
    Bootstrap,
    Linear,
    Parts,
    accuracy,
    interval,
    knn,
    linear,
)
from pipeline.evaluate.scores import MODEL, TITLES, Score
from pipeline.evaluate.windows import PARTS, Numbers, Windows

Probe = Literal["knn", "linear"]
Verdict = Literal["win", "lose", "draw"]


@dataclass(frozen=True, slots=True)
class Result:
    """How one kind of features did under one probe."""

    features: str
    probe: Probe
    macro: Score
    """Mean over classes."""
    micro: Score
    """Share of windows."""
    strength: float | None = None
    """Linear probe: inverse regularisation chosen on the validation part."""
    converged: bool | None = None
    """Linear probe: whether its fit came to an end."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The model against one baseline under one probe, in macro accuracy; of sets of labels, in
    macro mAP."""

    baseline: str
    probe: Probe
    difference: Score
    """Model minus baseline, over the same redraws."""
    verdict: Verdict
    """`draw` if the interval holds 0."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What the probes found."""

    results: list[Result] | list[SetResult]
    comparisons: list[Comparison]
    resampled: Literal["locations", "windows"]
    """What was redrawn for the intervals."""
    said: Numbers | None
    """Code that the linear probe of the model's features says of each test window; None: the
    windows have sets of labels."""


@dataclass(frozen=True)
class Evaluation:
    """Everything that goes into the report."""

    model: str
    step: int
    version: int
    digest: str
    product: str
    labels: str
    transductive: bool
    window_px: int
    sizes: dict[str, int]
    """Part to number of windows."""
    windows: dict[str, dict[str, int]]
    """Part to class name to number of windows; of sets of labels, of those that hold it."""
    majority: float | None
    """Micro accuracy of always saying the training part's most frequent class; None: the windows
    have sets of labels."""
    resampled: Literal["locations", "windows"]
    """What the redraws behind the intervals draw."""
    results: list[Result] | list[SetResult] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    locations: dict[str, int] = field(default_factory=dict)
    """Part to number of locations, whose windows are alike."""
    confusion: dict[str, dict[str, int]] | None = None
    """Of the test part, by the linear probe of the model's features: class, class said, number of
    windows. None: the windows have sets of labels."""
    few: FewLabels | None = None
    """Classification with few labels, where the recipe or the method asks for it."""
    new_product: bool = False
    """Whether the model never learned from the product, which is then standardised by the
    statistics of this version's training part."""
    path: str = ""
    """Key of the JSON report in the root; the table is beside it, with `.md`."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{markdown(self)}\nThis report: {self.path.removesuffix('.json')}.md, in the root."


def judge(features: Mapping[str, Features], windows: Windows, *, k: int, seed: int) -> Judged:
    """Probe every kind of features on the same parts and compare the model with the others.

    Parameters
    ----------
    features : mapping of str to array (window, width)
        With one kind named `MODEL`.
    windows : Windows
        All parts have at least two classes, or sets of groups.
    k : int
        Neighbours of the kNN probe.
    seed : int
        Of the redraws.
    """
    results: list[Result] | list[SetResult]
    said: Numbers | None = None
    if windows.holds is None:
        results, draws, by_location, said = _judge_classes(features, windows, k=k, seed=seed)
    else:
        results, draws, by_location = judge_sets(features, windows, k=k, seed=seed)
    comparisons = [_compare(kind, probe, draws) for kind, probe in draws if kind != MODEL]
    return Judged(results, comparisons, "locations" if by_location else "windows", said)


def _judge_classes(
    features: Mapping[str, Features], windows: Windows, *, k: int, seed: int
) -> tuple[list[Result], dict[tuple[str, Probe], tuple[float, Any]], bool, Numbers]:
    train, val, test = (windows.of(part) for part in PARTS)
    truth = windows.label[test]
    redraw = Bootstrap(truth, windows.location[test], seed=seed)
    results: list[Result] = []
    said = truth
    draws: dict[tuple[str, Probe], tuple[float, Any]] = {}
    for kind, values in features.items():
        parts = Parts.standardised(values, windows.label, train, val, test)
        fitted = linear(parts)
        said = fitted.predicted if kind == MODEL else said
        for probe, predicted in (("knn", knn(parts, k)), ("linear", fitted.predicted)):
            result, macro = _score(kind, probe, predicted, truth, redraw, fitted)
            results.append(result)
            draws[kind, result.probe] = (result.macro.value, macro)
    return results, draws, redraw.by_location, said


def _score(
    kind: str, probe: str, predicted: Any, truth: Any, redraw: Bootstrap, fitted: Linear
) -> tuple[Result, Any]:
    micro, macro = accuracy(predicted, truth)
    micro_draws, macro_draws = redraw.scores(predicted)
    is_linear = probe == "linear"
    result = Result(
        features=kind,
        probe="linear" if is_linear else "knn",
        macro=Score(macro, *interval(macro_draws)),
        micro=Score(micro, *interval(micro_draws)),
        strength=fitted.strength if is_linear else None,
        converged=fitted.converged if is_linear else None,
    )
    return result, macro_draws


def _compare(
    kind: str, probe: Probe, draws: Mapping[tuple[str, Probe], tuple[float, Any]]
) -> Comparison:
    (mine, my_draws), (other, other_draws) = draws[MODEL, probe], draws[kind, probe]
    low, high = interval(my_draws - other_draws)
    verdict: Verdict = "win" if low > 0 else "lose" if high < 0 else "draw"
    return Comparison(kind, probe, Score(mine - other, low, high), verdict)


def count_windows(windows: Windows, classes: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Return the number of windows by part and name of what they are, or hold."""
    table: dict[str, dict[str, int]] = {}
    for part in PARTS:
        if windows.holds is not None:
            held = windows.holds[windows.of(part)].sum(axis=0).tolist()
            pairs = zip(windows.groups, held, strict=True)
            table[part] = {name: count for name, count in pairs if count}
            continue
        codes, counts = np.unique(windows.label[windows.of(part)], return_counts=True)
        names = [_named(code, classes) for code in codes.tolist()]
        table[part] = dict(zip(names, counts.tolist(), strict=True))
    return table


def count_locations(windows: Windows) -> dict[str, int]:
    """Return the number of locations of each part."""
    return {part: len(np.unique(windows.location[windows.of(part)])) for part in PARTS}


def confuse(
    said: Numbers | None, windows: Windows, classes: Mapping[str, str]
) -> dict[str, dict[str, int]] | None:
    """Return by name of a test window's class how many were said to be of which.

    Parameters
    ----------
    said : array, shape (test window,), or None
        `Judged.said`.
    """
    if said is None:
        return None
    truth = windows.label[windows.of("test")]
    codes = np.unique(np.concatenate([truth, said])).tolist()
    return {
        _named(true, classes): {
            _named(code, classes): int(((truth == true) & (said == code)).sum()) for code in codes
        }
        for true in np.unique(truth).tolist()
    }


def _named(code: int, classes: Mapping[str, str]) -> str:
    return classes.get(str(code), f"class {code}")


def majority_accuracy(windows: Windows) -> float | None:
    """Return the micro accuracy of always saying the training part's most frequent class.

    None: the windows have sets of labels.
    """
    if windows.holds is not None:
        return None
    codes, counts = np.unique(windows.label[windows.of("train")], return_counts=True)
    return float((windows.label[windows.of("test")] == codes[counts.argmax()]).mean())


def markdown(report: Evaluation) -> str:
    """Write the report for a person."""
    parts = ", ".join(f"{report.sizes[part]} {part}" for part in PARTS)
    classes = len(set().union(*report.windows.values()))
    lines = [
        f"# {report.model}, step {report.step}: {report.labels}",
        "",
        f"Frozen features of {report.product}, version {report.version}, windows of "
        f"{report.window_px} px ({parts}), {_chance(report, classes)}",
        "",
    ]
    if report.transductive:
        lines += [
            "**Transductive**: pretraining saw the images of the validation and test parts, "
            "without labels.",
            "",
        ]
    if report.new_product:
        lines += [
            f"**New sensor**: pretraining saw no {report.product}; it is standardised by the "
            "training part of this version.",
            "",
        ]
    columns = ["macro accuracy %", "micro accuracy %"]
    if report.majority is None:
        columns = ["macro mAP %", "micro mAP %", "macro F1 %", "micro F1 %"]
    columns[0] += f" ({CONFIDENCE:.0%} interval)"
    lines += [f"| features | probe | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    lines += [
        f"| {TITLES.get(r.features, r.features)} | {r.probe} "
        f"| {' | '.join(_score_text(score) for score in _scores(r))} |"
        for r in report.results
    ]
    lines += ["", *[_sentence(c) for c in report.comparisons], "", *_notes(report)]
    lines += ["", *_window_table(report)]
    if report.confusion and len(report.confusion) <= _MOST_CONFUSED:
        lines += ["", *_confusion_table(report.confusion)]
    if report.few is not None:
        lines += ["", str(report.few).rstrip()]
    return "\n".join(lines) + "\n"


#: Classes up to which a confusion table can still be read; the JSON has it in any case.
_MOST_CONFUSED = 20


def _window_table(report: Evaluation) -> list[str]:
    """Return a table of windows by class and part, and what it lacks."""
    names = [*dict.fromkeys(name for part in PARTS for name in report.windows[part])]
    kind = "group held" if report.majority is None else "class"
    lines = [f"Windows by {kind} and part:", "", f"| {kind} | {' | '.join(PARTS)} |"]
    lines += ["|---" * (1 + len(PARTS)) + "|"]
    counts = {name: [report.windows[part].get(name, 0) for part in PARTS] for name in names}
    lines += [f"| {name} | {' | '.join(map(str, row))} |" for name, row in counts.items()]
    totals = (f"{report.sizes[p]} of {report.locations.get(p, 0)} locations" for p in PARTS)
    lines += [f"| all windows | {' | '.join(totals)} |"]
    for part, what in (("test", "they are in no score"), ("train", "no probe can say them")):
        absent = [name for name, row in counts.items() if not row[PARTS.index(part)]]
        if absent:
            lines += ["", f"**Not in the {part} part**: {', '.join(absent)}; {what}."]
    return lines


def _confusion_table(confusion: Mapping[str, Mapping[str, int]]) -> list[str]:
    said = [*next(iter(confusion.values()))]
    lines = ["Test windows by class (rows) and what the linear probe of this model says:", ""]
    lines += [f"| | {' | '.join(said)} |", "|---" * (1 + len(said)) + "|"]
    lines += [
        f"| {true} | {' | '.join(str(row[name]) for name in said)} |"
        for true, row in confusion.items()
    ]
    return lines


def _chance(report: Evaluation, classes: int) -> str:
    """Say how many classes there are, and what needs no features."""
    if report.majority is not None:
        return (
            f"{classes} classes. Always saying the training part's most frequent class scores "
            f"{_percent(report.majority)} (micro)."
        )
    held = report.windows["test"].values()
    chance = float(np.mean(list(held))) / report.sizes["test"]
    return (
        f"each with a set of {classes} groups. Saying the same of all windows has a macro mAP of "
        f"{_percent(chance)}."
    )


def _scores(result: Result | SetResult) -> tuple[Score, ...]:
    if isinstance(result, Result):
        return result.macro, result.micro
    return result.macro_map, result.micro_map, result.macro_f1, result.micro_f1


def _sentence(c: Comparison) -> str:
    words = {
        "win": "**wins** against",
        "lose": "**loses** to",
        "draw": "cannot be told from",
    }
    return (
        f"- Under the {c.probe} probe this model {words[c.verdict]} "
        f"{TITLES.get(c.baseline, c.baseline)}: {100 * c.difference.value:+.1f} points macro "
        f"({100 * c.difference.low:+.1f} to {100 * c.difference.high:+.1f})."
    )


def _notes(report: Evaluation) -> list[str]:
    notes = [
        f"Intervals: {CONFIDENCE:.0%} of redraws of the test part's {report.resampled}; "
        "regularisation was chosen on the validation part."
    ]
    stopped = [r.features for r in report.results if r.converged is False]
    if stopped:
        notes.append(f"The linear probe was stopped before it converged: {', '.join(stopped)}.")
    return notes


def _score_text(score: Score) -> str:
    return f"{_percent(score.value)} ({_percent(score.low)} to {_percent(score.high)})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"

"""Classification with few labels: what semi-supervised pretraining is for.

Of each class of the training part a few windows are known. Two ways lead from them to the test
part. The soft nearest neighbour of PAWS (Assran et al. 2021, arXiv 2104.13963, equation 1) asks the
known windows to vote; nothing is trained. Fine-tuning goes on from the encoder with a linear head
(for hyperspectral images Pande et al. 2023, arXiv 2306.10955), beside the same encoder from random
weights: what pretraining is worth is the difference.

The released code for the latter fine-tunes from random weights, because it saves its encoder before
the first step, and reports the best test score of all epochs. Here the rate is chosen on the
validation part, and the test part is looked at once, after the last step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from pipeline.evaluate.features import Features
from pipeline.evaluate.probes import Bootstrap, Numbers, accuracy, interval
from pipeline.evaluate.scores import MODEL, TITLES, Score
from pipeline.evaluate.windows import Windows
from pipeline.pretrain.data.augment import Augmentation
from pipeline.pretrain.encoders.backbones import width_of
from pipeline.pretrain.methods.barlow_pixels import cut_windows
from pipeline.pretrain.methods.method import View
from pipeline.pretrain.methods.paws import predict
from pipeline.pretrain.schedule import cosine

#: Of the vote (PAWS, section 4).
TEMPERATURE = 0.1
#: Rates among which the validation part chooses.
RATES = (1e-4, 1e-3)
WEIGHT_DECAY = 0.05
BATCH = 64
#: Share of a window that a crop keeps, at least: what it shows must still be of its class.
LEAST_AREA = 0.5

Way = Literal["soft-nn", "fine-tune"]
WAYS: dict[Way, str] = {"soft-nn": "soft nearest neighbour", "fine-tune": "fine-tuned"}
#: Kinds of features that only this report has.
PROJECTED = "projected"


@dataclass(frozen=True, slots=True)
class FewResult:
    """How one kind of features did in one way."""

    features: str
    way: Way
    macro: Score
    micro: Score
    gain: Score | None = None
    """Macro accuracy of the model in that way less this one's, over the same redraws."""
    rate: float | None = None
    """Fine-tuning: learning rate chosen on the validation part."""


@dataclass(frozen=True)
class FewLabels:
    """Classification with few labels."""

    labels: int
    """Windows known, of all classes."""
    per_class: int
    """Windows of each class, less where a class has less."""
    pretraining_knew: int | None
    """Labelled windows of each class that pretraining knew; 0: none, None: all."""
    fine_tune_steps: int
    results: list[FewResult]

    def __str__(self) -> str:
        """Write the section of a report."""
        knew = {None: "all of the training part", 0: "none"}.get(
            self.pretraining_knew, f"{self.pretraining_knew} of each class"
        )
        lines = [
            f"## {self.per_class} labels a class",
            "",
            f"{self.labels} labelled windows of the training part; pretraining knew {knew}.",
            "",
            "| features | way | macro accuracy % | micro accuracy % | this model: more by |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {self._title(r)} | {WAYS[r.way]} | {_text(r.macro)} | {_text(r.micro)} "
            f"| {_text(r.gain, '+') if r.gain else ''} |"
            for r in self.results
        ]
        return "\n".join(lines) + "\n"

    @staticmethod
    def _title(result: FewResult) -> str:
        own = {PROJECTED: f"{TITLES[MODEL]}, as its loss compares it"}
        return {**TITLES, **own}.get(result.features, result.features)


def draw_support(windows: Windows, per_class: int | None, seed: int) -> Numbers:
    """Draw the windows that are known, so many of each class of the training part.

    Parameters
    ----------
    windows : Windows
    per_class : int or None
        A class with fewer gives all it has; None: as many as the rarest class has.
    seed : int

    Returns
    -------
    int array, shape (known,)
        Window numbers, ascending.
    """
    train = windows.of("train")
    label = windows.label[train]
    classes, counts = np.unique(label, return_counts=True)
    wanted = int(counts.min()) if per_class is None else per_class
    random = np.random.default_rng([seed, 0])
    drawn = [
        random.permutation(train[label == number])[: min(wanted, count)]
        for number, count in zip(classes, counts, strict=True)
    ]
    return np.sort(np.concatenate(drawn))


def soft_nearest(
    features: Features, support: Numbers, label: Numbers, temperature: float = TEMPERATURE
) -> NDArray[np.float32]:
    """Let known windows vote on all of them, each by its likeness.

    Parameters
    ----------
    features : float32 array, shape (window, width)
    support : int array, shape (known,)
        Numbers of the known windows.
    label : int array, shape (known,)
        Their classes, from 0.
    temperature : float
        Divides the cosines.

    Returns
    -------
    float32 array, shape (window, class)
        softmax(cosine / temperature) over the known windows, summed by class: each row sums to 1.
    """
    unit = F.normalize(torch.from_numpy(features), dim=1)
    votes = F.one_hot(torch.from_numpy(label)).float()
    said: NDArray[np.float32] = predict(unit, unit[support], votes, temperature).numpy()
    return said


def fine_tune(
    encoder: nn.Module,
    read: Callable[[Numbers], View],
    support: Numbers,
    label: Numbers,
    *,
    image_px: int,
    pixels: bool = False,
    steps: int,
    rate: float,
    seed: int,
) -> nn.Module:
    """Train a copy of an encoder, with a linear head, on the known windows.

    Parameters
    ----------
    encoder : module, (batch, band, y, x) -> (batch, width)
        Left as it is.
    read : callable
        Returns the standardised windows of ascending numbers, on the encoder's device.
    support : int array, shape (known,)
        Window numbers, ascending.
    label : int array, shape (known,)
        Their classes, from 0.
    image_px : int
        Edge of the images that the encoder takes.
    pixels : bool
        It takes the pixels at their own size: parts of a window of that edge, in place of the
        window shrunk to it (as `EncoderFeatures` shows them).
    steps : int
        AdamW, its rate falling on a cosine.
    rate : float
    seed : int

    Returns
    -------
    module, (batch, band, y, x) -> (batch, class)
        In evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)
    tuned = copy.deepcopy(encoder).train().requires_grad_(True)
    device = next(tuned.parameters()).device
    head = nn.Linear(width_of(encoder), int(label.max()) + 1).to(device)
    # Nothing of it is random: what differs between two runs is the encoder.
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    net = nn.Sequential(tuned, head)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
    augment = Augmentation(image_px, area=(LEAST_AREA, 1.0))
    batch = min(BATCH, len(support))
    order = torch.empty(0, dtype=torch.long)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for step in range(steps):
            if len(order) < batch:
                order = torch.randperm(len(support), generator=generator)
            chosen, order = order[:batch].sort().values.numpy(), order[batch:]
            view = read(support[chosen])
            if pixels and min(view.image.shape[-2:]) > image_px:
                view = _part(view, image_px, generator)
            else:
                view = augment(view, generator)
            wanted = torch.from_numpy(label[chosen]).to(device)
            for group in optimizer.param_groups:
                group["lr"] = cosine(step, first=rate, last=0.0, steps=steps + 1)
            F.cross_entropy(net(view.image), wanted).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
    return net.eval()


def _part(view: View, edge_px: int, generator: torch.Generator) -> View:
    """Cut one part at random out of each item, at the pixels' own size, and flip half of them."""
    count, _, *edges = view.image.shape
    corners = [torch.randint(edge - edge_px + 1, (count, 1), generator=generator) for edge in edges]
    part = cut_windows(view, torch.stack(corners, dim=2).to(view.image.device), edge_px)
    flips = (torch.rand(2, count, 1, 1, 1, generator=generator) < 0.5).to(view.image.device)
    image, valid = part.image, part.valid
    for axis, flipped in zip((2, 3), flips, strict=True):
        image = torch.where(flipped, image.flip(axis), image)
        valid = torch.where(flipped, valid.flip(axis), valid)
    return View(image, valid)


def choose(
    logits: Mapping[tuple[str, float], Features], windows: Windows, classes: Numbers
) -> dict[str, tuple[float, Numbers]]:
    """Return each encoder's rate that did best on the validation part, and its classes of all.

    Parameters
    ----------
    logits : mapping of (encoder, rate) to array (window, class)
        Of equally good rates the first is taken.
    windows : Windows
    classes : int array, shape (class,)
        Codes of the columns.
    """
    val = windows.of("val")
    best: dict[str, tuple[float, float, Numbers]] = {}
    for (kind, rate), values in logits.items():
        said = classes[values.argmax(axis=1)]
        score = accuracy(said[val], windows.label[val])[1]
        if kind not in best or score > best[kind][0]:
            best[kind] = (score, rate, said)
    return {kind: (rate, said) for kind, (_, rate, said) in best.items()}


def compare(
    said: Mapping[tuple[str, Way], Numbers],
    windows: Windows,
    rates: Mapping[str, float],
    *,
    seed: int,
) -> list[FewResult]:
    """Score classes of all windows on the test part, and the model against the others.

    Parameters
    ----------
    said : mapping of (features, way) to int array (window,)
        With `MODEL` in every way.
    windows : Windows
    rates : mapping of str to float
        Of what was fine-tuned.
    seed : int
        Of the redraws.
    """
    test = windows.of("test")
    truth = windows.label[test]
    redraw = Bootstrap(truth, windows.location[test], seed=seed)
    results = []
    for (kind, way), codes in said.items():
        micro, macro = accuracy(codes[test], truth)
        micros, macros = redraw.scores(codes[test])
        gain = None
        if kind != MODEL:
            mine = said[MODEL, way][test]
            more = redraw.scores(mine)[1] - macros
            gain = Score(accuracy(mine, truth)[1] - macro, *interval(more))
        rate = rates.get(kind) if way == "fine-tune" else None
        results.append(
            FewResult(
                kind,
                way,
                Score(macro, *interval(macros)),
                Score(micro, *interval(micros)),
                gain,
                rate,
            )
        )
    return results


def _text(score: Score, sign: str = "") -> str:
    value, low, high = (f"{100 * part:{sign}.1f}" for part in (score.value, score.low, score.high))
    return f"{value} ({low} to {high})"

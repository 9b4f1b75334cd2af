"""Are runs that have collapsed stopped, and healthy ones let through? Every method, two backbones.

Run: `python -m benchmarks health` (about 15 minutes on one idle core; as
`python -m benchmarks.health --methods simsiam moco`
does some). Each row is a hundred steps of a ResNet-18 or a ViT-T, 16 a batch, on simulated EnMAP
patches: the smallest batches that a rank can be told from. Healthy are runs at the rate of the
method's paper for 256 items. Sick are those at a hundred times that rate, and those without what
keeps their method from collapse: SimSiam's stopped gradient, DINO's centre, SwAV's balance, PAWS's
variety, Barlow Twins' second term, data2vec's slow teacher. Taking it away need not do harm within
a hundred steps, so beside the verdict stands how near a run came to being stopped: the least, over
any `monitors.PATIENCE` lines of the log running, of
what is held against the thresholds, and the same of the encoder's features.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import tempfile
import time
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import RecipeError
from pipeline.ports import ObjectStore
from pipeline.pretrain.methods import dino, paws, simsiam, swav
from pipeline.pretrain.methods.method import entropy
from pipeline.pretrain.monitors import PATIENCE
from pipeline.recipe import LoadedRecipe, Pretrain, Recipe
from pipeline.run.pretrain import run_pretrain
from pipeline.run.simulate import simulate_shards
from pipeline.store.objects import open_store

ENMAP, SENTINEL, LABELS = "enmap-l2a", "sentinel-2-l2a", "simulated-labels"
LOCATIONS, CELL_PX, STEPS = 128, 12, 100
BACKBONES = ("resnet18", "vit_tiny")
#: Of a ResNet's crops, which keep their resolution in its stem.
RESNET_PX = 8
#: Methods that hide tokens, which a ResNet has not.
TOKENS = ("mae", "data2vec")
METHODS: tuple[str, ...] = typing.get_args(Pretrain.model_fields["method"].annotation)

RECIPE: dict[str, Any] = {
    "name": "health",
    "sample": {"strategy": "grid", "region": [15.0, 51.8, 15.3, 52.1]},
    "cell": {"lattice": "enmap30", "size_px": CELL_PX},
    "slots": {
        "kind": "windows",
        "windows": [
            {"name": "april", "start": "2023-04-01", "end": "2023-05-01"},
            {"name": "june", "start": "2023-05-01", "end": "2023-07-01"},
        ],
    },
    "product": [
        {"id": ENMAP, "provider": "simulated", "url": "http://127.0.0.1"},
        {
            "id": SENTINEL,
            "provider": "simulated",
            "url": "http://127.0.0.1",
            "follows": ENMAP,
            "bands": ["B02", "B03", "B04", "B08"],
        },
        {
            "id": LABELS,
            "provider": "simulated",
            "url": "http://127.0.0.1",
            "allow_unmasked": True,
        },
    ],
    "split": {"block_km": CELL_PX * 0.03, "train": 0.7, "val": 0.15, "test": 0.15},
    "evaluate": {"labels": LABELS, "min_label_fraction": 0.3},
}
SETTINGS: dict[str, Any] = {
    "product": ENMAP,
    "steps": STEPS,
    "batch_size": 16,
    "crop_px": CELL_PX,
    "patch_px": 4,
    "projector_width": 128,
    "queue": 256,
    "prototypes": 64,
    "local_crops": 2,
    "warmup_steps": 0,
    "checkpoint_every": STEPS,
    "threads": 1,
}
#: What a method needs beside that.
NEEDS: dict[str, dict[str, Any]] = {
    "decur": {"more_products": [SENTINEL], "pairs": "products"},
    "barlow_pixels": {"crop_px": 9, "patch_px": 3, "windows": 2},
    "dino": {"teacher_momentum": 0.98},
    "mocov3": {"teacher_momentum": 0.98},
    "data2vec": {"teacher_momentum": 0.98},
    "moco": {"momentum": 0.99},
}
#: How many times its paper's rate (for 256 items) makes a run sick.
TIMES = 100
FAST = f"rate x {TIMES}"


@dataclass(frozen=True)
class Outcome:
    """How a run went: the lines of its log but for the one it was stopped at, and why it was."""

    log: list[dict[str, float]]
    stopped: str = ""

    def least(self, what: str) -> float:
        """Return the least that a measure kept to over `PATIENCE` lines running."""
        values = [line[what] for line in self.log]
        spans = [values[k : k + PATIENCE] for k in range(len(values) - PATIENCE + 1)]
        return min((max(span) for span in spans), default=math.nan)


def main(arguments: list[str] | None = None) -> int:
    """Train, judge and print; return how many verdicts were wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=BACKBONES)
    parser.add_argument("--logs", type=Path, help="Folder for the log of every run.")
    asked = parser.parse_args(arguments)
    began_s = time.monotonic()
    false_stops = missed = healthy = sick = 0
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        simulate_shards(store, recipe(), locations=LOCATIONS)
        print("| run | backbone | verdict | least std | rank, of first | features' |")
        print("|---|---|---|---|---|---|")
        for method, backbone, title, is_sick, broken in runs(asked.methods, asked.backbones):
            outcome = learn(store, asked.logs or Path(folder), method, backbone, title, broken)
            print(row(method, backbone, title, outcome), flush=True)
            healthy, sick = healthy + (not is_sick), sick + is_sick
            false_stops += bool(outcome.stopped) and not is_sick
            missed += is_sick and not outcome.stopped
    print(
        f"\n{false_stops} of {healthy} healthy runs stopped, {missed} of {sick} sick ones not; "
        f"{time.monotonic() - began_s:.0f} s"
    )
    return int(false_stops > 0)


def recipe(**pretrain: Any) -> LoadedRecipe:
    """Return the recipe of the shards, with settings for a run if there are any."""
    tables = {**RECIPE, "pretrain": pretrain} if pretrain else RECIPE
    return LoadedRecipe(Recipe.model_validate(tables), Path())


def runs(
    methods: Sequence[str], backbones: Sequence[str]
) -> Iterator[tuple[str, str, str, bool, dict[str, Any]]]:
    """Yield method, backbone, title, whether it is sick, and what is changed."""
    pairs = [
        (method, backbone)
        for method in methods
        for backbone in backbones
        if backbone != "resnet18" or method not in TOKENS
    ]
    rates = {
        method: Pretrain.model_validate({"method": method, "batch_size": 256}).learning_rate
        for method in methods
    }
    for method, backbone in pairs:
        yield method, backbone, "healthy", False, {"learning_rate": rates[method]}
    for method, backbone in pairs:
        yield method, backbone, FAST, True, {"learning_rate": TIMES * rates[method]}
    for method, backbone in pairs:
        if method in BROKEN:
            title, change = BROKEN[method]
            yield method, backbone, title, True, {"learning_rate": rates[method], **change}


def learn(
    store: ObjectStore,
    logs: Path,
    method: str,
    backbone: str,
    title: str,
    changed: dict[str, Any],
) -> Outcome:
    """Run to the last step, or until training stops itself."""
    settings = {**SETTINGS, **NEEDS.get(method, {}), **changed}
    settings |= {"method": method, "backbone": backbone}
    if backbone == "resnet18":
        settings["crop_px"] = RESNET_PX
    name = f"{method}-{backbone}-{title}".replace(" ", "-").replace("_", "-").lower()
    stopped = ""
    try:
        with without(method if title not in ("healthy", FAST) else ""):
            run_pretrain(
                recipe(**settings), store, name=name, device="cpu", logs=["csv"], log_folder=logs
            )
    except RecipeError as error:
        stopped = str(error)
    with (logs / f"{name}.csv").open() as file:
        return Outcome(
            [
                {key: float(value or "nan") for key, value in line.items()}
                for line in csv.DictReader(file)
            ],
            stopped,
        )


def row(method: str, backbone: str, title: str, outcome: Outcome) -> str:
    """Write a row of the table."""
    verdict = outcome.stopped.split(";")[0] or "let through"
    shares = [
        outcome.least(what) / outcome.log[0][what] for what in ("compared_rank", "effective_rank")
    ]
    numbers = [outcome.least("compared_std"), *shares]
    return f"| {' | '.join([f'{method}, {title}', backbone, verdict, *map(_number, numbers)])} |"


# --- what keeps a method from collapse, taken away ------------------------------------------------


def unstopped(predicted: Sequence[Tensor], projected: Sequence[Tensor]) -> Tensor:
    """Return SimSiam's loss with its gradient flowing both ways."""
    first = F.cosine_similarity(predicted[0], projected[1], dim=1).mean()
    return -(first + F.cosine_similarity(predicted[1], projected[0], dim=1).mean()) / 2


def unbalanced(scores: Tensor, iterations: int = 0) -> Tensor:  # noqa: ARG001
    """Return SwAV's assignments as each item likes them best."""
    return F.softmax(scores / swav.EPSILON, dim=1)


def unvaried(*said: Tensor) -> Tensor:
    """Return the part of PAWS's loss in which crops agree."""
    variety = paws.sharpen(torch.cat(said)).mean(dim=0)
    return plain_paws(*said) + entropy(variety)


def uncentred(method: dino.DINO, teacher: Tensor, number: int) -> None:
    """Leave DINO's centre at 0."""


plain_paws = paws.paws_loss
#: What is taken away, and the settings that do it.
BROKEN: dict[str, tuple[str, dict[str, Any]]] = {
    # At its paper's rate it takes more than a hundred steps to collapse.
    "simsiam": ("gradient not stopped", {"learning_rate": 0.3}),
    "dino": ("not centred", {}),
    "swav": ("not balanced", {}),
    "paws": ("no variety asked", {}),
    "barlow": ("dimensions may be alike", {"off_diagonal": 1e-9}),
    "data2vec": ("teacher is student", {"teacher_momentum": 0.0}),
}
#: And the functions.
TAKEN: dict[str, tuple[Any, str, Any]] = {
    "simsiam": (simsiam, "simsiam_loss", unstopped),
    "swav": (swav, "balance", unbalanced),
    "paws": (paws, "paws_loss", unvaried),
    "dino": (dino.DINO, "_recentre", uncentred),
}


@contextmanager
def without(method: str) -> Iterator[None]:
    """Train without what keeps a method from collapse."""
    if method not in TAKEN:
        yield
        return
    module, name, other = TAKEN[method]
    kept = getattr(module, name)
    setattr(module, name, other)
    try:
        yield
    finally:
        setattr(module, name, kept)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2g}"


if __name__ == "__main__":
    sys.exit(main())

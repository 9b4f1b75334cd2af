"""Are runs that have collapsed stopped, and healthy ones let through?

Run: `python -m benchmarks health` (about five minutes on two idle cores). Each row is a hundred
steps of a small ResNet on textures made for it, 32 a batch. Broken are SimSiam whose gradient is
not stopped, and rates a hundred times the healthy one; healthy are ten seeds.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import RecipeError
from pipeline.pretrain.backbones import EncoderShape
from pipeline.pretrain.batches import Batch, Stored
from pipeline.pretrain.methods import simsiam
from pipeline.pretrain.normalise import Normaliser
from pipeline.pretrain.train import Run, build_run, train
from pipeline.recipe import Pretrain

BANDS, PATCH_PX, CROP_PX, STEPS = 6, 24, 16, 100
SHAPE = EncoderShape("resnet18", BANDS, CROP_PX, 4)
SGD: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.3}
SETTINGS: dict[str, Any] = {
    "backbone": SHAPE.backbone,
    "steps": STEPS,
    "batch_size": 32,
    "projector_width": 128,
    "queue": 256,
    "warmup_steps": 0,
}


def textures(count: int, random: torch.Generator) -> Tensor:
    """Draw gratings of any direction and spectrum: int16, (count, BANDS, PATCH_PX, PATCH_PX)."""
    y, x = torch.meshgrid(*[torch.arange(float(PATCH_PX))] * 2, indexing="ij")
    angle, wave, phase = torch.rand(3, count, 1, 1, generator=random)
    along = x * torch.cos(math.pi * angle) + y * torch.sin(math.pi * angle)
    grating = torch.sin((0.2 + 1.2 * wave) * along + 2 * math.pi * phase)[:, None]
    spectrum, gain = torch.randn(2, count, BANDS, 1, 1, generator=random)
    noise = torch.randn(count, BANDS, PATCH_PX, PATCH_PX, generator=random)
    return (1000 + 300 * (grating * (1 + gain / 2) + spectrum + noise / 5)).short()


def batches(settings: Pretrain, views: int) -> Iterator[Batch]:
    """Yield batches, two crops of one patch each."""
    mask = torch.ones(settings.batch_size, PATCH_PX, PATCH_PX, dtype=torch.uint8)
    for step in itertools.count():
        random = torch.Generator().manual_seed(1000 * settings.seed + step)
        yield (Stored(textures(settings.batch_size, random), mask, "textures"),) * views


def learn(**more: Any) -> tuple[Run, str | None]:
    """Run; return it, and why it was stopped if it was."""
    settings = Pretrain(**{**SETTINGS, **more})
    run = build_run(settings, SHAPE, torch.device("cpu"))
    try:
        train(
            run,
            itertools.islice(batches(settings, run.method.views), STEPS),
            settings=settings,
            shape=SHAPE,
            normalisers={"textures": Normaliser([1000.0] * BANDS, [400.0] * BANDS, -32768)},
            checkpoint=lambda _: None,
            after_step=lambda _: None,
        )
    except RecipeError as stopped:
        return run, str(stopped)
    return run, None


def unstopped(predicted: Any, projected: Any) -> Tensor:
    """Return SimSiam's loss with its gradient flowing both ways, which invites collapse."""
    first = F.cosine_similarity(predicted[0], projected[1], dim=1).mean()
    return -(first + F.cosine_similarity(predicted[1], projected[0], dim=1).mean()) / 2


def show(name: str, *, wanted: bool, **more: Any) -> bool:
    """Print a row; return whether the run was stopped if it should be, and only then."""
    run, stopped = learn(**more)
    ranks = [row["compared_rank"] for row in run.log]
    share = min(ranks) / ranks[0]
    end = f"stopped after {run.step}" if stopped else "ran to its end"
    print(f"| {name} | {end} | {share:.2f} |", flush=True)
    return (stopped is not None) == wanted


def main() -> int:
    print("| run | what happened | least rank, of the first |")
    print("|---|---|---|")
    right = [
        show(f"SimSiam, seed {k}", wanted=False, method="simsiam", seed=k, **SGD) for k in range(10)
    ]
    high = {**SGD, "learning_rate": 30.0}
    right.append(show("SimSiam, rate x 100", wanted=True, method="simsiam", **high))
    right.append(show("MoCo v2, rate x 100", wanted=True, method="moco", **high))
    plain = simsiam.simsiam_loss
    simsiam.simsiam_loss = unstopped
    right.append(show("SimSiam, gradient not stopped", wanted=True, method="simsiam", **SGD))
    simsiam.simsiam_loss = plain
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())

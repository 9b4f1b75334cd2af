"""The training loop.

A run is a function of (data, settings): every random number of step k comes from (seed, k), so a
run that was killed and resumed ends with the same bits as one that was not (on the CPU; on a GPU
some kernels add in varying order).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import RecipeError
from pipeline.pretrain.augment import Augmentation
from pipeline.pretrain.backbones import RESNETS, EncoderShape, build_encoder, width_of
from pipeline.pretrain.batches import Batch
from pipeline.pretrain.methods.mae import MAE
from pipeline.pretrain.methods.method import Learned, Method
from pipeline.pretrain.methods.moco import MoCo
from pipeline.pretrain.monitors import Health, health
from pipeline.pretrain.normalise import Normaliser
from pipeline.pretrain.schedule import learning_rate
from pipeline.recipe import Pretrain

#: Steps between two lines of the log: reading a loss waits for the GPU.
LOG_EVERY = 10
COLUMNS = ("step", "loss", "learning_rate", "embedding_std", "mean_cosine", "effective_rank")

#: Augmentation of each method: SpectralEarth blurs half of the contrastive views and none of the
#: masked ones (arXiv 2408.08447); the crop's area is that of SSL4EO-S12 and of MAE.
BLUR = {"moco": 0.5, "mae": 0.0}

#: AdamW's second beta, where the paper of a method states its own (MAE, appendix A).
BETAS = {"moco": (0.9, 0.999), "mae": (0.9, 0.95)}


@dataclass
class Run:
    """A run between two steps: all that changes while it goes on."""

    method: Method
    optimizer: torch.optim.Optimizer
    step: int = 0
    """Steps done."""
    log: list[tuple[float, ...]] = field(default_factory=list)
    """Rows of `COLUMNS`."""

    def state(self) -> dict[str, Any]:
        """Return all but the log, for a checkpoint."""
        return {
            "step": self.step,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any], log: str) -> None:
        """Go back to what `state` and `log_csv` returned."""
        self.step = int(state["step"])
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        rows = list(csv.reader(io.StringIO(log)))[1:]
        self.log = [tuple(float(value) for value in row) for row in rows]

    def log_csv(self) -> str:
        """Return the log as CSV, numbers in full precision."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((int(row[0]), *row[1:]) for row in self.log)
        return out.getvalue()


def build_run(settings: Pretrain, shape: EncoderShape, device: torch.device) -> Run:
    """Build the method and its optimiser as they are before the first step.

    Raises
    ------
    RecipeError
        The method cannot use this backbone.
    """
    method = build_method(settings, shape).to(device).train()
    return Run(method, _optimizer(method, settings))


def build_method(settings: Pretrain, shape: EncoderShape) -> Method:
    """Build the method a recipe names, with random weights drawn from its seed."""
    encoder = build_encoder(shape, seed=settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_seed(settings.seed, "heads"))
        if settings.method == "moco":
            return MoCo(
                encoder,
                width_of(encoder),
                queue=settings.queue,
                momentum=settings.momentum,
                temperature=settings.temperature,
                seed=settings.seed,
            )
        if shape.backbone in RESNETS:
            raise RecipeError(
                f'`pretrain.method = "mae"` hides tokens, and {shape.backbone} has none; choose a '
                'ViT, such as `backbone = "vit_small"`.'
            )
        return MAE(encoder, bands=shape.bands, mask_fraction=settings.mask_fraction)  # type: ignore[arg-type]


def train(
    run: Run,
    batches: Iterable[Batch],
    *,
    settings: Pretrain,
    shape: EncoderShape,
    normaliser: Normaliser,
    checkpoint: Callable[[Run], None],
    after_step: Callable[[Run], None],
) -> None:
    """Learn from batches until they end.

    Parameters
    ----------
    run : Run
        Changed in place. Its parameters say which device is used.
    batches : iterable of Batch
        Of the steps from `run.step` on.
    settings : Pretrain
    shape : EncoderShape
    normaliser : Normaliser
        On the same device.
    checkpoint : callable
        Called every `settings.checkpoint_every` steps and after the last.
    after_step : callable
        Called after every step, to show progress.

    Raises
    ------
    RecipeError
        The loss is no longer a number.
    """
    device = next(run.method.parameters()).device
    augmentation = Augmentation(shape.image_px, blur=BLUR[settings.method])
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for batch in batches:
            rate = learning_rate(
                run.step,
                peak=settings.learning_rate,
                steps=settings.steps,
                warmup_steps=settings.warmup_steps,
            )
            for group in run.optimizer.param_groups:
                group["lr"] = rate
            # Layers with randomness of their own (dropout) draw from the global generators.
            torch.manual_seed(_seed(settings.seed, "layers", run.step))
            random = torch.Generator().manual_seed(_seed(settings.seed, "views", run.step))

            seen = [normaliser(*_on(device, view)) for view in zip(*batch, strict=True)]
            views = [augmentation(view, random) for view in seen]
            with torch.autocast(device.type, torch.bfloat16, settings.precision == "bf16"):
                learned: Learned = run.method(views, random)
            run.optimizer.zero_grad()
            learned.loss.backward()  # type: ignore[no-untyped-call]
            run.optimizer.step()

            run.step += 1
            last = run.step == settings.steps
            if run.step % LOG_EVERY == 0 or run.step == 1 or last:
                run.log.append(_row(run.step, learned, rate))
            if run.step % settings.checkpoint_every == 0 or last:
                checkpoint(run)
            after_step(run)


def last_health(run: Run) -> Health:
    """Return the health of the embeddings at the last logged step."""
    return Health(*run.log[-1][3:])


def choose_device(wanted: str) -> torch.device:
    """Return the device to use: `auto` is the GPU if there is one.

    Raises
    ------
    RecipeError
        There is no such device.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "cpu" or (wanted.split(":")[0] == "cuda" and torch.cuda.is_available()):
        return torch.device(wanted)
    raise RecipeError(f"device {wanted!r} is not here; use `auto`, `cpu`, or `cuda` with a GPU.")


def _on(device: torch.device, stored: Iterable[Tensor]) -> list[Tensor]:
    """Copy to a device; page-locked memory is copied while the device still works."""
    return [part.to(device, non_blocking=True) for part in stored]


def _row(step: int, learned: Learned, rate: float) -> tuple[float, ...]:
    loss = float(learned.loss.detach())
    if not math.isfinite(loss):
        raise RecipeError(
            f"the loss is {loss} after step {step}; lower `pretrain.learning_rate` or raise "
            "`pretrain.warmup_steps`."
        )
    measured = health(learned.embedding)
    return (step, loss, rate, measured.std, measured.cosine, measured.rank)


def _optimizer(method: Method, settings: Pretrain) -> torch.optim.Optimizer:
    """Return AdamW for every method; biases and norms do not decay, as is usual for it."""
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for parameter in method.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 else plain).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=BETAS[settings.method])


def _seed(seed: int, use: str, step: int = 0) -> int:
    """Derive the seed of one use at one step; different uses never share random numbers."""
    sequence = np.random.SeedSequence([seed, step, *use.encode()])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))

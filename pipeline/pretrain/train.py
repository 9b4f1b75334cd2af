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

import torch
from torch import Tensor

from pipeline.errors import RecipeError
from pipeline.pretrain.backbones import EncoderShape
from pipeline.pretrain.batches import Batch
from pipeline.pretrain.choice import build_method, build_optimizer, crops_of, seed_of
from pipeline.pretrain.methods.method import Learned, Method
from pipeline.pretrain.monitors import Health, health
from pipeline.pretrain.normalise import Normaliser
from pipeline.pretrain.schedule import learning_rate
from pipeline.recipe import Pretrain

#: Steps between two lines of the log: reading a loss waits for the GPU.
LOG_EVERY = 10
COLUMNS = ("step", "loss", "learning_rate", "embedding_std", "mean_cosine", "effective_rank")


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
    return Run(method, build_optimizer(method, settings))


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
    crops = crops_of(settings, shape, patches=run.method.views)
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
            torch.manual_seed(seed_of(settings.seed, "layers", run.step))
            random = torch.Generator().manual_seed(seed_of(settings.seed, "views", run.step))

            seen = [normaliser(*_on(device, view)) for view in zip(*batch, strict=True)]
            views = [crop.augmentation(seen[crop.patch], random) for crop in crops]
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

"""The training loop.

A run is a function of (data, settings): every random number of step k comes from (seed, k), so a
run that was killed and resumed ends with the same bits as one that was not (on the CPU; on a GPU
some kernels add in varying order).
"""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import RecipeError
from pipeline.pretrain import ranks
from pipeline.pretrain.choice import build_method, crops_of, seed_of
from pipeline.pretrain.data.batches import Batch, Share, Stored
from pipeline.pretrain.data.joint import Joint
from pipeline.pretrain.data.normalise import Normaliser
from pipeline.pretrain.data.views import make_views
from pipeline.pretrain.data.windows import cut_alike
from pipeline.pretrain.encoders.backbones import EncoderShape
from pipeline.pretrain.encoders.norms import share_norms
from pipeline.pretrain.encoders.wavelength import aim
from pipeline.pretrain.methods.method import Learned, Method, View
from pipeline.pretrain.monitors import MOST_ITEMS, Health, health, wrong_with
from pipeline.pretrain.optimise import build_optimizer, set_rates
from pipeline.pretrain.tuning import (
    channels_last,
    compile_encoders,
    in_bf16,
    lay_out_state,
    tensor_cores,
)
from pipeline.recipe import Pretrain

#: Of the log; a method adds its own measures.
COLUMNS = (
    "step",
    "loss",
    "learning_rate",
    "embedding_std",
    "mean_cosine",
    "effective_rank",
    "compared_std",
    "compared_rank",
    "product",
    "knn_accuracy",
)

#: Of a method that compares nothing.
NOTHING = Health(math.nan, math.nan, math.nan)

#: The labelled patches of a step, and their classes: int64, shape (patch,).
Support = Callable[[int], tuple[Stored, Tensor]]


@dataclass
class Run:
    """A run between two steps: all that changes while it goes on."""

    method: Method
    optimizer: torch.optim.Optimizer
    step: int = 0
    """Steps done."""
    log: list[dict[str, float]] = field(default_factory=list)
    """One value for each of `columns`; not a number where nothing was measured. A product is its
    number among the run's."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what is logged."""
        return (*COLUMNS, *self.method.measures)

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
        lay_out_state(self.optimizer)
        rows = csv.DictReader(io.StringIO(log))
        # A log from before it told products apart is of the first one.
        self.log = [
            {"product": 0.0, **{name: float(value) for name, value in row.items()}} for row in rows
        ]

    def log_csv(self) -> str:
        """Return the log as CSV, numbers in full precision."""
        out = io.StringIO()
        writer = csv.DictWriter(out, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "step": int(row["step"])} for row in self.log)
        return out.getvalue()


def build_run(
    settings: Pretrain,
    shape: EncoderShape,
    device: torch.device,
    *,
    second: EncoderShape | None = None,
    classes: int = 0,
    weights: Mapping[str, Tensor] | None = None,
) -> Run:
    """Build the method and its optimiser as they are before the first step.

    Batch norms have the moments of the whole batch, however many ranks share it. The encoder, and
    whatever follows it, begins with `weights`; None: with random ones.

    Raises
    ------
    RecipeError
        The method cannot use this backbone, or misses something.
    """
    check_parts(settings, ranks.size())
    method = build_method(settings, shape, second=second, classes=classes, weights=weights)
    if ranks.size() > 1:
        share_norms(method, device)
    method = method.to(device).train()
    if device.type == "cuda":
        channels_last(method)
    if settings.compile:
        compile_encoders(method)
    return Run(method, build_optimizer(method, settings))


def check_parts(settings: Pretrain, processes: int) -> None:
    """Refuse a batch that so many processes cannot share.

    Raises
    ------
    RecipeError
        Their parts would not be equal.
    """
    parts = processes * settings.accumulate
    if settings.batch_size % parts:
        raise RecipeError(
            f"`pretrain.batch_size` is {settings.batch_size}, which does not part into {parts} "
            f"equal parts ({processes} processes, `accumulate = {settings.accumulate}`); choose a "
            f"multiple of {parts}, or start another number of processes."
        )
    if settings.key_parts > 1 and settings.batch_size < 2 * parts * settings.key_parts:
        raise RecipeError(
            f"`pretrain.key_parts` is {settings.key_parts}, but each of {parts} parts of the batch "
            f"has {settings.batch_size // parts} items: batch norm needs 2 in each, so at most "
            f"{max(settings.batch_size // parts // 2, 1)} are allowed."
        )


def train(
    run: Run,
    batches: Iterable[Batch],
    *,
    settings: Pretrain,
    shape: EncoderShape,
    normalisers: Mapping[str, Normaliser],
    checkpoint: Callable[[Run], None],
    after_step: Callable[[Run], None],
    second: EncoderShape | None = None,
    joint: Joint | None = None,
    support: Support | None = None,
    validate: Callable[[Run], float] | None = None,
) -> None:
    """Learn from batches until they end.

    Parameters
    ----------
    run : Run
        Changed in place. Its parameters say which device is used.
    batches : iterable of Batch
        This rank's share of those of the steps from `run.step` on, on the same device.
    settings : Pretrain
    shape : EncoderShape
    normalisers : mapping of product to Normaliser
        On the same device.
    checkpoint : callable
        Called every `settings.checkpoint_every` steps and after the last, on every rank.
    after_step : callable
        Called after every step, to show progress.
    second : EncoderShape or None
        Of the second product's encoder.
    joint : Joint or None
        What each image is made of, where it shows several products; the batch has them all.
    support : callable or None
        Labelled patches for a method that wants them, the same on every rank.
    validate : callable or None
        Returns the accuracy of the encoder's features, every `settings.knn_every` steps.

    Raises
    ------
    RecipeError
        The loss is no longer a number, or the run has collapsed or diverged.
    """
    device = next(run.method.parameters()).device
    share = Share(ranks.rank(), ranks.size())
    crops = crops_of(settings, shape, patches=run.method.views, second=second)
    learner = _over_ranks(run.method, device)
    devices = [device] if device.type == "cuda" else []
    with tensor_cores(device), torch.random.fork_rng(devices=devices):
        for batch in batches:
            rate = set_rates(run.optimizer, settings, run.step)
            # Layers with randomness of their own (dropout) draw from the global generators.
            torch.manual_seed(seed_of(settings.seed, f"layers {share.rank}", run.step))
            random = torch.Generator().manual_seed(seed_of(settings.seed, "views", run.step))
            if second is None:
                aim(run.method, batch[0].product if joint is None else joint.sensor.product)
            if support is not None:
                stored, label = support(run.step)
                # What votes and what is voted on show as much ground in as many pixels.
                batch = cut_alike(batch, stored.bands.shape[-1], random, share)
            make = make_views if joint is None else joint.make_views
            views = make(batch, crops, normalisers, random, share)
            if support is not None:
                own = crops[: run.method.views]
                labelled = make_views((stored,) * len(own), own, normalisers, random)
                views += [view._replace(label=label) for view in labelled]
            run.method.begin(run.step)
            learned = _learn(learner, views, random, settings)
            _move(run, settings)

            run.step += 1
            last = run.step == settings.steps
            if run.step % settings.health_every == 0 or run.step == 1 or last:
                product = list(normalisers).index(batch[0].product)
                check = validate if _is_due(run.step, settings) else None
                _note(run, learned, rate, product, check)
                _check(run, settings)
            if run.step % settings.checkpoint_every == 0 or last:
                checkpoint(run)
            after_step(run)


def last_health(run: Run) -> Health:
    """Return the health of the embeddings at the last logged step."""
    row = run.log[-1]
    return Health(row["embedding_std"], row["mean_cosine"], row["effective_rank"])


def choose_device(wanted: str) -> torch.device:
    """Return the device to use: `auto` is the GPU if there is one.

    Raises
    ------
    RecipeError
        There is no such device.
    """
    there = ["cpu"]
    if torch.cuda.is_available():
        there += ["cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if wanted == "auto":
        return torch.device(there[1] if len(there) > 1 else "cpu")
    if wanted not in there:
        raise RecipeError(f"device {wanted!r} is not here; allowed are: auto, {', '.join(there)}.")
    return torch.device(wanted)


def _over_ranks(method: Method, device: torch.device) -> nn.Module:
    """Wrap a method so that all ranks get the mean of their gradients."""
    if ranks.size() == 1:
        return method
    with warnings.catch_warnings():
        # Newer torch has another name for it, which older does not know.
        warnings.simplefilter("ignore", FutureWarning)
        # Without broadcast, since methods keep their buffers (queues, centres) equal on all ranks.
        return DistributedDataParallel(
            method,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,
            # Gradients lie where ranks exchange them, instead of being copied there and back.
            gradient_as_bucket_view=True,
        )


def _learn(
    learner: nn.Module, views: Sequence[View], random: torch.Generator, settings: Pretrain
) -> Learned:
    """Add up the gradients of a batch, part by part; return what all parts gave."""
    parts = [_parted(view, settings.accumulate) for view in views]
    learned: list[Learned] = []
    for number, part in enumerate(zip(*parts, strict=True)):
        ends = number == settings.accumulate - 1
        # Ranks talk about gradients once a step.
        alone = isinstance(learner, DistributedDataParallel) and not ends
        with learner.no_sync() if alone else nullcontext():  # type: ignore[operator]
            device = part[0].image.device
            bf16 = in_bf16(settings.precision, device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                one: Learned = learner(part, random)
            (one.loss / settings.accumulate).backward()  # type: ignore[no-untyped-call]
        learned.append(one._replace(loss=one.loss.detach()))
    return _joined(learned)


def _parted(view: View, parts: int) -> list[View]:
    """Part a view's items; labelled ones are whole in every part."""
    if view.label is not None or parts == 1:
        return [view] * parts
    chunks = zip(view.image.chunk(parts), view.valid.chunk(parts), strict=True)
    return [view._replace(image=image, valid=valid) for image, valid in chunks]


def _joined(parts: list[Learned]) -> Learned:
    if len(parts) == 1:
        return parts[0]
    compared = [part.compared for part in parts if part.compared is not None]
    return Learned(
        torch.stack([part.loss for part in parts]).mean(),
        torch.cat([part.embedding for part in parts]),
        torch.cat(compared) if compared else None,
        {
            name: torch.stack([part.measures[name] for part in parts]).mean()
            for name in parts[0].measures
        },
    )


def _move(run: Run, settings: Pretrain) -> None:
    """Let the optimiser take its step."""
    for parameter in run.method.still():
        parameter.grad = None
    if settings.clip is not None:
        nn.utils.clip_grad_norm_(run.method.parameters(), settings.clip)
    run.optimizer.step()
    run.optimizer.zero_grad()


def _is_due(step: int, settings: Pretrain) -> bool:
    """Return whether features are validated: at the first line of the log from a multiple on."""
    every = settings.knn_every
    if not every:
        return False
    return step == settings.steps or step // every > (step - settings.health_every) // every


def _note(
    run: Run,
    learned: Learned,
    rate: float,
    product: int,
    validate: Callable[[Run], float] | None,
) -> None:
    """Add a line to the log: of all ranks, the same on every rank."""
    loss = float(ranks.mean_over_ranks(learned.loss))
    if not math.isfinite(loss):
        raise RecipeError(
            f"the loss is {loss} after step {run.step}; lower `pretrain.learning_rate` or raise "
            "`pretrain.warmup_steps`."
        )
    measured = health(ranks.first_rows(learned.embedding, MOST_ITEMS))
    vectors = learned.compared
    compared = NOTHING if vectors is None else health(ranks.first_rows(vectors, MOST_ITEMS))
    run.log.append(
        {
            "step": float(run.step),
            "loss": loss,
            "learning_rate": rate,
            "embedding_std": measured.std,
            "mean_cosine": measured.cosine,
            "effective_rank": measured.rank,
            "compared_std": compared.std,
            "compared_rank": compared.rank,
            "product": float(product),
            "knn_accuracy": math.nan if validate is None else validate(run),
            **{
                name: float(ranks.mean_over_ranks(value))
                for name, value in learned.measures.items()
            },
        }
    )


def _check(run: Run, settings: Pretrain) -> None:
    """Stop a run that will not recover."""
    wrong = wrong_with(run.log)
    if wrong is not None and settings.stop_collapsed:
        raise RecipeError(
            f"after step {run.step} {wrong}; lower `pretrain.learning_rate` or raise "
            "`pretrain.warmup_steps`. To go on all the same, write `stop_collapsed = false`."
        )

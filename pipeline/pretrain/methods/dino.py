"""DINO, self-distillation without labels.

Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers" (arXiv 2104.14294).
A student sees large and small crops of an item and learns to say of each what its teacher, a moving
average of itself, says of the large ones. Subtracting a running centre and sharpening keep the
teacher from saying the same, or nothing, of everything.

The teacher is what is kept: it is better than the student throughout training (figure 6). It
follows on a cosine over all steps of the run; a released implementation for EnMAP ends it after
ten epochs, and its teacher then stands still. Solarisation is left out: standardised spectra have
no middle grey to turn over at.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.pretrain.methods.method import (
    Learned,
    Remembering,
    View,
    drop_paths,
    entropy,
    features_of,
    follow,
    full,
)
from pipeline.pretrain.ranks import sum_over_ranks
from pipeline.pretrain.schedule import cosine

#: Widths of the head's hidden layers and of the unit vectors it compares with prototypes
#: (appendix C).
HIDDEN_WIDTH = 2048
BOTTLENECK_WIDTH = 256

#: Large crops, which the teacher sees too.
GLOBAL_CROPS = 2


@dataclass(frozen=True, slots=True)
class Schedule:
    """What changes from step to step: functions of the step, from 0 to steps - 1."""

    steps: int
    """Of the whole run."""
    first_momentum: float
    first_temperature: float
    last_temperature: float
    warmup_steps: int
    """Over which the teacher's temperature moves from first to last."""
    frozen_steps: int
    """In which the prototypes stand still."""

    def momentum(self, step: int) -> float:
        """Return the share of itself that the teacher keeps after a step: 1 after the last."""
        return cosine(step, first=self.first_momentum, last=1.0, steps=self.steps)

    def temperature(self, step: int) -> float:
        """Return what the teacher's logits are divided by."""
        if step >= self.warmup_steps:
            return self.last_temperature
        moved = step / self.warmup_steps
        return self.first_temperature + (self.last_temperature - self.first_temperature) * moved


def dino_loss(
    student: Tensor,
    teacher: Tensor,
    centre: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Return how little the student says what the teacher says of another crop.

    Parameters
    ----------
    student : Tensor, float32, shape (crop, batch, prototype)
        Logits; the first crops are those of the teacher, in the same order.
    teacher : Tensor, float32, shape (global crop, batch, prototype)
        Logits, without gradient.
    centre : Tensor, float32, shape (prototype,) or (global crop, 1, prototype)
        Subtracted from the teacher's logits.
    student_temperature, teacher_temperature : float

    Returns
    -------
    Tensor, float32, shape ()
        Mean cross-entropy over items and pairs of two different crops.
    """
    target = F.softmax((teacher - centre) / teacher_temperature, dim=-1)
    said = F.log_softmax(student / student_temperature, dim=-1)
    entropy = -torch.einsum("tbk,sbk->ts", target, said)
    different = 1 - torch.eye(*entropy.shape, device=entropy.device, dtype=entropy.dtype)
    pairs = entropy.numel() - min(entropy.shape)
    return (entropy * different).sum() / (pairs * student.shape[1])


class Head(nn.Module):
    """Compare features with prototypes: (batch, width) -> (batch, prototype), cosines.

    Parameters
    ----------
    width : int
        Of the features.
    prototypes : int
        Directions in the bottleneck's space; their lengths do not matter.
    """

    def __init__(self, width: int, prototypes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _linear(width, HIDDEN_WIDTH),
            nn.GELU(),
            _linear(HIDDEN_WIDTH, HIDDEN_WIDTH),
            nn.GELU(),
            _linear(HIDDEN_WIDTH, BOTTLENECK_WIDTH),
        )
        self.prototypes = nn.Parameter(torch.randn(prototypes, BOTTLENECK_WIDTH))

    def forward(self, features: Tensor) -> Tensor:
        """Return cosines in float32, whatever the precision around it.

        A cosine is divided by a small temperature later: rounded to bfloat16 it would be off by a
        twentieth.
        """
        return self.compare(self.vectors(features))

    def vectors(self, features: Tensor) -> Tensor:
        """Return the unit vectors of features in the bottleneck, float32."""
        return F.normalize(full(self.layers(features)), dim=1)

    def compare(self, vectors: Tensor) -> Tensor:
        """Return the cosines of unit vectors with the prototypes."""
        with torch.autocast(vectors.device.type, enabled=False):
            return vectors @ F.normalize(self.prototypes, dim=1).T


def _linear(width: int, out: int) -> nn.Linear:
    """Build a layer as the paper's code begins it."""
    layer = nn.Linear(width, out)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


class DINO(Remembering):
    """Say of every crop what a slowly moving teacher says of another crop of the item.

    Each product has a centre of its own: with one for all, a sensor's items could be told by half
    of the prototypes, and those of the other by the rest.

    Parameters
    ----------
    encoder : module, (batch, band, y, x) -> (batch, width)
        Takes images of both crops' sizes.
    width : int
        Features the encoder returns.
    prototypes : int
        What the student and the teacher tell apart.
    schedule : Schedule
    student_temperature : float
    centre_momentum : float
        Share of itself that the centre keeps each step.
    drop_path : float
        Of a student that is a ViT.
    products : sequence of str
        Whose batches come.
    """

    views = 2
    memories = ("centre",)
    measures = ("teacher_entropy", "teacher_variety")
    centre: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        width: int,
        *,
        prototypes: int,
        schedule: Schedule,
        student_temperature: float,
        centre_momentum: float,
        drop_path: float = 0.0,
        products: Sequence[str] = ("",),
    ) -> None:
        super().__init__(products)
        self.student = encoder
        self.student_head = Head(width, prototypes)
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.head = copy.deepcopy(self.student_head).requires_grad_(False)
        drop_paths(self.student, drop_path)
        self.schedule = schedule
        self.student_temperature = student_temperature
        self.centre_momentum = centre_momentum
        self.register_buffer("centre", torch.zeros(len(products), prototypes))
        self.step = 0

    def begin(self, step: int) -> None:
        """Move the teacher towards what the student became in the step before."""
        self.step = step
        if step:
            momentum = self.schedule.momentum(step - 1)
            follow(self.student, self.encoder, momentum)
            follow(self.student_head, self.head, momentum)

    def still(self) -> Iterable[nn.Parameter]:
        """Return the prototypes in the first steps: a young student would drag them together."""
        if self.step < self.schedule.frozen_steps:
            yield self.student_head.prototypes

    def forward(self, views: Sequence[View], generator: torch.Generator) -> Learned:  # noqa: ARG002
        """Return the loss of one batch, and move the centre after it.

        The first `GLOBAL_CROPS` views are large, the others small.
        """
        with torch.no_grad():
            large = views[:GLOBAL_CROPS]
            seen = torch.cat([*features_of(self.encoder, large)])
            teacher = _by_crop(self.head(seen), GLOBAL_CROPS)
            numbers = [self.number_of(view) for view in large]
            # Copies: the centres move below.
            centre = torch.stack([self.centre[number] for number in numbers]).unsqueeze(1)
        temperature = self.schedule.temperature(self.step)
        features = [*features_of(self.student, views)]
        vectors = [self.student_head.vectors(part) for part in features]
        logits = [self.student_head.compare(part) for part in vectors]
        with torch.autocast(teacher.device.type, enabled=False):
            loss = dino_loss(
                _by_crop(torch.cat(logits), len(views)),
                teacher,
                centre,
                student_temperature=self.student_temperature,
                teacher_temperature=temperature,
            )
            measures = self._measures(teacher - centre, temperature)
            for number in dict.fromkeys(numbers):
                own = [place for place, other in enumerate(numbers) if other == number]
                self._recentre(teacher[own], number)
        first = slice(len(views[0].image))
        # Not the cosines: those are the same vectors seen from as many sides as prototypes.
        compared = vectors[0][first].detach()
        return Learned(loss, features[0][first].detach().float(), compared, measures)

    @torch.no_grad()
    def _measures(self, teacher: Tensor, temperature: float) -> dict[str, Tensor]:
        """Return how undecided the centred teacher is of one item, and how varied over the batch.

        Both in nats. Near log(prototypes) for both, it says nothing; near 0 for both, it says the
        same of everything.
        """
        said = F.softmax(teacher / temperature, dim=-1)
        return {
            "teacher_entropy": entropy(said).mean(),
            "teacher_variety": entropy(said.mean(dim=(0, 1))),
        }

    @torch.no_grad()
    def _recentre(self, teacher: Tensor, number: int) -> None:
        """Move a product's centre towards the mean of the teacher's logits on all ranks."""
        rows = teacher.flatten(0, 1)
        total = sum_over_ranks(torch.cat([rows.sum(dim=0), rows.new_full((1,), len(rows))]))
        self.centre[number].lerp_(total[:-1] / total[-1], 1 - self.centre_momentum)


def _by_crop(logits: Tensor, crops: int) -> Tensor:
    """Give crops that passed together an axis: (crop * batch, k) -> (crop, batch, k)."""
    return logits.view(crops, -1, logits.shape[-1])

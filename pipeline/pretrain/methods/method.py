"""What every pretraining method is: views of a batch in, a loss out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn


class View(NamedTuple):
    """One augmented batch: what an encoder sees.

    Attributes
    ----------
    image : Tensor, float32, shape (batch, band, y, x)
        Standardised values; 0 where nothing was seen.
    valid : Tensor, bool, shape (batch, band, y, x)
        Where a value was seen.
    """

    image: Tensor
    valid: Tensor


class Learned(NamedTuple):
    """Result of one forward pass.

    Attributes
    ----------
    loss : Tensor, float32, shape ()
    embedding : Tensor, float32, shape (batch, width)
        Detached representation whose health is watched (`pipeline.pretrain.monitors`): a falling
        loss does not tell a collapsed model from a good one.
    """

    loss: Tensor
    embedding: Tensor


class Method(nn.Module, ABC):
    """A pretraining method: one `forward` does all of a step but the optimiser's part.

    All of its state (queues, moving averages, counts) is in its `state_dict`, and all of its
    randomness comes from the generator it is given: this makes a resumed run equal to an
    undisturbed one. One forward and nothing else, so that it can be wrapped for several devices.
    """

    views: ClassVar[int]
    """How many patches of each item it wants: 1, or 2 of different times where there are two."""
    encoder: nn.Module
    """What is kept when training is over."""

    @abstractmethod
    def forward(self, views: Sequence[View], generator: torch.Generator) -> Learned:
        """Return the loss of one batch, in float32 whatever the precision around it."""

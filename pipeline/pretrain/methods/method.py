"""What every pretraining method is: views of a batch in, a loss out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, ClassVar, NamedTuple

import torch
from timm.layers.drop import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pipeline.pretrain.encoders.wavelength import aim


class View(NamedTuple):
    """One augmented batch: what an encoder sees.

    Attributes
    ----------
    image : Tensor, float32, shape (batch, band, y, x)
        Standardised values; 0 where nothing was seen.
    valid : Tensor, bool, shape (batch, band, y, x)
        Where a value was seen.
    label : Tensor, int64, shape (batch,), or None
        Class of each item, from 0: of a method's labelled support alone.
    product : str
        What the image is of, where the views of a batch are of several products; else empty.
    """

    image: Tensor
    valid: Tensor
    label: Tensor | None = None
    product: str = ""


class Learned(NamedTuple):
    """Result of one forward pass.

    Attributes
    ----------
    loss : Tensor, float32, shape ()
    embedding : Tensor, float32, shape (batch, width)
        Detached features of the encoder, whose health is watched (`pipeline.pretrain.monitors`): a
        falling loss does not tell a collapsed model from a good one.
    compared : Tensor, float32, shape (batch, width), or None
        Detached vectors that the loss compares, where collapse shows first; None: it compares
        nothing but pixels.
    measures : mapping of str to Tensor, shape ()
        The method's own measures of health, named as in `Method.measures`.
    """

    loss: Tensor
    embedding: Tensor
    compared: Tensor | None = None
    measures: Mapping[str, Tensor] = {}


class Method(nn.Module, ABC):
    """A pretraining method: one `forward` does all of a step but the optimiser's part.

    All of its state (queues, moving averages) is in its `state_dict`, and all of its randomness
    comes from the generator it is given: this makes a resumed run equal to an undisturbed one. One
    forward returns the loss, and every parameter with `requires_grad` takes part in it, so that it
    can be wrapped for several devices as it is.
    """

    views: ClassVar[int]
    """How many patches of each item it wants: 1, or 2 of different times where there are two."""
    products: ClassVar[int] = 1
    """From how many products: 2 views from each of 2."""
    measures: ClassVar[tuple[str, ...]] = ()
    """Names of its own measures, columns of the log."""
    steady: ClassVar[tuple[str, ...]] = ()
    """Names of its parts whose learning rate does not fall."""
    encoder: nn.Module
    """What is kept when training is over."""

    def begin(self, step: int) -> None:
        """Get ready for a step, counted from 0: move what moves once a step, not once a batch."""

    def still(self) -> Iterable[nn.Parameter]:
        """Return parameters that the optimiser must leave alone in the step that was begun."""
        return ()

    @abstractmethod
    def forward(self, views: Sequence[View], generator: torch.Generator) -> Learned:
        """Return the loss of one batch, in float32 whatever the precision around it."""


class Remembering(Method):
    """A method that remembers vectors of earlier batches, those of each product on their own.

    Two sensors are told apart by the sensor alone, so one's vectors would teach the other nothing.

    Parameters
    ----------
    products : sequence of str
        Whose batches come; one alone may be called anything.
    """

    memories: ClassVar[tuple[str, ...]]
    """Names of the buffers whose first axis is the product."""

    def __init__(self, products: Sequence[str]) -> None:
        super().__init__()
        self._products = tuple(products)
        self.number = 0
        """Of the product that the next batch is of."""

    def aim(self, product: str) -> None:
        """Expect a batch of a product."""
        self.number = self._products.index(product) if len(self._products) > 1 else 0

    def number_of(self, view: View) -> int:
        """Return the number of the product that a view is of."""
        return self._products.index(view.product) if view.product else self.number

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *more: Any) -> None:
        # Of a run from before there was a memory for each: all go on with the one there was.
        for name in self.memories:
            old, own = state.get(prefix + name), getattr(self, name)
            if isinstance(old, Tensor) and old.shape == own.shape[1:]:
                state[prefix + name] = old.expand_as(own).clone()
        super()._load_from_state_dict(state, prefix, *more)


@torch.no_grad()
def follow(leader: nn.Module, follower: nn.Module, momentum: float) -> None:
    """Move one module's parameters towards another's: f <- m f + (1 - m) l."""
    leaders: list[Tensor] = list(leader.parameters())
    followers: list[Tensor] = list(follower.parameters())
    if followers:
        # All at once: on a GPU a few kernels instead of one for each parameter.
        torch._foreach_lerp_(followers, leaders, 1 - momentum)


def full(values: Tensor) -> Tensor:
    """Return values in float32, or in float64 if they are: no loss is computed in halves."""
    return values.float() if values.dtype.itemsize < 4 else values


def features_of(encoder: nn.Module, views: Sequence[View]) -> Iterator[Tensor]:
    """Yield features of neighbouring views that are alike: of one size, and of one product.

    They pass through the encoder together. Shape: (view * batch, width).
    """
    for (_, product), group in groupby(views, lambda view: (view.image.shape[-2:], view.product)):
        if product:
            aim(encoder, product)
        yield encoder(torch.cat([view.image for view in group]))


def feature_of(encoder: nn.Module, view: View) -> Tensor:
    """Return the features of one view, shape (batch, width)."""
    (features,) = features_of(encoder, [view])
    return features


def entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy along the last axis in nats: (..., class) -> (...)."""
    found: Tensor = torch.special.xlogy(probabilities, probabilities).sum(dim=-1)
    return -found


def drop_paths(encoder: nn.Module, rate: float) -> None:
    """Let blocks of a ViT be left out for an item at random, the last with probability `rate`.

    Stochastic depth (Huang et al. 2016, arXiv 1603.09382), rising evenly from 0 at the first block.
    Other encoders stay as they are; weights and evaluation do not change.
    """
    if not isinstance(encoder, VisionTransformer) or not rate:
        return
    last = max(len(encoder.blocks) - 1, 1)
    for number, block in enumerate(encoder.blocks):
        block.drop_path1 = DropPath(rate * number / last)
        block.drop_path2 = DropPath(rate * number / last)

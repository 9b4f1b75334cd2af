"""DeCUR, decoupling common and unique representations.

Wang et al. 2024, "Decoupling Common and Unique Representations for Multimodal Self-supervised
Learning" (arXiv 2309.05300). Two modalities of a place, such as radar and optical images, share
something but not all. Between the modalities the first dimensions of the projections should agree
(the common ones) and the rest should not (the unique ones); between two views of one modality all
of them should, so that the unique ones have something to say.

The loss is the paper's, the sum of its four terms. The released code weighs them otherwise, and
differs from the paper where it should not: it builds both projectors from the same layers, divides
correlations by four times the local batch whatever the number of devices, and optimises with AdamW
whatever it is asked for. None of that is here; nor is the deformable attention, which the paper
finds to gain 0.4 to 0.8 points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.pretrain.methods.barlow import barlow_loss, cross_correlation
from pipeline.pretrain.methods.heads import mlp
from pipeline.pretrain.methods.method import Learned, Method, View, full


class Terms(NamedTuple):
    """The four parts of the loss, each float32 of shape ()."""

    common: Tensor
    unique: Tensor
    first: Tensor
    """Between two views of the first modality."""
    second: Tensor


def cross_terms(first: Tensor, second: Tensor, common: int, off_diagonal: float) -> list[Tensor]:
    """Return how far two modalities are from agreeing in the common dimensions and no others.

    Parameters
    ----------
    first, second : Tensor, float32, shape (batch, width)
        Projections of two modalities; row i of one belongs to row i of the other.
    common : int
        How many of the dimensions are common, the first ones.
    off_diagonal : float
        Weight of the squares off the diagonal, the paper's lambda.

    Returns
    -------
    list of Tensor, float32, shape ()
        Over the common dimensions the sum of (1 - c)^2 on the diagonal, over the unique ones of
        c^2; each with off_diagonal * c^2 off the diagonal of its own block. What lies between the
        blocks is free.
    """
    correlation = cross_correlation(first, second)
    terms = []
    for part, target in ((slice(common), 1.0), (slice(common, None), 0.0)):
        block = correlation[part, part]
        diagonal = block.diagonal()
        redundancy = block.square().sum() - diagonal.square().sum()
        terms.append((target - diagonal).square().sum() + off_diagonal * redundancy)
    return terms


def decur_loss(
    first: Sequence[Tensor], second: Sequence[Tensor], common: int, off_diagonal: float
) -> Terms:
    """Return the terms of the loss of two views of two modalities.

    Parameters
    ----------
    first, second : sequence of two Tensors, float32, shape (batch, width)
        Projections of the two views of each modality. The first view alone meets the other
        modality.
    common : int
    off_diagonal : float
    """
    shared, unique = cross_terms(first[0], second[0], common, off_diagonal)
    within = [barlow_loss(views[0], views[1], off_diagonal) for views in (first, second)]
    return Terms(shared, unique, *within)


class DeCUR(Method):
    """Agree between modalities in the common dimensions, within each in all.

    Parameters
    ----------
    encoders : two modules, (batch, band, y, x) -> (batch, width)
        Each for images of its own bands and size. The first is kept as `encoder`, both in the
        state.
    widths : two ints
        Features the encoders return.
    projector_width : int
        Of the three layers of each projector; they share no weights.
    common : int
        Dimensions that both have in common, the first ones.
    off_diagonal : float
        The paper's lambda.
    """

    views = 2
    products = 2
    measures = ("common_correlation", "unique_correlation")

    def __init__(
        self,
        encoders: Sequence[nn.Module],
        widths: Sequence[int],
        *,
        projector_width: int,
        common: int,
        off_diagonal: float,
    ) -> None:
        super().__init__()
        self.encoder, self.second_encoder = encoders
        self.projector, self.second_projector = (
            mlp(width, *[projector_width] * 3, end="plain") for width in widths
        )
        self.common = common
        self.off_diagonal = off_diagonal

    def forward(self, views: Sequence[View], generator: torch.Generator) -> Learned:  # noqa: ARG002
        """Return the loss of one batch: two views of the first product, then two of the second."""
        features = [self.encoder(view.image) for view in views[:2]]
        first = [self.projector(part) for part in features]
        second = [self.second_projector(self.second_encoder(view.image)) for view in views[2:]]
        with torch.autocast(features[0].device.type, enabled=False):
            first, second = ([full(part) for part in parts] for parts in (first, second))
            terms = decur_loss(first, second, self.common, self.off_diagonal)
            loss = torch.stack(terms).sum()
            measures = self._measures(first[0].detach(), second[0].detach())
        return Learned(loss, features[0].detach().float(), first[0].detach(), measures)

    def _measures(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        """Return the mean correlation between modalities: towards 1 and towards 0."""
        diagonal = cross_correlation(first, second).diagonal()
        parts = (diagonal[: self.common], diagonal[self.common :])
        return dict(zip(self.measures, (part.mean() for part in parts), strict=True))

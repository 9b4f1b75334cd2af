"""Barlow Twins.

Zbontar et al. 2021, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction"
(arXiv 2103.03230). Two views of an item should agree in every dimension of their projection, and
different dimensions should tell different things: the correlations between the views' dimensions,
over the batch, are pulled towards the identity.

There is no scale in front of the loss. AdamW does not see one, nor do the weights under LARS;
biases and norms, which LARS leaves to SGD, do, and have a rate of their own instead, as in the
paper's code (`pipeline.pretrain.optimise`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.pretrain.methods.heads import mlp
from pipeline.pretrain.methods.method import Learned, Method, View, feature_of, full
from pipeline.pretrain.ranks import sum_over_ranks

#: Added to a variance before the root: batch normalisation's, which the paper's code normalises by.
VARIANCE_FLOOR = 1e-5


def cross_correlation(first: Tensor, second: Tensor, seen: Tensor | None = None) -> Tensor:
    """Correlate each dimension of one view with each of the other, over the items of all ranks.

    Equal to normalising both with batch normalisation without scale and shift, then multiplying;
    but mean, variance and product are those of the whole batch, however it is spread over ranks,
    whose shares may differ in size.

    Parameters
    ----------
    first, second : Tensor, float32, shape (batch, width)
        Row i of one belongs to row i of the other.
    seen : Tensor, bool, shape (batch,), or None
        Which rows count; None: all. If none does, nothing correlates.

    Returns
    -------
    Tensor, float32, shape (width, width)
        Rows are dimensions of the first, columns of the second; the same on every rank.
    """
    both = torch.cat([first, second], dim=1)
    # A weight, not a choice of rows, whose number a device would have to tell.
    weight = both.new_ones(len(both), 1) if seen is None else seen.to(both).unsqueeze(1)
    total = sum_over_ranks(torch.cat([(both * weight).sum(dim=0), weight.sum(dim=0)]))
    count = total[-1].clamp(min=1)
    # Centred before it is squared, which costs a second sum over ranks but no digits.
    first, second = ((both - total[:-1] / count) * weight).chunk(2, dim=1)
    width = first.shape[1]
    sums = torch.cat([first.T @ second, first.square().sum(0, True), second.square().sum(0, True)])
    product, *squares = torch.split(sum_over_ranks(sums), [width, 1, 1])
    spread = [(part.squeeze(0) / count + VARIANCE_FLOOR).sqrt() for part in squares]
    return product / count / torch.outer(*spread)


def barlow_loss(
    first: Tensor, second: Tensor, off_diagonal: float, seen: Tensor | None = None
) -> Tensor:
    """Return how far the cross-correlation of two views is from the identity.

    Parameters
    ----------
    first, second : Tensor, float32, shape (batch, width)
        Projections; row i of one belongs to row i of the other.
    off_diagonal : float
        Weight of the squares off the diagonal, the paper's lambda.
    seen : Tensor, bool, shape (batch,), or None
        Which items count; None: all.

    Returns
    -------
    Tensor, float32, shape ()
        Sum over the diagonal of (1 - c)^2, and over the rest of off_diagonal * c^2.
    """
    correlation = cross_correlation(first, second, seen)
    diagonal = correlation.diagonal()
    redundancy = correlation.square().sum() - diagonal.square().sum()
    return (1 - diagonal).square().sum() + off_diagonal * redundancy


class BarlowTwins(Method):
    """Make two views of an item agree, dimension by dimension.

    Parameters
    ----------
    encoder : module, (batch, band, y, x) -> (batch, width)
    width : int
        Features the encoder returns.
    projector_width : int
        Of the three layers of the projector. The wider, the better, in the paper (its figure 4).
    off_diagonal : float
        The paper's lambda.
    """

    views = 2

    def __init__(
        self, encoder: nn.Module, width: int, *, projector_width: int, off_diagonal: float
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = mlp(width, *[projector_width] * 3, end="plain")
        self.off_diagonal = off_diagonal

    def forward(self, views: Sequence[View], generator: torch.Generator) -> Learned:  # noqa: ARG002
        """Return the loss of one batch; each view has batch statistics of its own.

        An item of which a view shows nothing is left out of the correlation.
        """
        seen = torch.stack([view.valid.flatten(1).any(dim=1) for view in views]).all(dim=0)
        features = [feature_of(self.encoder, view) for view in views]
        projected = [self.projector(part) for part in features]
        with torch.autocast(projected[0].device.type, enabled=False):
            first, second = (full(part) for part in projected)
            loss = barlow_loss(first, second, self.off_diagonal, seen)
        return Learned(loss, features[0].detach().float(), first.detach())

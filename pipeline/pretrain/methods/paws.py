"""PAWS, predicting view assignments with support samples.

Assran et al. 2021, "Semi-Supervised Learning of Visual Features by Non-Parametrically Predicting
View Assignments with Support Samples" (arXiv 2104.13963); for hyperspectral images Pande
et al. 2023 (arXiv 2306.10955). A few labelled patches, the support, give every unlabelled view a
distribution over the classes: a soft nearest neighbour. All crops of an item should get the same,
sharply; and over a batch all classes should occur. Crops are of two sizes: a small one should get
what the two large ones get on average.

The released code for hyperspectral images does not follow its paper (it learns at a rate of 0.5,
saves the encoder before the first step, cuts its small views as the large ones, and reports the
best test score of all epochs); the loss here is that of the first paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.pretrain.methods.heads import mlp
from pipeline.pretrain.methods.method import Learned, Method, View, entropy, features_of, full
from pipeline.pretrain.ranks import gather_rows, sum_over_ranks

#: Width of the embedding (the hyperspectral paper's code).
EMBEDDING_WIDTH = 128
#: To whose inverse power predictions are raised before they become targets (section 4).
SHARPENING = 0.25
#: Share of a support label that is spread over all classes (section 4).
SMOOTHING = 0.1
#: Targets below this are 0, as in the paper's code.
LEAST_TARGET = 1e-4
#: Large crops, the first of all: the ones that give targets.
GLOBAL_CROPS = 2


def predict(unit: Tensor, support: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the class of each item as the support sees it.

    Parameters
    ----------
    unit : Tensor, float32, shape (batch, width)
        Unit vectors.
    support : Tensor, float32, shape (support, width)
        Unit vectors.
    labels : Tensor, float32, shape (support, class)
        Each row a distribution.
    temperature : float
        Divides the cosines.

    Returns
    -------
    Tensor, float32, shape (batch, class)
        Each row sums to 1.
    """
    return F.softmax(unit @ support.T / temperature, dim=1) @ labels


def sharpen(probabilities: Tensor) -> Tensor:
    """Raise to the power of 1 / `SHARPENING` and make each row sum to 1: (batch, class)."""
    powers = probabilities ** (1 / SHARPENING)
    return powers / powers.sum(dim=1, keepdim=True)


def paws_loss(first: Tensor, second: Tensor, *small: Tensor) -> Tensor:
    """Return how little predictions of crops agree, less the variety of all predictions.

    Parameters
    ----------
    first, second, *small : Tensor, float32, shape (batch, class)
        What `predict` returned for the two large crops, and for each small one.

    Returns
    -------
    Tensor, float32, shape ()
        Mean cross-entropy of each large crop's prediction with the other's sharpened one, and of
        each small one's with the mean of those two; less the entropy of the mean sharpened
        prediction over all ranks.
    """
    said = torch.cat([first, second, *small])
    one, other = (sharpen(part.detach()) for part in (first, second))
    target = torch.cat([other, one, *[(one + other) / 2] * len(small)])
    target = torch.where(target < LEAST_TARGET, 0.0, target)
    agreement: Tensor = -torch.special.xlogy(target, said).sum(dim=1).mean()
    sharp = sharpen(said)
    total = sum_over_ranks(torch.cat([sharp.sum(dim=0), sharp.new_full((1,), len(sharp))]))
    return agreement - entropy(total[:-1] / total[-1])


def smooth(label: Tensor, classes: int) -> Tensor:
    """Return labels as distributions: int64 (support,) -> float32 (support, class)."""
    return F.one_hot(label, classes).float() * (1 - SMOOTHING) + SMOOTHING / classes


class PAWS(Method):
    """Give all crops of an item the same class, told by a labelled support.

    Parameters
    ----------
    encoder : module, (batch, band, y, x) -> (batch, width)
        Takes images of both crops' sizes.
    width : int
        Features the encoder returns.
    classes : int
        Of the support.
    hidden_width : int
        Of the two hidden layers of the projector.
    temperature : float
        Of the support's vote.
    """

    views = 2
    measures = ("prediction_entropy", "prediction_variety")

    def __init__(
        self,
        encoder: nn.Module,
        width: int,
        *,
        classes: int,
        hidden_width: int,
        temperature: float,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = mlp(width, hidden_width, hidden_width, EMBEDDING_WIDTH)
        self.classes = classes
        self.temperature = temperature

    def forward(self, views: Sequence[View], generator: torch.Generator) -> Learned:  # noqa: ARG002
        """Return the loss of one batch: two large crops of the unlabelled items, small ones, and
        the labelled views.

        Every class has as many items in the labelled views as any other; every rank is given the
        same ones.
        """
        large, small, support = parted(views)
        # Neighbours of one size pass together: the support is of the large crops' size.
        order = [*large, *support, *small]
        features = [*features_of(self.encoder, order)]
        projected = self.projector(torch.cat(features))
        with torch.autocast(projected.device.type, enabled=False):
            unit = torch.split(F.normalize(full(projected), dim=1), [len(v.image) for v in order])
            voters = torch.cat(unit[len(large) : len(large) + len(support)])
            votes = smooth(
                torch.cat([view.label for view in support if view.label is not None]), self.classes
            )
            crops = [*unit[: len(large)], *unit[len(large) + len(support) :]]
            votes = votes.to(voters)
            said = [predict(part, voters, votes, self.temperature) for part in crops]
            loss = paws_loss(*said)
            sharp = sharpen(said[0].detach())
            measures = {
                "prediction_entropy": entropy(sharp).mean(),
                "prediction_variety": entropy(gather_rows(sharp).mean(dim=0)),
            }
        embedding = features[0][: len(large[0].image)].detach().float()
        return Learned(loss, embedding, unit[0].detach(), measures)


def parted(views: Sequence[View]) -> tuple[list[View], list[View], list[View]]:
    """Part views into the large crops, the small ones and the labelled support.

    Raises
    ------
    ValueError
        No view has labels.
    """
    support = [view for view in views if view.label is not None]
    crops = [view for view in views if view.label is None]
    if not support:
        raise ValueError("a support without labels cannot vote")
    return crops[:GLOBAL_CROPS], crops[GLOBAL_CROPS:], support

"""Health of a representation, measured where a loss says nothing.

A collapsed encoder returns the same vector for everything while its loss may still fall (seen in
the field: torchgeo issue 3998, loss down 30 % at an embedding deviation of 0). The thresholds for
features are those of that experience; they are warnings for a person, because small batches and
fresh encoders can cross them too. What a loss compares shows more, and can stop a run; where a loss
compares nothing but pixels, its features must do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

#: Below this deviation, or above this cosine, embeddings look collapsed.
LEAST_STD = 0.3
MOST_COSINE = 0.9

#: A run is stopped when, in so many lines of its log running, what is watched is almost one and
#: no better than at first, or spans less than this share of the dimensions it spanned at first. A
#: deviation of 0.2 is a mean cosine of 0.96; fresh encoders that begin below it and rise are let go
#: on. Measured on all methods, a ResNet and a ViT, and 100 steps (`benchmarks/health.py`, table in
#: `docs/pretraining.md`).
LEAST_SPREAD = 0.2
LEAST_RANK_SHARE = 0.33
PATIENCE = 3

#: Items that are measured, the first of a batch over all ranks: more of them would tell the same,
#: and decomposing their vectors takes time that grows with the cube.
MOST_ITEMS = 512


@dataclass(frozen=True, slots=True)
class Health:
    """Three views of how far the embeddings of a batch spread."""

    std: float
    """Deviation of the unit vectors' entries times sqrt(width), mean over entries: 1 when they
    fill the sphere evenly, 0 when they are one point."""
    cosine: float
    """Mean cosine between different items: 0 evenly spread, 1 collapsed."""
    rank: float
    """Effective rank: exp of the entropy of the singular values (Roy and Vetterli 2007)."""

    @property
    def collapsed(self) -> bool:
        """Whether the embeddings look like one point."""
        return self.std < LEAST_STD or self.cosine > MOST_COSINE


@torch.no_grad()
def health(embedding: Tensor) -> Health:
    """Measure embeddings, shape (batch, width) with at least two items, on their device.

    In float64. Singular values are the roots of the eigenvalues of the smaller Gram matrix, which
    costs a fraction of decomposing the embeddings themselves; what rounding alone can make of a
    value that is 0 counts as 0.

    Examples
    --------
    >>> health(torch.tensor([[1.0, 0.0], [1.0, 0.0]])).collapsed
    True
    """
    unit = F.normalize(embedding.double(), dim=1)
    count, width = unit.shape
    total = unit.sum(dim=0)
    own = unit.square().sum()
    cosine = (total @ total - own) / (count * (count - 1))
    std = unit.std(dim=0, correction=0).mean() * width**0.5
    gram = unit @ unit.T if count <= width else unit.T @ unit
    values = torch.linalg.eigvalsh(gram)
    noise = len(gram) * torch.finfo(values.dtype).eps * values[-1]
    singular = torch.where(values > noise, values, 0.0).sqrt()
    share = singular / singular.sum().clamp(min=torch.finfo(singular.dtype).tiny)
    rank = torch.exp(-torch.special.xlogy(share, share).sum())
    return Health(*torch.stack([std, cosine, rank]).tolist())


def wrong_with(log: Sequence[Mapping[str, float]]) -> str | None:
    """Return what is wrong with a run by the last lines of its log, or None.

    Parameters
    ----------
    log : sequence of mappings
        Deviation and rank of the vectors that are compared or, where those are not a number because
        the method compares none, of the features, as `pipeline.pretrain.train` writes them. A line
        is held against those of its own product, since sensors begin apart.
    """
    log = [row for row in log if row["product"] == log[-1]["product"]]
    last = log[-PATIENCE:]
    if len(last) < PATIENCE:
        return None
    what, std, rank = ("compared vectors", "compared_std", "compared_rank")
    if math.isnan(log[0][std]):
        what, std, rank = ("features", "embedding_std", "effective_rank")
    spread = max(row[std] for row in last)
    if spread < LEAST_SPREAD and spread <= log[0][std]:
        return f"the {what} are almost one (deviation {last[-1][std]:.3f})"
    first = log[0][rank]
    if max(row[rank] for row in last) < LEAST_RANK_SHARE * first:
        now = last[-1][rank]
        return f"the {what} span {now:.1f} dimensions, at first they spanned {first:.1f}"
    return None

"""Health of a representation, measured where a loss says nothing.

A collapsed encoder returns the same vector for everything while its loss may still fall (seen in
the field: torchgeo issue 3998, loss down 30 % at an embedding deviation of 0). The thresholds for
features are those of that experience; they are warnings for a person, because small batches and
fresh encoders can cross them too. What a loss compares shows more, and can stop a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

#: Below this deviation, or above this cosine, embeddings look collapsed.
LEAST_STD = 0.3
MOST_COSINE = 0.9

#: A run is stopped when, in so many lines of the log running, the vectors that its loss compares
#: are almost one, or span less than this share of the dimensions they spanned at first. Measured
#: on ResNets and 100 steps (`benchmarks/health.py`): healthy runs keep 0.6 and more; SimSiam
#: without its stopped gradient falls to 0.2, MoCo and SimSiam at a hundred times their rate to 0.1
#: and 0.2.
LEAST_SPREAD = 0.1
LEAST_RANK_SHARE = 0.33
PATIENCE = 3


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
    """Measure embeddings, shape (batch, width) with at least two items.

    Examples
    --------
    >>> health(torch.tensor([[1.0, 0.0], [1.0, 0.0]])).collapsed
    True
    """
    unit = F.normalize(embedding.double().cpu(), dim=1)
    count, width = unit.shape
    total = unit.sum(dim=0)
    own = unit.square().sum()
    cosine = (total @ total - own) / (count * (count - 1))
    std = unit.std(dim=0, correction=0).mean() * width**0.5
    singular = torch.linalg.svdvals(unit)
    share = singular / singular.sum().clamp(min=torch.finfo(singular.dtype).tiny)
    rank = torch.exp(-torch.special.xlogy(share, share).sum())
    return Health(float(std), float(cosine), float(rank))


def wrong_with(log: Sequence[Mapping[str, float]]) -> str | None:
    """Return what is wrong with a run by the last lines of its log, or None.

    Parameters
    ----------
    log : sequence of mappings
        `compared_std` and `compared_rank`, as `pipeline.pretrain.train` writes them; not a number
        for a method that compares no vectors, with which nothing is found wrong here.
    """
    last = log[-PATIENCE:]
    if len(last) < PATIENCE:
        return None
    if max(row["compared_std"] for row in last) < LEAST_SPREAD:
        return f"the compared vectors are almost one (deviation {last[-1]['compared_std']:.3f})"
    first = log[0]["compared_rank"]
    if max(row["compared_rank"] for row in last) < LEAST_RANK_SHARE * first:
        now = last[-1]["compared_rank"]
        return f"the compared vectors span {now:.1f} dimensions, at first they spanned {first:.1f}"
    return None

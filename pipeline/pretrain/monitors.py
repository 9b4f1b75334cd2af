"""Health of a representation, measured where a loss says nothing.

A collapsed encoder returns the same vector for everything while its loss may still fall (seen in
the field: torchgeo issue 3998, loss down 30 % at an embedding deviation of 0). The thresholds are
those of that experience; they are warnings for a person, not a reason to stop, because small
batches and fresh encoders can cross them too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

#: Below this deviation, or above this cosine, embeddings look collapsed.
LEAST_STD = 0.3
MOST_COSINE = 0.9


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

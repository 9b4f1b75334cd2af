"""SimCLR.

Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations"
(arXiv 2002.05709). Each view finds the other view of its item among all views of the batch, those
of all ranks.

A batch is all it compares with: with a rate that is too high it collapses while its loss still
falls (torchgeo issue 3998), so watch the health columns of the log.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.pretrain.methods.heads import mlp
from pipeline.pretrain.methods.method import Learned, Method, View, features_of, full
from pipeline.pretrain.ranks import gather_rows, rank

#: Width of the embedding that is compared (section 4.2).
EMBEDDING_WIDTH = 128


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Return how badly each view tells its partner from all other views: mean cross-entropy.

    Parameters
    ----------
    first, second : Tensor, float32, shape (batch, width)
        Unit vectors; row i of one belongs to row i of the other.
    temperature : float
        Divides the cosines.

    Returns
    -------
    Tensor, float32, shape ()
        Over this rank's 2 * batch views, each against the 2 * ranks * batch - 1 others.
    """
    batch = len(first)
    own = torch.cat([first, second])
    everyone = torch.cat([gather_rows(first), gather_rows(second)])
    here = rank() * batch + torch.arange(batch, device=own.device)
    itself = torch.cat([here, here + len(everyone) // 2])
    logits = own @ everyone.T / temperature
    logits = logits.scatter(1, itself.unsqueeze(1), -torch.inf)
    return F.cross_entropy(logits, itself.roll(batch))


class SimCLR(Method):
    """Find the other view of an item among all views of the batch.

    Parameters
    ----------
    encoder : module, (batch, band, y, x) -> (batch, width)
    width : int
        Features the encoder returns.
    hidden_width : int
        Of the head's hidden layer.
    temperature : float
        Of the logits.
    """

    views = 2

    def __init__(
        self, encoder: nn.Module, width: int, *, hidden_width: int, temperature: float
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = mlp(width, hidden_width, EMBEDDING_WIDTH)
        self.temperature = temperature

    def forward(self, views: Sequence[View], generator: torch.Generator) -> Learned:  # noqa: ARG002
        """Return the loss of one batch."""
        features = torch.cat([*features_of(self.encoder, views)])
        embedded = self.head(features)
        with torch.autocast(features.device.type, enabled=False):
            first, second = F.normalize(full(embedded), dim=1).chunk(2)
            loss = nt_xent(first, second, self.temperature)
        return Learned(loss, features.chunk(2)[0].detach().float(), first.detach())

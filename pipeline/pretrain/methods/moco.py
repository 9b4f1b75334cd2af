"""Momentum contrast, version 2.

He et al. 2020, "Momentum Contrast for Unsupervised Visual Representation Learning"
(arXiv 1911.05722); Chen et al. 2020, "Improved Baselines with Momentum Contrastive Learning"
(arXiv 2003.04297): the two-layer head. For Earth observation: SSL4EO-S12 (arXiv 2211.07044), with
two seasons of a place as the positive pair.

The papers shuffle batch normalisation over devices, so that a query cannot recognise its key by
their common batch statistics. On one device there is nothing to shuffle over; watch the health
columns of the log (a single-device run with rising loss is known: zhu-xlab/SSL4EO-S12 issue 8).
Backbones with layer normalisation (the ViTs) cannot leak in this way.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.pretrain.methods.method import Learned, Remembering, View, follow
from pipeline.pretrain.ranks import gather_rows

#: Width of the embedding that is compared (He et al. 2020, section 3.3).
EMBEDDING_WIDTH = 128


def info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Return how badly each query tells its own key from the queue's: mean cross-entropy.

    Parameters
    ----------
    query, key : Tensor, float32, shape (batch, width)
        Unit vectors; row i of one belongs to row i of the other.
    queue : Tensor, float32, shape (keys, width)
        Unit vectors of other items.
    temperature : float
        Divides the cosines.

    Returns
    -------
    Tensor, float32, shape ()
    """
    own = (query * key).sum(dim=1, keepdim=True)
    others = query @ queue.T
    logits = torch.cat([own, others], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))


class MoCo(Remembering):
    """Match two views of an item against a queue of keys from earlier batches.

    Parameters
    ----------
    encoder : module, (batch, band, y, x) -> (batch, width)
    width : int
        Features the encoder returns.
    queue : int
        Keys remembered of each product. The queue holds unit vectors and moves once a step; it is
        part of the state, so a resumed run sees the same negatives.
    momentum : float
        Share of itself that the key encoder keeps each step.
    temperature : float
        Of the logits.
    seed : int
        Of the random unit vectors the queue starts with.
    products : sequence of str
        Whose batches come.
    """

    views = 2
    memories = ("queue", "position")
    queue: Tensor
    position: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        width: int,
        *,
        queue: int,
        momentum: float,
        temperature: float,
        seed: int,
        products: Sequence[str] = ("",),
    ) -> None:
        super().__init__(products)
        self.encoder = encoder
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, EMBEDDING_WIDTH)
        )
        self.key_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.key_head = copy.deepcopy(self.head).requires_grad_(False)
        self.momentum = momentum
        self.temperature = temperature
        shape = (len(products), queue, EMBEDDING_WIDTH)
        first = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("queue", F.normalize(first, dim=2))
        self.register_buffer("position", torch.zeros(len(products), dtype=torch.long))

    def begin(self, step: int) -> None:  # noqa: ARG002
        """Move the key encoder towards the query encoder."""
        follow(self.encoder, self.key_encoder, self.momentum)
        follow(self.head, self.key_head, self.momentum)

    def forward(self, views: Sequence[View], generator: torch.Generator) -> Learned:  # noqa: ARG002
        """Return the loss of one batch, and put its keys, of all ranks, into the queue."""
        first, second = views
        features = self.encoder(first.image)
        query = self.head(features)
        with torch.no_grad():
            key = self.key_head(self.key_encoder(second.image))
        with torch.autocast(query.device.type, enabled=False):
            query = F.normalize(query.float(), dim=1)
            key = F.normalize(key.float(), dim=1)
            # A copy: the queue is changed below, and the backward pass still needs the old one.
            loss = info_nce(query, key, self.queue[self.number].clone(), self.temperature)
            self._remember(gather_rows(key))
        return Learned(loss, features.detach().float(), query.detach())

    @torch.no_grad()
    def _remember(self, keys: Tensor) -> None:
        """Put the newest keys in place of the oldest; shape (batch, width), unit vectors."""
        queue, position = self.queue[self.number], self.position[self.number]
        size = len(queue)
        keys = keys[-size:]
        places = (position + torch.arange(len(keys), device=keys.device)) % size
        queue[places] = keys
        position.copy_((position + len(keys)) % size)

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

from pipeline.pretrain.methods.method import Learned, Remembering, View, feature_of, follow, full
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
    key_parts : int
        Random parts of a batch that pass through the key encoder one by one, each with batch norm's
        moments of its own (the paper's shuffled batch norm, section 3.3, on one device).
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
        key_parts: int = 1,
    ) -> None:
        super().__init__(products)
        self.key_parts = key_parts
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

    def forward(self, views: Sequence[View], generator: torch.Generator) -> Learned:
        """Return the loss of one batch, and put its keys, of all ranks, into the queue."""
        first, second = views
        features = feature_of(self.encoder, first)
        query = self.head(features)
        with torch.no_grad():
            key = self.key_head(self._key_features(second, generator))
        with torch.autocast(query.device.type, enabled=False):
            query = F.normalize(full(query), dim=1)
            key = F.normalize(full(key), dim=1)
            # A copy: the queue is changed below, and the backward pass still needs the old one.
            number = self.number_of(second)
            loss = info_nce(query, key, self.queue[number].clone(), self.temperature)
            self._remember(gather_rows(key), number)
        return Learned(loss, features.detach().float(), query.detach())

    def _key_features(self, view: View, generator: torch.Generator) -> Tensor:
        """Return features of the key encoder, shape (batch, width).

        Queries and keys of one batch share its moments, which those in the queue do not: a key
        would be told by them. So its moments are made to be of other items than its query's.
        """
        if self.key_parts == 1:
            return feature_of(self.key_encoder, view)
        order = torch.randperm(len(view.image), generator=generator).to(view.image.device)
        parts = [
            feature_of(self.key_encoder, view._replace(image=view.image[part]))
            for part in order.chunk(self.key_parts)
        ]
        return torch.cat(parts)[order.argsort()]

    @torch.no_grad()
    def _remember(self, keys: Tensor, number: int) -> None:
        """Put a product's newest keys in place of its oldest; shape (batch, width), unit."""
        queue, position = self.queue[number], self.position[number]
        size = len(queue)
        keys = keys[-size:]
        places = (position + torch.arange(len(keys), device=keys.device)) % size
        queue[places] = keys
        position.copy_((position + len(keys)) % size)

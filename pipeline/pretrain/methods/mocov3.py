"""Momentum contrast, version 3: no queue, a predictor, both views in both roles.

Chen, Xie and He 2021, "An Empirical Study of Training Self-Supervised Vision Transformers"
(arXiv 2104.02057). A ViT's first projection stays as it was drawn (section 4): its gradient is what
made training jump. One that goes by wavelengths is learned: as drawn it would mix them at random.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.pretrain.methods.heads import mlp
from pipeline.pretrain.methods.method import Learned, Method, View, feature_of, follow, full
from pipeline.pretrain.ranks import gather_rows, rank
from pipeline.pretrain.schedule import cosine

#: Width of the embedding that is compared (section 3).
EMBEDDING_WIDTH = 256


def info_nce_in_batch(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """Return how badly each query tells its own key from all others of the batch.

    Parameters
    ----------
    query, key : Tensor, float32, shape (batch, width)
        Unit vectors; row i of one belongs to row i of the other. The keys of all ranks are
        compared with; they get no gradient.
    temperature : float
        Divides the cosines.

    Returns
    -------
    Tensor, float32, shape ()
        Mean cross-entropy times twice the temperature, as in the paper's algorithm 1.
    """
    logits = query @ gather_rows(key.detach()).T / temperature
    own = rank() * len(query) + torch.arange(len(query), device=query.device)
    return 2 * temperature * F.cross_entropy(logits, own)


class MoCoV3(Method):
    """Match each view with the other's key among the keys of the batch.

    Parameters
    ----------
    encoder : module, (batch, band, y, x) -> (batch, width)
    width : int
        Features the encoder returns.
    hidden_width : int
        Of the hidden layers of projector and predictor.
    steps : int
        Of the whole run.
    first_momentum : float
        Share of itself that the key encoder keeps at first; it rises to 1 on a cosine.
    temperature : float
        Of the logits.
    """

    views = 2

    def __init__(
        self,
        encoder: nn.Module,
        width: int,
        *,
        hidden_width: int,
        steps: int,
        first_momentum: float,
        temperature: float,
    ) -> None:
        super().__init__()
        if isinstance(encoder, VisionTransformer):
            first = encoder.patch_embed.proj
            if isinstance(first, nn.Conv2d):
                first.requires_grad_(False)
        self.encoder = encoder
        self.projector = mlp(width, hidden_width, hidden_width, EMBEDDING_WIDTH, end="norm")
        self.predictor = mlp(EMBEDDING_WIDTH, hidden_width, EMBEDDING_WIDTH, end="norm")
        self.key_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.steps = steps
        self.first_momentum = first_momentum
        self.temperature = temperature

    def begin(self, step: int) -> None:
        """Move the key encoder towards the encoder."""
        momentum = cosine(step, first=self.first_momentum, last=1.0, steps=self.steps)
        follow(self.encoder, self.key_encoder, momentum)
        follow(self.projector, self.key_projector, momentum)

    def forward(self, views: Sequence[View], generator: torch.Generator) -> Learned:  # noqa: ARG002
        """Return the loss of one batch, both ways; each view has batch statistics of its own."""
        features = [feature_of(self.encoder, view) for view in views]
        queries = [self.predictor(self.projector(part)) for part in features]
        with torch.no_grad():
            keys = [self.key_projector(feature_of(self.key_encoder, view)) for view in views]
        with torch.autocast(features[0].device.type, enabled=False):
            queries, keys = (
                [F.normalize(full(part), dim=1) for part in parts] for parts in (queries, keys)
            )
            loss = info_nce_in_batch(queries[0], keys[1], self.temperature)
            loss = loss + info_nce_in_batch(queries[1], keys[0], self.temperature)
        return Learned(loss, features[0].detach().float(), keys[0])

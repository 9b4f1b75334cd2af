"""SimSiam.

Chen and He 2021, "Exploring Simple Siamese Representation Learning" (arXiv 2011.10566). Each view's
projection is predicted from the other's. Nothing but the stopped gradient of what is predicted
keeps all projections from becoming one vector; so this is the method whose health to watch most.
The predictor's learning rate does not fall (section 4.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.pretrain.methods.heads import mlp
from pipeline.pretrain.methods.method import Learned, Method, View, feature_of, full

#: A predictor is this many times narrower inside than outside (2048 and 512 in the paper).
BOTTLENECK = 4


def simsiam_loss(predicted: Sequence[Tensor], projected: Sequence[Tensor]) -> Tensor:
    """Return the mean negative cosine between predictions and the other view's projections.

    Parameters
    ----------
    predicted, projected : sequence of two Tensors, float32, shape (batch, width)
        Of the two views.

    Returns
    -------
    Tensor, float32, shape ()
        -1 to 1. No gradient flows to what is predicted.
    """
    first = F.cosine_similarity(predicted[0], projected[1].detach(), dim=1)
    second = F.cosine_similarity(predicted[1], projected[0].detach(), dim=1)
    return -(first.mean() + second.mean()) / 2


class SimSiam(Method):
    """Predict each view's projection from the other's.

    Parameters
    ----------
    encoder : module, (batch, band, y, x) -> (batch, width)
    width : int
        Features the encoder returns.
    projector_width : int
        Of the projector's three layers and the prediction.
    """

    views = 2
    steady = ("predictor",)

    def __init__(self, encoder: nn.Module, width: int, *, projector_width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = mlp(width, *[projector_width] * 3, end="norm")
        inner = max(projector_width // BOTTLENECK, 1)
        self.predictor = mlp(projector_width, inner, projector_width)

    def forward(self, views: Sequence[View], generator: torch.Generator) -> Learned:  # noqa: ARG002
        """Return the loss of one batch; each view has batch statistics of its own."""
        features = [feature_of(self.encoder, view) for view in views]
        projected = [self.projector(part) for part in features]
        predicted = [self.predictor(part) for part in projected]
        with torch.autocast(features[0].device.type, enabled=False):
            predicted, projected = (
                [full(part) for part in parts] for parts in (predicted, projected)
            )
            loss = simsiam_loss(predicted, projected)
        return Learned(loss, features[0].detach().float(), projected[0].detach())

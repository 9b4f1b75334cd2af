"""SwAV, swapping assignments between views.

Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments"
(arXiv 2006.09882). Each view predicts to which prototypes the other belongs. The assignments of a
batch fill all prototypes evenly (Sinkhorn and Knopp), so that they cannot all be the same; a small
batch is filled up with earlier projections from a queue.

Two crops of one size; the small crops of the paper are left to DINO here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.pretrain.methods.heads import mlp
from pipeline.pretrain.methods.method import Learned, Method, View, entropy
from pipeline.pretrain.ranks import gather_rows, own_rows

#: Width of the unit vectors that are compared with prototypes (appendix A).
EMBEDDING_WIDTH = 128
#: Temperature of the assignments, and how often rows and columns are balanced (section 4.1).
EPSILON = 0.05
ITERATIONS = 3
#: Share of the run after which the queue helps: epoch 15 of 100 in its use for BigEarthNet.
QUEUE_FROM = 0.15


@torch.no_grad()
def balance(scores: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Assign items to prototypes so that every prototype gets an equal share of all items.

    Parameters
    ----------
    scores : Tensor, float32, shape (item, prototype)
        Cosines.
    iterations : int

    Returns
    -------
    Tensor, float32, shape (item, prototype)
        Each row sums to 1.

    Examples
    --------
    >>> balance(torch.tensor([[1.0, 0.9], [1.0, 0.0]])).argmax(dim=1)
    tensor([1, 0])
    """
    # The highest score becomes 1, so that nothing is too large for a float; columns are divided by
    # their sum at once, which changes nothing else.
    shares = torch.exp((scores - scores.max()) / EPSILON)
    least = torch.finfo(shares.dtype).tiny
    for _ in range(iterations):
        shares = shares / shares.sum(dim=0, keepdim=True).clamp(min=least)
        shares = shares / shares.sum(dim=1, keepdim=True).clamp(min=least)
    return shares


def swapped_loss(
    scores: Sequence[Tensor], assigned: Sequence[Tensor], temperature: float
) -> Tensor:
    """Return how badly each view predicts the other's assignment: mean cross-entropy.

    Parameters
    ----------
    scores : sequence of two Tensors, float32, shape (batch, prototype)
        Cosines of the two views with the prototypes.
    assigned : sequence of two Tensors, same shape
        Without gradient.
    temperature : float
        Of the predictions.
    """
    first = F.cross_entropy(scores[0] / temperature, assigned[1])
    second = F.cross_entropy(scores[1] / temperature, assigned[0])
    return (first + second) / 2


class SwAV(Method):
    """Predict each view's prototypes from the other.

    Parameters
    ----------
    encoder : module, (batch, band, y, x) -> (batch, width)
    width : int
        Features the encoder returns.
    hidden_width : int
        Of the head's hidden layer.
    prototypes : int
    queue : int
        Projections of each view that are remembered.
    steps : int
        Of the whole run.
    frozen_steps : int
        In which the prototypes stand still.
    temperature : float
        Of the predictions.
    """

    views = 2
    measures = ("assignment_entropy", "assignment_variety")
    queue: Tensor
    filled: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        width: int,
        *,
        hidden_width: int,
        prototypes: int,
        queue: int,
        steps: int,
        frozen_steps: int,
        temperature: float,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = mlp(width, hidden_width, EMBEDDING_WIDTH)
        self.prototypes = nn.Parameter(F.normalize(torch.randn(prototypes, EMBEDDING_WIDTH), dim=1))
        self.register_buffer("queue", torch.zeros(2, queue, EMBEDDING_WIDTH))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))
        self.queue_from = round(QUEUE_FROM * steps)
        self.frozen_steps = frozen_steps
        self.temperature = temperature
        self.step = 0

    @torch.no_grad()
    def begin(self, step: int) -> None:
        """Bring the prototypes back to unit length."""
        self.step = step
        self.prototypes.copy_(F.normalize(self.prototypes, dim=1))

    def still(self) -> Iterable[nn.Parameter]:
        """Return the prototypes in the first steps."""
        if self.step < self.frozen_steps:
            yield self.prototypes

    def forward(self, views: Sequence[View], generator: torch.Generator) -> Learned:  # noqa: ARG002
        """Return the loss of one batch, and put its projections, of all ranks, into the queue."""
        features = [self.encoder(view.image) for view in views]
        embedded = [self.head(part) for part in features]
        with torch.autocast(features[0].device.type, enabled=False):
            unit = [F.normalize(part.float(), dim=1) for part in embedded]
            scores = [part @ self.prototypes.T for part in unit]
            assigned = [self._assign(part, view) for view, part in enumerate(scores)]
            loss = swapped_loss(scores, assigned, self.temperature)
            self._remember([part.detach() for part in unit])
            measures = {
                "assignment_entropy": entropy(assigned[0]).mean(),
                "assignment_variety": entropy(gather_rows(assigned[0]).mean(dim=0)),
            }
        return Learned(loss, features[0].detach().float(), unit[0].detach(), measures)

    @torch.no_grad()
    def _assign(self, scores: Tensor, view: int) -> Tensor:
        """Assign this rank's items, balanced over those of all ranks and the queue."""
        everyone = gather_rows(scores.detach())
        count = len(everyone)
        if self.step >= self.queue_from:
            remembered = self.queue[view, : int(self.filled)] @ self.prototypes.T
            everyone = torch.cat([everyone, remembered])
        return own_rows(balance(everyone)[:count])

    @torch.no_grad()
    def _remember(self, unit: Sequence[Tensor]) -> None:
        """Put the newest projections in front of the oldest; shape (batch, width) for each view."""
        newest = torch.stack([gather_rows(part) for part in unit])
        size = self.queue.shape[1]
        self.queue.copy_(torch.cat([newest, self.queue], dim=1)[:, :size])
        self.filled.copy_((self.filled + newest.shape[1]).clamp(max=size))

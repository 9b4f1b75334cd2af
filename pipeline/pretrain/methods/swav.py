"""SwAV, swapping assignments between views.

Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments"
(arXiv 2006.09882). Each crop predicts to which prototypes the other crops of its item belong. The
assignments of a batch fill all prototypes evenly (Sinkhorn and Knopp), so that they cannot all be
the same; a small batch is filled up with earlier projections from a queue.

Crops are of two sizes (section 3.3): small ones predict, the two large ones are assigned too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.pretrain.methods.heads import mlp
from pipeline.pretrain.methods.method import Learned, Remembering, View, entropy, features_of, full
from pipeline.pretrain.ranks import gather_rows, own_rows

#: Width of the unit vectors that are compared with prototypes (appendix A).
EMBEDDING_WIDTH = 128
#: Temperature of the assignments, and how often rows and columns are balanced (section 4.1).
EPSILON = 0.05
ITERATIONS = 3
#: Share of the run after which the queue helps: epoch 15 of 100 in its use for BigEarthNet.
QUEUE_FROM = 0.15
#: Large crops, the first of all: the ones that are assigned.
GLOBAL_CROPS = 2


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
    """Return how badly crops predict the assignments of the other crops of their item.

    Parameters
    ----------
    scores : sequence of Tensors, float32, shape (batch, prototype)
        Cosines of each crop with the prototypes.
    assigned : sequence of Tensors, same shape
        Of the first crops, without gradient.
    temperature : float
        Of the predictions.

    Returns
    -------
    Tensor, float32, shape ()
        Mean cross-entropy over items and pairs of an assigned and another crop.
    """
    pairs = [
        F.cross_entropy(said / temperature, target)
        for number, target in enumerate(assigned)
        for other, said in enumerate(scores)
        if other != number
    ]
    return torch.stack(pairs).mean()


class SwAV(Remembering):
    """Predict the prototypes of each large crop from the other crops of its item.

    Parameters
    ----------
    encoder : module, (batch, band, y, x) -> (batch, width)
        Takes images of both crops' sizes.
    width : int
        Features the encoder returns.
    hidden_width : int
        Of the head's hidden layer.
    prototypes : int
    queue : int
        Projections of each large crop that are remembered of each product.
    steps : int
        Of the whole run.
    frozen_steps : int
        In which the prototypes stand still.
    temperature : float
        Of the predictions.
    products : sequence of str
        Whose batches come.
    """

    views = 2
    memories = ("queue", "filled")
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
        products: Sequence[str] = ("",),
    ) -> None:
        super().__init__(products)
        self.encoder = encoder
        self.head = mlp(width, hidden_width, EMBEDDING_WIDTH)
        self.prototypes = nn.Parameter(F.normalize(torch.randn(prototypes, EMBEDDING_WIDTH), dim=1))
        shape = (len(products), GLOBAL_CROPS, queue, EMBEDDING_WIDTH)
        self.register_buffer("queue", torch.zeros(shape))
        # In the state; what is read is `remembered`, which lies where it is needed: to ask the
        # device for a number is to wait for it.
        self.register_buffer("filled", torch.zeros(len(products), dtype=torch.long))
        self.remembered = [0] * len(products)
        hook: Any = self.register_load_state_dict_post_hook
        hook(_recall)
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
        """Return the loss of one batch, and put its projections, of all ranks, into the queue.

        The first `GLOBAL_CROPS` views are large, the others small. As in the paper's code, batch
        statistics are those of all crops of one size, in the head of all crops.
        """
        features = [*features_of(self.encoder, views)]
        embedded = self.head(torch.cat(features))
        with torch.autocast(embedded.device.type, enabled=False):
            unit = F.normalize(full(embedded), dim=1).chunk(len(views))
            scores = [part @ self.prototypes.T for part in unit]
            assigned = [self._assign(part, crop) for crop, part in enumerate(scores[:GLOBAL_CROPS])]
            loss = swapped_loss(scores, assigned, self.temperature)
            self._remember([part.detach() for part in unit[:GLOBAL_CROPS]])
            measures = {
                "assignment_entropy": entropy(assigned[0]).mean(),
                "assignment_variety": entropy(gather_rows(assigned[0]).mean(dim=0)),
            }
        first = features[0][: len(views[0].image)].detach().float()
        return Learned(loss, first, unit[0].detach(), measures)

    @torch.no_grad()
    def _assign(self, scores: Tensor, crop: int) -> Tensor:
        """Assign this rank's items, balanced over those of all ranks and the queue."""
        everyone = gather_rows(scores.detach())
        count = len(everyone)
        if self.step >= self.queue_from:
            known = self.remembered[self.number]
            remembered = self.queue[self.number, crop, :known] @ self.prototypes.T
            everyone = torch.cat([everyone, remembered])
        return own_rows(balance(everyone)[:count])

    @torch.no_grad()
    def _remember(self, unit: Sequence[Tensor]) -> None:
        """Put the newest projections in front of the oldest; (batch, width) for each crop."""
        newest = torch.stack([gather_rows(part) for part in unit])
        queue, number = self.queue[self.number], self.number
        size = queue.shape[1]
        queue.copy_(torch.cat([newest, queue], dim=1)[:, :size])
        self.remembered[number] = min(self.remembered[number] + newest.shape[1], size)
        self.filled[number].fill_(self.remembered[number])


def _recall(method: SwAV, keys: object) -> None:  # noqa: ARG001
    """Read how much is remembered from a state that was loaded."""
    method.remembered = [int(count) for count in method.filled.tolist()]

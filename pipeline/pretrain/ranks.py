"""What the processes of one run do together; a run of one process is its own company.

A loss that needs the whole batch (its moments, its mean, its negatives) sums or gathers over the
ranks of `torch.distributed` instead of taking each rank's own, which would be another loss: with
lightly's Barlow Twins, whose moments are local, the gradient of two ranks was found off by 6.5 %
(equally distributed ranks, 256 items) to 111 % (unequal ones).

Data-parallel training takes the mean of the ranks' gradients. So a loss is right in one of two
forms: every rank returns the loss of the whole batch, or each returns the mean over its own items.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from pipeline.errors import RecipeError, TryAgain


def started() -> bool:
    """Return whether this process is one of a run's several."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if started() else 0


def size() -> int:
    """Return how many processes the run has."""
    return dist.get_world_size() if started() else 1


def launched() -> int:
    """Return how many processes `torchrun` started for this run, joined or not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join(device: torch.device) -> torch.device:
    """Join the processes that `torchrun` started, if it did; return the device of this one.

    Parameters
    ----------
    device : torch.device
        `cpu` ranks talk through gloo, `cuda` ranks through NCCL, one GPU each.
    """
    if "WORLD_SIZE" not in os.environ or started():
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    atexit.register(dist.destroy_process_group)
    return device


@contextmanager
def company() -> Iterator[None]:
    """Say plainly that a process ended because another one did.

    Raises
    ------
    TryAgain
        The others could not be reached any more.
    """
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or "gloo" in str(error)
        if size() == 1 or not lost:
            raise
        raise TryAgain(
            "another process of this run ended, so this one could not go on; its own message says "
            "why. Then run the same command again: it goes on from the last checkpoint.",
            failure="peer",
        ) from error


def agree(number: int, what: str) -> None:
    """Hold all ranks to one number.

    Raises
    ------
    RecipeError
        They do not have it: the machines do not see the same root.
    """
    if not started():
        return
    found = [torch.zeros(1, dtype=torch.int64) for _ in range(size())]
    own = torch.tensor([number])
    if dist.get_backend() == "nccl":
        own, found = own.cuda(), [one.cuda() for one in found]
    dist.all_gather(found, own)
    numbers = [int(one) for one in found]
    if len(set(numbers)) > 1:
        raise RecipeError(
            f"the processes of this run do not agree on {what}: {', '.join(map(str, numbers))}; "
            "the root must be one that all of its machines see."
        )


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum of every rank's values, any shape; the gradient flows back to every rank.

    Every rank gets the gradient of the sum of all ranks' losses. Where all ranks compute the same
    loss from the result, the mean of their gradients (which data-parallel training takes) is thus
    the gradient of that one loss.
    """
    if not started():
        return values
    summed: Tensor = _Sum.apply(values)
    return summed


def mean_over_ranks(value: Tensor) -> Tensor:
    """Return the mean of every rank's value, without gradient: for logs."""
    return sum_over_ranks(value.detach().clone()) / size()


def gather_rows(values: Tensor) -> Tensor:
    """Return every rank's rows, rank after rank; the gradient flows back to every rank.

    Parameters
    ----------
    values : Tensor, shape (batch, ...)
        As many rows on every rank.

    Returns
    -------
    Tensor, shape (ranks * batch, ...)
        This rank's rows begin at `rank() * batch`.
    """
    if not started():
        return values
    gathered: Tensor = _Gather.apply(values)
    return gathered


def first_rows(values: Tensor, most: int) -> Tensor:
    """Return the first rows of all ranks, rank after rank, without gradient: no more than `most`.

    Parameters
    ----------
    values : Tensor, shape (batch, ...)
        As many rows on every rank.
    most : int
    """
    values = values.detach()
    if not started():
        return values[:most]
    begin, total = rank() * len(values), min(size() * len(values), most)
    rows = values.new_zeros(total, *values.shape[1:])
    mine = rows[begin : begin + len(values)]
    mine.copy_(values[: len(mine)])
    return _summed(rows)


def own_rows(values: Tensor) -> Tensor:
    """Return this rank's share of rows that all ranks know: (ranks * batch, ...) -> (batch, ...).

    What is drawn for the whole batch and shared out does not depend on how many ranks there are.
    """
    return values.chunk(size())[rank()]


class _Sum(Function):
    """The sum over ranks; its gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor) -> Tensor:  # noqa: ARG004
        return _summed(values)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:  # noqa: ARG004
        return _summed(gradient)


class _Gather(Function):
    """The rows of all ranks; a row's gradient is the sum of what the ranks found for it."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor) -> Tensor:  # noqa: ARG004
        rows = [torch.empty_like(values) for _ in range(size())]
        dist.all_gather(rows, values.contiguous())
        return torch.cat(rows)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:  # noqa: ARG004
        return own_rows(_summed(gradient))


def _summed(values: Tensor) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total

"""Random numbers of a rank's own items, the same however many ranks share the batch.

What is drawn for the whole batch and shared out costs every rank the draws of all. A generator that
counts (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; numpy's Philox) can begin
anywhere: an item's numbers are a function of a seed and of its place in the whole batch.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.pretrain.ranks import rank

#: Numbers of 64 bits that one count of Philox 4x64 gives.
_PER_COUNT = 4


def draw_seed(generator: torch.Generator) -> int:
    """Return the seed of one use; generators in one state give one seed."""
    return int(torch.randint(2**62, (), generator=generator))


def own_uniform(items: int, each: int, *seed: int) -> NDArray[np.float64]:
    """Draw numbers from [0, 1) for each of this rank's items.

    Parameters
    ----------
    items : int
        Of this rank: as many on every rank.
    each : int
        Numbers an item gets.
    seed : int
        One or more, the same on every rank.

    Returns
    -------
    float64 array, shape (items, each)
    """
    counts = -(-each // _PER_COUNT)
    stream = np.random.Philox(np.random.SeedSequence(seed))
    stream.advance(rank() * items * counts)
    drawn = np.random.Generator(stream).random((items, counts * _PER_COUNT))
    return drawn[:, :each]

"""What is learned from, in which order: a stream that can be entered at any step.

The order of an epoch is a function of (seed, epoch) alone, and a batch a function of its step. So
there is no position to save: whoever knows the step knows the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from pipeline.store.patches import PatchReader

Numbers = NDArray[np.int64]

#: Batches read ahead while the device works; each holds `views` times a batch in memory.
AHEAD = 2


class Batch(NamedTuple):
    """Stored pixels of one step."""

    bands: Tensor
    """Stored type, shape (view, batch, band, y, x)."""
    mask: Tensor
    """uint8, common legend, shape (view, batch, y, x)."""


class Order:
    """Which patches make up each batch.

    With one view an item is a patch. With two, an item is a location: its two views are patches of
    two different times, drawn anew every epoch, or the same patch twice where it has but one
    (SSL4EO-S12 and SpectralEarth pair in the same way).

    Parameters
    ----------
    location : int array, shape (patch,)
        Which location each patch belongs to.
    views : int
        1 or 2.
    batch_size : int
        Items in a batch. Epochs follow one another without a gap, so all batches are full, and a
        set smaller than a batch simply repeats.
    seed : int
    """

    def __init__(
        self, location: NDArray[np.integer], *, views: int, batch_size: int, seed: int
    ) -> None:
        if not len(location):
            raise ValueError("there are no patches to put in order")
        self.views = views
        self.batch_size = batch_size
        self.seed = seed
        self._patches = np.argsort(location, kind="stable").astype(np.int64)
        if views == 1:
            self._start: Numbers = np.arange(len(location), dtype=np.int64)
        else:
            _, start = np.unique(location[self._patches], return_index=True)
            self._start = start.astype(np.int64)
        self._times = np.diff(self._start, append=len(location))
        self._known: tuple[int, Numbers] = (-1, np.empty((views, 0), np.int64))

    @property
    def items(self) -> int:
        """Items in an epoch."""
        return len(self._start)

    def epoch(self, number: int) -> Numbers:
        """Return the patches of an epoch in order, shape (view, item)."""
        if self._known[0] != number:
            self._known = (number, self._draw(number))
        return self._known[1]

    def batch(self, step: int) -> Numbers:
        """Return the patches of a step, shape (view, batch)."""
        wanted = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(wanted, self.items)
        parts = [self.epoch(int(e))[:, places[epochs == e]] for e in np.unique(epochs)]
        return np.concatenate(parts, axis=1)

    def _draw(self, number: int) -> Numbers:
        random = np.random.default_rng([self.seed, number])
        items = random.permutation(self.items)
        start, times = self._start[items], self._times[items]
        draws = random.random((2, self.items))
        first = (draws[0] * times).astype(np.int64)
        # A step of 1 to times - 1 from the first leads to any other; of 0 to itself if it is alone.
        stride = 1 + (draws[1] * np.maximum(times - 1, 1)).astype(np.int64)
        second = (first + stride) % times
        places = np.stack([start + first, start + second])[: self.views]
        return np.take(self._patches, places)


def read_batch(reader: PatchReader, numbers: Numbers, *, threads: int, pin: bool) -> Batch:
    """Read the patches of one batch; a patch that is both views is decoded once.

    Parameters
    ----------
    reader : PatchReader
    numbers : int array, shape (view, batch)
        Rows of the reader.
    threads : int
        Decoding threads.
    pin : bool
        Put the result into page-locked memory, from where a GPU copies it in the background.
    """
    wanted, where = np.unique(numbers, return_inverse=True)
    bands, mask = reader.read(wanted, threads=threads)
    where = where.reshape(numbers.shape)
    batch = Batch(torch.from_numpy(bands[where]), torch.from_numpy(mask[where]))
    return Batch(*(part.pin_memory() for part in batch)) if pin else batch


def stream(
    reader: PatchReader,
    order: Order,
    *,
    start: int,
    stop: int,
    threads: int,
    pin: bool = False,
) -> Iterator[Batch]:
    """Yield the batches of steps start to stop - 1, reading a few ahead in the background.

    Parameters
    ----------
    reader : PatchReader
        Whose patches `order` counts.
    order : Order
    start, stop : int
        Steps.
    threads : int
        Decoding threads.
    pin : bool
        See `read_batch`.
    """

    def load(step: int) -> Batch:
        return read_batch(reader, order.batch(step), threads=threads, pin=pin)

    # One thread reads, so that `order` is used by one thread only; it decodes with `threads`.
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        waiting: list[Future[Batch]] = []
        try:
            for step in range(start, stop):
                while len(waiting) < AHEAD and step + len(waiting) < stop:
                    waiting.append(pool.submit(load, step + len(waiting)))
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()

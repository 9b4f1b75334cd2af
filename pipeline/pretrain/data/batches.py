"""Batches on their way to the device: decoded into memory that is set out once, a few ahead.

Stored integers travel, not floats: half the bytes of float32 over the bus and through memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import RecipeError
from pipeline.pretrain.data.order import Pick, Picks
from pipeline.store.chunks import REQUESTS

if TYPE_CHECKING:
    from pipeline.store.patches import PatchReader

#: Batches read ahead while the device works. Two are decoded by the same threads, so none of them
#: waits for the last patch of a batch, and a bucket answers for one while the other is decoded.
AHEAD = 2
#: Beginnings of arrays in memory are multiples of this: a cache line.
_ALIGN_BYTES = 64


class Stored(NamedTuple):
    """One view of a batch: patches of one product as they are stored."""

    bands: Tensor
    """Stored type, shape (batch, band, y, x)."""
    mask: Tensor
    """uint8, common legend, shape (batch, y, x)."""
    product: str


#: One `Stored` for each view of the items; views of the same patches are the same object.
Batch = tuple[Stored, ...]


class Share(NamedTuple):
    """Which part of every batch is ours, where several processes train together."""

    rank: int = 0
    ranks: int = 1

    def of(self, count: int) -> slice:
        """Return our part of `count` items.

        Raises
        ------
        RecipeError
            The parts would not be equal, and a mean over them not that over all items.
        """
        if count % self.ranks:
            raise RecipeError(
                f"a batch of {count} items cannot be shared equally by {self.ranks} processes; "
                f"choose a multiple of {self.ranks} for `pretrain.batch_size`."
            )
        part = count // self.ranks
        return slice(self.rank * part, (self.rank + 1) * part)


#: All of it.
WHOLE = Share()


def stream(
    readers: Mapping[str, PatchReader],
    picks: Picks,
    *,
    start: int,
    stop: int,
    threads: int,
    requests: int = REQUESTS,
    device: torch.device | None = None,
    share: Share = WHOLE,
) -> Iterator[Batch]:
    """Yield the batches of steps start to stop - 1, reading a few ahead in the background.

    A batch on the CPU lies in memory that is used again: it holds until the next one is asked for.

    Parameters
    ----------
    readers : mapping of product to PatchReader
    picks : Picks
        Whose numbers are the readers' rows.
    start, stop : int
        Steps.
    threads : int
        Decoding threads.
    requests : int
        Requests to a bucket in flight, for each product.
    device : torch.device or None
        Where batches are wanted. They are copied to a GPU while it works on the one before.
    share : Share
    """
    pin = device is not None and device.type == "cuda"
    transfer = _Transfer(device) if pin and device is not None else None
    free = [_Memory(pin=pin) for _ in range(AHEAD + 1)]
    waiting: deque[tuple[_Memory, Future[Batch]]] = deque()
    with ThreadPoolExecutor(AHEAD, thread_name_prefix="batches") as pool:
        try:
            for step in range(start, stop):
                for ahead in range(step + len(waiting), min(step + AHEAD + 1, stop)):
                    memory = free.pop()
                    job = (readers, picks.picks(ahead), share, memory, threads, requests)
                    waiting.append((memory, pool.submit(_load, *job)))
                memory, future = waiting.popleft()
                batch = future.result()
                yield batch if transfer is None else transfer.send(batch)
                if transfer is not None:
                    transfer.wait()
                free.append(memory)
        finally:
            for _, future in waiting:
                future.cancel()


class _Memory:
    """Bytes that batches are decoded into: fresh pages would cost as much as the decoding."""

    def __init__(self, *, pin: bool) -> None:
        self._pin = pin
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def arrays(self, wanted: list[tuple[tuple[int, ...], np.dtype[Any]]]) -> list[NDArray[Any]]:
        """Return arrays of the wanted shapes and types; those of the call before are gone."""
        lengths = [int(np.prod(shape)) * dtype.itemsize for shape, dtype in wanted]
        rooms = [-(-length // _ALIGN_BYTES) * _ALIGN_BYTES for length in lengths]
        if sum(rooms) > len(self._bytes):
            self._bytes = torch.empty(sum(rooms), dtype=torch.uint8, pin_memory=self._pin)
        whole = self._bytes.numpy()
        starts = np.cumsum([0, *rooms])
        return [
            whole[start : start + length].view(dtype).reshape(shape)
            for start, length, (shape, dtype) in zip(starts, lengths, wanted, strict=False)
        ]


def _load(
    readers: Mapping[str, PatchReader],
    picks: tuple[Pick, ...],
    share: Share,
    memory: _Memory,
    threads: int,
    requests: int,
) -> Batch:
    """Decode our share of a step; views of the same patches once."""
    ours = {id(p): (p.product, p.numbers[share.of(len(p.numbers))]) for p in picks}
    wanted: list[tuple[tuple[int, ...], np.dtype[Any]]] = []
    for product, numbers in ours.values():
        shape = readers[product].shape
        wanted.append(((len(numbers), *shape), readers[product].dtype))
        wanted.append(((len(numbers), *shape[1:]), np.dtype("uint8")))
    arrays = iter(memory.arrays(wanted))
    views = {}
    for key, (product, numbers) in ours.items():
        bands, mask = readers[product].read(
            numbers,
            threads=threads,
            requests=requests,
            out=next(arrays),
            mask_out=next(arrays),
        )
        views[key] = Stored(torch.from_numpy(bands), torch.from_numpy(mask), product)
    return tuple(views[id(p)] for p in picks)


class _Transfer:
    """Copies batches to a GPU beside its work, on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copied: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def send(self, batch: Batch) -> Batch:
        """Begin to copy a batch out of page-locked memory; what uses it on the device waits."""
        sent: dict[int, Stored] = {}
        with torch.cuda.stream(self._stream):
            for view in batch:
                if id(view) not in sent:
                    bands, mask = (
                        part.to(self._device, non_blocking=True) for part in (view.bands, view.mask)
                    )
                    sent[id(view)] = Stored(bands, mask, view.product)
            self._copied.record(self._stream)
        here = torch.cuda.current_stream(self._device)
        here.wait_event(self._copied)
        for view in sent.values():
            view.bands.record_stream(here)
            view.mask.record_stream(here)
        return tuple(sent[id(view)] for view in batch)

    def wait(self) -> None:
        """Return when the last batch has been copied, so that its memory may be used again."""
        self._copied.synchronize()

"""The fast path: read encoded chunks straight out of shard objects, and decode them with threads.

zarr-python is not asked. Each object's index is read once and kept (16 bytes a patch); after that
a patch costs one `pread` and one decompression into memory that the caller has set out. Worker
processes would cost more than the decoding does; Blosc releases the interpreter lock, so threads
are enough. A remote object's chunks are fetched with one call per object and batch.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import IntegrityError
from pipeline.ports import ObjectStore
from pipeline.store.codec import decode_into, index_bytes, parse_index
from pipeline.store.objects import LocalStore

#: Threads that wait for a bucket's answers; waiting takes no core.
_REMOTE_THREADS = 16


@dataclass(frozen=True, slots=True)
class ShardObject:
    """Where the chunks of one array of one shard are."""

    key: str
    chunks: int
    """Number of places, present or not."""
    present: bool
    """Whether there is an object at all; without one every chunk is fill."""


@dataclass(frozen=True, slots=True)
class Job:
    """Decode one chunk into one place."""

    array: ChunkArray
    shard: int
    chunk: int
    out: NDArray[Any]


class ChunkArray:
    """One array (`bands`, `mask`, ...) over many shards.

    Parameters
    ----------
    store : ObjectStore
    objects : sequence of ShardObject
        One per shard; jobs count them.
    fill : float
        What an absent chunk holds.
    """

    def __init__(self, store: ObjectStore, objects: Sequence[ShardObject], fill: float) -> None:
        self.store, self.objects, self.fill = store, objects, fill
        self._indexes: dict[int, NDArray[np.int64]] = {}

    def locate(self, shard: int, chunk: int) -> tuple[int, int]:
        """Return start and length of a chunk in its object; start −1 if it is absent."""
        index = self._indexes.get(shard)
        if index is None:
            index = self._indexes[shard] = read_index(self.store, self.objects[shard])
        start, length = index[chunk].tolist()
        return start, length


def read_index(store: ObjectStore, shard: ShardObject) -> NDArray[np.int64]:
    """Read a shard object's index: start and length per chunk, shape (chunk, 2).

    Raises
    ------
    IntegrityError
        The object is gone, shorter than its index, or the index is damaged.
    """
    if not shard.present:
        return np.tile(np.array([-1, 0], dtype="int64"), (shard.chunks, 1))
    name, length = f"{store.url}/{shard.key}", index_bytes(shard.chunks)
    try:
        size = store.size(shard.key)
    except KeyError:
        raise IntegrityError(f"{name} is gone, though its commit names it.") from None
    if size < length:
        raise IntegrityError(f"{name} has {size} bytes; its index alone has {length}.")
    return parse_index(store.get_ranges(shard.key, [(size - length, size)])[0], size, name=name)


class Decoder:
    """Runs jobs with threads that are kept between calls; may be pickled and forked."""

    def __init__(self) -> None:
        self._pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
        self._local = threading.local()

    def __reduce__(self) -> tuple[type[Decoder], tuple[()]]:
        return Decoder, ()

    def run(self, jobs: Sequence[Job], *, threads: int) -> None:
        """Do all jobs; returns when the last is done, and raises the first error met."""
        if not jobs:
            return
        if isinstance(jobs[0].array.store, LocalStore):
            self._share(jobs, self._decode_file, threads)
            return
        fetched: list[tuple[Job, bytes]] = []
        groups = defaultdict(list)
        for job in jobs:
            groups[id(job.array), job.shard].append(job)
        self._share(list(groups.values()), lambda g: fetched.extend(_fetch(g)), _REMOTE_THREADS)
        self._share(fetched, lambda pair: decode_into(pair[1], pair[0].out), threads)

    def _decode_file(self, job: Job) -> None:
        start, length = job.array.locate(job.shard, job.chunk)
        if start < 0:
            job.out[...] = job.array.fill
            return
        store = job.array.store
        path = store.path(job.array.objects[job.shard].key)  # type: ignore[attr-defined]
        # Opened for each chunk: some ten microseconds against a millisecond of decoding, and no
        # handle to share between threads, forks and tens of thousands of shards.
        handle = os.open(path, os.O_RDONLY)
        try:
            view = self._buffer(length)
            if os.preadv(handle, [view], start) != length:
                raise IntegrityError(f"{path} ends before byte {start + length}.")
        finally:
            os.close(handle)
        decode_into(view, job.out)

    def _buffer(self, length: int) -> memoryview:
        """Return this thread's own buffer: fresh memory of this size would cost page faults."""
        buffer: bytearray | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < length:
            buffer = self._local.buffer = bytearray(length + length // 2)
        return memoryview(buffer)[:length]

    def _share(self, items: Sequence[Any], work: Callable[[Any], None], threads: int) -> None:
        queue = iter(items)  # `next` of a list's iterator is one step: threads may share it
        if min(threads, len(items)) <= 1:
            _drain(queue, work)
            return
        pool = self._pool(threads)
        futures = [pool.submit(_drain, queue, work) for _ in range(min(threads, len(items)))]
        wait(futures)
        for future in futures:
            future.result()

    def _pool(self, threads: int) -> ThreadPoolExecutor:
        key = (os.getpid(), threads)
        if key not in self._pools:
            self._pools[key] = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        return self._pools[key]


def _drain(queue: Iterator[Any], work: Callable[[Any], None]) -> None:
    for item in queue:
        work(item)


def _fetch(group: Sequence[Job]) -> Iterable[tuple[Job, bytes]]:
    """Fetch the chunks of one remote object; absent ones are filled at once."""
    array, shard = group[0].array, group[0].shard
    wanted, ranges = [], []
    for job in group:
        start, length = array.locate(shard, job.chunk)
        if start < 0:
            job.out[...] = array.fill
            continue
        wanted.append(job)
        ranges.append((start, start + length))
    if not wanted:
        return []
    return zip(wanted, array.store.get_ranges(array.objects[shard].key, ranges), strict=True)

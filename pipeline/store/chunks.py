"""The fast path: read encoded chunks straight out of shard objects, and decode them with threads.

zarr-python is not asked. Each object's index is read once and kept (16 bytes a patch); after that
a patch costs one decompression into memory that the caller has set out: of the bytes where they lie
in the system's memory, or else of what one `pread` brings. Worker processes would cost more than
the decoding does; Blosc releases the interpreter lock, so threads are enough. A remote object's
chunks are fetched with one call per object and batch, many calls at a time, and decoded as they
arrive.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import IntegrityError
from pipeline.ports import ObjectStore
from pipeline.store.codec import decode_into, index_bytes, parse_index
from pipeline.store.objects import LocalStore

#: Chunks of so many bytes are decoded where they lie; a copy of shorter ones costs little. It is
#: also twice what Linux reads ahead, so that reading a neighbour does not bring a chunk's middle.
MAPPED_BYTES = 2**18
#: Objects that are mapped at a time: each keeps a file open, of which 1024 are usual.
MOST_MAPS = 256
#: Requests to a bucket in flight, unless the caller says otherwise. Each has a thread of its own,
#: which waits and takes no core. At 50 ms an answer, 64 are 640 patches a second, bands and mask.
REQUESTS = 64
#: Bytes that were asked for and are not decoded yet, at most, whatever the requests; a larger
#: request is made alone.
_IN_FLIGHT_BYTES = 2**28


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
        self._paths: dict[int, str] = {}

    def path(self, shard: int) -> str:
        """Return the path of an object of a store on this machine."""
        path = self._paths.get(shard)
        if path is None:
            local: Any = self.store
            path = self._paths[shard] = str(local.path(self.objects[shard].key))
        return path

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
        self._pools: dict[tuple[int, str, int], ThreadPoolExecutor] = {}
        self._rooms: dict[int, _Room] = {}
        self._local = threading.local()
        self._maps: dict[str, memoryview] = {}

    def __reduce__(self) -> tuple[type[Decoder], tuple[()]]:
        return Decoder, ()

    def run(self, jobs: Sequence[Job], *, threads: int, requests: int = REQUESTS) -> None:
        """Do all jobs; returns when the last is done, and raises the first error met.

        Parameters
        ----------
        jobs : sequence of Job
        threads : int
            That decode.
        requests : int
            To a bucket, in flight at a time.
        """
        if not jobs:
            return
        if isinstance(jobs[0].array.store, LocalStore):
            self._share(jobs, self._decode_file, threads)
            return
        groups = defaultdict(list)
        for job in jobs:
            groups[id(job.array), job.shard].append(job)
        decoding: list[Future[None]] = []
        # Threads that fetch may wait for room, which threads that decode make: never the same ones.
        pool = self._pool("decode", threads)
        try:
            self._share(
                list(groups.values()),
                lambda group: decoding.extend(self._fetch(group, pool)),
                requests,
                kind="fetch",
            )
        finally:
            wait(decoding)  # they write into the caller's memory
        for future in decoding:
            future.result()

    def _fetch(self, group: Sequence[Job], pool: ThreadPoolExecutor) -> list[Future[None]]:
        """Fetch chunks of one remote object and hand them on; absent ones are filled at once."""
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
        total = sum(stop - start for start, stop in ranges)
        room = self._rooms.setdefault(os.getpid(), _Room(_IN_FLIGHT_BYTES))
        room.take(total)
        try:
            found = array.store.get_ranges(array.objects[shard].key, ranges)
        except BaseException:
            room.give(total)
            raise
        return [
            pool.submit(_decode, data, job.out, room)
            for data, job in zip(found, wanted, strict=True)
        ]

    def _decode_file(self, job: Job) -> None:
        start, length = job.array.locate(job.shard, job.chunk)
        if start < 0:
            job.out[...] = job.array.fill
            return
        path = job.array.path(job.shard)
        # Opened for each chunk: some ten microseconds against a millisecond of decoding, and no
        # handle to share between threads, forks and tens of thousands of shards.
        handle = os.open(path, os.O_RDONLY)
        try:
            view = self._mapped(path, handle, start, length)
            if view is None:
                view = self._buffer(length)
                if os.preadv(handle, [view], start) != length:
                    raise IntegrityError(f"{path} ends before byte {start + length}.")
        finally:
            os.close(handle)
        decode_into(view, job.out)

    def _mapped(self, path: str, handle: int, start: int, length: int) -> memoryview | None:
        """Return a long chunk where it lies in the system's memory, if all of it seems to be there.

        It spares a copy, which costs up to a third of what LZ4 does. A chunk that must come from a
        disk is read instead: in one piece, and an error of the disk is then an error of ours, where
        a mapping would end the process. Network file systems and other systems than Linux do not
        say what is in memory, so there everything is read.
        """
        if length < MAPPED_BYTES or not _in_memory(handle, start, length):
            return None
        whole = self._maps.get(path)
        if whole is None:
            if len(self._maps) >= MOST_MAPS:
                self._maps.clear()  # each is unmapped when no thread decodes from it any more
            whole = memoryview(mmap.mmap(handle, 0, access=mmap.ACCESS_READ))
            self._maps[path] = whole
        if start + length > len(whole):
            raise IntegrityError(f"{path} ends before byte {start + length}.")
        return whole[start : start + length]

    def _buffer(self, length: int) -> memoryview:
        """Return this thread's own buffer: fresh memory of this size would cost page faults."""
        buffer: bytearray | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < length:
            buffer = self._local.buffer = bytearray(length + length // 2)
        return memoryview(buffer)[:length]

    def _share(
        self,
        items: Sequence[Any],
        work: Callable[[Any], None],
        threads: int,
        *,
        kind: str = "decode",
    ) -> None:
        queue = iter(items)  # `next` of a list's iterator is one step: threads may share it
        if min(threads, len(items)) <= 1:
            _drain(queue, work)
            return
        pool = self._pool(kind, threads)
        futures = [pool.submit(_drain, queue, work) for _ in range(min(threads, len(items)))]
        wait(futures)
        for future in futures:
            future.result()

    def _pool(self, kind: str, threads: int) -> ThreadPoolExecutor:
        key = (os.getpid(), kind, threads)
        if key not in self._pools:
            self._pools[key] = ThreadPoolExecutor(threads, thread_name_prefix=kind)
        return self._pools[key]


def _decode(data: bytes, out: NDArray[Any], room: _Room) -> None:
    try:
        decode_into(data, out)
    finally:
        room.give(len(data))


class _Room:
    """So many bytes, which threads take and give back."""

    def __init__(self, most: int) -> None:
        self._most, self._taken = most, 0
        self._given = threading.Condition()

    def take(self, count: int) -> None:
        """Wait until there is room; more than there is at all waits until all was given back."""
        with self._given:
            self._given.wait_for(lambda: not self._taken or self._taken + count <= self._most)
            self._taken += count

    def give(self, count: int) -> None:
        """Give back what was taken."""
        with self._given:
            self._taken -= count
            self._given.notify_all()


def _in_memory(handle: int, start: int, length: int) -> bool:
    """Return whether the middle of a range, away from its neighbours, is read without waiting."""
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    try:
        return os.preadv(handle, [bytearray(1)], start + length // 2, os.RWF_NOWAIT) == 1
    except OSError:  # it would wait, or the file system cannot tell
        return False


def _drain(queue: Iterator[Any], work: Callable[[Any], None]) -> None:
    for item in queue:
        work(item)

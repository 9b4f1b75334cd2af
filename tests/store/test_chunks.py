"""Chunks out of a bucket: so many requests at a time, no more bytes than there is room for."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from pipeline.errors import IntegrityError, TryAgain
from pipeline.store import chunks
from pipeline.store.chunks import ChunkArray, Decoder, Job, ShardObject
from pipeline.store.codec import assemble, encode

SHARDS = 24


class Bucket:
    """Objects in memory, and what is asked for at a time."""

    url = "s3://made/up"

    def __init__(self):
        random = np.random.default_rng(0)
        self.patches = random.integers(0, 99, (SHARDS, 2, 3, 4), dtype="int16")
        self.objects = {
            f"{name}/{k}": b"".join(assemble([encode(patch, "zstd", 1), None]))
            for name, part in (("bands", self.patches), ("mask", self.patches[:, 0]))
            for k, patch in enumerate(part)
        }
        self.asked = []
        self.bytes = self.most_bytes = 0
        self.lock = threading.Lock()
        self.meanwhile = lambda _: None

    def size(self, key):
        return len(self.objects[key])

    def get_ranges(self, key, ranges):
        if ranges[-1][1] < self.size(key):  # a chunk, not the index
            length = sum(stop - start for start, stop in ranges)
            with self.lock:
                self.asked.append(key)
                self.bytes += length
                self.most_bytes = max(self.most_bytes, self.bytes)
            try:
                self.meanwhile(key)
            finally:
                with self.lock:
                    self.bytes -= length
        return [self.objects[key][start:stop] for start, stop in ranges]

    def jobs(self, *, chunk=0):
        """A patch's bands and mask one after the other, into memory full of ones."""
        self.out = np.ones((SHARDS, 2, 3, 4), "int16"), np.ones((SHARDS, 3, 4), "int16")
        arrays = [
            ChunkArray(self, [ShardObject(f"{name}/{k}", 2, True) for k in range(SHARDS)], -1)
            for name in ("bands", "mask")
        ]
        return [
            Job(array, shard, chunk, out[shard])
            for shard in range(SHARDS)
            for array, out in zip(arrays, self.out, strict=True)
        ]

    def is_read(self):
        bands, mask = self.out
        return np.array_equal(bands, self.patches) and np.array_equal(mask, self.patches[:, 0])


def test_all_chunks_of_a_batch_are_asked_for_before_the_first_has_come():
    bucket = Bucket()
    gate = threading.Barrier(2 * SHARDS)
    bucket.meanwhile = lambda _: gate.wait(timeout=60)
    Decoder().run(bucket.jobs(), threads=2)
    assert bucket.is_read()


def test_one_request_at_a_time_reads_the_same_and_a_patch_is_asked_for_whole():
    bucket = Bucket()
    Decoder().run(bucket.jobs(), threads=1, requests=1)
    assert bucket.is_read()
    pairs = zip(bucket.asked[::2], bucket.asked[1::2], strict=True)
    assert all(one.split("/")[1] == other.split("/")[1] for one, other in pairs)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_no_more_bytes_are_on_their_way_than_there_is_room_for(threads, monkeypatch):
    bucket = Bucket()
    longest = max(len(data) for data in bucket.objects.values())
    monkeypatch.setattr(chunks, "_IN_FLIGHT_BYTES", 3 * longest)
    # As many threads that fetch as threads that decode: they must not wait for one another.
    Decoder().run(bucket.jobs(), threads=threads, requests=5)
    assert bucket.is_read()
    assert bucket.most_bytes <= 3 * longest
    monkeypatch.setattr(chunks, "_IN_FLIGHT_BYTES", 1)
    Decoder().run(bucket.jobs(), threads=threads, requests=5)
    assert bucket.is_read()
    assert bucket.most_bytes <= 3 * longest


def test_absent_chunks_are_fill_and_nothing_is_asked_for():
    bucket = Bucket()
    Decoder().run(bucket.jobs(chunk=1), threads=2)
    assert all((out == -1).all() for out in bucket.out)
    assert not bucket.asked


def test_after_an_error_there_is_room_again_and_nobody_writes_any_more(monkeypatch):
    bucket, decoder = Bucket(), Decoder()
    monkeypatch.setattr(chunks, "_IN_FLIGHT_BYTES", 200)

    def fail(key):
        if key == "mask/5":
            raise TryAgain("the bucket is busy", failure="connection")

    bucket.meanwhile = fail
    with pytest.raises(TryAgain):
        decoder.run(bucket.jobs(), threads=2, requests=3)
    bucket.meanwhile = lambda _: None
    damaged = bytearray(bucket.objects["bands/3"])
    damaged[4] += 1
    kept, bucket.objects["bands/3"] = bucket.objects["bands/3"], bytes(damaged)
    with pytest.raises(IntegrityError):
        decoder.run(bucket.jobs(), threads=2, requests=3)
    bucket.objects["bands/3"] = kept
    decoder.run(bucket.jobs(), threads=2, requests=3)
    assert bucket.is_read()

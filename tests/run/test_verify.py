"""Verify finds what was changed behind the data set's back, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import IntegrityError
from pipeline.run.verify import run_verify
from pipeline.store import layout

SHARD = layout.shard_name(1, 0)


@pytest.fixture
def extracted(rig: Any) -> Any:
    rig.scene("image/d1/t1")
    for sample in range(4):
        rig.patch(sample, [["image/d1/t1"]])
    rig.extract()
    return rig


def test_a_sound_root_passes_and_is_read_again(extracted: Any) -> None:
    report = run_verify(extracted.loaded, extracted.store, share=0.5, seed=1)
    assert (report.shards, report.planned, report.compared) == (1, 4, 2)
    assert report.objects == sum("/shards/" in f"/{key}" for key in extracted.objects())
    assert report.dataset_digest == extracted.digest()
    assert not report.unreadable


def test_a_flipped_bit_is_found(extracted: Any) -> None:
    key = next(key for key in extracted.objects() if "/bands/c/" in key)
    data = bytearray(extracted.store.get(key))
    data[100] ^= 1
    extracted.store.put(key, bytes(data))
    with pytest.raises(IntegrityError, match="has changed since it was committed"):
        run_verify(extracted.loaded, extracted.store, share=0)


def test_missing_and_stray_objects_are_found(extracted: Any) -> None:
    key = next(key for key in extracted.objects() if "/mask/c/" in key)
    extracted.store.delete(key)
    extracted.store.put(f"{layout.shard_folder(SHARD, 1)}/image/stray", b"")
    with pytest.raises(IntegrityError, match=r"is gone.*is in no commit"):
        run_verify(extracted.loaded, extracted.store, share=0)


def test_a_source_that_is_another_file_now_is_no_contradiction(extracted: Any) -> None:
    path = extracted.file("image/d1/t1", "fine")
    path.write_bytes(path.read_bytes() + b" ")
    report = run_verify(extracted.loaded, extracted.store, share=1)
    assert (report.compared, report.unreadable) == (0, {"changed": 4})


def test_pixels_that_differ_from_an_unchanged_source_are_found(extracted: Any) -> None:
    """Same length and time, other pixels: only reading again can tell."""
    import os

    path = extracted.file("image/d1/t1", "coarse")
    stat, data = path.stat(), path.read_bytes()
    other = extracted.scene("image/d2/t1")
    swapped = extracted.file(other, "coarse").read_bytes()
    path.write_bytes(swapped[: len(data)].ljust(len(data), b"\0"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(IntegrityError, match="gives other pixels"):
        run_verify(extracted.loaded, extracted.store, share=1)

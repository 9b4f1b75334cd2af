"""Verify finds what was changed behind the data set's back, and nothing else."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import IntegrityError
from pipeline.records import Asset, LedgerRow, Location
from pipeline.run.publish import run_publish
from pipeline.run.verify import run_verify
from pipeline.stages.extract import Failure
from pipeline.store import layout
from pipeline.store.commit import encode_commit, read_commit
from pipeline.store.tables import append, from_rows, to_rows
from pipeline.task.read import Reader
from pipeline.task.shard import sources_of

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
    assert report.objects == sum(
        key.startswith("shards/") and not key.endswith(".outcome") for key in extracted.objects()
    )
    assert report.dataset_digest == extracted.digest()
    assert not report.unreadable


def test_a_flipped_bit_is_found(extracted: Any) -> None:
    key = next(key for key in extracted.objects() if "/bands/c/" in key)
    data = bytearray(extracted.store.get(key))
    data[100] ^= 1
    extracted.store.put(key, bytes(data))
    with pytest.raises(IntegrityError, match="is changed since it was committed"):
        run_verify(extracted.loaded, extracted.store, share=0)


def test_missing_and_stray_objects_are_found(extracted: Any) -> None:
    key = next(key for key in extracted.objects() if "/mask/c/" in key)
    extracted.store.delete(key)
    extracted.store.put(f"{layout.shard_folder(SHARD, 1)}/image/stray", b"")
    with pytest.raises(IntegrityError, match=r"is gone.*is in no commit"):
        run_verify(extracted.loaded, extracted.store, share=0)


def test_a_lost_folder_is_one_line_a_shard_with_a_cure(extracted: Any) -> None:
    keys = [k for k in extracted.objects() if k.startswith(layout.shard_folder(SHARD, 1) + "/")]
    lost = [key for key in keys if not key.endswith(".outcome")]
    for key in lost:
        extracted.store.delete(key)
    with pytest.raises(IntegrityError) as failed:
        run_verify(extracted.loaded, extracted.store, share=0)
    said = str(failed.value)
    assert f"is gone, as are {len(lost) - 1} more of that shard" in said
    assert said.count("is gone") == 1
    assert said.endswith("bring it back from a copy, or build the data set again in a new root.")


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


def rewrite(rig: Any, position: int, **values: Any) -> None:
    """Put another value into a row of the commit; the record stays a sound one."""
    commit = read_commit(rig.store, SHARD, 1)
    rows = to_rows(commit.ledger, LedgerRow)
    rows[position] = replace(rows[position], **values)
    forged = encode_commit(replace(commit, ledger=from_rows(rows, LedgerRow)))
    rig.store.put(layout.commit(SHARD, 1), forged)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"state": "rejected", "reason": "cloudy"}, "other patches of image written"),
        ({"location": "elsewhere"}, "places its patches otherwise"),
        ({"slot": "2021-08"}, "places its patches otherwise"),
        ({"scenes": ["image/d9/t9"]}, "no candidate of its plan"),
    ],
)
def test_a_ledger_that_contradicts_plan_or_arrays_is_found(
    extracted: Any, values: dict[str, Any], message: str
) -> None:
    rewrite(extracted, 0, **values)
    with pytest.raises(IntegrityError, match=message):
        run_verify(extracted.loaded, extracted.store, share=1)


@pytest.mark.parametrize("lie", [None, "image/d2/t1"])
def test_source_files_are_held_to_their_catalogue_s_checksum(rig: Any, lie: str | None) -> None:
    """Those that written patches were read from: of the third scene none is."""
    names = [rig.scene(f"image/d{day}/t1") for day in (1, 2, 3)]
    for sample, name in enumerate(names[:2]):
        rig.patch(sample, [[name]])
    rig.patch(2, [[names[0]], [names[2]]])
    for name in names:
        rig.scenes[name] = replace(rig.scenes[name], assets=stating(rig, name, wrong=name == lie))
    rig.extract()
    check = partial(run_verify, rig.loaded, rig.store, share=0)
    assert check().files == 0
    if lie is None:
        assert check(files=2).files == 2
        report = check(files=100)
        assert (report.files, report.unreadable) == (6, Counter())
        rig.file(names[0], "fine").unlink()
        assert check(files=100).unreadable == {"gone": 1}
    else:
        with pytest.raises(IntegrityError, match=r"fine.tif has the sha256 .* states"):
            check(files=100)


def stating(rig: Any, scene: str, *, wrong: bool) -> list[Asset]:
    """Return a scene's assets with their checksums, that of the first one wrong or not."""
    found: list[Asset] = []
    for asset in rig.scenes[scene].assets:
        data = Path(asset.href).read_bytes() + b"x" * (wrong and not found)
        found.append(replace(asset, checksum="1220" + hashlib.sha256(data).hexdigest()))
    return found


def test_metadata_are_held_to_their_checksum_when_they_are_read(rig: Any) -> None:
    name = rig.scene("image/d1/t1")
    reader = Reader(sources_of(rig.loaded, 1.0, ""), {}, final=True)
    for wrong in (False, True):
        scene = replace(rig.scenes[name], assets=stating(rig, name, wrong=wrong))
        found = reader.document(scene, "fine")
        if wrong:
            assert isinstance(found, Failure)
            assert found.failure == "corrupt"
        else:
            assert found == rig.file(name, "fine").read_bytes()


def test_what_a_version_names_is_what_was_published(extracted: Any) -> None:
    places = [
        Location(
            location=patch.location,
            index=patch.sample,
            zone="33N",
            epsg=patch.epsg,
            x_min_m=patch.x_min_m,
            y_max_m=patch.y_max_m,
            size_m=patch.size_m,
            lon_deg=patch.lon_deg,
            lat_deg=patch.lat_deg,
            stratum="",
            geometry=b"",
        )
        for patch in extracted.patches
    ]
    append(extracted.store, layout.LOCATIONS, from_rows(places, Location), Location)
    run_publish(extracted.loaded, extracted.store)
    run_verify(extracted.loaded, extracted.store, share=0)
    # No plan and no array knows this number.
    rewrite(extracted, 0, clear_fraction=0.5)
    extracted.store.put(layout.version_file(1, "statistics.json"), b"{}")
    message = r"statistics.json has changed since.*commits/.*r1.parquet has changed since"
    with pytest.raises(IntegrityError, match=message):
        run_verify(extracted.loaded, extracted.store, share=0)

"""Retry heals failed patches, and a healed shard equals an undisturbed one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.engine.serial import SerialEngine
from pipeline.errors import RecipeError
from pipeline.run.retry import RetryReport, run_retry
from pipeline.store import layout
from pipeline.store.commit import newest
from pipeline.watch.progress import Progress


def retry(rig: Any, *classes: str) -> RetryReport:
    with Progress(live=False) as progress:
        return run_retry(
            rig.loaded, rig.store, SerialEngine(), classes=classes, progress=progress, pause_s=0
        )


def broken(rig: Any) -> Path:
    """Extract with one file away; return where it is kept."""
    rig.scene("image/d1/t1")
    rig.scene("image/d2/t1")
    for sample in (0, 1, 2):
        rig.patch(sample, [["image/d1/t1"]])
    rig.patch(3, [["image/d2/t1"]])
    undisturbed = rig.elsewhere("undisturbed")
    undisturbed.extract()
    path = rig.file("image/d2/t1", "coarse")
    kept = path.rename(path.with_suffix(".away"))
    assert rig.extract().failed == {"gone": 1}
    return kept


def images(objects: dict[str, bytes], revision: int) -> dict[str, bytes]:
    folder = layout.shard_folder(layout.shard_name(1, 0), revision)
    return {k.removeprefix(folder): v for k, v in objects.items() if k.startswith(folder)}


def test_a_healed_shard_equals_an_undisturbed_one(rig: Any) -> None:
    kept = broken(rig)
    kept.rename(kept.with_suffix(".tif"))
    report = retry(rig)
    assert (report.tried, report.healed, report.revised, report.failed.total()) == (1, 1, 1, 0)
    assert newest(rig.store) == {layout.shard_name(1, 0): 2}
    undisturbed = rig.elsewhere("undisturbed")
    assert images(rig.objects(), 2) == images(undisturbed.objects(), 1)
    assert rig.digest() == undisturbed.digest()
    assert list(rig.ledger().values()) == list(undisturbed.ledger().values())


def test_nothing_is_written_where_nothing_heals(rig: Any) -> None:
    broken(rig)
    before = rig.objects()
    report = retry(rig)
    assert (report.tried, report.healed, report.revised) == (1, 0, 0)
    assert report.failed == {"gone": 1}
    assert rig.objects() == before


def test_what_heals_counts_also_where_most_of_a_shard_failed(rig: Any) -> None:
    for name in ("d1", "d2", "d3"):
        rig.scene(f"image/{name}/t1")
        rig.patch(len(rig.patches), [[f"image/{name}/t1"]])
    away = {
        name: rig.file(f"image/{name}/t1", "fine").rename(rig.folder / f"{name}.away")
        for name in ("d1", "d2", "d3")
    }
    assert rig.extract(accept_failures=True).failed == {"gone": 3}
    away["d1"].rename(rig.file("image/d1/t1", "fine"))
    report = retry(rig)
    assert (report.healed, report.revised, report.failed) == (1, 1, {"gone": 2})


def test_only_the_named_classes_are_tried(rig: Any) -> None:
    kept = broken(rig)
    kept.rename(kept.with_suffix(".tif"))
    with pytest.raises(RecipeError, match="there are: gone"):
        retry(rig, "timeout")
    assert retry(rig, "gone").healed == 1


def test_a_source_that_changed_meanwhile_is_not_mixed_in(rig: Any) -> None:
    """A cell across two files: one was away, and the other is not the one that was read before."""
    seen = np.ones((32, 32), "uint8")
    seen[:, 24:] = 0
    rig.scene("image/d1/edge", edge=32, classes=seen)
    rig.scene("image/d1/east", col=24)
    rig.patch(0, [["image/d1/edge"]])
    rig.patch(1, [["image/d1/edge", "image/d1/east"]])
    east = rig.file("image/d1/east", "fine")
    kept = east.rename(east.with_suffix(".away"))
    assert rig.extract().failed == {"gone": 1}
    kept.rename(east)
    rewritten = rig.file("image/d1/edge", "fine")
    rewritten.write_bytes(rewritten.read_bytes() + b" ")
    report = retry(rig)
    assert (report.healed, report.failed) == (0, {"changed": 1})

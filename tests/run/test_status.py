"""Status accounts for every planned patch at every moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.engine.serial import SerialEngine
from pipeline.errors import MissingObject, RecipeError, TryAgain
from pipeline.run.retry import run_retry
from pipeline.run.status import run_status
from pipeline.run.verify import run_verify
from pipeline.store.layout import DATASET, claim
from pipeline.store.objects import open_store
from pipeline.watch.progress import Progress


def retry(loaded: Any, store: Any) -> None:
    with Progress(live=False) as progress:
        run_retry(loaded, store, SerialEngine(), progress=progress)


def test_a_root_without_a_plan_counts_nothing(rig: Any) -> None:
    claim(rig.store, rig.loaded)
    status = run_status(rig.loaded, rig.store)
    assert (status.plans, status.patches, status.versions) == (0, 0, 0)


@pytest.mark.parametrize("count", [run_status, run_verify, retry])
def test_a_root_that_is_not_there_is_named(rig: Any, tmp_path: Path, count: Any) -> None:
    wrong = open_store(tmp_path / "mistyped")
    with pytest.raises(RecipeError, match=r"mistyped holds no data set. Is `--root` right\?"):
        count(rig.loaded, wrong)
    assert not (tmp_path / "mistyped").exists()


@pytest.mark.parametrize("count", [run_status, run_verify, retry])
def test_a_root_that_lost_its_name_is_told_so(rig: Any, count: Any) -> None:
    rig.scene("image/d1/t1")
    rig.patch(0, [["image/d1/t1"]])
    rig.lock()
    rig.store.delete(DATASET)
    with pytest.raises(MissingObject, match=r"dataset\.json"):
        count(rig.loaded, rig.store)


def test_planned_is_written_and_rejected_and_failed_and_pending(rig: Any) -> None:
    rig.scene("image/d1/t1")
    rig.scene("image/d2/t1")
    for sample in range(3):
        rig.patch(sample, [["image/d1/t1"]])
    rig.patch(0, [["image/d2/t1"]], slot="2021-08")
    rig.patch(3, [])
    rig.patch(0, [["image/d2/t1"]], shard=1)
    rig.file("image/d2/t1", "fine").unlink()
    rig.lock()
    assert run_status(rig.loaded, rig.store).pending == 6
    with pytest.raises(TryAgain, match="p000001-s00001: 1 of 1 patches failed"):
        rig.extract()
    status = run_status(rig.loaded, rig.store)
    assert (status.plans, status.shards, status.committed) == (1, 2, 1)
    assert (status.written, status.rejected, status.failed) == (3, {"no-candidate": 1}, {"gone": 1})
    assert status.pending == 1
    assert status.patches == 6
    (shown,) = [line for line in str(status).splitlines() if line.startswith("one gone")]
    assert str(rig.file("image/d2/t1", "fine")) in shown


def test_a_plan_that_was_deleted_is_missed(rig: Any) -> None:
    rig.scene("image/d1/t1")
    rig.patch(0, [["image/d1/t1"]])
    rig.lock()
    rig.extract()
    rig.store.delete("plans/000001.json")
    with pytest.raises(MissingObject) as missed:
        run_status(rig.loaded, rig.store)
    assert "has no plans/000001.json, though other files there name it" in str(missed.value)

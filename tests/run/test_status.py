"""Status accounts for every planned patch at every moment."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import MissingObject, TryAgain
from pipeline.run.status import run_status


def test_an_empty_root_counts_nothing(rig: Any) -> None:
    status = run_status(rig.loaded, rig.store)
    assert (status.plans, status.patches, status.versions) == (0, 0, 0)


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


def test_a_plan_that_was_deleted_is_missed(rig: Any) -> None:
    rig.scene("image/d1/t1")
    rig.patch(0, [["image/d1/t1"]])
    rig.lock()
    rig.extract()
    rig.store.delete("plans/000001.json")
    with pytest.raises(MissingObject) as missed:
        run_status(rig.loaded, rig.store)
    assert "has no plans/000001.json, though other files there name it" in str(missed.value)

"""Extraction over a network that fails: passing failures leave no trace, lasting ones are told.

Some seeds of `benchmarks/soak.py`, whose harness this uses, and what it does not show.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine.serial import SerialEngine
from pipeline.errors import TryAgain
from pipeline.records import Scene
from pipeline.run.retry import run_retry
from pipeline.simulate.service.catalogue import ITEMS
from pipeline.simulate.service.faults import OF_FILES, OF_SIGNED, Faults
from pipeline.simulate.service.server import ArchiveServer
from pipeline.store import layout
from pipeline.store.objects import open_store
from pipeline.store.tables import read_all
from pipeline.watch.progress import Progress

HARNESS = Path(__file__).resolve().parents[2] / "benchmarks" / "soak.py"
#: Between them they meet every passing fault of files, signatures that expire among them.
SEEDS = (4, 5, 8)
#: Longer than any pause that is sat out, so that a throttled request ends at once.
TOO_LONG_S = 3600

Serve = Callable[..., ArchiveServer]


@pytest.fixture
def remote(rig: Any) -> Serve:
    """Put the rig's scenes behind a server that comes back at its address with other faults."""
    rig.wishes[0].update(provider="simulated", path=None)
    rig.scene("image/d1/t1")
    rig.scene("image/d2/t1")
    for sample in range(3):
        rig.patch(sample, [["image/d1/t1"]])
    rig.patch(3, [["image/d2/t1"]])
    archive = rig.folder / "archive"
    shutil.copytree(rig.folder / "scenes", archive / "files")
    (archive / ITEMS).write_text(json.dumps({"providers": {}}))
    with ArchiveServer(archive) as first:
        port = int(first.url.rsplit(":", 1)[1])
    rig.wishes[0]["url"] = first.url
    for name, scene in rig.scenes.items():
        folder = f"{first.url}/files/{name.replace('/', '_')}"
        assets = [replace(a, href=f"{folder}/{a.name}.tif") for a in scene.assets]
        rig.scenes[name] = replace(scene, provider="simulated", assets=assets)
    return lambda faults=None: ArchiveServer(archive, faults=faults, port=port)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    spec = importlib.util.spec_from_file_location("soak_harness", HARNESS)
    assert spec is not None
    assert spec.loader is not None
    harness = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = harness  # its dataclasses look their own module up
    spec.loader.exec_module(harness)
    with harness.hurried():
        return harness.Soak.begin(tmp_path_factory.mktemp("soak"))


@pytest.fixture
def soak(made: Any) -> Iterator[Any]:
    with sys.modules["soak_harness"].hurried():
        yield made


@pytest.mark.parametrize("seed", SEEDS)
def test_passing_faults_leave_no_trace(soak: Any, seed: int) -> None:
    assert soak.passing(seed) is None


@pytest.mark.parametrize("seed", SEEDS)
def test_lasting_faults_fail_their_own_patches_only_and_heal(soak: Any, seed: int) -> None:
    assert soak.lasting(seed) is None


def test_there_were_faults_of_both_kinds(soak: Any) -> None:
    assert len(soak.thrown) > 10
    assert {*OF_FILES, *OF_SIGNED} <= set(soak.passed)
    assert soak.failed


def test_items_without_a_file_are_counted_and_leave_no_trace(soak: Any) -> None:
    sensors = {item.partition("_")[0] for item in soak.bare}
    assert len(sensors) > 1, "the archive lacks files of one sensor alone"
    harness = sys.modules["soak_harness"]
    assert harness.without_files(open_store(soak.folder / "reference")) >= set(soak.bare)
    scenes = read_all(open_store(soak.folder / "reference"), layout.SCENES, Scene, ["item"])
    assert scenes.num_rows
    assert not set(soak.bare) & set(scenes["item"].to_pylist())


def test_footprints_that_lie_fail_nothing(soak: Any) -> None:
    """Ground that an item only claims is not seen in it: the next candidate's turn."""
    with soak.served(Faults(items={"*": "footprint"})):
        found = sys.modules["soak_harness"].rows(soak.extracted("lying"))
    for key, row in found.items():
        assert row["state"] != "failed"
        honest = soak.rows[key]
        if row["state"] == "written" and row["scenes"] == honest["scenes"]:
            assert row["pixel_digest"] == honest["pixel_digest"]
    reasons = {row["reason"] for row in found.values()}
    assert "not-seen" in reasons


def test_a_lasting_fault_is_told_after_three_rounds_and_retry_heals_it(
    rig: Any, remote: Serve
) -> None:
    undisturbed = rig.elsewhere("undisturbed")
    with remote():
        undisturbed.extract()
    faults = Faults(permanent={"*d2_t1/coarse.tif": "throttled"}, retry_after_s=TOO_LONG_S)
    with remote(faults) as server:
        assert rig.extract().failed == {"throttled": 1}
        assert server.dice.thrown["throttled"] == 3
    with remote(), Progress(live=False) as progress:
        report = run_retry(rig.loaded, rig.store, SerialEngine(), progress=progress, pause_s=0)
    assert (report.tried, report.healed, report.revised) == (1, 1, 1)
    assert rig.digest() == undisturbed.digest()
    name = layout.shard_name(1, 0)
    healed, calm = layout.shard_folder(name, 2), layout.shard_folder(name, 1)
    objects = {k.removeprefix(healed): v for k, v in rig.objects().items() if healed in k}
    expected = {k.removeprefix(calm): v for k, v in undisturbed.objects().items() if calm in k}
    assert objects == expected


def test_a_provider_that_is_down_stops_the_run_and_nothing_is_committed(
    rig: Any, remote: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sources.limits.FIRST_PAUSE_S", 0.001)
    with remote(Faults(permanent={"*": "server-error"})), pytest.raises(TryAgain, match="again"):
        rig.extract()
    assert rig.objects() == {}

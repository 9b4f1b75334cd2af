"""A short kill test; the long one is `benchmarks/kill.py`, whose harness this uses."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.store import layout

HARNESS = Path(__file__).resolve().parents[2] / "benchmarks" / "kill.py"

#: Extracts a root by what its plan's header says, on two workers.
DRIVER = """
import sys
from pipeline.engine.dask import DaskEngine
from pipeline.recipe import LoadedRecipe
from pipeline.run.extract import run_extract
from pipeline.store import layout
from pipeline.store.objects import open_store
from pipeline.watch.progress import Progress

if __name__ == "__main__":
    store = open_store(sys.argv[1])
    loaded = LoadedRecipe.restore(layout.read_json(store, layout.plan_header(1))["recipe"])
    with Progress(live=False) as progress:
        run_extract(loaded, store, DaskEngine(workers=2), progress=progress, pause_s=0)
"""


@pytest.mark.slow
def test_killed_and_resumed_extraction_ends_in_the_same_bytes(rig: Any) -> None:
    spec = importlib.util.spec_from_file_location("kill_harness", HARNESS)
    assert spec is not None
    assert spec.loader is not None
    harness = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(harness)
    for number in range(3):
        codes = np.ones((64, 64), "uint8")
        codes[:, : 6 * number] = 2
        rig.scene(f"image/d{number}/t1", classes=codes)
    for shard in range(24):
        for sample in range(4):
            names = [f"image/d{(n + shard) % 3}/t1" for n in range(3)]
            rig.patch(sample, [[name] for name in names], shard=shard)
    rig.lock()
    workers, drivers, roots = harness.disturb(
        rig.folder / "root",
        lambda root: [sys.executable, "-c", DRIVER, str(root)],
        calmly=lambda root: rig.elsewhere(root.name, planned=True).extract(),
        kills=3,
        seed=5,
        at_most=3,
        longest_s=0.3,
    )
    assert workers + drivers >= 1
    assert roots == 1 or workers + drivers == 3
    assert not list(rig.store.list(layout.COMMITS))

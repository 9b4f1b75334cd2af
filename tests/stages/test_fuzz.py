"""A short fuzz of catalogue items, by the harness of `benchmarks/fuzz.py`, the long one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

HARNESS = Path(__file__).resolve().parents[2] / "benchmarks" / "fuzz.py"


def test_damaged_items_end_as_scenes_or_named_rejections() -> None:
    spec = importlib.util.spec_from_file_location("fuzz", HARNESS)
    assert spec is not None
    assert spec.loader is not None
    fuzz = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz)
    found = fuzz.fuzz_items(300, seed=1)
    assert fuzz.bad(found) == []
    assert found.total() == 300
    assert 0 < found["scene"] < 300

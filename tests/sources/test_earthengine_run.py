"""A recipe with the provider `earth-engine`, from the sample to the published version."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.engine.serial import SerialEngine
from pipeline.products.catalogue import load_product
from pipeline.products.model import FILL_INT16, LEGEND
from pipeline.recipe import LoadedRecipe, load_recipe
from pipeline.records import LedgerRow
from pipeline.run.everything import run_everything
from pipeline.run.search import run_search
from pipeline.run.verify import run_verify
from pipeline.simulate.truth.ground import legend_codes, reflectance
from pipeline.simulate.truth.noise import Place
from pipeline.store.commit import newest, read_commit
from pipeline.store.objects import open_store
from pipeline.store.reader import open_dataset
from pipeline.store.tables import to_rows
from pipeline.watch.progress import Progress

SENTINEL = load_product("sentinel-2-l2a")
CLEAR = [LEGEND[name] for name in ("land", "water", "snow", "valid")]
BANDS = ("B02", "B8A", "B11", "B01")
RECIPE = """
name = "earth"
[sample]
strategy = "grid"
region = [15.02, 51.9, 15.045, 51.915]
[cell]
lattice = "s2r10"
size_px = 30
[slots]
kind = "months"
start = 2023-04-01
end = 2023-06-01
[[product]]
id = "sentinel-2-l2a"
provider = "earth-engine"
url = "{url}"
bands = ["B02", "B8A", "B11", "B01"]
max_cloud_fraction = 0.0
"""


def load(folder: Path, url: str) -> LoadedRecipe:
    (folder / "earth.toml").write_text(RECIPE.format(url=url))
    return load_recipe(folder / "earth.toml")


def run(loaded: LoadedRecipe, root: Path) -> dict[str, Any]:
    """Run every stage, and return their reports."""
    with Progress(live=False) as progress:
        stages = run_everything(
            loaded,
            open_store(root),
            engine=SerialEngine,
            cutoff=datetime(2024, 1, 1, tzinfo=UTC),
            progress=progress,
        )
        return dict(stages)


@pytest.fixture(scope="module")
def finished(
    lasting_earth: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Path, dict[str, Any]]:
    """One run: the endpoint, the root, and the report of each stage."""
    server, folder = lasting_earth(), tmp_path_factory.mktemp("run")
    return server, folder / "root", run(load(folder, server.url), folder / "root")


def test_pixels_and_masks_are_the_truth(finished: tuple[Any, Path, dict[str, Any]]) -> None:
    _, root, reports = finished
    assert reports["extract"].written > 20
    assert not reports["extract"].failed
    data = open_dataset(str(root))
    rows, dark = data.index.to_pylist(), 0
    for number, sample in enumerate(data):
        for time, row in enumerate(row for row in rows if row["row"] == number):
            place, when = centres(row), row["acquired"]
            truth = reflectance(SENTINEL, BANDS, place, when)
            # Earth Engine has 0 for what is 0 or less, which is what it has for nothing, too.
            expected = np.where(truth > 0, truth, FILL_INT16)
            np.testing.assert_array_equal(sample[SENTINEL.id]["bands"][time], expected)
            codes = legend_codes(SENTINEL, place, when)
            holes = (truth <= 0).any(axis=0) & np.isin(codes, CLEAR)
            dark += int(holes.sum())
            codes[holes] = LEGEND["defective"]
            np.testing.assert_array_equal(sample[SENTINEL.id]["mask"][time], codes)
    assert dark < 1000


def centres(row: dict[str, Any]) -> Place:
    """Return the pixel centres of a patch."""
    steps = 10 * np.arange(30) + 5
    x_m, y_m = int(row["x_min_m"]), int(row["y_max_m"])
    return Place(row["epsg"] - 32600, x_m + steps, y_m - steps)


def test_plan_ledger_and_sources_are_those_of_any_provider(
    finished: tuple[Any, Path, dict[str, Any]],
) -> None:
    server, root, reports = finished
    store = open_store(root)
    ledger = [
        row
        for shard, revision in newest(store).items()
        for row in to_rows(read_commit(store, shard, revision).ledger, LedgerRow)
    ]
    states = Counter(row.state for row in ledger)
    assert states["written"] == reports["extract"].written
    assert states["rejected"] == reports["extract"].rejected.total() > 0
    written = next(row for row in ledger if row.state == "written")
    assert (written.resampling, written.mask_source) == ("repeat", "product")
    assert written.offset_audit == "none"  # there is no file with an overview
    assert (written.shift_x_px, written.shift_y_px) == (0, 0)
    address = written.sources[0].href
    assert address.startswith("ee://COPERNICUS/S2_SR_HARMONIZED/2023")
    # One area and period is one question; masks, and bands of 10, 20 and 60 m, are read of what is
    # needed, each window in one request.
    calls = Counter(call for call, _ in server.asked)
    assert calls["value:compute"] == reports["search"].requests == 1
    candidates = sum(len(row.scenes) or 3 for row in ledger)
    assert calls["image:computePixels"] == reports["extract"].requests
    assert reports["extract"].requests <= 3 * candidates + 3 * states["written"]


def test_a_second_search_finds_nothing_new_and_a_check_reads_the_same_again(
    finished: tuple[Any, Path, dict[str, Any]],
) -> None:
    server, root, _ = finished
    loaded = load(root.parent, server.url)
    assert run_search(loaded, open_store(root)).new == 0
    report = run_verify(loaded, open_store(root), share=0.2)
    assert report.compared > 5
    assert not report.unreadable

"""What `plan --dry-run` says against what an extract then fetches of the simulated archive."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine.serial import SerialEngine
from pipeline.recipe import LoadedRecipe, Recipe
from pipeline.run.extract import run_extract
from pipeline.run.plan import run_plan
from pipeline.run.sample import run_sample
from pipeline.run.search import run_search
from pipeline.simulate.archive import make_archive
from pipeline.simulate.delivery.orbits import SMALL
from pipeline.simulate.delivery.shelves import shelf_of
from pipeline.simulate.service.catalogue import ITEMS
from pipeline.simulate.service.server import ArchiveServer
from pipeline.sources.bytes.remote import RemoteSource
from pipeline.store.objects import open_store
from pipeline.watch.progress import Progress

REGION = (15.02, 51.9, 15.06, 51.925)
START, END = date(2023, 4, 1), date(2023, 4, 11)
PRODUCTS = ("sentinel-2-l2a", "sentinel-1-grd", "esa-worldcover")
#: By so much the estimate may be off, either way, where the catalogue states lengths.
FACTOR = 1.5


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of 5 km, and a map of 10 km."""
    orbits = {
        "sentinel-2-*": replace(
            SMALL["sentinel-2-*"], swath_m=8000, track_m=6000, square_m=5000, cycle_days=10
        ),
        "sentinel-1-*": replace(
            SMALL["sentinel-1-*"], swath_m=8000, track_m=6000, frame_m=8000, frame_step_m=6000
        ),
    }
    folder = tmp_path_factory.mktemp("costs") / "archive"
    make_archive(
        folder, products=PRODUCTS, region=REGION, start=START, end=END, orbits=orbits, workers=2
    )
    document = json.loads((folder / ITEMS).read_text())
    for collections in document["providers"].values():
        for collection in collections.values():
            for item in collection["items"]:
                for asset in item["assets"].values():
                    asset["file:size"] = (folder / asset["href"]).stat().st_size
    (folder / ITEMS).write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def running(archive: Path) -> Iterator[ArchiveServer]:
    with ArchiveServer(archive) as server:
        yield server


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_estimate_is_what_an_extract_fetches(
    product: str, running: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = {
        "id": product,
        "provider": "simulated",
        "url": f"{running.url}/{shelf_of(product).provider}",
        "allow_unmasked": True,
        "max_cloud_percent": 100,
        "max_cloud_fraction": 1.0,
        "min_valid_fraction": 0.0,
    }
    values = {
        "name": "costs",
        "sample": {"strategy": "grid", "region": REGION},
        "cell": {"lattice": "s2r10", "size_px": 96},
        "slots": {"kind": "windows", "windows": [{"name": "w", "start": START, "end": END}]},
        "product": [wish],
    }
    loaded, store = LoadedRecipe(Recipe.model_validate(values), tmp_path), open_store(tmp_path)
    run_sample(loaded, store)
    run_search(loaded, store)
    cost = run_plan(loaded, store, dry_run=True).estimate
    run_plan(loaded, store)
    assert cost is not None
    fetched = [0]
    fetch = RemoteSource._fetch

    def counted(*args: Any, **values: Any) -> bytes:
        data = fetch(*args, **values)
        fetched[0] += len(data)
        return data

    monkeypatch.setattr(RemoteSource, "_fetch", counted)
    before = running.requests
    # One worker has one shard: it opens every file once, as is counted.
    assert cost.shards == 1
    with Progress(live=False) as progress:
        run_extract(loaded, store, SerialEngine(), progress=progress, pause_s=0)
    assert fetched[0] / FACTOR <= cost.bytes_to_download <= fetched[0] * FACTOR
    asked = running.requests - before
    assert asked / FACTOR <= cost.requests <= asked * FACTOR

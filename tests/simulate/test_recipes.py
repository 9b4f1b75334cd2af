"""Every built-in recipe, small, from sampling to a published version over the simulated archive."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.engine.serial import SerialEngine
from pipeline.recipe import LoadedRecipe, Recipe, load_recipe, recipe_names
from pipeline.run.extract import run_extract
from pipeline.run.plan import run_plan
from pipeline.run.publish import run_publish
from pipeline.run.sample import run_sample
from pipeline.run.search import run_search
from pipeline.run.verify import run_verify
from pipeline.simulate.archive import make_archive
from pipeline.simulate.delivery.shelves import shelf_of
from pipeline.simulate.service.server import ArchiveServer
from pipeline.store.objects import open_store
from pipeline.store.reader import Dataset, open_dataset
from pipeline.watch.progress import Progress

REGION = (15.02, 51.9, 15.036, 51.91)
START, END = date(2023, 4, 10), date(2023, 5, 8)
CELL_M = 480
NAMES = [name for name in recipe_names() if name != "demo"]


def values_of(name: str) -> dict[str, Any]:
    return load_recipe(name).recipe.model_dump(exclude_defaults=True)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, orbits: Any) -> Iterator[ArchiveServer]:
    """All products of all recipes over one square kilometre."""
    folder = tmp_path_factory.mktemp("recipes") / "archive"
    products = sorted({wish["id"] for name in NAMES for wish in values_of(name)["product"]})
    flown = {**orbits, "sentinel-2-*": replace(orbits["sentinel-2-*"], cycle_days=5)}
    make_archive(folder, products=products, region=REGION, start=START, end=END, orbits=flown)
    with ArchiveServer(folder) as server:
        yield server


def small(name: str, url: str) -> Recipe:
    """Return a recipe over the archive: other places, times and sizes, and nothing else changed."""
    values = values_of(name)
    values.pop("pretrain", None), values.pop("evaluate", None)
    tiled = values["sample"]["strategy"] == "scenes"
    values["sample"] = (
        {**values["sample"], "region": REGION}
        if tiled
        else {"strategy": "uniform", "count": 4, "region": REGION}
    )
    pixel_m = 10 if values["cell"]["lattice"] == "s2r10" else 30
    values["cell"]["size_px"] = CELL_M // pixel_m
    if values["slots"]["kind"] == "all":
        values["slots"] |= {"start": START, "end": END}
    else:
        wanted = {slot for wish in values["product"] for slot in wish.get("slots") or ()}
        spring = {slot for slot in wanted if slot.endswith("MAM")} or wanted or {"spring"}
        windows = [{"name": slot, "start": START, "end": END} for slot in sorted(spring)]
        values["slots"] = {"kind": "windows", "windows": windows}
    for wish in values["product"]:
        wish.pop("path", None)
        wish |= {
            "provider": "simulated",
            "url": f"{url}/{shelf_of(wish['id']).provider}",
            "max_cloud_percent": 100,
            "max_cloud_fraction": 0.5,
            "candidates": 8,
        }
        if wish["id"].startswith("landsat-etm"):  # the recipes are of its years without gaps
            wish["min_valid_fraction"] = 0.4
        if wish.get("slots"):
            wish["slots"] = [slot for slot in wish["slots"] if slot in spring]
    return Recipe.model_validate(values)


def build(name: str, url: str, folder: Path) -> tuple[LoadedRecipe, Dataset]:
    loaded, store = LoadedRecipe(small(name, url), folder), open_store(folder / "root")
    first = {"sample": run_sample, "search": run_search, "plan": run_plan}
    for stage in loaded.stages():
        if stage in first:
            first[stage](loaded, store)
    with Progress(live=False) as progress:
        run_extract(loaded, store, SerialEngine(), progress=progress, pause_s=0)
    run_publish(loaded, store)
    run_verify(loaded, store, share=1.0)
    return loaded, open_dataset(store.url)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_becomes_a_data_set_with_all_its_products(
    name: str, running: ArchiveServer, tmp_path: Path
) -> None:
    loaded, made = build(name, running.url, tmp_path)
    assert set(made.products) == set(loaded.products)
    index = made.index.to_pylist()
    by_group: dict[tuple[str, str, str], set[str]] = {}
    for row in index:
        leader = loaded.leader[row["product"]]
        by_group.setdefault((row["location"], row["slot"], leader), set()).add(row["product"])
    # Leader and followers stand and fall together.
    for (_, _, leader), there in by_group.items():
        assert there == {key for key, first in loaded.leader.items() if first == leader}
    for product, wish in loaded.wishes.items():
        slots = {row["slot"] for row in index if row["product"] == product}
        assert wish.slots is None or slots == set(wish.slots)
    if name == "triplets":
        check_residuals(loaded, index)
        (file,) = (tmp_path / "root").rglob("index.parquet")
        said = json.loads(pq.read_schema(file).metadata[b"terrashard:residual"])
        assert set(said["sentinel-2-l2a"]["responses"].values()) == {"Sentinel-2A"}
        assert set(said["landsat-oli-sr"]["responses"].values()) == {"Landsat 8"}


def check_residuals(loaded: LoadedRecipe, index: list[dict[str, Any]]) -> None:
    """The archive's sensors see one ground: what remains is response, time and clouds."""
    for product in loaded.compared:
        residual = np.array([row["residual"] for row in index if row["product"] == product])
        assert residual.shape[1] == len(loaded.bands(product))
        assert np.isfinite(residual).mean() > 0.9
        assert np.nanmedian(np.abs(residual)) < 0.02
    assert all(row["residual"] == [] for row in index if row["product"] == "enmap-l2a")

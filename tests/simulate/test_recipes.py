"""Every built-in recipe, small, from sampling to a published version over the simulated archive."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from pyproj import Transformer

from pipeline.engine.serial import SerialEngine
from pipeline.recipe import LoadedRecipe, Recipe, load_recipe, recipe_names
from pipeline.records import Location
from pipeline.run.evaluate import run_evaluate
from pipeline.run.extract import run_extract
from pipeline.run.plan import run_plan
from pipeline.run.pretrain import run_pretrain
from pipeline.run.publish import run_publish
from pipeline.run.sample import run_sample
from pipeline.run.search import run_search
from pipeline.run.verify import run_verify
from pipeline.simulate.archive import make_archive
from pipeline.simulate.delivery.shelves import shelf_of
from pipeline.simulate.service.server import ArchiveServer
from pipeline.store import layout
from pipeline.store.objects import open_store
from pipeline.store.reader import Dataset, open_dataset
from pipeline.store.tables import read_all, to_rows
from pipeline.watch.progress import Progress

REGION = (15.02, 51.9, 15.036, 51.91)
#: The middle of the most populous place: Shanghai.
TOWN = (121.45, 31.217, 121.466, 31.227)
START, END = date(2023, 4, 10), date(2023, 5, 8)
CELL_M = 480
#: Recipes that are trained on, one of each strategy, with a backbone and the edge of the judged
#: windows in pixels.
TRAINED = {
    "sentinel-2-quickstart": ("resnet18", 8),
    "ssl4eo-l-benchmark": ("resnet18", 4),
    "spectralearth-labels": ("spec_resnet18", 8),
}
#: What a recipe without labels is judged by.
LABELS = "esa-worldcover"
NAMES = [name for name in recipe_names() if name != "demo"]


def values_of(name: str) -> dict[str, Any]:
    return load_recipe(name).recipe.model_dump(exclude_defaults=True)


def around_towns(name: str) -> bool:
    return bool(values_of(name)["sample"]["strategy"] == "cities")


def archive_of(folder: Path, names: list[str], region: Any, orbits: Any) -> Path:
    """Make an archive of one square kilometre with all products of some recipes, and labels."""
    products = {wish["id"] for name in names for wish in values_of(name)["product"]}
    flown = {**orbits, "sentinel-2-*": replace(orbits["sentinel-2-*"], cycle_days=5)}
    products = sorted(products | {LABELS})
    make_archive(folder, products=products, region=region, start=START, end=END, orbits=flown)
    return folder


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory, orbits: Any) -> Iterator[str]:
    """URL of what recipes find that draw around the most populous places."""
    names = [name for name in NAMES if around_towns(name)]
    folder = archive_of(tmp_path_factory.mktemp("town") / "archive", names, TOWN, orbits)
    with ArchiveServer(folder) as server:
        yield server.url


@pytest.fixture(scope="module")
def country(tmp_path_factory: pytest.TempPathFactory, orbits: Any) -> Path:
    """An archive for the other recipes."""
    names = [name for name in NAMES if not around_towns(name)]
    return archive_of(tmp_path_factory.mktemp("country") / "archive", names, REGION, orbits)


@pytest.fixture
def url(request: pytest.FixtureRequest, name: str) -> Iterator[str]:
    """URL of the archive for a recipe."""
    if around_towns(name):
        yield request.getfixturevalue("town")
        return
    with ArchiveServer(request.getfixturevalue("country")) as server:
        yield server.url


def small(name: str, url: str, *, count: int = 4, cell_m: int = CELL_M) -> Recipe:
    """Return a recipe over the archive: other places, times and sizes, and nothing else changed."""
    values = values_of(name)
    values.pop("pretrain", None), values.pop("evaluate", None)
    nearby: dict[str, dict[str, Any]] = {
        "scenes": {"region": REGION},
        "uniform": {"region": REGION, "count": count},
        "cities": {"largest": 1, "spread_km": 0.25, "count": count},
    }
    values["sample"] |= nearby[values["sample"]["strategy"]]
    pixel_m = 10 if values["cell"]["lattice"] == "s2r10" else 30
    values["cell"]["size_px"] = cell_m // pixel_m
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


def build(recipe: Recipe, folder: Path) -> tuple[LoadedRecipe, Dataset]:
    loaded, store = LoadedRecipe(recipe, folder), open_store(folder / "root")
    first = {"sample": run_sample, "search": run_search, "plan": run_plan}
    for stage in loaded.stages():
        if stage in first:
            first[stage](loaded, store)
    with Progress(live=False) as progress:
        run_extract(loaded, store, SerialEngine(), progress=progress, pause_s=0)
    run_publish(loaded, store)
    run_verify(loaded, store, share=1.0)
    return loaded, open_dataset(store.url)


def trainable(name: str, url: str) -> Recipe:
    """Return a small recipe of smaller places, with its own training made short."""
    backbone, window_px = TRAINED[name]
    values = small(name, url, count=20, cell_m=240).model_dump(exclude_defaults=True)
    own = load_recipe(name).recipe.model_dump(exclude_defaults=True)
    if "evaluate" not in own:
        shelf = f"{url}/{shelf_of(LABELS).provider}"
        wish = {"id": LABELS, "provider": "simulated", "url": shelf, "allow_unmasked": True}
        values["product"] = (*values["product"], wish)
    values["pretrain"] = own.get("pretrain", {}) | {
        "backbone": backbone,
        "steps": 2,
        "batch_size": 4,
        "crop_px": 8,
        "queue": 8,
        "health_every": 1,
    }
    values["evaluate"] = own.get("evaluate", {"labels": LABELS}) | {
        "window_px": window_px,
        "min_label_fraction": 0.1,
    }
    values["split"] = {"block_km": 0.25, "train": 0.5, "val": 0.25, "test": 0.25}
    return Recipe.model_validate(values)


@pytest.fixture(scope="module")
def data_sets() -> dict[str, tuple[LoadedRecipe, Dataset]]:
    """What was built, by recipe."""
    return {}


@pytest.fixture
def data_set(
    name: str,
    url: str,
    data_sets: dict[str, tuple[LoadedRecipe, Dataset]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[LoadedRecipe, Dataset]:
    """The data set of a recipe, built once."""
    if name not in data_sets:
        recipe = trainable(name, url) if name in TRAINED else small(name, url)
        data_sets[name] = build(recipe, tmp_path_factory.mktemp(name))
    return data_sets[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_becomes_a_data_set_with_all_its_products(
    name: str, data_set: tuple[LoadedRecipe, Dataset]
) -> None:
    """Drawn as the recipe draws."""
    loaded, made = data_set
    assert loaded.recipe.sample.strategy == load_recipe(name).recipe.sample.strategy
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
        (file,) = loaded.folder.rglob("index.parquet")
        said = json.loads(pq.read_schema(file).metadata[b"terrashard:residual"])
        assert set(said["sentinel-2-l2a"]["responses"].values()) == {"Sentinel-2A, Sentinel-2B"}
        assert set(said["landsat-oli-sr"]["responses"].values()) == {"Landsat 8"}


@pytest.mark.parametrize("name", ["ssl4eo-l-benchmark"])
def test_places_that_a_map_leaves_out_do_not_count(
    name: str, country: Path, tmp_path: Path
) -> None:
    """As beyond the border of the country that NLCD and CDL are of: half of the region here."""
    shutil.copytree(country, tmp_path / "archive", copy_function=os.link)
    middle_deg = (REGION[0] + REGION[2]) / 2
    for path in (tmp_path / "archive" / "files").glob("*/*/map.tif"):
        if path.parent.name in ("nlcd", "cdl"):
            leave_out(path, east_of_deg=middle_deg)
    with ArchiveServer(tmp_path / "archive") as server:
        recipe = small(name, server.url, count=8, cell_m=240)
        loaded, made = build(recipe, tmp_path / "set")
    index = made.index.to_pylist()
    mapped = {row["location"] for row in index if row["product"] == "nlcd"}
    store = open_store(loaded.folder / "root")
    drawn = to_rows(read_all(store, layout.LOCATIONS, Location), Location)
    east = {place.location for place in drawn if place.lon_deg > middle_deg + 0.002}
    assert mapped
    assert east, "no place lies where there is no map: nothing is tested"
    assert {row["location"] for row in index} == mapped
    assert not mapped & east


def leave_out(path: Path, *, east_of_deg: float) -> None:
    """Write a map again without what lies east of a meridian."""
    with rasterio.open(path) as source:
        codes, profile = source.read(1), source.profile
    grid = profile["transform"]
    rows, columns = np.indices(codes.shape) + 0.5
    x, y = grid.c + columns * grid.a, grid.f + rows * grid.e
    lon, _ = Transformer.from_crs(profile["crs"], 4326, always_xy=True).transform(x, y)
    path.unlink()
    with rasterio.open(path, "w", **profile) as target:
        target.write(np.where(lon > east_of_deg, 0, codes), 1)


@pytest.mark.parametrize("name", TRAINED)
def test_a_recipe_of_each_strategy_is_trained_on_and_judged(
    data_set: tuple[LoadedRecipe, Dataset],
) -> None:
    """For two small steps, and otherwise as it says, if it does."""
    loaded, made = data_set
    store = open_store(loaded.folder / "root")
    trained = run_pretrain(loaded, store, device="cpu")
    assert trained.steps == 2
    assert np.isfinite(trained.loss)
    judged = run_evaluate(loaded, store, device="cpu")
    assert (judged.step, judged.version) == (2, made.version.number)
    assert {result.features for result in judged.results} >= {"model", "untrained"}


def check_residuals(loaded: LoadedRecipe, index: list[dict[str, Any]]) -> None:
    """The archive's sensors see one ground: what remains is response, time and clouds."""
    for product in loaded.compared:
        residual = np.array([row["residual"] for row in index if row["product"] == product])
        assert residual.shape[1] == len(loaded.bands(product))
        assert np.isfinite(residual).mean() > 0.9
        assert np.nanmedian(np.abs(residual)) < 0.02
    assert all(row["residual"] == [] for row in index if row["product"] == "enmap-l2a")

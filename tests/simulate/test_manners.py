"""In the manner of each provider: its items become scenes, and its files the truth."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from pipeline.engine.serial import SerialEngine
from pipeline.products.catalogue import load_product
from pipeline.raster.zones import northing_from_equator
from pipeline.recipe import LoadedRecipe, Recipe
from pipeline.records import Scene, Unusable
from pipeline.run.extract import run_extract
from pipeline.run.plan import run_plan
from pipeline.run.sample import run_sample
from pipeline.run.search import run_search
from pipeline.simulate.archive import make_archive
from pipeline.simulate.delivery.shelves import shelf_of
from pipeline.simulate.service.server import ArchiveServer
from pipeline.simulate.truth.ground import reflectance
from pipeline.simulate.truth.noise import Place
from pipeline.stages.search.normalise import normalise
from pipeline.store import layout
from pipeline.store.objects import open_store
from pipeline.store.tables import read_all
from pipeline.watch.progress import Progress

REGION = (15.02, 51.9, 15.026, 51.904)
START, END = date(2023, 4, 1), date(2023, 5, 1)
#: Product and provider: every pair that a product file knows, without what is not on the network.
MANNERS = [
    *(("sentinel-2-l2a", name) for name in ("planetary-computer", "earth-search", "copernicus")),
    *(("sentinel-2-l1c", name) for name in ("earth-search", "copernicus")),
    *(("landsat-oli-sr", name) for name in ("planetary-computer", "earth-search", "usgs")),
    ("landsat-etm-toa", "usgs"),
    ("sentinel-1-rtc", "planetary-computer"),
    ("enmap-l2a", "dlr"),
]


def made(folder: Path, product: str, provider: str, orbits: Any) -> list[dict[str, Any]]:
    days = {"products": [product], "start": START, "end": END, "region": REGION}
    make_archive(folder, orbits=orbits, providers={product: provider}, **days)
    shelves = json.loads((folder / "archive.json").read_text())["providers"][provider]
    collection = shelf_of(product, provider).facts.collection
    items: list[dict[str, Any]] = shelves[collection]["items"]
    return items


@pytest.mark.parametrize(("key", "provider"), MANNERS)
def test_items_become_scenes_by_the_words_of_the_product_file(
    key: str, provider: str, tmp_path: Path, orbits: dict[str, Any]
) -> None:
    product = load_product(key)
    items = made(tmp_path / "archive", key, provider, orbits)
    whole = [item for item in items if item["assets"]]
    scenes = [normalise(item, product, provider, None) for item in whole]
    assert scenes
    for item, scene in zip(whole, scenes, strict=True):
        assert isinstance(scene, Scene), scene
        assert scene.epsg == 32633
        assert abs((scene.acquired - moment(item)).total_seconds()) < 60
        names = {asset.name for asset in scene.assets}
        assert names == set(item["assets"]) - ({"MTL.json"} - names)


def test_the_newest_processing_wins_and_the_rest_is_counted(
    tmp_path: Path, orbits: dict[str, Any]
) -> None:
    """Earth Search lists a scene that was processed again twice, and some items without assets."""
    product, provider = "sentinel-2-l2a", "earth-search"
    items = {item["id"]: item for item in made(tmp_path / "archive", product, provider, orbits)}
    older = {key for key in items if "_0_" in key and key.replace("_0_", "_1_") in items}
    pending = {key for key, item in items.items() if not item["assets"]}
    assert older
    assert pending
    values = {
        "name": "twice",
        "sample": {"strategy": "grid", "region": REGION},
        "cell": {"lattice": "s2r10", "size_px": 24},
        "slots": {"kind": "months", "start": START, "end": END},
        "product": [{"id": product, "provider": "simulated", "bands": ["B04"]}],
    }
    with ArchiveServer(tmp_path / "archive") as server:
        facts = load_product(product)
        names = {"simulated": facts.providers[provider]}
        values["product"][0]["url"] = f"{server.url}/{provider}"  # type: ignore[index]
        loaded = LoadedRecipe(
            Recipe.model_validate(values),
            tmp_path,
            facts={product: facts.model_copy(update={"providers": names})},
        )
        store = open_store(tmp_path / "root")
        run_sample(loaded, store)
        report = run_search(loaded, store)
        run_plan(loaded, store)
        with Progress(live=False) as progress:
            extracted = run_extract(loaded, store, SerialEngine(), progress=progress, pause_s=0)
    assert extracted.written
    assert not extracted.failed
    scenes = read_all(store, layout.SCENES, Scene).to_pylist()
    lost = read_all(store, layout.SCENES, Unusable, suffix="unusable").to_pylist()
    assert {row["item"]: row["reason"] for row in lost} == {
        **dict.fromkeys(older, "duplicate"),
        **dict.fromkeys(pending, "no-assets"),
    }
    assert {row["item"] for row in scenes} == set(items) - older - pending
    assert report.found == {product: len(items) - len(older) - len(pending)}
    assert len({row["scene"] for row in scenes}) == len(scenes)
    for row in scenes:
        assert row["baseline"] == "05.09"
        assert ("_1_" in row["item"]) == (row["item"].replace("_1_", "_0_") in older)


def moment(item: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(item["properties"]["datetime"])


@pytest.mark.parametrize("provider", ["planetary-computer", "earth-search", "copernicus"])
def test_the_offset_is_in_the_files_or_not_as_the_provider_says(
    provider: str, tmp_path: Path, orbits: dict[str, Any]
) -> None:
    product = load_product("sentinel-2-l2a")
    items = made(tmp_path / "archive", "sentinel-2-l2a", provider, orbits)
    scene = normalise(items[0], product, provider, None)
    assert isinstance(scene, Scene)
    assert scene.offset_add == (0 if provider == "earth-search" else -1000)
    asset = product.providers[provider].assets["B04"][0].asset
    with rasterio.open(tmp_path / "archive" / items[0]["assets"][asset]["href"]) as raster:
        values = raster.read(1).astype(int)
        for row, column in corners(values):
            x, y = raster.xy(row, column)
            n = northing_from_equator(32633, y)
            place = Place(33, np.array([int(x)]), np.array([int(n)]))
            truth = reflectance(product, ["B04"], place, moment(items[0]))[0, 0, 0]
            assert values[row, column] + scene.offset_add == truth


def corners(values: Any) -> Iterator[tuple[int, int]]:
    """Yield some pixels that were seen."""
    rows, columns = np.nonzero(values)
    for at in np.linspace(0, len(rows) - 1, 25).astype(int).tolist():
        yield int(rows[at]), int(columns[at])

"""Sentinel-1 GRD files: located by their control points, calibrated by their tables, the truth."""

from __future__ import annotations

import json
from datetime import date, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
import shapely
from rasterio.transform import GCPTransformer

from pipeline.products.catalogue import load_product
from pipeline.raster.zones import to_plane
from pipeline.records import Scene
from pipeline.simulate.archive import make_archive
from pipeline.simulate.delivery.orbits import SMALL, orbit_of, scenes_over
from pipeline.simulate.delivery.shelves import files_of, shelf_of
from pipeline.simulate.delivery.stac_items import Written, item_of
from pipeline.simulate.truth.ground import STEP, reflectance
from pipeline.simulate.truth.noise import Place
from pipeline.stages.search.newest import deduplicate
from pipeline.stages.search.normalise import normalise
from pipeline.store.tables import from_rows

GRD = load_product("sentinel-1-grd")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, orbits: dict[str, Any]) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("radar") / "archive"
    make_archive(
        folder,
        products=["sentinel-1-grd"],
        region=(15.02, 51.9, 15.026, 51.904),
        start=date(2023, 4, 1),
        end=date(2023, 4, 10),
        orbits=orbits,
    )
    shelves = json.loads((folder / "archive.json").read_text())["providers"]
    return folder, shelves["earth-search"]["sentinel-1-grd"]["items"]


@pytest.mark.parametrize("band", ["VV", "VH"])
def test_located_and_calibrated_amplitudes_are_the_truth(made: Any, band: str) -> None:
    folder, items = made
    item = items[0]
    assets, when = item["assets"], datetime.fromisoformat(item["properties"]["datetime"])
    tree = ElementTree.parse(folder / assets[f"schema-calibration-{band.lower()}"]["href"])
    vector = tree.findall(".//calibrationVector")[0]
    pixels, gains = (
        np.array((vector.findtext(name) or "").split(), float) for name in ("pixel", "sigmaNought")
    )
    with rasterio.open(folder / assets[band.lower()]["href"]) as raster:
        assert raster.crs is None
        points, crs = raster.gcps
        assert crs.to_epsg() == 4326
        values = raster.read(1)
        rng = np.random.default_rng(2)
        rows, columns = (rng.integers(0, size, 80) for size in raster.shape)
        with GCPTransformer(points, tps=True) as turn:
            lon, lat = turn.xy(rows.tolist(), columns.tolist())
    x_m, n_m = to_plane(np.array(lon), np.array(lat), 33)
    compared = 0
    for row, column, x, n in zip(rows, columns, x_m.tolist(), n_m.tolist(), strict=True):
        if min(x % 10, -x % 10, n % 10, -n % 10) < 0.5:  # too near to the edge of a cell of ground
            continue
        place = Place(33, np.array([int(x // 10) * 10 + 5]), np.array([int(n // 10) * 10 + 5]))
        power = reflectance(GRD, [band], place, when)[0, 0, 0] * STEP["backscatter"]
        expected = np.sqrt(power) * np.interp(column, pixels, gains)
        assert abs(int(values[row, column]) - max(expected, 1)) <= 0.51
        compared += 1
    assert compared > 40


def test_items_become_scenes(made: Any) -> None:
    for item in made[1]:
        scene = normalise(item, GRD, "earth-search", None)
        assert isinstance(scene, Scene), scene
        assert {asset.name for asset in scene.assets} == set(item["assets"])


@pytest.mark.parametrize(
    ("name", "provider"),
    [("sentinel-1-grd", "earth-search"), ("sentinel-1-rtc", "planetary-computer")],
)
def test_two_satellites_that_count_alike_are_told_apart(name: str, provider: str) -> None:
    """S1A and S1B number their data takes each for itself: equal numbers are two acquisitions."""
    shelf = shelf_of(name, provider)
    area = shapely.box(495_000, 5_745_000, 505_000, 5_755_000)
    passes = (date(2023, 4, 1), date(2023, 5, 19))
    found = scenes_over(orbit_of(name, SMALL), 33, area, *passes)
    assets = {file.key: f"https://sentinel1.example/{file.key}" for file in files_of(shelf)}
    items = [item_of(shelf, scene, Written(assets, {})) for scene in found]
    count = [
        (item["properties"]["s1:datatake_id"], item["properties"]["s1:slice_number"])
        for item in items
    ]
    assert len(set(count)) < len(count)
    assert {item["properties"]["platform"].lower() for item in items} == {
        "sentinel-1a",
        "sentinel-1b",
    }
    rows = [normalise(item, shelf.product, provider, None) for item in items]
    scenes = [row for row in rows if isinstance(row, Scene)]
    assert len(scenes) == len(rows), rows
    kept, lost = deduplicate(from_rows(scenes, Scene))
    assert not lost
    assert sorted(kept.column("item").to_pylist()) == sorted(item["id"] for item in items)
    parts = [str(item["id"]).split("_") for item in items]
    assert {row.datatake for row in scenes} == {f"{part[0]}_{part[7]}" for part in parts}

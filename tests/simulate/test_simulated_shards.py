"""Shards without scenes: like any other root, equal to the truth, and numpy only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import RecipeError
from pipeline.products.catalogue import load_product
from pipeline.raster.zones import to_sphere
from pipeline.recipe import LoadedRecipe, load_recipe
from pipeline.run.simulate import simulate_shards
from pipeline.simulate.shards import write_shards
from pipeline.simulate.truth.globe import lon_lat
from pipeline.simulate.truth.ground import reflectance
from pipeline.simulate.truth.landscape import landscape
from pipeline.simulate.truth.noise import Place
from pipeline.store.ledger import tally
from pipeline.store.objects import open_store
from pipeline.store.reader import open_dataset

RECIPE = """
name = "small"
sample = { strategy = "grid", region = [15.0, 51.0, 15.1, 51.1] }
cell = { lattice = "enmap30", size_px = 16 }
slots = { kind = "months", start = 2023-04-01, end = 2023-07-01 }
shards = { shard_mb = 1.2 }

[[product]]
id = "enmap-l2a"
provider = "simulated"

[[product]]
id = "sentinel-2-l2a"
provider = "simulated"
bands = ["B04", "B08", "B11"]

[[product]]
id = "simulated-labels"
provider = "simulated"
allow_unmasked = true
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedRecipe:
    path = tmp_path_factory.mktemp("recipe") / "small.toml"
    path.write_text(RECIPE)
    return load_recipe(path)


@pytest.fixture(scope="module")
def root(loaded: LoadedRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "root"
    report = simulate_shards(open_store(str(folder)), loaded, locations=5)
    assert (report.locations, report.patches) == (5, 5 * 3 * 3)
    assert report.shards > 1
    return folder


def test_the_root_reads_like_any_other(root: Path) -> None:
    dataset = open_dataset(str(root))
    assert len(dataset) == 5
    sample = dataset[3]
    assert sample["enmap-l2a"]["bands"].shape == (3, 202, 16, 16)
    assert sample["sentinel-2-l2a"]["bands"].shape == (3, 3, 48, 48)
    assert sample["simulated-labels"]["bands"].dtype == np.uint8


def test_every_value_is_the_truth(root: Path) -> None:
    dataset = open_dataset(str(root))
    index = dataset.index.to_pylist()
    for row in index[::4]:
        patch = dataset[row["row"]][row["product"]]
        product = load_product(row["product"])
        pixel_m, phase = (10, 0) if product.id == "sentinel-2-l2a" else (30, 15)
        # the nearest pixel edge of the product, halves going east and south
        x = int((row["x_min_m"] - phase) // pixel_m * pixel_m + phase)
        y = int((row["y_max_m"] - phase) // pixel_m * pixel_m + phase)
        x += pixel_m if row["x_min_m"] - x >= pixel_m / 2 else 0
        y += pixel_m if row["y_max_m"] - y > pixel_m / 2 else 0
        steps = pixel_m // 2 + pixel_m * np.arange(patch["bands"].shape[-1])
        place = Place(33, x + steps, y - steps)
        found = patch["bands"][row["time"]]
        if product.kind == "labels":
            assert (found[0] == landscape(place).arrangement).all()
        else:
            bands = ["B04", "B08", "B11"] if pixel_m == 10 else [product.bands[9].name]
            truth = reflectance(product, bands, place, row["acquired"])
            assert (found[9:10] if pixel_m == 30 else found).tolist() == truth.tolist()


def test_the_ledger_adds_up(root: Path) -> None:
    counts = tally(open_store(str(root)))
    assert (counts.planned, counts.written, counts.pending) == (45, 45, 0)


def test_more_locations_do_not_move_the_first(loaded: LoadedRecipe, tmp_path: Path) -> None:
    roots = [open_store(str(tmp_path / name)) for name in ("one", "two")]
    for store in roots:
        write_shards(store, loaded, locations=2)
    listed = [{key: store.get(key) for key in store.list()} for store in roots]
    assert listed[0] == listed[1]


def test_a_used_root_is_refused(root: Path, loaded: LoadedRecipe) -> None:
    with pytest.raises(RecipeError, match="not empty"):
        write_shards(open_store(str(root)), loaded, locations=1)


def test_nothing_geospatial_is_imported() -> None:
    code = """
import sys
for name in ("rasterio", "shapely", "pyproj", "geopandas", "dask", "distributed", "torch"):
    sys.modules[name] = None
import pipeline.run.simulate, pipeline.simulate.shards
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_plain_arithmetic_agrees_with_proj() -> None:
    rng = np.random.default_rng(0)
    for x, n in zip(rng.uniform(170_000, 830_000, 50), rng.uniform(-8e6, 8e6, 50), strict=True):
        lon, lat = to_sphere(x, n, 33)
        assert lon_lat(33, x, n) == pytest.approx((float(lon), float(lat)), abs=1e-8)

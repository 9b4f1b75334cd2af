"""Maps in projections of their own: every pixel is the ground at its centre."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from pyproj import Transformer

from pipeline.products.catalogue import load_product, product_ids
from pipeline.raster.zones import to_plane
from pipeline.simulate.archive import make_archive
from pipeline.simulate.delivery.maps import map_values
from pipeline.simulate.delivery.shelves import shelf_of

REGION = (15.02, 51.9, 15.04, 51.91)
MAPS = [
    key
    for key in product_ids()
    if "simulated" in load_product(key).providers and shelf_of(key).is_map
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("maps") / "archive"
    make_archive(made, products=MAPS, region=REGION, start=date(2022, 12, 1), end=date(2023, 2, 1))
    return made


def items(folder: Path, key: str) -> list[dict[str, Any]]:
    shelf = shelf_of(key)
    providers = json.loads((folder / "archive.json").read_text())["providers"]
    found: list[dict[str, Any]] = providers[shelf.provider][shelf.facts.collection]["items"]
    return found


@pytest.mark.parametrize("key", MAPS)
def test_pixels_are_the_ground_at_their_centres(folder: Path, key: str) -> None:
    product = load_product(key)
    item = items(folder, key)[0]
    (asset,) = item["assets"].values()
    with rasterio.open(folder / asset["href"]) as raster:
        values = raster.read(1)
        assert list(raster.transform)[:6] == item["properties"]["proj:transform"]
        assert raster.crs.to_epsg() == item["properties"]["proj:epsg"]
        rng = np.random.default_rng(1)
        rows, columns = (rng.integers(0, size, 60) for size in raster.shape)
        x, y = raster.xy(rows, columns)
        lon, lat = Transformer.from_crs(raster.crs, 4326, always_xy=True).transform(x, y)
    shape = shapely.geometry.shape(item["geometry"])
    assert shapely.contains_xy(shapely.buffer(shape, 1e-4), lon, lat).all()
    expected = map_values(product, 33, *to_plane(np.array(lon), np.array(lat), 33))
    np.testing.assert_array_equal(values[rows, columns], expected)
    if product.kind == "labels":
        assert set(np.unique(values).tolist()) <= {int(code) for code in product.classes}
        assert len(np.unique(values)) > 2
    else:
        assert values.std() > 1


@pytest.mark.parametrize("key", MAPS)
def test_yearly_maps_have_an_item_for_each_year(folder: Path, key: str) -> None:
    years = sorted({item["properties"]["datetime"][:4] for item in items(folder, key)})
    assert years == (["2022", "2023"] if load_product(key).temporal == "yearly" else ["2022"])

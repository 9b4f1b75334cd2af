"""Every product that Earth Engine serves: images become scenes, and pixels are the archive's."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from pipeline.ports import PixelGrid, Query
from pipeline.products.catalogue import Product, load_product, product_ids
from pipeline.records import Scene
from pipeline.sources.earthengine_items import EarthEngineCatalogue
from pipeline.sources.earthengine_pixels import EarthEnginePixels
from pipeline.sources.providers import load_provider
from pipeline.stages.search import normalise

SERVED = [name for name in product_ids() if "earth-engine" in load_product(name).providers]
#: What the archive is asked for in place of a product that only Earth Engine has.
MADE_OF = {"sentinel-1-grd-corrected": "sentinel-1-rtc"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, endpoints_of: Any) -> Any:
    """An endpoint over one or two scenes of each product."""
    from pipeline.simulate.archive import make_archive
    from pipeline.simulate.orbits import SMALL

    folder = tmp_path_factory.mktemp("products")
    size = {"swath_m": 6000, "track_m": 5500, "cycle_days": 30}
    make_archive(
        folder / "archive",
        products=[MADE_OF.get(name, name) for name in SERVED],
        region=(15.02, 51.9, 15.03, 51.905),
        start=date(2023, 4, 1),
        end=date(2023, 5, 1),
        orbits={
            key: replace(orbit, **size, square_m=2000)
            if orbit.square_m
            else replace(orbit, **size, frame_m=5000, frame_step_m=4500)
            for key, orbit in SMALL.items()
        },
    )
    with endpoints_of(folder / "archive", folder) as serve:
        yield serve()


def scenes(server: Any, product: Product) -> list[Scene]:
    provider = load_provider("earth-engine", url=server.url)
    query = Query(product.id, product.providers["earth-engine"].collection)
    found = EarthEngineCatalogue(provider, product)
    bands = [band.name for band in product.bands if band.default]
    rows = [normalise(i, product, provider.name, query, bands=bands) for i in found.search(query)]
    assert all(isinstance(row, Scene) for row in rows), rows
    return [row for row in rows if isinstance(row, Scene)]


@pytest.mark.parametrize("name", SERVED)
def test_a_product_s_images_are_scenes_with_every_band(server: Any, name: str) -> None:
    product = load_product(name)
    found = scenes(server, product)
    assert found
    wanted = {f.asset for files in product.providers["earth-engine"].assets.values() for f in files}
    for scene in found:
        assert {asset.name for asset in scene.assets} == wanted
        assert scene.scene == f"{name}/{scene.datatake}/{scene.tile}"
        assert scene.offset_add == 0


@pytest.mark.parametrize("name", SERVED)
def test_a_product_s_pixels_are_those_of_the_archive(server: Any, name: str) -> None:
    product = load_product(name)
    scene = scenes(server, product)[0]
    source = EarthEnginePixels(load_provider("earth-engine", url=server.url))
    for band in product.bands[:3]:
        asset = product.providers["earth-engine"].assets[band.name][0].asset
        size = round((scene.x_max_m - scene.x_min_m) / band.pixel_m)
        height = round((scene.y_max_m - scene.y_min_m) / band.pixel_m)
        grid = PixelGrid(scene.epsg, scene.x_min_m, scene.y_max_m, band.pixel_m, size, height)
        fill = 0.0 if product.nodata is None else product.nodata
        (found,) = source.pixels(scene.assets[0].href, [asset], grid, fill=fill)
        expected = delivered(server, scene, name, band.name)
        seen = expected != fill
        assert seen.any()
        np.testing.assert_array_equal(found[~seen], fill)
        np.testing.assert_allclose(found[seen], expected[seen], rtol=1e-12)


def delivered(server: Any, scene: Scene, name: str, band: str) -> Any:
    """Return the archive's own file of a band, in Earth Engine's numbers."""
    product = load_product(MADE_OF.get(name, name))
    asset = product.providers["simulated"].assets[band][0].asset
    when = scene.acquired.strftime("%Y-%m-%dT%H:%M:%S")
    for item in _items(server.world.folder):
        if asset in item["assets"] and _is(item, product, scene, when):
            with rasterio.open(server.world.folder / item["assets"][asset]["href"]) as file:
                numbers = file.read(1)
    if name.startswith("sentinel-2"):
        return np.where(numbers == 0, 0, np.maximum(numbers.astype(int) - 1000, 0))
    if name.startswith("sentinel-1"):
        return np.where(numbers == -32768, -32768, 10 * np.log10(np.abs(numbers.astype(float))))
    return numbers


def _is(item: dict[str, Any], product: Product, scene: Scene, when: str) -> bool:
    facts = product.providers["simulated"]
    transform = next(iter(item["assets"].values()))["proj:transform"]
    corner = (transform[2], transform[5]) == (scene.x_min_m, scene.y_max_m)
    own = item["collection"] == facts.collection and f"/{product.id}/" in str(item["assets"])
    return corner and own and item["properties"]["datetime"].startswith(when)


def _items(folder: Path) -> list[dict[str, Any]]:
    providers = json.loads((folder / "archive.json").read_text())["providers"]
    shelves = [shelf for collections in providers.values() for shelf in collections.values()]
    return [item for shelf in shelves for item in shelf["items"]]

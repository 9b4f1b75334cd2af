"""Every product that Earth Engine serves: images become scenes, and pixels are the archive's."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely

from pipeline.ports import PixelGrid, Query
from pipeline.products.catalogue import load_product, product_ids
from pipeline.products.model import Product
from pipeline.raster.landsat import conversion, parse_mtl
from pipeline.records import Scene, Unusable
from pipeline.simulate.delivery.shelves import STANDS_FOR
from pipeline.sources.earthengine.items import EarthEngineCatalogue, item_of
from pipeline.sources.earthengine.pixels import EarthEnginePixels
from pipeline.sources.providers import load_provider
from pipeline.stages.search.normalise import normalise

SERVED = [name for name in product_ids() if "earth-engine" in load_product(name).providers]
ON_A_LATTICE = [name for name in SERVED if load_product(name).warp is None]
MAPS = [name for name in SERVED if load_product(name).kind == "labels"]
LEVEL_1 = [name for name in SERVED if load_product(name).calibration]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, endpoints_of: Any) -> Any:
    """An endpoint over one or two scenes of each product."""
    from pipeline.simulate.archive import make_archive
    from pipeline.simulate.delivery.orbits import SMALL

    folder = tmp_path_factory.mktemp("products")
    size = {"swath_m": 6000, "track_m": 5500, "cycle_days": 30}
    make_archive(
        folder / "archive",
        products=[STANDS_FOR.get(name, name) for name in SERVED],
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
def test_the_whole_expression_of_a_product_s_search(
    server: Any, name: str, call: Any, unfolded: Any
) -> None:
    product = load_product(name)
    dated = (datetime(2023, 4, 1, tzinfo=UTC), datetime(2023, 5, 1, tzinfo=UTC))
    collection = product.providers["earth-engine"].collection
    query = Query(name, collection, (15.0, 51.8, 15.1, 52.0), *dated)
    before = len(server.asked)
    list(EarthEngineCatalogue(load_provider("earth-engine", url=server.url), product).search(query))
    times = call(
        "Filter.dateRangeContains",
        leftValue=call("DateRange", start=1680307200000, end=1682899200000),
        rightField="system:time_start",
    )
    box = call(
        "GeometryConstructors.Rectangle",
        coordinates=[15.0, 51.8, 15.1, 52.0],
        crs=call("Projection", crs="EPSG:4326"),
        geodesic=False,
    )
    place = call("Filter.intersects", leftField=".all", rightValue=call("Feature", geometry=box))
    both = call("Filter.and", filters={"arrayValue": {"values": [times, place]}})
    expected = [
        call(
            "Collection.toList",
            collection=call(
                "Collection.filter", collection=call("ImageCollection.load", id=one), filter=both
            ),
            count=500,
            offset=0,
        )
        for one in collection.split()
    ]
    asked = server.asked[before:]
    assert [unfolded(body["expression"]) for _, body in asked] == expected
    assert {kind for kind, _ in asked} == {"value:compute"}


@pytest.mark.parametrize("name", SERVED)
def test_the_whole_expression_of_a_product_s_pixels(
    server: Any, name: str, call: Any, unfolded: Any
) -> None:
    product, scene = load_product(name), scenes(server, load_product(name))[0]
    source = EarthEnginePixels(load_provider("earth-engine", url=server.url))
    assets = product.providers["earth-engine"].assets
    bands = [assets[band.name][0].asset for band in product.bands]
    fill = np.nan if product.nodata is None else product.nodata
    grid = PixelGrid(32633, 500_040.0, 5_750_100.0, 20.0, 2, 2)
    source.pixels(scene.assets[0].href, bands, grid, fill=fill, method=product.warp or "nearest")
    image, _, version = scene.assets[0].href.removeprefix("ee://").partition("?version=")
    expected = call(
        "Image.select",
        input=call("Image.load", id=image, version=int(version)),
        bandSelectors=bands,
    )
    if product.warp == "bilinear":
        smooth = call("Image.resample", image=expected, mode="bilinear")
        expected = call("Image.unmask", input=smooth, value=expected, sameFootprint=False)
    value = -1e30 if product.nodata is None else int(product.nodata)
    expected = call(
        "Image.unmask",
        input=expected,
        value=call("Image.constant", value=value),
        sameFootprint=False,
    )
    kind, body = server.asked[-1]
    assert kind == "image:computePixels"
    assert unfolded(body["expression"]) == expected


@pytest.mark.parametrize("name", LEVEL_1)
def test_a_scene_s_coefficients_are_those_of_its_metadata_file(
    server: Any, name: str, call: Any, unfolded: Any
) -> None:
    product, scene = load_product(name), scenes(server, load_product(name))[0]
    source = EarthEnginePixels(load_provider("earth-engine", url=server.url))
    found = parse_mtl(source.document(scene.assets[0].href), "found")
    image, _, version = scene.assets[0].href.removeprefix("ee://").partition("?version=")
    loaded = call("Image.load", id=image, version=int(version))
    kind, body = server.asked[-1]
    assert kind == "value:compute"
    assert unfolded(body["expression"]) == call("Element.toDictionary", element=loaded)
    when = scene.acquired.strftime("%Y-%m-%dT%H:%M:%S")
    (item,) = (i for i in _items(server.folder) if _is(i, product, scene, when))
    text = (server.folder / item["assets"]["MTL.json"]["href"]).read_bytes()
    for band in product.bands:
        assert conversion(found, band.name) == conversion(parse_mtl(text, "file"), band.name)


def test_radar_images_are_chosen_by_their_orbit(server: Any) -> None:
    product = load_product("sentinel-1-grd-corrected")
    (scene, *_) = scenes(server, product)
    facts = json.loads(scene.facts)
    assert facts["orbit_direction"] == "descending"
    orbit = facts["relative_orbit"]
    provider = load_provider("earth-engine", url=server.url)
    for numbers, some in (((orbit, str(orbit)), True), ((orbit + 1, str(orbit + 1)), False)):
        query = Query(
            product.id,
            product.providers["earth-engine"].collection,
            only=(
                ("orbitProperties_pass", ("descending", "DESCENDING")),
                ("relativeOrbitNumber_start", numbers),
            ),
        )
        found = {item["id"] for item in EarthEngineCatalogue(provider, product).search(query)}
        assert (scene.item in found) is some


def described(server: Any, product: Product) -> tuple[dict[str, Any], str]:
    """Return an image of a map as the endpoint describes it, and the name of its band."""
    facts = product.providers["earth-engine"]
    image = next(i for c in facts.collection.split() for i in server.world.collections[c])
    (asset,) = (files[0].asset for files in facts.assets.values())
    return image.info(), asset


def read(info: dict[str, Any], product: Product, **properties: Any) -> Scene | Unusable:
    facts = product.providers["earth-engine"]
    info = {**info, "properties": {**info["properties"], **properties}}
    item = item_of(info, product, "earth-engine", facts.collection)
    return normalise(item, product, "earth-engine", None)


@pytest.mark.parametrize("name", MAPS)
def test_a_map_is_used_though_its_legend_has_a_class_that_is_not_known(
    server: Any, name: str
) -> None:
    product = load_product(name)
    info, asset = described(server, product)
    table = {key: info["properties"][f"{asset}_class_{key}"] for key in ("values", "names")}
    assert len(table["values"]) >= len(product.classes) - 1  # its own table, but for no data
    assert isinstance(read(info, product), Scene)
    more = {
        f"{asset}_class_values": [*table["values"], 253],
        f"{asset}_class_names": [*table["names"], "Tundra: where there is permafrost"],
    }
    assert isinstance(read(info, product, **more), Scene)


@pytest.mark.parametrize("name", MAPS)
def test_a_map_whose_codes_mean_other_classes_is_not_used(server: Any, name: str) -> None:
    product = load_product(name)
    info, asset = described(server, product)
    values = info["properties"][f"{asset}_class_values"]
    names = [*info["properties"][f"{asset}_class_names"]]
    first, second = len(names) // 3, len(names) // 2
    names[first], names[second] = names[second], names[first]
    row = read(info, product, **{f"{asset}_class_names": names})
    assert isinstance(row, Unusable)
    assert row.reason == "unreadable"
    assert f"class {values[first]} " in row.detail or f"class {values[second]} " in row.detail


def test_the_national_land_cover_s_legend_names_the_tundra_of_alaska(server: Any) -> None:
    """Google's releases list all twenty classes of the MRLC legend, for all years."""
    product = load_product("nlcd")
    info, asset = described(server, product)
    values = {int(code) for code in info["properties"][f"{asset}_class_values"]}
    assert {51, 72, 73, 74} < values
    assert values == {int(code) for code in product.classes} - {0}
    colours = info["properties"][f"{asset}_class_palette"]
    stated = zip(info["properties"][f"{asset}_class_values"], colours, strict=True)
    assert {str(v): f"#{colour}" for v, colour in stated} == {
        code: colour for code, colour in product.colours.items() if code != "0"
    }


def test_an_image_of_the_whole_globe_is_everywhere(server: Any) -> None:
    product = load_product("esa-worldcover")
    facts = product.providers["earth-engine"]
    info = server.world.collections["ESA/WorldCover/v200"][0].info()
    infinite = [["-Infinity", -60], ["Infinity", -60], ["Infinity", 84], ["-Infinity", 84]]
    for ring in ([[-180, -60], [180, -60], [180, 84], [-180, 84]], infinite):
        outline = {"type": "LinearRing", "coordinates": [*ring, ring[0]]}
        properties = {**info["properties"], "system:footprint": outline}
        item = item_of(
            {**info, "properties": properties}, product, "earth-engine", facts.collection
        )
        row = normalise(item, product, "earth-engine", None)
        assert isinstance(row, Scene), row
        assert shapely.from_wkb(row.geometry).equals(shapely.box(-180, -60, 180, 84))


@pytest.mark.parametrize("name", ON_A_LATTICE)
def test_a_product_s_pixels_are_those_of_the_archive(server: Any, name: str) -> None:
    product = load_product(name)
    scene = scenes(server, product)[0]
    source = EarthEnginePixels(load_provider("earth-engine", url=server.url))
    for band in product.bands if name in LEVEL_1 else product.bands[:3]:
        asset = product.providers["earth-engine"].assets[band.name][0].asset
        size = round((scene.x_max_m - scene.x_min_m - 2 * band.inset_m) / band.pixel_m)
        height = round((scene.y_max_m - scene.y_min_m - 2 * band.inset_m) / band.pixel_m)
        x_m, y_m = scene.x_min_m + band.inset_m, scene.y_max_m - band.inset_m
        grid = PixelGrid(scene.epsg, x_m, y_m, band.pixel_m, size, height)
        fill = 0.0 if product.nodata is None else product.nodata
        (found,) = source.pixels(scene.assets[0].href, [asset], grid, fill=fill)
        expected = delivered(server, scene, name, band.name)
        seen = expected != fill
        assert seen.any()
        np.testing.assert_array_equal(found[~seen], fill)
        np.testing.assert_allclose(found[seen], expected[seen], rtol=1e-12)


def delivered(server: Any, scene: Scene, name: str, band: str) -> Any:
    """Return the archive's own file of a band, in Earth Engine's numbers."""
    product = load_product(STANDS_FOR.get(name, name))
    asset = product.providers["simulated"].assets[band][0].asset
    when = scene.acquired.strftime("%Y-%m-%dT%H:%M:%S")
    for item in _items(server.folder):
        if asset in item["assets"] and _is(item, product, scene, when):
            with rasterio.open(server.folder / item["assets"][asset]["href"]) as file:
                numbers = file.read(1)
    if name.startswith("sentinel-2"):
        return np.where(numbers == 0, 0, np.maximum(numbers.astype(int) - 1000, 0))
    if name.startswith("sentinel-1"):
        return np.where(numbers == -32768, -32768, 10 * np.log10(np.abs(numbers.astype(float))))
    return numbers


def _is(item: dict[str, Any], product: Product, scene: Scene, when: str) -> bool:
    facts = product.providers["simulated"]
    transform = next(iter(item["assets"].values())).get("proj:transform") or [None] * 6
    corner = (transform[2], transform[5]) == (scene.x_min_m, scene.y_max_m)
    own = item["collection"] == facts.collection and f"/{product.id}/" in str(item["assets"])
    return corner and own and item["properties"]["datetime"].startswith(when)


def _items(folder: Path) -> list[dict[str, Any]]:
    providers = json.loads((folder / "archive.json").read_text())["providers"]
    shelves = [shelf for collections in providers.values() for shelf in collections.values()]
    return [item for shelf in shelves for item in shelf["items"]]

"""Every recorded answer of the three services: each item is a scene or says why it is none."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pystac_client import Client

from pipeline.products.catalogue import load_product, product_ids
from pipeline.products.model import Product
from pipeline.records import Scene, Unusable
from pipeline.stages.search.normalise import normalise

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "stac"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="real data (../shared/data) not here")

SERVICES = ("dlr", "earth-search", "planetary-computer")
#: (service, product) to what became of the items of its collection.
COUNTS = {
    ("dlr", "enmap-l2a"): {"scene": 47},
    ("earth-search", "sentinel-2-l2a"): {"scene": 19},
    ("earth-search", "sentinel-2-l1c"): {"scene": 12},
    ("earth-search", "sentinel-1-grd"): {"scene": 10, "no-assets": 3, "other-product": 1},
    ("earth-search", "landsat-oli-sr"): {"scene": 1, "other-product": 10},
    ("planetary-computer", "sentinel-2-l2a"): {"scene": 3},
    ("planetary-computer", "sentinel-1-grd"): {"no-geometry": 1},
    ("planetary-computer", "sentinel-1-rtc"): {"scene": 1},
    ("planetary-computer", "landsat-oli-sr"): {"scene": 8, "other-product": 3},
}


def answers(service: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted((DATA / service).glob("*.json")):
        yield path.stem, json.loads(path.read_text())["response"]


def items(service: str) -> Iterator[dict[str, Any]]:
    for _, answer in answers(service):
        yield from answer.get("features", [answer] if answer.get("type") == "Feature" else [])


def outcomes(service: str, product: Product) -> Counter[str]:
    """Count what becomes of the items of the product's own collection."""
    found: Counter[str] = Counter()
    for item in items(service):
        row = normalise(item, product, service, None)
        if isinstance(row, Unusable) and row.reason == "other-collection":
            assert item["collection"] != product.providers[service].collection
            continue
        found[row.reason if isinstance(row, Unusable) else "scene"] += 1
    return found


def everywhere(product: Product, service: str, collection: str) -> Product:
    """Return a product that takes that service's collection for its own."""
    facts = next(iter(product.providers.values()))
    facts = product.providers.get(service, facts).model_copy(update={"collection": collection})
    return product.model_copy(update={"providers": {**product.providers, service: facts}})


@pytest.mark.parametrize(("service", "product"), COUNTS)
def test_the_items_of_a_served_collection_are_counted(service: str, product: str) -> None:
    assert outcomes(service, load_product(product)) == COUNTS[service, product]


@pytest.mark.parametrize("service", SERVICES)
def test_no_recorded_item_breaks_any_product(service: str) -> None:
    """Each item is read as if each product's, so that what no product expects is met as well."""
    products = [load_product(name) for name in product_ids()]
    recorded = {"dlr": 104, "earth-search": 80, "planetary-computer": 46}
    read = 0
    for item in items(service):
        read += 1
        for product in products:
            row = normalise(item, everywhere(product, service, item["collection"]), service, None)
            assert isinstance(row, Scene | Unusable)
            if isinstance(row, Unusable):
                assert row.reason
                assert row.reason != "other-collection"
    assert read == recorded[service]


@pytest.mark.parametrize(
    ("service", "product", "name"),
    [
        ("earth-search", "sentinel-1-grd", "S1A_06C567/16"),
        ("planetary-computer", "sentinel-1-rtc", "S1A_073302/30"),
    ],
)
def test_sentinel_1_is_known_by_satellite_and_data_take(
    service: str, product: str, name: str
) -> None:
    """The number of a data take is of its satellite alone: S1B has the same ones."""
    facts = load_product(product)
    rows = [(item, normalise(item, facts, service, None)) for item in items(service)]
    of_scene = {row.scene: item for item, row in rows if isinstance(row, Scene)}
    item = of_scene[f"{product}/{name}"]
    row = normalise({**item, "id": item["id"].replace("S1A", "S1B")}, facts, service, None)
    assert isinstance(row, Scene)
    assert row.scene == f"{product}/{name}".replace("S1A", "S1B")
    assert int(name[4:10], 16) == int(item["properties"]["s1:datatake_id"])


def test_what_a_recipe_requires_of_recorded_scenes() -> None:
    """DLR writes the quality as text; half of its recorded scenes are of low quality."""
    enmap = load_product("enmap-l2a")
    found = Counter(
        row.reason if isinstance(row, Unusable) else row.facts[:11]
        for item in items("dlr")
        if item["collection"] == "ENMAP_HSI_L2A"
        for row in [normalise(item, enmap, "dlr", None, require={"quality": (0, 1)})]
    )
    assert found == {"not-as-required": 23, '{"cirrus_pe': 24}


def test_the_orbit_of_recorded_radar_scenes_is_known() -> None:
    product = load_product("sentinel-1-grd")
    rows = [normalise(item, product, "earth-search", None) for item in items("earth-search")]
    stated = Counter(row.facts for row in rows if isinstance(row, Scene))
    assert stated == {'{"orbit_direction":"descending","relative_orbit":125}': 10}


def test_items_without_assets_or_geometry_are_named() -> None:
    """A `fields` search: the keys are missing, not empty."""
    sentinel = load_product("sentinel-2-l2a")
    collection = "sentinel-2-c1-l2a"
    bare = [item for item in items("earth-search") if "assets" not in item]
    assert len(bare) == 10
    product = everywhere(sentinel, "earth-search", collection)
    rows = [normalise(item, product, "earth-search", None) for item in bare]
    assert {getattr(row, "reason", None) for row in rows} == {"no-geometry"}


def test_stac_1_1_words_are_read_like_those_of_1_0() -> None:
    """STAC 1.1 has `proj:code` for `proj:epsg` and `bands` for `eo:bands`."""
    sentinel = load_product("sentinel-2-l2a")
    old = next(i for i in items("planetary-computer") if i["collection"] == "sentinel-2-l2a")
    new = json.loads(json.dumps(old))
    new["stac_version"] = "1.1.0"
    new["properties"]["proj:code"] = f"EPSG:{new['properties'].pop('proj:epsg')}"
    for asset in new["assets"].values():
        asset["bands"] = asset.pop("eo:bands", [])
    assert normalise(new, sentinel, "planetary-computer", None) == normalise(
        old, sentinel, "planetary-computer", None
    )


def test_a_table_of_other_bands_is_found_under_its_name_of_stac_1_1() -> None:
    enmap = load_product("enmap-l2a")
    item = next(i for i in items("dlr") if i["collection"] == "ENMAP_HSI_L2A")
    image = item["assets"]["image"]
    bands = image.pop("eo:bands")
    image["bands"] = [{"eo:center_wavelength": row["center_wavelength"]} for row in bands]
    assert isinstance(normalise(item, enmap, "dlr", None), Scene)
    image["bands"] = image["bands"][:218]
    row = normalise(item, enmap, "dlr", None, bands=[band.name for band in enmap.bands])
    assert isinstance(row, Unusable)
    assert row.reason == "other-bands"


@pytest.mark.parametrize("value", ["12.5", 12.5])
def test_the_old_word_for_cloud_cover_is_read(value: Any) -> None:
    """The legacy Copernicus catalogue says `cloudCover`."""
    sentinel = load_product("sentinel-2-l2a")
    item = next(i for i in items("planetary-computer") if i["collection"] == "sentinel-2-l2a")
    del item["properties"]["eo:cloud_cover"]
    item["properties"]["cloudCover"] = value
    row = normalise(item, sentinel, "planetary-computer", None)
    assert isinstance(row, Scene)
    assert row.cloud_percent == 12.5


@pytest.mark.parametrize("service", SERVICES)
def test_landing_pages_open_and_name_their_search(service: str) -> None:
    (page,) = [answer for name, answer in answers(service) if name == "landing-page"]
    client = Client.from_dict(page)
    assert any(link.rel == "search" for link in client.links)


def test_the_sun_stands_where_the_catalogues_say() -> None:
    """Without their word it is worked out, for the middle of what was seen of a tile of 110 km."""
    compared = 0
    for service, name in COUNTS:
        product = load_product(name)
        for item in items(service):
            stated = normalise(item, product, service, None)
            if isinstance(stated, Unusable) or stated.sun_elevation_deg is None:
                continue
            properties = {k: v for k, v in item["properties"].items() if "sun" not in k.lower()}
            properties = {k: v for k, v in properties.items() if "solar" not in k}
            worked = normalise({**item, "properties": properties}, product, service, None)
            assert isinstance(worked, Scene)
            assert worked.sun_elevation_deg == pytest.approx(stated.sun_elevation_deg, abs=1.5)
            compared += 1
    assert compared >= 69

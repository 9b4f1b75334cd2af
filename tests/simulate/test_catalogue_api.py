"""The searches: what standard clients and our own source get out of each provider's habits."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import pystac_client
import pytest

from pipeline.ports import Query
from pipeline.products.catalogue import load_product
from pipeline.recipe import LoadedRecipe, Recipe
from pipeline.records import Scene
from pipeline.simulate.archive import make_archive
from pipeline.simulate.service.faults import Faults
from pipeline.simulate.service.server import ArchiveServer
from pipeline.sources.providers import load_provider
from pipeline.sources.stac.catalogue import search_items
from pipeline.stages.search.normalise import normalise
from pipeline.stages.search.questions import queries

SHELVES = [
    ("dlr", "ENMAP_HSI_L2A"),
    ("planetary-computer", "sentinel-2-l2a"),
    ("labels", "simulated-labels"),
]
REGION = [15.02, 51.9, 15.045, 51.915]


def stored(archive: Path, provider: str, collection: str) -> list[dict[str, Any]]:
    providers = json.loads((archive / "archive.json").read_text())["providers"]
    return list(providers[provider][collection]["items"])


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(("provider", "collection"), SHELVES)
def test_pystac_client_finds_every_item_once(
    archive: Path, server: ArchiveServer, provider: str, collection: str, method: str
) -> None:
    client = pystac_client.Client.open(f"{server.url}/{provider}")
    assert [c.id for c in client.get_collections()] == [collection]
    search = client.search(method=method, collections=[collection], bbox=REGION, limit=3)
    found = [item["id"] for item in search.items_as_dicts()]
    expected = {item["id"] for item in stored(archive, provider, collection)}
    assert len(found) == len(set(found))
    assert set(found) == expected


@pytest.mark.parametrize(("provider", "collection"), SHELVES[:2])
def test_time_and_place_select(
    archive: Path, server: ArchiveServer, provider: str, collection: str
) -> None:
    client = pystac_client.Client.open(f"{server.url}/{provider}")
    april = client.search(collections=[collection], datetime="2023-04-01/2023-04-30")
    items = list(april.items_as_dicts())
    assert items
    assert all(item["properties"]["datetime"][:7] == "2023-04" for item in items)
    nowhere = client.search(collections=[collection], bbox=[0, 0, 1, 1])
    assert list(nowhere.items_as_dicts()) == []
    nothing = client.search(collections=["other"])
    assert list(nothing.items_as_dicts()) == []


def test_dlr_expects_the_client_to_merge(server: ArchiveServer) -> None:
    body = {"collections": ["ENMAP_HSI_L2A"], "limit": 2, "bbox": REGION}
    page = httpx.post(f"{server.url}/dlr/search", json=body).json()
    (link,) = [link for link in page["links"] if link["rel"] == "next"]
    assert link["body"] == {"startIndex": 2, "limit": 2}
    assert link["merge"] is True
    assert page["numberReturned"] == 2 < page["numberMatched"]


def test_the_planetary_computer_pages_by_token(server: ArchiveServer) -> None:
    body = {"collections": ["sentinel-2-l2a"], "limit": 2, "bbox": REGION}
    page = httpx.post(f"{server.url}/planetary-computer/search", json=body).json()
    (link,) = [link for link in page["links"] if link["rel"] == "next"]
    assert "merge" not in link
    assert "numberMatched" not in page
    assert {**link["body"], "token": ""} == {**body, "token": ""}
    assert link["body"]["token"].startswith("next:sentinel-2-l2a:")


def test_items_have_the_names_and_types_of_the_recorded_ones(archive: Path) -> None:
    """Every property and asset of ours is one of the real item, with a value of its type."""
    data = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "stac"
    if not data.is_dir():
        pytest.skip("../shared/data is not there: no recorded items to compare with")
    real_files = {
        "dlr": "dlr/item_enmap-l2a_DT0000084632.json",
        "planetary-computer": "planetary-computer/item_s2-l2a_2020.json",
    }
    for provider, collection in SHELVES[:2]:
        real = json.loads((data / real_files[provider]).read_text())["response"]
        for item in stored(archive, provider, collection):
            assert set(item) == set(real)
            assert set(item["assets"]) <= set(real["assets"])
            for key, value in item["properties"].items():
                assert type(value) is type(real["properties"][key]), key


@pytest.mark.parametrize(("provider", "collection"), SHELVES)
def test_repeated_and_reordered_pages_hide_nothing_from_our_source(
    archive: Path, provider: str, collection: str
) -> None:
    faults = Faults(rate=0.6, seed=5, kinds=("duplicated-page", "reordered-page"))
    query = Query("x", collection, tuple(REGION), None, None)
    with ArchiveServer(archive, faults=faults) as server:
        url = f"{server.url}/{provider}"
        simulated = load_provider("simulated", url=url).model_copy(update={"page_size": 2})
        found = [item["id"] for item in search_items(simulated, query)]
    expected = [item["id"] for item in stored(archive, provider, collection)]
    assert sorted(found) == sorted(expected)


def test_items_lie_where_they_are_told_to(archive: Path) -> None:
    (first, second, *_) = stored(archive, "dlr", "ENMAP_HSI_L2A")
    faults = Faults(items={first["id"]: "footprint", second["id"]: "missing-asset"})
    with ArchiveServer(archive, faults=faults) as server:
        home = f"{server.url}/dlr/collections/ENMAP_HSI_L2A/items"
        lying, short = (httpx.get(f"{home}/{i['id']}").json() for i in (first, second))
    width = first["bbox"][2] - first["bbox"][0]
    assert lying["bbox"][0] == pytest.approx(first["bbox"][0] + width / 2)
    assert [*short["assets"]] == [*second["assets"]][1:]


def test_some_enmap_items_lack_their_crs(archive: Path) -> None:
    items = stored(archive, "dlr", "ENMAP_HSI_L2A")
    codes = [item["assets"]["image"]["proj:epsg"] for item in items]
    assert all(item["properties"]["proj:epsg"] is None for item in items)
    assert set(codes) <= {32633, None}
    assert codes.count(None) < len(codes) / 2


def test_hrefs_lead_to_the_files(server: ArchiveServer) -> None:
    page = httpx.get(f"{server.url}/labels/search?collections=simulated-labels").json()
    href = page["features"][0]["assets"]["labels"]["href"]
    assert httpx.get(href, headers={"Range": "bytes=0-1"}).content == b"II"


@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=x", "bbox=1,2", "bbox=a,b,c,d", "datetime=yesterday"),
        *("token=next:a:b", "intersects={", 'intersects={"type":"Blob"}', "intersects=[1]"),
    ],
)
def test_senseless_searches_are_refused(server: ArchiveServer, query: str) -> None:
    assert httpx.get(f"{server.url}/planetary-computer/search?{query}").status_code == 400


def test_a_filter_brings_fewer_items_and_loses_none_that_is_wanted(
    tmp_path: Path, orbits: dict[str, Any]
) -> None:
    """Three Landsats in one collection, as at the Planetary Computer: each product gets its own."""
    products = ["landsat-etm-sr", "landsat-oli-sr"]
    make_archive(
        tmp_path / "archive",
        products=products,
        region=(15.02, 51.9, 15.03, 51.905),
        start=date(2002, 4, 1),
        end=date(2002, 6, 1),
        orbits=orbits,
    )
    with ArchiveServer(tmp_path / "archive") as server:
        simulated = load_provider("simulated", url=f"{server.url}/planetary-computer")
        for key in products:
            (asked, *_) = queries(wanting(key), key, None)
            plain = replace(asked, only=())
            few, many = (list(search_items(simulated, query)) for query in (asked, plain))
            product = load_product(key)
            rows = [normalise(item, product, "simulated", asked) for item in many]
            wanted = {row.item for row in rows if isinstance(row, Scene)}
            assert wanted == {item["id"] for item in few}
            assert 0 < len(few) < len(many)


def wanting(product: str) -> LoadedRecipe:
    values = {
        "name": "x",
        "sample": {"strategy": "scenes", "product": product, "region": (15, 51, 16, 52)},
        "cell": {"lattice": "landsat30", "size_px": 16},
        "slots": {"kind": "all", "start": date(2002, 4, 1), "end": date(2002, 5, 1)},
        "product": [{"id": product, "provider": "simulated", "url": "http://127.0.0.1:1"}],
    }
    return LoadedRecipe(Recipe.model_validate(values), Path())


@pytest.mark.parametrize("query", ["[1]", '{"a": 1}', '{"a": {"like": "b"}}', '{"a": {"in": 1}}'])
def test_filters_that_make_no_sense_are_refused(server: ArchiveServer, query: str) -> None:
    url = f"{server.url}/planetary-computer/search"
    assert httpx.get(url, params={"query": query}).status_code == 400

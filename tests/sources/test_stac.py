"""Catalogues: real answers replayed on loopback with their ways of paging, and static ones."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pystac
import pytest

from pipeline.errors import GiveUp, TerrashardError, TryAgain
from pipeline.ports import Query
from pipeline.products.catalogue import load_product
from pipeline.records import Unusable
from pipeline.sources.providers import Provider, load_provider
from pipeline.sources.stac import io as stac_io
from pipeline.sources.stac.catalogue import Catalogue, search_items
from pipeline.stages.search.normalise import normalise

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="real data (../shared/data) not here")

#: Answers one request: (method, path with query, body) to (status, headers, document or bytes).
Handler = Callable[[str, str, Any], tuple[int, dict[str, str], Any]]


class Service:
    """A catalogue on loopback that notes what it is asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[tuple[str, str, Any]] = []


@contextmanager
def serving(handler: Callable[[Service], Handler]) -> Iterator[Service]:
    class Http(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            service.asked.append((self.command, self.path, body))
            status, headers, document = handle(self.command, self.path, body)
            data = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            self.close_connection = "Content-Length" in headers

        do_GET = do_POST = answer

        def log_message(self, format: str, *args: Any) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Http)
    server.daemon_threads = True
    service = Service(f"http://127.0.0.1:{server.server_port}")
    handle = handler(service)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def at(service: Service, **changes: Any) -> Provider:
    return load_provider("simulated", url=service.url).model_copy(update=changes)


@pytest.fixture(autouse=True)
def no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stac_io, "FIRST_PAUSE_S", 0.01)


def landing(
    service: Service, *, methods: tuple[str, ...] = ("GET", "POST"), filters: bool = False
) -> dict[str, Any]:
    search = [
        {
            "rel": "search",
            "href": f"{service.url}/search",
            "type": "application/geo+json",
            "method": method,
        }
        for method in methods
    ]
    return {
        "type": "Catalog",
        "id": "test",
        "description": "A catalogue on loopback",
        "stac_version": "1.0.0",
        "conformsTo": [
            "https://api.stacspec.org/v1.0.0/core",
            *(["https://api.stacspec.org/v1.0.0/item-search#query"] if filters else []),
        ],
        "links": [{"rel": "root", "href": service.url}, *search],
    }


def page(names: list[str], *links: dict[str, Any]) -> dict[str, Any]:
    items = [{"id": name, "collection": "c", "properties": {}} for name in names]
    return {"type": "FeatureCollection", "features": items, "links": list(links)}


QUERY = Query(
    "sentinel-2-l2a",
    "c",
    (9.0, 47.0, 10.0, 48.0),
    datetime(2020, 3, 1, tzinfo=UTC),
    datetime(2020, 3, 6, tzinfo=UTC),
)


def ask_once(provider: Provider) -> None:
    with Catalogue(provider, attempts=1) as catalogue:
        list(catalogue.search(QUERY))


def ids(items: Iterator[dict[str, Any]]) -> list[str]:
    return [item["id"] for item in items]


def searching(
    pages: Callable[[Service, Any], Any], *, filters: bool = False
) -> Callable[[Service], Handler]:
    """Make a service whose landing page is fixed and whose searches `pages` answers."""

    def handler(service: Service) -> Handler:
        def handle(method: str, path: str, body: Any) -> tuple[int, dict[str, str], Any]:
            if path == "/":
                return 200, {}, landing(service, filters=filters)
            if path == "/collections":
                return 200, {}, {"collections": [{"id": "c"}, {"id": "d"}], "links": []}
            answer = pages(service, body)
            return answer if isinstance(answer, tuple) else (200, {}, answer)

        return handle

    return handler


# --- paging --------------------------------------------------------------------------------------


def test_a_next_body_to_be_merged_keeps_the_request() -> None:
    """DLR's way: the next body holds `startIndex` and `limit` alone, with `merge: true`."""
    everything = [f"i{k}" for k in range(45)]

    def pages(service: Service, body: Any) -> dict[str, Any]:
        start, limit = body.get("startIndex", 0), min(body.get("limit", 20), 20)
        link = {
            "rel": "next",
            "method": "POST",
            "merge": True,
            "href": f"{service.url}/search",
            "body": {"startIndex": start + limit, "limit": limit},
        }
        more = start + limit < len(everything)
        return page(everything[start : start + limit], *([link] if more else []))

    with serving(searching(pages)) as service:
        with Catalogue(at(service)) as catalogue:
            assert ids(catalogue.search(QUERY)) == everything
            assert catalogue.requests == 4
            assert ids(catalogue.search(QUERY)) == everything
            assert catalogue.requests == 7, "the landing page is read once"
        bodies = [body for method, _, body in service.asked if method == "POST"]
        assert len(bodies) == 6
        for body in bodies:
            assert body["collections"] == ["c"]
            assert body["bbox"] == [9.0, 47.0, 10.0, 48.0]
            assert body["datetime"].startswith("2020-03-01T00:00:00")


def test_tokens_in_whole_bodies_and_addresses() -> None:
    """The Planetary Computer's way for POST, and any API's for GET."""

    def pages(service: Service, body: Any) -> dict[str, Any]:
        token = body.get("token", 0)
        link = {
            "rel": "next",
            "method": "POST",
            "href": f"{service.url}/search",
            "body": {"limit": body["limit"], "token": token + 1},
        }
        return page([f"i{token}"], *([link] if token < 2 else []))

    with serving(searching(pages)) as service:
        assert ids(search_items(at(service), QUERY)) == ["i0", "i1", "i2"]

    def handler(service: Service) -> Handler:
        def handle(method: str, path: str, body: Any) -> tuple[int, dict[str, str], Any]:
            if path == "/":
                return 200, {}, landing(service, methods=("GET",))
            number = int(path.partition("token=")[2] or 0)
            link = {"rel": "next", "href": f"{service.url}/search?token={number + 1}"}
            return 200, {}, page([f"i{number}"], *([link] if number < 2 else []))

        return handle

    with serving(handler) as service:
        assert ids(search_items(at(service), QUERY)) == ["i0", "i1", "i2"]
        assert all(method == "GET" for method, _, _ in service.asked)


def test_an_empty_last_page_ends_it_and_pages_in_a_circle_do_too() -> None:
    def next_link(service: Service, number: int) -> dict[str, Any]:
        return {
            "rel": "next",
            "method": "POST",
            "merge": False,
            "href": f"{service.url}/search",
            "body": {"next": number},
        }

    def empty(service: Service, body: Any) -> dict[str, Any]:
        number = body.get("next", 0)
        return page([f"i{number}"] if number < 2 else [], next_link(service, number + 1))

    with serving(searching(empty)) as service:
        assert ids(search_items(at(service), QUERY)) == ["i0", "i1"]

    def circle(service: Service, body: Any) -> dict[str, Any]:
        number = body.get("next", 0) % 3
        return page([f"i{number}"], next_link(service, number + 1))

    with serving(searching(circle)) as service:
        assert ids(search_items(at(service), QUERY)) == ["i0", "i1", "i2"]
        assert len(service.asked) <= 10


# --- filters -------------------------------------------------------------------------------------

FILTER = {"platform": {"in": ["landsat-8", "landsat-9"]}, "eo:cloud_cover": {"lte": 40.0}}
FILTERED = replace(
    QUERY,
    only=(("platform", ("landsat-8", "landsat-9")),),
    at_most=(("eo:cloud_cover", 40.0),),
)


def filters_asked(service: Service) -> list[Any]:
    return [body.get("query") for method, _, body in service.asked if method == "POST"]


def test_a_catalogue_that_can_filter_does_and_no_other_is_asked_to() -> None:
    for filters, asked in ((True, FILTER), (False, None)):
        with serving(searching(lambda *_: page(["i0"]), filters=filters)) as service:
            assert ids(search_items(at(service), FILTERED)) == ["i0"]
            assert filters_asked(service) == [asked]


def test_a_refused_filter_is_left_out() -> None:
    def pages(service: Service, body: Any) -> Any:
        return (400, {}, {"description": "no `in`"}) if "query" in body else page(["i0"])

    with serving(searching(pages, filters=True)) as service:
        with Catalogue(at(service)) as catalogue:
            assert ids(catalogue.search(FILTERED)) == ["i0"]
            assert ids(catalogue.search(FILTERED)) == ["i0"]
        assert filters_asked(service) == [FILTER, None, None]


@pytest.mark.parametrize("known", [True, False])
def test_words_that_the_catalogue_does_not_know_hide_nothing(known: bool) -> None:
    """Nothing comes with the filter; without it, items show whether they have such words."""

    def pages(service: Service, body: Any) -> dict[str, Any]:
        answer = page([] if "query" in body else ["i0"])
        if known and answer["features"]:
            answer["features"][0]["properties"] = {"platform": "landsat-7", "eo:cloud_cover": 1}
        return answer

    with serving(searching(pages, filters=True)) as service:
        with Catalogue(at(service)) as catalogue:
            assert ids(catalogue.search(FILTERED)) == ["i0"]
            assert ids(catalogue.search(FILTERED)) == ([] if known else ["i0"])
        assert filters_asked(service) == [FILTER, None, FILTER if known else None]


def test_a_collection_that_is_not_there_is_named() -> None:
    with serving(searching(lambda *_: page([]))) as service:
        assert ids(search_items(at(service), QUERY)) == []
        with pytest.raises(GiveUp, match="no collection 'e'; it has: c, d") as error:
            list(search_items(at(service), replace(QUERY, collection="e")))
        assert error.value.failure == "gone"


# --- recorded services ---------------------------------------------------------------------------


def replaying(folder: str, host: str, names: list[str]) -> Callable[[Service], Handler]:
    """Answer with what a real service answered, addresses turned to loopback.

    The first page goes to any body without a continuation; every later page only to its own body.
    """
    texts = [(DATA / "stac" / folder / f"{name}.json").read_text() for name in names]

    def handler(service: Service) -> Handler:
        recordings = [json.loads(text.replace(host, service.url)) for text in texts]

        def handle(method: str, path: str, body: Any) -> tuple[int, dict[str, str], Any]:
            if method == "GET":
                return 200, {}, landing(service)
            for recording in recordings[1:]:
                wanted = json.loads(recording["_recorded"]["request_body"])
                if wanted.get("next") == body.get("next") and "next" in body:
                    return 200, {}, recording["response"]
            return 200, {}, recordings[0]["response"]

        return handle

    return handler


@needs_data
def test_earth_search_s_pages_end_with_an_empty_one() -> None:
    names = [f"search-post_s2-l2a_2020-03_page{end}" for end in ("1", "2", "3-empty")]
    query = Query("sentinel-2-l2a", "sentinel-2-l2a", QUERY.bbox, QUERY.start, QUERY.end)
    handler = replaying("earth-search", "https://earth-search.aws.element84.com/v1", names)
    with serving(handler) as service:
        items = list(search_items(at(service), query))
        assert len({item["id"] for item in items}) == len(items) == 16
        assert len([a for a in service.asked if a[0] == "POST"]) == 3
    product = load_product("sentinel-2-l2a")
    rows = [normalise(item, product, "earth-search", query) for item in items]
    assert not [row for row in rows if isinstance(row, Unusable)]


@needs_data
def test_a_filter_that_was_ignored_is_found_item_by_item() -> None:
    names = ["search-post_cql2-filter-ignored_page1", "search-post_query-no-match"]
    query = Query("sentinel-2-l2a", "sentinel-2-l2a", (-70.0, -80.0, 0.0, 30.0))
    handler = replaying("earth-search", "https://earth-search.aws.element84.com/v1", names)
    with serving(handler) as service:
        items = list(search_items(at(service), query))
    product = load_product("sentinel-2-l2a")
    rows = [normalise(item, product, "earth-search", query) for item in items]
    reasons = [row.reason if isinstance(row, Unusable) else "scene" for row in rows]
    assert sorted(reasons) == ["other-collection"] * 8 + ["scene"] * 2


@needs_data
def test_dlr_s_items_come_as_they_are() -> None:
    handler = replaying(
        "dlr",
        "https://geoservice.dlr.de/eoc/ogc/stac/v1",
        ["search-post_mixed_2025-07-06_page1"],
    )
    with serving(handler) as service:
        items = list(search_items(at(service), Query("enmap-l2a", "ENMAP_HSI_L2A")))
        assert len(items) == 20
        bodies = [body for method, _, body in service.asked if method == "POST"]
        assert bodies[-1]["startIndex"] == 20
        assert bodies[-1]["collections"] == ["ENMAP_HSI_L2A"], "merged with the first body"


def test_the_wanted_one_of_an_asset_s_addresses_is_read() -> None:
    """USGS: files are behind a login page, and in a bucket beside that."""
    alternate = {"s3": {"href": "s3://usgs-landsat/B2.TIF"}}
    assets = {
        "blue": {"href": "https://landsatlook.usgs.gov/B2.TIF", "alternate": alternate},
        "odd": {"href": "https://landsatlook.usgs.gov/B3.TIF", "alternate": ["s3"]},
        "bare": "B4.TIF",
    }

    def pages(service: Service, body: Any) -> dict[str, Any]:
        answer = page(["i0", "i1"])
        answer["features"][0]["assets"] = assets
        return answer

    with serving(searching(pages)) as service:
        first, second = search_items(at(service, alternate="s3"), QUERY)
    assert first["assets"]["blue"]["href"] == "s3://usgs-landsat/B2.TIF"
    assert first["assets"]["odd"] == assets["odd"]
    assert first["assets"]["bare"] == "B4.TIF"
    assert second["assets"] == {}


# --- what goes wrong -----------------------------------------------------------------------------


def failing(status: int, headers: dict[str, str], times: int) -> Callable[[Service], Handler]:
    def handler(service: Service) -> Handler:
        left = [times]

        def handle(method: str, path: str, body: Any) -> tuple[int, dict[str, str], Any]:
            if path == "/":
                return 200, {}, landing(service)
            if left[0] > 0:
                left[0] -= 1
                return status, headers, {"code": "no", "description": "sorry"}
            return 200, {}, page(["i0"])

        return handle

    return handler


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_passing_failures_are_tried_again(status: int) -> None:
    with serving(failing(status, {}, times=1)) as service:
        assert ids(search_items(at(service), QUERY)) == ["i0"]


def test_retry_after_is_obeyed() -> None:
    with serving(failing(429, {"Retry-After": "1"}, times=1)) as service:
        began = time.monotonic()
        assert ids(search_items(at(service), QUERY)) == ["i0"]
        assert time.monotonic() - began >= 1


@pytest.mark.parametrize(
    ("status", "kind", "failure"),
    [
        (429, TryAgain, "throttled"),
        (503, TryAgain, "server-error"),
        (400, GiveUp, "refused"),
        (401, GiveUp, "forbidden"),
        (403, GiveUp, "forbidden"),
        (404, GiveUp, "gone"),
    ],
)
def test_failures_have_a_class(status: int, kind: type[TryAgain | GiveUp], failure: str) -> None:
    with serving(failing(status, {}, times=99)) as service, pytest.raises(kind) as error:
        ask_once(at(service))
    assert error.value.failure == failure


TWO_PAGES = [page(["i0", "i1"]), page(["i2"])]
BROKEN = {
    "half": (200, {"Content-Length": "900"}, b'{"type": "FeatureCollection", "feat'),
    "no-json": (200, {}, b'{"type": "FeatureCollection", "features": [{"id": "i9"}'),
    "web-page": (200, {"Content-Type": "text/html"}, b"<!DOCTYPE html><html>Log in</html>"),
    "no-text": (200, {}, b"\xff\xfe\x00"),
    "no-gzip": (200, {"Content-Encoding": "gzip"}, b"plain"),
}


def breaking(kind: str, *, times: int) -> Callable[[Service], Handler]:
    """Break the second page so often."""
    left = [times]

    def pages(service: Service, body: Any) -> Any:
        if "next" not in body:
            link = {
                "rel": "next",
                "method": "POST",
                "href": f"{service.url}/search?sig=secret",
                "body": {"next": 1},
            }
            return {**TWO_PAGES[0], "links": [link]}
        left[0] -= 1
        return BROKEN[kind] if left[0] >= 0 else TWO_PAGES[1]

    return searching(pages)


@pytest.mark.parametrize("kind", sorted(BROKEN))
def test_a_broken_page_is_asked_for_again_and_leaves_nothing(kind: str) -> None:
    with serving(breaking(kind, times=2)) as service:
        assert ids(search_items(at(service), QUERY)) == ["i0", "i1", "i2"]
        assert len(service.asked) == 1 + 1 + 3


@pytest.mark.parametrize(
    ("kind", "expected", "failure"),
    [
        ("half", TryAgain, "short-read"),
        ("no-json", GiveUp, "corrupt"),
        ("web-page", GiveUp, "corrupt"),
    ],
)
def test_a_page_that_stays_broken_is_named(
    kind: str, expected: type[TryAgain | GiveUp], failure: str
) -> None:
    with serving(breaking(kind, times=99)) as service:
        with pytest.raises(expected) as error:
            list(search_items(at(service), QUERY))
        assert len(service.asked) == 1 + 1 + 5
    text = str(error.value)
    assert error.value.failure == failure
    assert f"provider simulated: page 2 of a search at {service.url}/search" in text
    assert "5 times" in text
    assert "secret" not in text


@pytest.mark.parametrize(
    "answer",
    [
        b"<!DOCTYPE html><html>Please log in</html>",
        b"[]",
        b'{"code": 500, "description": "sorry"}',
        b'{"features": "many"}',
        b'{"features": [1, 2]}',
        b'{"features": [{}]}',
        b'{"features": [{"id": "a"}], "links": [{"rel": "next"}]}',
        b'{"features": [{"id": "a"}], "links": [{"href": "x"}]}',
    ],
)
def test_answers_that_are_not_stac_end_it_without_a_crash(answer: bytes) -> None:
    def handler(service: Service) -> Handler:
        def handle(method: str, path: str, body: Any) -> tuple[int, dict[str, str], Any]:
            return 200, {}, landing(service) if path == "/" else answer

        return handle

    with serving(handler) as service, pytest.raises(GiveUp) as error:
        list(search_items(at(service), QUERY))
    assert error.value.failure == "corrupt"


@pytest.mark.parametrize(
    ("status", "answer", "cure"),
    [
        (200, b"<!DOCTYPE html><html>Please log in</html>", "a login page, or `url`"),
        (200, b'{"hello": 1}', "is `url` in the recipe the root of a STAC API?"),
        (200, b"[]", "is `url` in the recipe the root of a STAC API?"),
        (401, b"{}", "it wants a login"),
        (403, b"{}", "it refuses this address or this machine"),
        (404, b"{}", "is `url` in the recipe the root of a STAC API?"),
        (503, b"{}", "try again later"),
        (400, b'{"description": "no"}', 'It said: {"description": "no"}'),
    ],
)
def test_messages_name_provider_and_address_and_what_to_do(
    status: int, answer: bytes, cure: str
) -> None:
    def handler(service: Service) -> Handler:
        return lambda *_: (status, {}, answer)

    with serving(handler) as service:
        provider = at(service).model_copy(update={"url": f"{service.url}/api?key=secret"})
        with pytest.raises(TerrashardError) as error:
            ask_once(provider)
        text = str(error.value)
        assert text.startswith("provider simulated: ")
        assert f"{service.url}/api" in text
        assert cure in text
        assert "secret" not in text
        assert "\n" not in text


@pytest.mark.parametrize("elsewhere", ["http://127.0.0.1:9/search", "file:///etc/passwd"])
def test_a_catalogue_that_leads_to_another_host_is_not_followed(elsewhere: str) -> None:
    def pages(service: Service, body: Any) -> dict[str, Any]:
        link = {"rel": "next", "method": "POST", "href": elsewhere, "body": {}}
        return page(["i0"], link)

    with serving(searching(pages)) as service, pytest.raises(GiveUp) as error:
        list(search_items(at(service), QUERY))
    assert error.value.failure == "refused"


def test_a_redirect_to_another_host_is_not_followed() -> None:
    handler = failing(307, {"Location": "http://127.0.0.1:9/search"}, times=99)
    with serving(handler) as service, pytest.raises(GiveUp) as error:
        list(search_items(at(service), QUERY))
    assert error.value.failure == "refused"


def test_nobody_there_and_too_slow_are_told_apart() -> None:
    with serving(searching(lambda *_: page([]))) as service:
        gone = at(service)
    with pytest.raises(TryAgain) as error:
        ask_once(gone)
    assert error.value.failure == "connection"

    def slow(service: Service, body: Any) -> dict[str, Any]:
        time.sleep(0.6)
        return page(["i0"])

    with serving(searching(slow)) as service, pytest.raises(TryAgain) as error:
        ask_once(at(service, timeout_s=0.2))
    assert error.value.failure == "timeout"


@pytest.mark.parametrize("status", [429, 503])
def test_each_attempt_takes_a_turn_and_is_counted(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider's rate is of requests, whether they are the first or a repeated one."""
    turns: list[int] = []
    take = stac_io.CatalogueIO._wait
    monkeypatch.setattr(
        stac_io.CatalogueIO, "_wait", lambda io: (turns.append(len(service.asked)), take(io))
    )
    refusing = failing(status, {"Retry-After": "0"}, times=2)
    with serving(refusing) as service, Catalogue(at(service)) as catalogue:
        list(catalogue.search(QUERY))
        assert catalogue.requests == len(service.asked)
    assert len(service.asked) >= 4, "the landing page, two refusals, an answer"
    assert turns == list(range(len(service.asked))), "a turn before each request, and one only"


def test_requests_keep_to_the_provider_s_rate() -> None:
    with serving(searching(lambda *_: page(["i0"]))) as service:
        began = time.monotonic()
        with Catalogue(at(service, requests_per_s=20)) as catalogue:
            for _ in range(8):
                list(catalogue.search(QUERY))
        assert time.monotonic() - began >= 8 / 20


# --- static catalogues ---------------------------------------------------------------------------


def write_static(folder: Path) -> Path:
    """Write a catalogue with two collections, one of them nested and with a wanted item twice."""
    catalog = pystac.Catalog("root", "A static catalogue")
    extent = pystac.Extent(
        pystac.SpatialExtent([[-180.0, -90.0, 180.0, 90.0]]),
        pystac.TemporalExtent([[datetime(2020, 1, 1, tzinfo=UTC), None]]),
    )
    for name in ("c", "other"):
        collection = pystac.Collection(name, "Some items", extent)
        catalog.add_child(collection)
        for number in range(3):
            item = pystac.Item(
                id=f"{name}{number}",
                geometry=None,
                bbox=None,
                datetime=datetime(2020, 3, 1 + number, tzinfo=UTC),
                properties={},
            )
            item.add_asset("image", pystac.Asset(f"./{name}{number}.tif"))
            collection.add_item(item)
    catalog.normalize_and_save(str(folder), pystac.CatalogType.SELF_CONTAINED)
    return folder / "catalog.json"


def test_a_static_catalogue_on_disk_gives_its_collection_with_absolute_assets(
    tmp_path: Path,
) -> None:
    root = write_static(tmp_path / "catalogue")
    provider = load_provider("static", url=str(root))
    items = list(search_items(provider, Query("x", "c")))
    assert ids(iter(items)) == ["c0", "c1", "c2"]
    for item in items:
        href = Path(item["assets"]["image"]["href"])
        assert href == root.parent / "c" / item["id"] / f"{item['id']}.tif"


def test_a_static_catalogue_over_http_is_the_same(tmp_path: Path) -> None:
    root = write_static(tmp_path)

    def handler(service: Service) -> Handler:
        def handle(method: str, path: str, body: Any) -> tuple[int, dict[str, str], Any]:
            return 200, {}, (tmp_path / path.lstrip("/")).read_bytes()

        return handle

    with serving(handler) as service:
        provider = load_provider("static", url=f"{service.url}/{root.name}")
        items = list(search_items(provider, Query("x", "c")))
        assert ids(iter(items)) == ["c0", "c1", "c2"]
        assert items[0]["assets"]["image"]["href"] == f"{service.url}/c/c0/c0.tif"
        assert not any("other0" in path for _, path, _ in service.asked)


def test_links_in_a_circle_and_out_of_the_folder(tmp_path: Path) -> None:
    root = write_static(tmp_path / "catalogue")
    document = json.loads(root.read_text())
    document["links"].append({"rel": "child", "href": "./catalog.json"})
    root.write_text(json.dumps(document))
    provider = load_provider("static", url=str(root))
    assert ids(search_items(provider, Query("x", "c"))) == ["c0", "c1", "c2"]
    (tmp_path / "secret.json").write_text('{"type": "Feature", "collection": "c", "id": "s"}')
    for href in ("../secret.json", str(tmp_path / "secret.json"), "http://127.0.0.1:9/x.json"):
        document["links"][-1] = {"rel": "item", "href": href}
        root.write_text(json.dumps(document))
        with pytest.raises(GiveUp) as error:
            list(search_items(provider, Query("x", "c")))
        assert error.value.failure == "refused"


def test_a_static_catalogue_that_is_broken_or_gone(tmp_path: Path) -> None:
    root = write_static(tmp_path)
    (tmp_path / "c" / "collection.json").write_text("{")
    provider = load_provider("static", url=str(root))
    with pytest.raises(GiveUp) as error:
        list(search_items(provider, Query("x", "c")))
    assert error.value.failure == "corrupt"
    (tmp_path / "c" / "collection.json").unlink()
    with pytest.raises(GiveUp) as error:
        list(search_items(provider, Query("x", "c")))
    assert error.value.failure == "gone"

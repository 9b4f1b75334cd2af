"""Answer STAC item searches over the items of an archive, with the habits of each provider.

What a client meets here is what the recorded answers of the real services show: DLR pages by
`startIndex` and expects the client to merge the next body with its own (`"merge": true`); the
Planetary Computer pages by token and sends the whole next body; Earth Search pages by `next`, also
on the last full page, so that an empty one ends it; some state how many items match, others do not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import shapely
from shapely.affinity import translate

from pipeline.errors import RecipeError
from pipeline.simulate.service.faults import Fault, Faults
from pipeline.simulate.service.guards import placed
from pipeline.simulate.service.wishes import (
    Refused,
    area,
    flat,
    from_body,
    from_query,
    instant,
    meets,
    number,
    span,
)

#: Name of the file with providers, collections and items inside an archive folder.
ITEMS = "archive.json"

_GEOJSON = "application/geo+json"
_QUERY = "https://api.stacspec.org/v1.0.0/item-search#query"
_CONFORMANCE = (
    "https://api.stacspec.org/v1.0.0/core",
    "https://api.stacspec.org/v1.0.0/collections",
    "https://api.stacspec.org/v1.0.0/ogcapi-features",
    "https://api.stacspec.org/v1.0.0/item-search",
    "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/core",
    "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/geojson",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A JSON document to send."""

    document: Mapping[str, Any]
    media_type: str = "application/json"

    def data(self) -> bytes:
        """Return the document as bytes."""
        return json.dumps(self.document, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class Habits:
    """How one provider pages."""

    paging: str
    """`start-index` (DLR), or the name of the parameter that holds a mark: `token`, `next`."""
    page: int
    """Items per page unless the client asks otherwise."""
    page_max: int
    """Most items per page, whatever the client asks."""
    counts: bool
    """Whether an answer states `numberMatched`."""
    one_too_many: bool = False
    """Whether the last full page leads to an empty one."""
    filters: bool = True
    """Whether it has STAC's query extension (recorded: DLR's landing page does not say so); where
    not, a `query` is passed over in silence."""


#: How each provider was seen to page.
HABITS = {
    "dlr": Habits(paging="start-index", page=20, page_max=100, counts=True, filters=False),
    "planetary-computer": Habits(paging="token", page=10, page_max=1000, counts=False),
    "earth-search": Habits(paging="next", page=10, page_max=250, counts=True, one_too_many=True),
    "copernicus": Habits(paging="token", page=10, page_max=1000, counts=False),
    "usgs": Habits(paging="next", page=10, page_max=250, counts=True),
}
#: Of a provider that nobody recorded.
PLAIN = Habits(paging="token", page=10, page_max=1000, counts=False)


@dataclass(frozen=True, slots=True)
class _Entry:
    item: dict[str, Any]
    geometry: shapely.Geometry
    when: datetime


class Catalogue:
    """The items of one archive, in memory.

    Parameters
    ----------
    providers : dict
        Provider name to collection id to `{"title": str, "items": [item, ...]}`; asset hrefs
        of the items are relative (`files/...`).
    """

    def __init__(
        self, providers: Mapping[str, Mapping[str, Any]], faults: Faults | None = None
    ) -> None:
        spoil = partial(_spoilt, faults or Faults())
        self._titles = {
            name: {key: value["title"] for key, value in collections.items()}
            for name, collections in providers.items()
        }
        self._entries = {
            name: {key: _sorted(map(spoil, value["items"])) for key, value in collections.items()}
            for name, collections in providers.items()
        }

    @classmethod
    def read(cls, folder: Path, faults: Faults | None = None) -> Catalogue:
        """Read the items of an archive folder; `RecipeError` if it is none."""
        path = folder / ITEMS
        if not path.is_file():
            raise RecipeError(
                f"{folder} holds no simulated archive ({ITEMS} is missing); "
                "`terrashard simulate` makes one."
            )
        return cls(json.loads(path.read_text())["providers"], faults)

    def answer(
        self,
        base: str,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Any,
        fault: Fault | None = None,
    ) -> Answer:
        """Answer one request.

        Parameters
        ----------
        base : str
            URL of the server, without a slash at the end.
        method : str
            `GET` or `POST`.
        path : str
            Path without slashes at its ends, e.g. `dlr/search`.
        query : dict of str to str
            Parameters of the URL.
        body : any
            Parsed JSON body of a POST.
        fault : Fault or None
            What is wrong with the page: `duplicated-page` or `reordered-page`.
        """
        provider, *rest = path.split("/")
        if provider not in self._entries:
            raise Refused(HTTPStatus.NOT_FOUND, f"no such path; try {', '.join(self._entries)}")
        root = f"{base}/{provider}"
        if method == "POST" and rest != ["search"]:
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "only /search takes a POST")
        match rest:
            case []:
                return Answer(self._landing(provider, root))
            case ["conformance"]:
                return Answer({"conformsTo": _conformance(provider)})
            case ["collections"]:
                documents = [
                    self._collection(provider, root, key) for key in self._titles[provider]
                ]
                return Answer({"collections": documents, "links": []})
            case ["collections", key] if key in self._titles[provider]:
                return Answer(self._collection(provider, root, key))
            case ["collections", key, "items", item]:
                return Answer(self._item(base, provider, key, item), _GEOJSON)
            case ["search"]:
                wish = from_body(body) if method == "POST" else from_query(query)
                page = self._search(base, provider, method, "search", wish, fault)
                return Answer(page, _GEOJSON)
            case ["collections", key, "items"] if key in self._titles[provider]:
                wish = {**from_query(query), "collections": [key]}
                where = f"collections/{key}/items"
                page = self._search(base, provider, method, where, wish, fault)
                return Answer(page, _GEOJSON)
        raise Refused(HTTPStatus.NOT_FOUND, f"no such path below /{provider}")

    # --- documents ---------------------------------------------------------------------------

    def _landing(self, provider: str, root: str) -> dict[str, Any]:
        search = [
            {"rel": "search", "type": _GEOJSON, "href": f"{root}/search", "method": method}
            for method in ("GET", "POST")
        ]
        children = [
            {"rel": "child", "type": "application/json", "href": f"{root}/collections/{key}"}
            for key in self._titles[provider]
        ]
        return {
            "type": "Catalog",
            "stac_version": "1.0.0",
            "id": f"simulated-{provider}",
            "title": f"Simulated archive in the manner of {provider}",
            "description": "Not observations: every pixel is computed from place, time and band.",
            "conformsTo": _conformance(provider),
            "links": [
                {"rel": "self", "type": "application/json", "href": root},
                {"rel": "root", "type": "application/json", "href": root},
                {"rel": "conformance", "type": "application/json", "href": f"{root}/conformance"},
                {"rel": "data", "type": "application/json", "href": f"{root}/collections"},
                *search,
                *children,
            ],
        }

    def _collection(self, provider: str, root: str, key: str) -> dict[str, Any]:
        entries = self._entries[provider][key]
        bounds = shapely.total_bounds([entry.geometry for entry in entries]).tolist()
        times = [entry.item["properties"]["datetime"] for entry in entries]
        return {
            "type": "Collection",
            "stac_version": "1.0.0",
            "id": key,
            "title": self._titles[provider][key],
            "description": "Simulated.",
            "license": "proprietary",
            "extent": {
                "spatial": {"bbox": [bounds if entries else [-180, -90, 180, 90]]},
                "temporal": {"interval": [[times[-1], times[0]] if times else [None, None]]},
            },
            "links": [
                {"rel": "root", "type": "application/json", "href": root},
                {"rel": "parent", "type": "application/json", "href": root},
                {"rel": "self", "href": f"{root}/collections/{key}", "type": "application/json"},
                {"rel": "items", "href": f"{root}/collections/{key}/items", "type": _GEOJSON},
            ],
        }

    def _item(self, base: str, provider: str, key: str, wanted: str) -> dict[str, Any]:
        for entry in self._entries[provider].get(key, ()):
            if entry.item["id"] == wanted:
                return _linked(entry.item, base, provider)
        raise Refused(HTTPStatus.NOT_FOUND, f"no item {wanted} in {key}")

    # --- search ------------------------------------------------------------------------------

    def _search(
        self,
        base: str,
        provider: str,
        method: str,
        where: str,
        wish: dict[str, Any],
        fault: Fault | None,
    ) -> dict[str, Any]:
        habits = HABITS.get(provider, PLAIN)
        found = self._matching(provider, wish)
        limit = min(number(wish, "limit", habits.page, least=1), habits.page_max)
        start = _start(wish, found, habits)
        page, following = found[start : start + limit], start + limit
        if fault == "duplicated-page" and start:
            page, following = found[max(0, start - limit) : start], start
        elif fault == "reordered-page":
            page = page[::-1]
        href = f"{base}/{provider}/{where}"
        links = [{"rel": "self", "type": _GEOJSON, "href": href}]
        if following < len(found) or (habits.one_too_many and page):
            last = found[min(following, len(found)) - 1].item
            mark = f"next:{last['collection']}:{last['id']}"
            links.append(next_link(habits, method, href, wish, following, limit, mark))
        document: dict[str, Any] = {
            "type": "FeatureCollection",
            "features": [_linked(entry.item, base, provider) for entry in page],
            "links": links,
        }
        if habits.counts:
            document |= {"numberMatched": len(found), "numberReturned": len(page)}
        return document

    def _matching(self, provider: str, wish: Mapping[str, Any]) -> list[_Entry]:
        collections = wish.get("collections") or list(self._entries[provider])
        place, (first, last), ids = area(wish), span(wish.get("datetime")), wish.get("ids")
        query = wish.get("query") if HABITS.get(provider, PLAIN).filters else None
        return [
            entry
            for key in collections
            for entry in self._entries[provider].get(key, ())
            if first <= entry.when <= last
            and (place is None or place.intersects(entry.geometry))
            and (ids is None or entry.item["id"] in ids)
            and (query is None or meets(query, entry.item["properties"]))
        ]


def _conformance(provider: str) -> list[str]:
    filters = HABITS.get(provider, PLAIN).filters
    return [*_CONFORMANCE, _QUERY] if filters else list(_CONFORMANCE)


def _spoilt(faults: Faults, item: dict[str, Any]) -> dict[str, Any]:
    """Return an item with what is wrong with it."""
    fault = faults.of_item(item["id"])
    if fault == "missing-asset":
        return {**item, "assets": dict(list(item["assets"].items())[1:])}
    if fault == "footprint":
        shape = shapely.geometry.shape(item["geometry"])
        west, _, east, _ = shape.bounds
        moved = translate(shape, xoff=(east - west) / 2)
        geometry = shapely.geometry.mapping(moved)
        return {**item, "geometry": geometry, "bbox": list(moved.bounds)}
    return item


def _sorted(items: Iterable[dict[str, Any]]) -> list[_Entry]:
    entries = [
        _Entry(
            item, shapely.geometry.shape(item["geometry"]), instant(item["properties"]["datetime"])
        )
        for item in items
    ]
    return sorted(entries, key=lambda entry: (entry.when, entry.item["id"]), reverse=True)


def _linked(item: dict[str, Any], base: str, provider: str) -> dict[str, Any]:
    """Return the item with absolute hrefs, as this server would be asked for them."""
    root = f"{base}/{provider}"
    home = f"{root}/collections/{item['collection']}"
    assets = {key: placed(asset, base, provider) for key, asset in item["assets"].items()}
    links = [
        {"rel": "root", "type": "application/json", "href": root},
        {"rel": "collection", "type": "application/json", "href": home},
        {"rel": "self", "type": _GEOJSON, "href": f"{home}/items/{item['id']}"},
    ]
    return {**item, "assets": assets, "links": links}


def next_link(
    habits: Habits,
    method: str,
    href: str,
    wish: dict[str, Any],
    start: int,
    limit: int,
    mark: str,
) -> dict[str, Any]:
    """Return the link to the page that begins at item `start`, which `mark` stands for."""
    link: dict[str, Any] = {"rel": "next", "type": _GEOJSON, "method": method, "href": href}
    if habits.paging == "start-index":
        step: dict[str, Any] = {"startIndex": start, "limit": limit}
    else:
        step = {"limit": limit, habits.paging: mark}
    if method == "GET":
        parameters = {key: flat(value) for key, value in {**wish, **step}.items()}
        link["href"] = f"{href}?{urlencode(parameters)}"
    elif habits.paging == "start-index":
        link |= {"body": step, "merge": True}
    else:
        link["body"] = {**wish, **step}
        if habits.one_too_many:
            link["merge"] = False
    return link


def _start(wish: Mapping[str, Any], found: list[_Entry], habits: Habits) -> int:
    if habits.paging == "start-index":
        return number(wish, "startIndex", 0, least=0)
    if habits.paging not in wish:
        return 0
    last = str(wish[habits.paging]).removeprefix("next:")
    for position, entry in enumerate(found):
        if f"{entry.item['collection']}:{entry.item['id']}" == last:
            return position + 1
    mark = wish[habits.paging]
    raise Refused(HTTPStatus.BAD_REQUEST, f"unknown {habits.paging} {mark!r}")

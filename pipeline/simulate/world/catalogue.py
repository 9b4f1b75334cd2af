"""A catalogue of the size of the real ones: every scene of the land, made when it is asked for.

Nothing is stored: a search finds places (`pipeline.simulate.world.survey`) and passes, and only the
items of the page that is sent are written, from pieces that are made once for each place. There are
no files behind their addresses, which have the form of the real ones.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from pipeline.simulate.service.catalogue import HABITS, ITEMS, PLAIN, Answer, Habits, next_link
from pipeline.simulate.service.faults import Fault
from pipeline.simulate.service.server import ArchiveServer
from pipeline.simulate.service.wishes import Refused, from_body, number
from pipeline.simulate.world.items import PRODUCTS, Collection

_GEOJSON = "application/geo+json"
_QUERY = "https://api.stacspec.org/v1.0.0/item-search#query"
_CONFORMANCE = (
    "https://api.stacspec.org/v1.0.0/core",
    "https://api.stacspec.org/v1.0.0/item-search",
)
#: What is left of item k when it is hollow: properties that filters name.
_HOLLOW = (
    '{"id":"%d","properties":{"platform":null,"eo:cloud_cover":null,"instruments":null,'
    '"landsat:collection_category":null,"sar:instrument_mode":null,"sar:product_type":null}}'
)


@dataclass(frozen=True, slots=True)
class Page(Answer):
    """A document that is written already."""

    text: str = ""

    def data(self) -> bytes:
        """Return the document as bytes."""
        return self.text.encode()


class World:
    """Answers as `pipeline.simulate.service.catalogue.Catalogue` does; no single items, no list.

    Parameters
    ----------
    hollow : bool
        Send nothing of the items but their ids, and what a client needs to see that filters work:
        enough to count pages.

    Attributes
    ----------
    calls, items, size_bytes : Counter
        Searches answered so far, items in the answers and their bytes, by `provider/collection`;
        the path `counts` has them too.
    """

    def __init__(self, *, hollow: bool = False) -> None:
        self._hollow = hollow
        self.calls: Counter[str] = Counter()
        self.items: Counter[str] = Counter()
        self.size_bytes: Counter[str] = Counter()
        self._collections = {key: Collection(*key) for key in PRODUCTS}

    def answer(
        self,
        base: str,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Any,
        fault: Fault | None = None,
    ) -> Answer:
        """Answer one request: a landing page, the list of collections, or a search by POST."""
        del query, fault
        provider, *rest = path.split("/")
        if provider == "counts":
            return Answer({"calls": self.calls, "items": self.items, "bytes": self.size_bytes})
        known = [name for owner, name in PRODUCTS if owner == provider]
        root = f"{base}/{provider}"
        if known and not rest:
            return Answer(_landing(provider, root))
        if known and rest == ["collections"]:
            return Answer({"collections": [{"id": name} for name in known], "links": []})
        if known and rest == ["search"] and method == "POST":
            return self._search(root, provider, from_body(body))
        raise Refused(HTTPStatus.NOT_FOUND, f"no such path: {path[:80]}")

    def _search(self, root: str, provider: str, wish: dict[str, Any]) -> Page:
        habits = HABITS.get(provider, PLAIN)
        (name,) = wish.get("collections") or [""]
        if (provider, name) not in self._collections:
            raise Refused(HTTPStatus.NOT_FOUND, f"no collection {name!r}")
        collection = self._collections[provider, name]
        asked = {key: wish.get(key) for key in ("bbox", "datetime")}
        asked["query"] = wish.get("query") if habits.filters else None
        found = collection.matching(json.dumps(asked, sort_keys=True))
        limit = min(number(wish, "limit", habits.page, least=1), habits.page_max)
        start = _start(wish, habits)
        page = range(start, min(start + limit, len(found)))
        items = [_HOLLOW % k for k in page] if self._hollow else collection.texts(found, page)
        links = []
        if start + limit < len(found) or (habits.one_too_many and items):
            mark = f"next:{name}:{start + limit}"
            href = f"{root}/search"
            links.append(next_link(habits, "POST", href, wish, start + limit, limit, mark))
        counts = f',"numberMatched":{len(found)},"numberReturned":{len(items)}'
        text = (
            f'{{"type":"FeatureCollection","features":[{",".join(items)}],'
            f'"links":{json.dumps(links)}{counts if habits.counts else ""}}}'
        )
        key = f"{provider}/{name}"
        self.calls[key] += 1
        self.items[key] += len(items)
        self.size_bytes[key] += len(text)
        return Page({}, _GEOJSON, text)


def _landing(provider: str, root: str) -> dict[str, Any]:
    links = [{"rel": "self", "type": "application/json", "href": root}]
    links.append({"rel": "root", "type": "application/json", "href": root})
    search = {"rel": "search", "type": _GEOJSON, "href": f"{root}/search", "method": "POST"}
    filters = HABITS.get(provider, PLAIN).filters
    return {
        "type": "Catalog",
        "stac_version": "1.0.0",
        "id": f"simulated-{provider}",
        "description": "Not observations: items of scenes that a satellite could have taken.",
        "conformsTo": [*_CONFORMANCE, _QUERY] if filters else list(_CONFORMANCE),
        "links": [*links, search],
    }


def _start(wish: Mapping[str, Any], habits: Habits) -> int:
    if habits.paging == "start-index":
        return number(wish, "startIndex", 0, least=0)
    mark = {"start": str(wish.get(habits.paging, "0")).rpartition(":")[2]}
    return number(mark, "start", 0, least=0)


class WorldServer(ArchiveServer):
    """Serves the catalogue over loopback HTTP while the `with` block lasts; it has no files.

    Parameters
    ----------
    folder : Path
        An empty folder.
    hollow : bool
        See `World`.
    """

    def __init__(self, folder: Path, *, hollow: bool = False) -> None:
        (folder / ITEMS).write_text('{"providers": {}}')
        super().__init__(folder)
        self._world = World(hollow=hollow)

    def answer(
        self, method: str, path: str, query: dict[str, str], body: Any, fault: Fault | None
    ) -> Answer:
        """Answer a catalogue request; `Refused` if it makes no sense."""
        return self._world.answer(self.url, method, path, query, body, fault)

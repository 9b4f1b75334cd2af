"""Ask STAC catalogues: item-search APIs and static catalogues; raw item dicts come out.

Nothing is decided here: an answer that ignores half of the request is passed on as it is, and
`pipeline.stages.search.normalise.normalise` checks each item against the query.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from datetime import UTC
from types import TracebackType
from typing import Any, Self

import pystac
from pystac.utils import make_absolute_href
from pystac_client import Client
from pystac_client.errors import ClientTypeError
from pystac_client.exceptions import APIError
from pystac_client.warnings import PystacClientWarning

from pipeline.errors import GiveUp, RecipeError, TerrashardError
from pipeline.ports import Query
from pipeline.sources.bytes.remote import named
from pipeline.sources.providers import Provider
from pipeline.sources.stac.io import CatalogueIO

#: Pages in a row that only repeat what came before: one sent twice is passed over, but pages that
#: go round in a circle must end.
_MOST_STALE_PAGES = 5
#: Catalogues below a static catalogue's root, at most.
_DEEPEST = 12
#: What reading of JSON that is not what it should be may raise.
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError)
#: How services say that they do not understand a filter.
_FILTER_REFUSED = (400, 415, 422, 501)


def search_items(provider: Provider, query: Query) -> Iterator[dict[str, Any]]:
    """Yield the raw items a catalogue answers with; see `Catalogue.search`."""
    with Catalogue(provider) as catalogue:
        yield from catalogue.search(query)


class Catalogue:
    """One provider's catalogue, asked politely: its rate, its host, retries with back-off.

    Use it in a `with` block, which closes its connections.

    Parameters
    ----------
    provider : Provider
        Of the kind `stac-api` or `static`.
    attempts : int
        How often a request that fails in passing is made before it counts as failed.

    Raises
    ------
    TryAgain
        Throttled, server error, time-out or connection lost, after all attempts.
    GiveUp
        The catalogue is not there (`gone`), forbids it (`forbidden`), leads elsewhere (`refused`)
        or answers with something that is not STAC (`corrupt`).
    """

    def __init__(self, provider: Provider, *, attempts: int = 5) -> None:
        if provider.url is None:
            raise RecipeError(f"provider {provider.name!r} needs a `url` in the recipe.")
        self.provider = provider
        self._url = provider.url
        self._io = CatalogueIO(provider, self._url, attempts)
        self._client: Client | None = None
        self._can_filter: bool | None = None
        self._proven = False  # whether a filter has brought something
        self._listed = False  # whether the list of collections was looked at

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._io.session.close()

    @property
    def requests(self) -> int:
        """Requests (or, on disk, files) asked for so far, retries and redirects counted."""
        return self._io.count

    def search(self, query: Query) -> Iterator[dict[str, Any]]:
        """Yield the items of a query, page by page, as the catalogue writes them.

        A static catalogue cannot search: all its items of the collection come, and relative
        addresses of their assets are made absolute.
        """
        pages = self._pages(query) if self.provider.kind == "stac-api" else self._walk(query)
        other = self.provider.alternate
        try:
            yield from pages if other is None else (_at_alternate(item, other) for item in pages)
        except TerrashardError:
            raise
        except APIError as error:
            raise self._io.explained(error) from error
        except (*_MALFORMED, ClientTypeError, pystac.STACError) as error:
            told = str(error).replace(self._url, named(self._url))[:200]
            raise GiveUp(
                f"provider {self.provider.name}: what {named(self._url)} answers is not STAC "
                f"({told}); is `url` in the recipe the root of a STAC "
                f"{'API' if self.provider.kind == 'stac-api' else 'catalogue'}?",
                failure="corrupt",
            ) from error
        except OSError as error:
            raise GiveUp(
                f"provider {self.provider.name}: cannot read {error.filename}: {error.strerror}.",
                failure="gone",
            ) from error

    # --- item-search APIs --------------------------------------------------------------------

    def _pages(self, query: Query) -> Iterator[dict[str, Any]]:
        """Ask with the query's filter, if the catalogue says that it can filter.

        Not every one can as it says. If it refuses the filter it is asked without. Until a filter
        has brought something, so it is after an empty answer too: words that the catalogue does not
        know would leave nothing, in silence.
        """
        wishes = _filter(query) if self._filters() else {}
        came = False
        try:
            for item in self._answer(query, wishes):
                came = True
                yield item
        except APIError as error:
            if came or not wishes or getattr(error, "status_code", None) not in _FILTER_REFUSED:
                raise
            self._can_filter = False
        self._proven = self._proven or (came and bool(wishes))
        if came or self._proven:
            return
        if wishes:
            for item in self._answer(query, {}):
                came = True
                if self._can_filter and not self._proven:
                    self._proven = wishes.keys() <= (item.get("properties") or {}).keys()
                yield item
            self._can_filter = self._can_filter and (self._proven or not came)
        if not came:
            self._expect(query.collection)

    def _filters(self) -> bool:
        """Whether the catalogue takes filters, by what its landing page says."""
        if self._can_filter is None:
            self._can_filter = self._open().conforms_to("QUERY")
        return self._can_filter

    def _expect(self, collection: str) -> None:
        """Make sure, once, that a collection exists of which nothing came.

        Raises
        ------
        GiveUp
            The catalogue lists its collections, and this one is not among them.
        """
        if self._listed:
            return
        self._listed = True
        try:
            listing = self._io.read_json(f"{self._url.rstrip('/')}/collections")
        except (APIError, TerrashardError):
            return  # it is not bound to list them
        found, links = listing.get("collections"), listing.get("links", [])
        names = [str(entry["id"]) for entry in found] if isinstance(found, list) else []
        whole = not any(link["rel"] == "next" for link in links)
        if names and whole and collection not in names:
            shown = ", ".join(sorted(names)[:20]) + (" ..." if len(names) > 20 else "")
            raise GiveUp(
                f"provider {self.provider.name}: {named(self._url)} has no collection "
                f"{collection!r}; it has: {shown}. Is `url` in the recipe the right one?",
                failure="gone",
            )

    def _answer(self, query: Query, wishes: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Follow `next` until a page is empty, or too many in a row bring nothing new.

        `pystac_client` handles the ways of paging: whole bodies, `merge`, tokens in the address.
        """
        client = self._open()
        links = [link for link in client.links if link.rel == "search"]
        posts = not links or any(link.extra_fields.get("method") == "POST" for link in links)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PystacClientWarning)
            search = client.search(
                method="POST" if posts else "GET",
                collections=[query.collection],
                bbox=query.bbox,
                datetime=_interval(query),
                query=wishes or None,
                limit=self.provider.items_a_page(query.collection),
            )
        self._io.page = 0
        seen: set[str] = set()
        stale = 0
        for page in search.pages_as_dicts():
            fresh = [item for item in page["features"] if str(item["id"]) not in seen]
            stale = 0 if fresh else stale + 1
            if not page["features"] or stale > _MOST_STALE_PAGES:
                return
            seen.update(str(item["id"]) for item in fresh)
            yield from fresh

    def _open(self) -> Client:
        """Read the landing page once; what it does not advertise is tried all the same."""
        if self._client is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PystacClientWarning)
                self._client = Client.open(
                    self._url, stac_io=self._io, timeout=self.provider.timeout_s
                )
            self._client.add_conforms_to("ITEM_SEARCH")
            self._client.add_conforms_to("CORE")
        return self._client

    # --- static catalogues -------------------------------------------------------------------

    def _walk(self, query: Query) -> Iterator[dict[str, Any]]:
        """Go through catalogues and collections from the root, each document once."""
        waiting, known = [(self._url, 0)], {self._url}
        while waiting:
            href, depth = waiting.pop()
            document = self._io.read_json(href)
            if document["type"] == "Feature":
                if document.get("collection") == query.collection:
                    yield _with_absolute_assets(document, href)
                continue
            if document["type"] == "Collection" and document["id"] != query.collection:
                continue
            for link in reversed(document.get("links", [])):
                if link["rel"] not in ("child", "item") or depth >= _DEEPEST:
                    continue
                target = make_absolute_href(link["href"], href, start_is_dir=False)
                if target not in known:
                    known.add(target)
                    waiting.append((target, depth + 1))


def _filter(query: Query) -> dict[str, Any]:
    """Return what the query asks of properties, in the words of STAC's query extension.

    `in` also for a single value: so the users of the Planetary Computer and of the USGS ask.
    """
    wanted: dict[str, Any] = {name: {"in": list(values)} for name, values in query.only}
    return wanted | {name: {"lte": most} for name, most in query.at_most}


def _interval(query: Query) -> str | None:
    """Return the span as STAC writes it (there its end belongs to it, so a check must follow)."""
    if query.start is None and query.end is None:
        return None
    ends = (query.start, query.end)
    return "/".join(
        ".." if e is None else f"{e.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}" for e in ends
    )


def _with_absolute_assets(item: dict[str, Any], href: str) -> dict[str, Any]:
    assets = {
        key: {**asset, "href": make_absolute_href(asset["href"], href, start_is_dir=False)}
        for key, asset in item.get("assets", {}).items()
        if isinstance(asset, dict) and isinstance(asset.get("href"), str)
    }
    return {**item, "assets": assets}


def _at_alternate(item: dict[str, Any], name: str) -> dict[str, Any]:
    """Return an item with the addresses of that name for those of its assets that have one."""
    assets = {}
    for key, asset in (item.get("assets") or {}).items():
        there = asset.get("alternate") if isinstance(asset, dict) else None
        other = there.get(name) if isinstance(there, dict) else None
        href = other.get("href") if isinstance(other, dict) else None
        assets[key] = {**asset, "href": href} if href is not None else asset
    return {**item, "assets": assets}

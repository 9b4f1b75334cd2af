"""Ask STAC catalogues: item-search APIs and static catalogues; raw item dicts come out.

Nothing is decided here: an answer that ignores half of the request is passed on as it is, and
`pipeline.stages.search.normalise` checks each item against the query.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

import pystac
import requests
import urllib3
from pystac.utils import is_absolute_href, make_absolute_href
from pystac_client import Client
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from pystac_client.warnings import PystacClientWarning
from urllib3 import Retry

from pipeline.errors import GiveUp, RecipeError, TerrashardError, TryAgain
from pipeline.ports import Query
from pipeline.sources.providers import Provider

#: Statuses that a later attempt may get rid of.
_PASSING = (429, 500, 502, 503, 504)
#: Longest pause between attempts, whatever a server asks for, in seconds.
_LONGEST_PAUSE_S = 120
#: Pages in a row that only repeat what came before: one sent twice is passed over, but pages that
#: go round in a circle must end.
_MOST_STALE_PAGES = 5
#: Catalogues below a static catalogue's root, at most.
_DEEPEST = 12


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
        self._io = _CatalogueIO(provider, self._url, attempts)
        self._client: Client | None = None

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
        """Requests (or, on disk, files) asked for so far, retries not counted."""
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
            raise _explained(self.provider, error) from error
        except (ValueError, KeyError, TypeError, AttributeError, pystac.STACError) as error:
            raise GiveUp(
                f"provider {self.provider.name}: the answer is not STAC: {str(error)[:200]}.",
                failure="corrupt",
            ) from error
        except OSError as error:
            raise GiveUp(
                f"provider {self.provider.name}: cannot read {error.filename}: {error.strerror}.",
                failure="gone",
            ) from error

    # --- item-search APIs --------------------------------------------------------------------

    def _pages(self, query: Query) -> Iterator[dict[str, Any]]:
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
                limit=self.provider.page_sizes.get(query.collection, self.provider.page_size),
            )
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


class _CatalogueIO(StacApiIO):
    """Requests of one catalogue: to its own host (or folder) only, at its rate, counted."""

    def __init__(self, provider: Provider, root: str, attempts: int) -> None:
        super().__init__(
            timeout=provider.timeout_s,
            max_retries=Retry(
                total=attempts - 1,
                redirect=3,
                allowed_methods=None,  # a search changes nothing, so its POST may be repeated
                status_forcelist=_PASSING,
                backoff_factor=0.5,
                backoff_jitter=0.5,
                backoff_max=_LONGEST_PAUSE_S,
                retry_after_max=_LONGEST_PAUSE_S,
                raise_on_status=False,
            ),
            headers=None if provider.gzip else {"Accept-Encoding": "identity"},
        )
        self.count = 0
        self._provider = provider
        self._root = root
        self._turn = threading.Lock()
        self._next_at_s = 0.0
        self.session.hooks["response"].append(self._check_redirect)

    def request(self, href: str, *args: Any, **kwargs: Any) -> str:
        """Make one request, when its turn has come."""
        self._check(href)
        self._wait()
        return super().request(href, *args, **kwargs)

    def read_text(self, source: pystac.link.HREF, *args: Any, **kwargs: Any) -> str:
        """Read a document; on disk only inside the folder of the catalogue."""
        if isinstance(source, pystac.Link) or "://" in str(source):
            return super().read_text(source, *args, **kwargs)
        self._check(str(source))
        self.count += 1
        return Path(source).read_text(encoding="utf-8")

    def _check(self, href: str) -> None:
        if "://" in self._root:
            here, there = urlsplit(self._root), urlsplit(href)
            inside = (here.scheme, here.netloc) == (there.scheme, there.netloc)
        else:
            folder = Path(self._root).resolve().parent
            inside = is_absolute_href(href) and Path(href).resolve().is_relative_to(folder)
        if not inside:
            raise GiveUp(
                f"provider {self._provider.name}: its catalogue leads to another place, "
                f"{href.split('?')[0][:120]!r}.",
                failure="refused",
            )

    def _check_redirect(self, answer: requests.Response, *_: Any, **__: Any) -> None:
        if not answer.is_redirect:
            return
        try:
            self._check(urljoin(answer.url, answer.headers["location"]))
        except GiveUp:
            answer.close()  # nobody will read it, so its connection would stay open
            raise

    def _wait(self) -> None:
        """Take the next turn at the provider's rate."""
        with self._turn:
            self.count += 1
            now_s = time.monotonic()
            at_s = max(now_s, self._next_at_s)
            self._next_at_s = at_s + 1 / self._provider.requests_per_s
        time.sleep(at_s - now_s)


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


def _timed_out(error: BaseException | None) -> bool:
    """Whether a time-out is behind an error, through what the layers of the client made of it."""
    while error is not None:
        if isinstance(error, urllib3.exceptions.NewConnectionError):
            return False  # refused at once, though its class descends from time-outs
        if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _explained(provider: Provider, error: APIError) -> TryAgain | GiveUp:
    """Turn a client error into one of ours, by what the handler does about it."""
    status = getattr(error, "status_code", None)
    what = f"provider {provider.name}: catalogue request failed"
    if status is None:
        cause = error.__context__
        if isinstance(cause, GiveUp):
            return cause
        failure = "timeout" if _timed_out(cause) else "connection"
        return TryAgain(f"{what} ({failure}): {type(cause).__name__}.", failure=failure)
    detail = f"{what} with status {status}: {' '.join(str(error).split())[:200]}"
    if status in _PASSING:
        return TryAgain(detail, failure="throttled" if status == 429 else "server-error")
    if status in (401, 403):
        return GiveUp(detail, failure="forbidden")
    return GiveUp(detail, failure="gone" if status in (404, 410) else "refused")

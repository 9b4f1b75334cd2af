"""Requests of one STAC catalogue, and what their failures mean.

A page that breaks off, or that is no JSON, is asked for again like any other request that fails in
passing: gateways do answer with half a page, or with one of their own and status 200.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

import pystac
import requests
import urllib3
from pystac.utils import is_absolute_href
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from urllib3 import Retry

from pipeline.errors import GiveUp, TryAgain
from pipeline.sources.bytes.remote import named
from pipeline.sources.providers import Provider

#: Statuses that a later attempt may get rid of.
_PASSING = (429, 500, 502, 503, 504)
#: Longest pause between attempts, whatever a server asks for, in seconds.
_LONGEST_PAUSE_S = 120
#: Pause before a broken page is asked for again; it doubles, plus up to as much at random.
FIRST_PAUSE_S = 0.5
#: What a person can do about a status, in so many words.
_CURES = {
    401: ": it wants a login, and catalogues are asked without one; is `url` the right one?",
    403: ": it refuses this address or this machine; is `url` the right one?",
    404: ": is `url` in the recipe the root of a STAC API?",
    410: ": is `url` in the recipe the root of a STAC API?",
    429: ", too many requests; try again later.",
}


class _InTurn(Retry):
    """Retries of which each takes a turn at the provider's rate, after its own pause."""

    def __init__(self, *args: Any, turn: Callable[[], None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._turn = turn

    def new(self, **kwargs: Any) -> Self:
        return super().new(turn=self._turn, **kwargs)

    def sleep(self, response: urllib3.BaseHTTPResponse | None = None) -> None:
        super().sleep(response)
        self._turn()


class CatalogueIO(StacApiIO):
    """Requests of one catalogue: to its own host (or folder) only, at its rate, counted.

    Parameters
    ----------
    provider : Provider
    root : str
        URL or path of the catalogue: nothing outside its host or folder is read.
    attempts : int
        How often a request that fails in passing is made before it counts as failed.
    """

    def __init__(self, provider: Provider, root: str, attempts: int) -> None:
        super().__init__(
            timeout=provider.timeout_s,
            max_retries=_InTurn(
                turn=self._wait,
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
        self.page = 0
        """Which page of a search came last, from 1."""
        self._provider = provider
        self._root = root
        self._attempts = attempts
        self._turn = threading.Lock()
        self._next_at_s = 0.0
        self.session.hooks["response"].append(self._check_redirect)

    def read_json(self, source: pystac.link.HREF, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a document, again if it comes broken; a page of a search must have `features`.

        Raises
        ------
        APIError
            As `StacApiIO.request`.
        TryAgain
            It broke off in every attempt.
        GiveUp
            `corrupt`: it was no JSON in any attempt, or it is JSON and no page.
        """
        if searching := "parameters" in kwargs:
            self.page += 1
        place = named(source.href if isinstance(source, pystac.Link) else str(source))
        what = f"page {self.page} of a search at {place}" if searching else place
        for attempt in range(1, self._attempts + 1):
            try:
                document = self.json_loads(self.read_text(source, *args, **kwargs))
            except (APIError, ValueError) as error:
                last = attempt == self._attempts or "://" not in place
                if isinstance(error, APIError) and not _broke_off(error):
                    raise
                if last:
                    raise self._broken(what, error, attempt) from error
                time.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1) * (1 + random.random()))
            else:
                if searching and not isinstance(_features(document), list):
                    raise GiveUp(
                        f"provider {self._provider.name}: {what} is JSON without a list of "
                        "`features`, so no answer to a search; is `url` in the recipe the root of "
                        "a STAC API?",
                        failure="corrupt",
                    )
                return document
        raise ValueError(f"attempts must be at least 1, not {self._attempts}.")

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

    def explained(self, error: APIError) -> TryAgain | GiveUp:
        """Turn a client error into one of ours, by what the handler does about it."""
        name, status = self._provider.name, getattr(error, "status_code", None)
        where = f"page {self.page} of a search" if self.page else "its first page"
        what = f"provider {name}: {named(self._root)} ({where})"
        if status is None:
            cause = error.__context__
            if isinstance(cause, GiveUp):
                return cause
            if _timed_out(cause):
                return TryAgain(
                    f"{what} did not answer within {self._provider.timeout_s:g} s, "
                    f"{self._attempts} times; try again later.",
                    failure="timeout",
                )
            return TryAgain(
                f"{what}: the connection failed ({type(cause).__name__}); is this machine on the "
                "network, and is the address right? If both are so, try again later.",
                failure="connection",
            )
        said = " ".join(str(error).split())[:200]
        cure = _CURES.get(status, "; try again later." if status in _PASSING else ".")
        detail = f"{what} answered with status {status}{cure}" + (
            f" It said: {said}" if said else ""
        )
        if status in _PASSING:
            return TryAgain(detail, failure="throttled" if status == 429 else "server-error")
        if status in (401, 403):
            return GiveUp(detail, failure="forbidden")
        return GiveUp(detail, failure="gone" if status in (404, 410) else "refused")

    def _broken(self, what: str, error: Exception, attempts: int) -> TryAgain | GiveUp:
        name, times = self._provider.name, f"{attempts} time{'s' * (attempts > 1)}"
        if isinstance(error, APIError):
            return TryAgain(
                f"provider {name}: {what} broke off, {times}; try again later.",
                failure="short-read",
            )
        text = getattr(error, "doc", "").lstrip()[:200].lower()
        if text.startswith("<") and "html" in text:
            return GiveUp(
                f"provider {name}: {what} is a web page and no JSON, {times}: a login page, or "
                "`url` in the recipe is not the root of a STAC API.",
                failure="corrupt",
            )
        return GiveUp(
            f"provider {name}: {what} is no JSON, or not all of it, {times} ({error}).",
            failure="corrupt",
        )

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
        self._wait()  # the request that follows

    def _wait(self) -> None:
        """Take the next turn at the provider's rate."""
        with self._turn:
            self.count += 1
            now_s = time.monotonic()
            at_s = max(now_s, self._next_at_s)
            self._next_at_s = at_s + 1 / self._provider.requests_per_s
        time.sleep(at_s - now_s)


def _features(document: object) -> object:
    return document.get("features") if isinstance(document, dict) else None


def _broke_off(error: APIError) -> bool:
    """Whether an answer began well and ended early, or came in bytes that are no text."""
    cause = error.__context__
    if isinstance(cause, requests.ConnectionError) and cause.args:
        # A time-out before the answer is in a MaxRetryError, and was tried again already.
        return isinstance(cause.args[0], urllib3.exceptions.ReadTimeoutError)
    broken = requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError
    return isinstance(cause, (*broken, UnicodeError))


def _timed_out(error: BaseException | None) -> bool:
    """Whether a time-out is behind an error, through what the layers of the client made of it."""
    while error is not None:
        if isinstance(error, urllib3.exceptions.NewConnectionError):
            return False  # refused at once, though its class descends from time-outs
        if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
            return True
        error = error.__cause__ or error.__context__
    return False

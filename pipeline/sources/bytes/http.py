"""The door to the network: every byte of a scene's files is asked for here.

A status becomes an error class, a redirect is checked like any other address, credentials go to
the host they are for and to no other, and an HTML page is no image whatever its status says.
"""

from __future__ import annotations

import logging
import re
import tempfile
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Lock
from typing import IO
from urllib.parse import urljoin, urlsplit

import httpx

from pipeline.errors import GiveUp, TryAgain
from pipeline.ports import ByteSource, Stat
from pipeline.sources.bytes.bucket import BucketDoor
from pipeline.sources.bytes.disk import DiskSource
from pipeline.sources.bytes.remote import Answer, Door, RemoteSource, named
from pipeline.sources.limits import Limits
from pipeline.sources.providers import Provider, check_href
from pipeline.sources.signing import PlanetaryComputer, credentials, how_to_get_in

_MOST_REDIRECTS = 5
_CONNECT_S = 10.0
#: Slower than this, a transfer counts as stuck, however often a byte arrives.
_LEAST_BYTES_PER_S = 50_000
#: So much of an error's text is looked at.
_ERROR_BYTES = 4096
#: Files of servers that ignore ranges are kept whole on disk, so many, none longer than this.
_WHOLE_KEPT = 2
_MOST_WHOLE_BYTES = 8 * 2**30
#: Where a part lies and how long its file is, in numbers that fit a table's 64 bits.
_PART = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_WHOLE = re.compile(r"bytes \*/([0-9]{1,18})")

# httpx logs every address at level INFO, with its query: that may be a signature.
logging.getLogger("httpx").setLevel(logging.WARNING)


def open_source(
    provider: Provider, *, share: float = 1.0, attempts: int = 5, run: str = ""
) -> ByteSource:
    """Return what reads a provider's files, wherever they are.

    Parameters
    ----------
    provider : Provider
        Says hosts, limits and signing. Files of a provider on disk are read by absolute path.
    share : float
        This worker's part of the provider's limits, 0 to 1.
    attempts : int
        How often a request is made before its failure counts.
    run : str
        Of all workers of a run the same: those on one machine keep the limits together.
    """
    if provider.on_disk:
        return DiskSource(provider)
    limits = Limits(
        provider.name,
        requests_per_s=provider.requests_per_s,
        concurrency=provider.concurrency,
        share=share,
        attempts=attempts,
        run=run,
    )
    doors: dict[str, Door] = {}
    for scheme in provider.schemes:
        doors[scheme] = BucketDoor(provider) if scheme == "s3" else HttpDoor(provider)
    return RemoteSource(provider, doors, limits)


class HttpDoor:
    """Makes one request at a time of asking; retries are not its business."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._client = httpx.Client(
            timeout=httpx.Timeout(provider.timeout_s, connect=_CONNECT_S, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            headers={"Accept-Encoding": "identity", "User-Agent": "terrashard"},
            follow_redirects=False,
        )
        self._signer = PlanetaryComputer(self._get_token) if provider.sign else None
        self._whole: OrderedDict[str, tuple[IO[bytes], Stat]] = OrderedDict()
        self._lock = Lock()
        # Sources are handed around and never closed by hand: connections go with the last user.
        weakref.finalize(self, _let_go, self._client, self._whole)

    def fetch(self, href: str, start: int, stop: int) -> Answer:
        """Make one request for the bytes [start, stop), redirects included.

        Where a signature is no longer good, a new one is got and the request made once more.
        """
        if self._signer is None:
            return self._fetch(href, href, start, stop)
        signed = self._signer.sign(href)
        try:
            return self._fetch(href, signed, start, stop)
        except _SignatureRefused:
            self._signer.forget(href, signed)
            return self._fetch(href, self._signer.sign(href), start, stop)

    def _fetch(self, href: str, place: str, start: int, stop: int) -> Answer:
        """Make the request at a place, which is the address or that with a signature."""
        headers = {"Range": f"bytes={start}-{stop - 1}"}
        with explained(href), self._follow(href, place, headers) as response:
            if response.status_code == 416:
                return _empty(href, response)
            if response.status_code == 403 and self._signer is not None:
                _refuse_signature(href, response)
            _refuse_status(href, response, self._provider)
            _refuse_page(href, response, self._provider)
            if response.status_code == 206:
                return _part(href, response, start, stop, self._provider.timeout_s)
            return self._keep_whole(href, response, start, stop)

    @contextmanager
    def _follow(self, href: str, place: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """Open a streamed GET, going where it is sent if that is an allowed address."""
        own_host = urlsplit(href).netloc
        for _ in range(_MOST_REDIRECTS + 1):
            auth = None
            if self._provider.auth == "basic" and urlsplit(place).netloc == own_host:
                auth = credentials(self._provider, urlsplit(place).hostname or "")
            request = self._client.build_request("GET", place, headers=headers)
            basic = httpx.BasicAuth(*auth) if auth else None
            response = self._client.send(request, stream=True, auth=basic)
            try:
                if not response.has_redirect_location:
                    yield response
                    return
                place = _next_place(href, place, response.headers["Location"])
            finally:
                response.close()
            check_href(self._provider, place)
        raise GiveUp(
            f"{named(href)} was redirected {_MOST_REDIRECTS} times and more.", failure="refused"
        )

    def _get_token(self, url: str, headers: dict[str, str]) -> httpx.Response:
        """Ask for a signature."""
        with explained(url):
            response = self._client.get(url, headers=headers)
        if 400 <= response.status_code < 500 and response.status_code not in (408, 425, 429):
            cure = how_to_get_in(self._provider, urlsplit(url).hostname or "")
            raise GiveUp(
                f"{named(url)} gives no signature (status {response.status_code}): {cure}",
                failure="forbidden",
            )
        _refuse_status(url, response, self._provider)
        return response

    def kept(self, href: str, start: int, stop: int) -> Answer | None:
        """Return bytes of a file that came whole, because its server knows no ranges."""
        with self._lock:
            if href not in self._whole:
                return None
            file, stat = self._whole[href]
            file.seek(start)
            return Answer(file.read(stop - start), stat)

    def _keep_whole(self, href: str, response: httpx.Response, start: int, stop: int) -> Answer:
        """Take a file that came whole though a part was asked for, and keep it for the rest."""
        promised = int(response.headers.get("Content-Length", 0))
        if promised > _MOST_WHOLE_BYTES:
            raise GiveUp(
                f"{named(href)}: the server knows no ranges, and {promised} bytes are too many to "
                f"take whole (at most {_MOST_WHOLE_BYTES}).",
                failure="wrong-size",
            )
        # Unnamed and outside of any data set: it is gone with the process, even if that is killed.
        file = tempfile.TemporaryFile()  # noqa: SIM115 # kept open as long as it is kept
        size = 0
        for chunk in _body(response, promised, self._provider.timeout_s):
            size += len(chunk)
            if size > _MOST_WHOLE_BYTES:
                raise GiveUp(f"{named(href)} does not end.", failure="wrong-size")
            file.write(chunk)
        stat = Stat(size, _tag(response))
        with self._lock:
            self._whole[href] = (file, stat)
            if len(self._whole) > _WHOLE_KEPT:
                self._whole.popitem(last=False)[1][0].close()
            file.seek(start)
            return Answer(file.read(stop - start), stat)


def _next_place(href: str, place: str, location: str) -> str:
    """Return where a redirect leads to; any text can stand there."""
    try:
        return urljoin(place, location)
    except ValueError as error:
        raise GiveUp(
            f"{named(href)} was redirected to what is no address.", failure="refused"
        ) from error


def _let_go(client: httpx.Client, whole: OrderedDict[str, tuple[IO[bytes], Stat]]) -> None:
    client.close()
    for file, _ in whole.values():
        file.close()


def _part(href: str, response: httpx.Response, start: int, stop: int, timeout_s: float) -> Answer:
    """Read an answer with status 206, which must be the part that was asked for."""
    stated = _PART.fullmatch(response.headers.get("Content-Range", "").strip())
    if stated is None:
        raise GiveUp(f"{named(href)}: a part came without its place.", failure="corrupt")
    first, last, size = (int(number) for number in stated.groups())
    if (first, last + 1) != (start, min(stop, size)):
        raise TryAgain(
            f"{named(href)}: bytes {first} to {last} came, {start} to {stop - 1} were due.",
            failure="short-read",
        )
    parts, due = [], last + 1 - first
    for chunk in _body(response, due, timeout_s):
        parts.append(chunk)
        due -= len(chunk)
        if due < 0:
            raise GiveUp(f"{named(href)}: more came than was asked for.", failure="corrupt")
    return Answer(b"".join(parts), Stat(size, _tag(response)))


def _empty(href: str, response: httpx.Response) -> Answer:
    """Read an answer with status 416: the file ends before what was asked for."""
    stated = _WHOLE.fullmatch(response.headers.get("Content-Range", "").strip())
    if stated is None:
        raise GiveUp(f"{named(href)} is shorter than it was.", failure="changed")
    return Answer(b"", Stat(int(stated.group(1)), _tag(response)))


def _body(response: httpx.Response, size_bytes: int, timeout_s: float) -> Iterator[bytes]:
    """Yield the body, as long as it comes at a speed that leads somewhere."""
    due = time.monotonic() + timeout_s + size_bytes / _LEAST_BYTES_PER_S
    for chunk in response.iter_raw():
        yield chunk
        if time.monotonic() > due:
            raise httpx.ReadTimeout("the body comes too slowly")


def _tag(response: httpx.Response) -> str | None:
    """Return what tells this version of a file: its entity tag, or when it was changed."""
    tag: str | None = response.headers.get("ETag") or response.headers.get("Last-Modified")
    return tag


def _refuse_page(href: str, response: httpx.Response, provider: Provider) -> None:
    """Refuse HTML: login pages and error pages come with status 200 where an image was due."""
    kind = response.headers.get("Content-Type", "").lower()
    if "html" in kind:
        raise GiveUp(
            f"{named(href)}: a page of type {kind[:40]} came, not an image; if it is that of a "
            f"login: {how_to_get_in(provider, urlsplit(href).hostname or '')}",
            failure="not-an-image",
        )


class _SignatureRefused(GiveUp):
    """A server says that a signature is not, or no longer, good."""


def _refuse_signature(href: str, response: httpx.Response) -> None:
    """Raise if Azure's answer says that it is about the signature, in its header or its text."""
    said = response.headers.get("x-ms-error-code", "")
    if not said:
        said = next(response.iter_raw(_ERROR_BYTES), b"").decode(errors="replace")
    if "AuthenticationFailed" in said:
        raise _SignatureRefused(
            f"{named(href)}: its signature was refused (status 403), and a new one as well; is the "
            "clock of this machine right?",
            failure="forbidden",
        )


def _refuse_status(href: str, response: httpx.Response, provider: Provider) -> None:
    """Raise what a status means, unless it is a success."""
    status = response.status_code
    if status in (200, 206):
        return
    if status in (404, 410):
        raise GiveUp(
            f"{named(href)} is gone (status {status}): the catalogue names it, its server does not "
            "have it; `retry` asks again.",
            failure="gone",
        )
    if status == 408:
        raise TryAgain(f"{named(href)}: status {status}.", failure="timeout")
    if status in (425, 429):
        raise TryAgain(
            f"{named(href)}: throttled (status {status}).",
            failure="throttled",
            retry_after_s=retry_after_s(response),
        )
    if status >= 500:
        raise TryAgain(
            f"{named(href)}: the server failed (status {status}).",
            failure="server-error",
            retry_after_s=retry_after_s(response),
        )
    cure = f": {how_to_get_in(provider, urlsplit(href).hostname or '')}"
    raise GiveUp(
        f"{named(href)} may not be read (status {status}){cure if status in (401, 403) else '.'}",
        failure="forbidden",
    )


def retry_after_s(response: httpx.Response) -> float | None:
    """Return the pause that a server asks for: seconds, or a date."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    zoned = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (zoned - datetime.now(UTC)).total_seconds())


@contextmanager
def explained(href: str) -> Iterator[None]:
    """Turn httpx's failures into ours; their own texts may hold addresses with signatures."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise TryAgain(f"{named(href)}: no answer in time.", failure="timeout") from error
    except httpx.RemoteProtocolError as error:
        short = "incomplete" in str(error) or "complete message body" in str(error)
        raise TryAgain(
            f"{named(href)}: the answer was cut off.",
            failure="short-read" if short else "connection",
        ) from error
    except httpx.TransportError as error:
        raise TryAgain(
            f"{named(href)}: the connection failed ({type(error).__name__}).", failure="connection"
        ) from error
    except (httpx.InvalidURL, httpx.DecodingError, UnicodeError) as error:
        raise GiveUp(f"{named(href)} cannot be asked for.", failure="refused") from error

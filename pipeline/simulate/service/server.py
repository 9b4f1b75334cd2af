"""Serve a simulated archive: STAC item search as the real providers do it, and files by range.

One server, one sub-path per provider (`/dlr`, `/planetary-computer`, ...), each with a landing page
of its own and that provider's paging and habits; the files are below `/files`, and those that real
providers keep in buckets can be had from an S3 service at `/s3` too. It listens on the loopback
interface only.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

from pipeline.simulate.service.catalogue import Answer, Catalogue
from pipeline.simulate.service.faults import BROKEN_PAGES, Fault, FaultDice, Faults, corrupt_place
from pipeline.simulate.service.guards import (
    BUCKETS_PATH,
    TOKENS,
    Verdict,
    bucket_verdict,
    token,
    verdict,
)
from pipeline.simulate.service.loopback import Loopback, LoopbackHandler
from pipeline.simulate.service.ranges import Unsatisfiable, parse_ranges
from pipeline.simulate.service.wishes import Refused

_BOUNDARY = "terrashard-range-boundary"
_PIECE_BYTES = 1 << 20
_MAX_BODY_BYTES = 1 << 20
_TYPES = {
    ".tif": "image/tiff",
    ".jp2": "image/jp2",
    ".xml": "application/xml",
    ".json": "application/json",
}
_LOGIN_PAGE = b"<!DOCTYPE html><html><body><form>Please log in to download.</form></body></html>"
_EXPIRED = (
    b"<?xml version='1.0' encoding='utf-8'?><Error><Code>AuthenticationFailed</Code><Message>"
    b"Signature not valid in the specified time frame</Message></Error>"
)
_DENIED = (
    b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>AccessDenied</Code><Message>Access Denied"
    b"</Message></Error>"
)
_STATUS = {
    "server-error": HTTPStatus.SERVICE_UNAVAILABLE,
    "internal-error": HTTPStatus.INTERNAL_SERVER_ERROR,
    "missing": HTTPStatus.NOT_FOUND,
    "forbidden": HTTPStatus.FORBIDDEN,
    "throttled": HTTPStatus.TOO_MANY_REQUESTS,
    "throttled-bare": HTTPStatus.TOO_MANY_REQUESTS,
    "expired": HTTPStatus.FORBIDDEN,
}


class ArchiveServer(Loopback):
    """Serves one archive folder while the `with` block lasts.

    Parameters
    ----------
    folder : Path
        What `pipeline.simulate.archive.make_archive` wrote.
    faults : Faults or None
        What goes wrong with requests; None: nothing.
    port : int
        0 takes a free one.
    guarded : bool
        Whether DLR's files need a login and those of the Planetary Computer a signature
        (`pipeline.simulate.service.guards`).
    token_s : float
        How long a signature holds, in seconds.

    Attributes
    ----------
    url : str
        `http://127.0.0.1:<port>`; the providers are below it.
    requests : int
        Requests for files so far.

    Raises
    ------
    RecipeError
        The folder holds no archive, or the port is taken.
    """

    def __init__(
        self,
        folder: Path,
        *,
        faults: Faults | None = None,
        port: int = 0,
        guarded: bool = False,
        token_s: float = 3600,
    ) -> None:
        self.folder = folder
        self.faults = faults or Faults()
        self.dice = FaultDice(self.faults)
        self.guarded = guarded
        self._token_s = token_s
        self._catalogue = Catalogue.read(folder, self.faults)
        self.requests = 0
        self._count = threading.Lock()
        super().__init__(_Handler, port)

    def count_request(self) -> None:
        """Count one request for a file."""
        with self._count:
            self.requests += 1

    def answer(
        self, method: str, path: str, query: dict[str, str], body: Any, fault: Fault | None
    ) -> Answer:
        """Answer a catalogue request; `Refused` if it makes no sense."""
        if path.startswith(f"{TOKENS}/"):
            account, _, container = path.removeprefix(f"{TOKENS}/").partition("/")
            return Answer(token(account, container, self._token_s))
        return self._catalogue.answer(self.url, method, path, query, body, fault)


class _Handler(LoopbackHandler):
    @property
    def _archive(self) -> ArchiveServer:
        return cast(ArchiveServer, self.server.owner)

    def do_GET(self) -> None:
        self._dispatch("GET")

    def do_HEAD(self) -> None:
        self._dispatch("HEAD")

    def do_POST(self) -> None:
        self._dispatch("POST")

    def _dispatch(self, method: str) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path).strip("/")
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        try:
            body = self._body() if method == "POST" else None
            if path.startswith("files/") and method != "POST":
                self._file(path.removeprefix("files/"), query)
            elif path.startswith(f"{BUCKETS_PATH}/") and method != "POST":
                self._object(path.removeprefix(f"{BUCKETS_PATH}/"))
            else:
                self._page(method.replace("HEAD", "GET"), path, query, body)
        except Refused as refusal:
            answer = Answer({"code": refusal.status.phrase, "description": str(refusal)})
            self._send(refusal.status, answer.data(), answer.media_type)

    def _page(self, method: str, path: str, query: dict[str, str], body: Any) -> None:
        """Answer a request for a catalogue's document."""
        archive = self._archive
        asked = json.dumps([method, query, body], sort_keys=True)
        fault = self._late(archive.dice.throw_page(path, asked))
        if fault is None or fault in BROKEN_PAGES:
            answer = archive.answer(method, path, query, body, fault)
            data, kind = answer.data(), answer.media_type
            if fault == "truncated-page":
                self._head(HTTPStatus.OK, kind, len(data), {})
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
            else:
                half = fault == "no-json"
                self._send(HTTPStatus.OK, data[: len(data) // 2] if half else data, kind)
        else:
            self._fail(fault)

    def _body(self) -> Any:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > _MAX_BODY_BYTES:
            self.close_connection = True
            raise Refused(HTTPStatus.BAD_REQUEST, "a POST needs a Content-Length below 1 MiB")
        try:
            return json.loads(self.rfile.read(int(length)) or b"{}")
        except ValueError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, f"the body is no JSON: {error}") from error

    # --- files -------------------------------------------------------------------------------

    def _file(self, relative: str, query: dict[str, str]) -> None:
        guarded = self._archive.guarded
        stop = verdict(relative, query, self.headers["Authorization"]) if guarded else None
        self._read(relative, stop, signed="sig" in query)

    def _object(self, path: str) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self._read(path.partition("/files/")[2], bucket_verdict(path, headers))

    def _read(self, relative: str, stop: Verdict | None, *, signed: bool = False) -> None:
        """Answer a request for a file, unless something stops it."""
        archive = self._archive
        archive.count_request()
        root = (archive.folder / "files").resolve()
        path = (root / relative).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            raise Refused(HTTPStatus.NOT_FOUND, f"no file {relative}")
        if stop is not None:
            self._fail(stop)
            return
        asked = self.headers.get("Range", self.command)
        fault = self._late(archive.dice.throw(relative, asked, signed=signed))
        if fault in (None, "truncated", "wrong-length", "corrupt"):
            self._send_file(path, fault)
        else:
            self._fail(fault)

    def _late(self, fault: Fault | None) -> Fault | None:
        """Wait if that is what goes wrong, and return what else does."""
        if fault != "latency":
            return fault
        time.sleep(self._archive.faults.latency_s)
        return None

    def _fail(self, fault: Fault | Verdict) -> None:
        faults = self._archive.faults
        if fault in ("reset", "stalled"):
            time.sleep(faults.stall_s if fault == "stalled" else 0)
            self.close_connection = True
        elif fault == "html":
            self._send(HTTPStatus.OK, _LOGIN_PAGE, "text/html")
        elif fault == "expired":
            self._send(_STATUS[fault], _EXPIRED, "application/xml")
        elif fault == "denied":
            self._send(HTTPStatus.FORBIDDEN, _DENIED, "application/xml")
        else:
            hint = {"Retry-After": str(faults.retry_after_s)} if fault == "throttled" else {}
            self._send(_STATUS[fault], b"", "text/plain", hint)

    def _send_file(self, path: Path, fault: Fault | None) -> None:
        """Send what is wanted of a file, or what the fault makes of it."""
        stat = path.stat()
        tag = _entity_tag(stat.st_size, stat.st_mtime_ns)
        kind = _TYPES.get(path.suffix.lower(), "application/octet-stream")
        changed = formatdate(stat.st_mtime, usegmt=True)
        headers = {"ETag": tag, "Last-Modified": changed, "Accept-Ranges": "bytes"}
        try:
            ranges = self._wanted_ranges(stat.st_size, tag)
        except Unsatisfiable:
            headers["Content-Range"] = f"bytes */{stat.st_size}"
            self._send(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, b"", kind, headers)
            return
        status = HTTPStatus.OK if ranges is None else HTTPStatus.PARTIAL_CONTENT
        if ranges is None:
            parts = [(b"", 0, stat.st_size)]
        elif len(ranges) == 1:
            start, stop = ranges[0]
            if fault == "wrong-length":
                stop = start + max(1, (stop - start) // 2)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{stat.st_size}"
            parts = [(b"", start, stop)]
        else:
            parts = list(_multipart(ranges, kind, stat.st_size))
            kind = f"multipart/byteranges; boundary={_BOUNDARY}"
        length = sum(len(head) + stop - start for head, start, stop in parts)
        self._head(status, kind, length, headers)
        if self.command == "HEAD":
            return
        left = length // 2 if fault == "truncated" else length
        self._stream(path, parts, left, corrupt_place(path) if fault == "corrupt" else None)
        if fault == "truncated":
            self.close_connection = True

    def _wanted_ranges(self, size: int, tag: str) -> list[tuple[int, int]] | None:
        """Return the ranges to send, or None for the whole file (RFC 9110, sections 13 and 14)."""
        header = self.headers.get("Range")
        if header is None or self.headers.get("If-Range", tag) != tag:
            return None
        return parse_ranges(header, size)

    def _stream(
        self, path: Path, parts: list[tuple[bytes, int, int]], left: int, spoilt: int | None
    ) -> None:
        """Send pieces of a file, each after its own header bytes, until nothing is left to send.

        `spoilt` is the offset of a byte that is changed on the way.
        """
        with path.open("rb") as file:
            for head, start, stop in parts:
                self.wfile.write(head[:left])
                left -= min(left, len(head))
                for offset, piece in _pieces(file, start, stop):
                    if spoilt is not None and 0 <= spoilt - offset < len(piece):
                        at = spoilt - offset
                        piece = piece[:at] + bytes([piece[at] ^ 0xFF]) + piece[at + 1 :]
                    self.wfile.write(piece[:left])
                    left -= min(left, len(piece))

    # --- answers -----------------------------------------------------------------------------

    def _send(
        self, status: HTTPStatus, body: bytes, kind: str, headers: dict[str, str] | None = None
    ) -> None:
        self._head(status, kind, len(body), headers or {})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: HTTPStatus, kind: str, length: int, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for key, value in {"Content-Type": kind, "Content-Length": str(length), **headers}.items():
            self.send_header(key, value)
        self.end_headers()


def _entity_tag(size: int, modified_ns: int) -> str:
    return f'"{hashlib.sha256(f"{size}-{modified_ns}".encode()).hexdigest()[:32]}"'


def _multipart(
    ranges: list[tuple[int, int]], kind: str, size: int
) -> Iterator[tuple[bytes, int, int]]:
    for start, stop in ranges:
        head = (
            f"\r\n--{_BOUNDARY}\r\nContent-Type: {kind}\r\n"
            f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n\r\n"
        )
        yield head.encode(), start, stop
    yield f"\r\n--{_BOUNDARY}--\r\n".encode(), 0, 0


def _pieces(file: Any, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """Yield a part of a file in pieces, each with its offset."""
    file.seek(start)
    while start < stop:
        piece = file.read(min(_PIECE_BYTES, stop - start))
        if not piece:
            return
        yield start, piece
        start += len(piece)

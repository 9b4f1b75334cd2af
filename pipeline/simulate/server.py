"""Serve a simulated archive: STAC item search as the real providers do it, and files by range.

One server, one sub-path per provider (`/dlr`, `/planetary-computer`, `/labels`), each with a
landing page of its own and that provider's paging and habits; the files are below `/files`. It
listens on the loopback interface only.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from pipeline.errors import RecipeError
from pipeline.simulate.catalogue import Answer, Catalogue
from pipeline.simulate.faults import Fault, FaultDice, Faults
from pipeline.simulate.ranges import Unsatisfiable, parse_ranges
from pipeline.simulate.wishes import Refused

_LOOPBACK = "127.0.0.1"
_BOUNDARY = "terrashard-range-boundary"
_PIECE_BYTES = 1 << 20
_MAX_BODY_BYTES = 1 << 20
_TYPES = {".tif": "image/tiff", ".xml": "application/xml", ".json": "application/json"}
_LOGIN_PAGE = b"<!DOCTYPE html><html><body><form>Please log in to download.</form></body></html>"


class ArchiveServer:
    """Serves one archive folder while the `with` block lasts.

    Parameters
    ----------
    folder : Path
        What `pipeline.simulate.archive.make_archive` wrote.
    faults : Faults or None
        What goes wrong with file requests; None: nothing.
    port : int
        0 takes a free one.

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

    def __init__(self, folder: Path, *, faults: Faults | None = None, port: int = 0) -> None:
        self.folder = folder
        self.dice = FaultDice(faults or Faults())
        self._catalogue = Catalogue.read(folder)
        self.retry_after_s = (faults or Faults()).retry_after_s
        self.requests = 0
        self._count = threading.Lock()
        try:
            self._http = _Server((_LOOPBACK, port), _Handler)
        except OSError as error:
            raise RecipeError(f"cannot listen on {_LOOPBACK}:{port}: {error.strerror}.") from error
        self._http.archive = self
        self.url = f"http://{_LOOPBACK}:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def wait(self) -> None:
        """Block until the server is stopped (a keyboard interrupt ends the wait)."""
        self._thread.join()

    def count_request(self) -> None:
        """Count one request for a file."""
        with self._count:
            self.requests += 1

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        """Answer a catalogue request; `Refused` if it makes no sense."""
        return self._catalogue.answer(self.url, method, path, query, body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    archive: ArchiveServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing when a client hangs up; anything else is a fault of this server."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keep-alive
    disable_nagle_algorithm = True
    timeout = 60
    server: _Server

    def do_GET(self) -> None:
        self._dispatch("GET")

    def do_HEAD(self) -> None:
        self._dispatch("HEAD")

    def do_POST(self) -> None:
        self._dispatch("POST")

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet: requests are counted, not printed."""

    def _dispatch(self, method: str) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path).strip("/")
        try:
            body = self._body() if method == "POST" else None
            if path.startswith("files/") and method != "POST":
                self._file(path.removeprefix("files/"))
                return
            query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
            answer = self.server.archive.answer(method.replace("HEAD", "GET"), path, query, body)
        except Refused as refusal:
            answer = Answer({"code": refusal.status.phrase, "description": str(refusal)})
            self._send(refusal.status, answer.data(), answer.media_type)
            return
        self._send(HTTPStatus.OK, answer.data(), answer.media_type)

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

    def _file(self, relative: str) -> None:
        archive = self.server.archive
        archive.count_request()
        root = (archive.folder / "files").resolve()
        path = (root / relative).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            raise Refused(HTTPStatus.NOT_FOUND, f"no file {relative}")
        fault = archive.dice.throw(relative, self.headers.get("Range", self.command))
        if fault is None or fault == "truncated":
            self._send_file(path, truncated=fault == "truncated")
        else:
            self._fail(fault)

    def _fail(self, fault: Fault) -> None:
        if fault == "reset":
            self.close_connection = True
        elif fault == "html":
            self._send(HTTPStatus.OK, _LOGIN_PAGE, "text/html")
        elif fault == "throttled":
            wait = str(self.server.archive.retry_after_s)
            self._send(HTTPStatus.TOO_MANY_REQUESTS, b"", "text/plain", {"Retry-After": wait})
        else:
            status = {
                "server-error": HTTPStatus.SERVICE_UNAVAILABLE,
                "missing": HTTPStatus.NOT_FOUND,
                "forbidden": HTTPStatus.FORBIDDEN,
            }[fault]
            self._send(status, b"", "text/plain")

    def _send_file(self, path: Path, *, truncated: bool) -> None:
        stat = path.stat()
        tag = _entity_tag(stat.st_size, stat.st_mtime_ns)
        kind = _TYPES.get(path.suffix.lower(), "application/octet-stream")
        headers = {"ETag": tag, "Accept-Ranges": "bytes"}
        try:
            ranges = self._wanted_ranges(stat.st_size, tag)
        except Unsatisfiable:
            headers["Content-Range"] = f"bytes */{stat.st_size}"
            self._send(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, b"", kind, headers)
            return
        if ranges is None:
            self._stream(HTTPStatus.OK, headers, kind, [(b"", 0, stat.st_size)], path, truncated)
        elif len(ranges) == 1:
            start, stop = ranges[0]
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{stat.st_size}"
            parts = [(b"", start, stop)]
            self._stream(HTTPStatus.PARTIAL_CONTENT, headers, kind, parts, path, truncated)
        else:
            parts = list(_multipart(ranges, kind, stat.st_size))
            kind = f"multipart/byteranges; boundary={_BOUNDARY}"
            self._stream(HTTPStatus.PARTIAL_CONTENT, headers, kind, parts, path, truncated)

    def _wanted_ranges(self, size: int, tag: str) -> list[tuple[int, int]] | None:
        """Return the ranges to send, or None for the whole file (RFC 9110, sections 13 and 14)."""
        header = self.headers.get("Range")
        if header is None or self.headers.get("If-Range", tag) != tag:
            return None
        return parse_ranges(header, size)

    def _stream(
        self,
        status: HTTPStatus,
        headers: dict[str, str],
        kind: str,
        parts: list[tuple[bytes, int, int]],
        path: Path,
        truncated: bool,
    ) -> None:
        """Send pieces of a file, each after its own header bytes."""
        length = sum(len(head) + stop - start for head, start, stop in parts)
        self._head(status, kind, length, headers)
        if self.command == "HEAD":
            return
        left = length // 2 if truncated else length
        with path.open("rb") as file:
            for head, start, stop in parts:
                for piece in _pieces(file, head, start, stop):
                    self.wfile.write(piece[:left])
                    left -= min(left, len(piece))
        if truncated:
            self.close_connection = True

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


def _pieces(file: Any, head: bytes, start: int, stop: int) -> Iterator[bytes]:
    if head:
        yield head
    file.seek(start)
    while start < stop:
        piece = file.read(min(_PIECE_BYTES, stop - start))
        if not piece:
            return
        start += len(piece)
        yield piece

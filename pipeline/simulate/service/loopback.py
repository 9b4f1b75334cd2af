"""A server on the loopback interface, in a thread of its own."""

from __future__ import annotations

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from pipeline.errors import RecipeError

_LOOPBACK = "127.0.0.1"


class Loopback:
    """What answers on a port of this machine while `with` holds it; handlers find it as `owner`.

    Attributes
    ----------
    url : str
        `http://127.0.0.1:<port>`.
    port : int

    Raises
    ------
    RecipeError
        The port is taken.
    """

    def __init__(self, handler: type[LoopbackHandler], port: int) -> None:
        try:
            self._http = _Server((_LOOPBACK, port), handler)
        except OSError as error:
            raise RecipeError(f"cannot listen on {_LOOPBACK}:{port}: {error.strerror}.") from error
        self._http.owner = self
        self.port = self._http.server_address[1]
        self.url = f"http://{_LOOPBACK}:{self.port}"
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


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    owner: Any

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing when a client hangs up; anything else is a fault of this server."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class LoopbackHandler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"  # keep-alive
    disable_nagle_algorithm = True
    timeout = 60
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet: requests are counted, not printed."""

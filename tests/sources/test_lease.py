"""All workers of a run on this machine keep a provider's limits together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import TryAgain
from pipeline.sources import limits as limits_module
from pipeline.sources.lease import Alone, Together, lease
from pipeline.sources.limits import Limits

WORKER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pipeline.sources.bytes.http import open_source
from pipeline.sources.providers import Provider
url, share, run = sys.argv[1], float(sys.argv[2]), sys.argv[3]
provider = Provider(
    name="test", title="", kind="stac-api", schemes=("http",), hosts=("127.0.0.1:*",),
    requests_per_s=20, concurrency=2,
)
source = open_source(provider, share=share, run=run)
print("ready", flush=True)
input()
with ThreadPoolExecutor(4) as pool:
    list(pool.map(source.stat, [f"{url}/{sys.argv[4]}-{n}.tif" for n in range(12)]))
"""
HOLDER = """
import sys, time
from pipeline.sources.lease import lease
with lease(sys.argv[1], "test", share=0.5, concurrency=1).place():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


class Busy(ThreadingHTTPServer):
    """Counts the requests that it answers at the same time, and when each came."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.Lock()
        self.now = self.most = 0
        self.times: list[float] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Busy

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
            self.server.times.append(time.monotonic())
        time.sleep(0.03)
        with self.server.lock:
            self.server.now -= 1
        self.send_response(206)
        self.send_header("Content-Range", "bytes 0-3/4")
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"II*\0")

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def busy() -> Iterator[Busy]:
    server = Busy()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_workers_together_keep_concurrency_and_pace(busy: Busy) -> None:
    """Three workers of two places: shares alone would give each of them one."""
    url, command = f"http://127.0.0.1:{busy.server_port}", [sys.executable, "-c", WORKER]
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                subprocess.Popen(
                    [*command, url, str(1 / 3), "run", str(n)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            for n in range(3)
        ]
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"ready\n"
        began = time.monotonic()
        for worker in workers:  # all are told before one is waited for
            assert worker.stdin is not None
            worker.stdin.write(b"\n")
            worker.stdin.flush()
        assert [worker.wait(timeout=60) for worker in workers] == [0, 0, 0]
    assert len(busy.times) == 36
    assert busy.most <= 2
    assert busy.times[-1] - began >= (36 - 20) / 20, "a second's worth at once, then 20 a second"


def test_a_worker_that_is_killed_gives_its_place_back() -> None:
    mine = lease("run", "test", share=0.5, concurrency=1)
    command = [sys.executable, "-c", HOLDER, "run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert isinstance(mine, Together)
        assert mine.part == 1.0
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    with mine.place():  # a place that is not given back would be waited for without end
        pass


def limits(run: str = "run", *, attempts: int = 1) -> Limits:
    return Limits("test", requests_per_s=1000, concurrency=4, share=0.5, attempts=attempts, run=run)


def failing(failure: str, retry_after_s: float | None = None) -> Any:
    def request() -> None:
        raise TryAgain("no", failure=failure, retry_after_s=retry_after_s)

    return request


def test_a_pause_that_one_is_asked_for_holds_for_all_of_its_run() -> None:
    first, second, other = limits(), limits(), limits("another run")
    began = time.monotonic()
    with pytest.raises(TryAgain):
        first.call(failing("throttled", 2))
    other.call(lambda: None)
    assert time.monotonic() - began < 2
    second.call(lambda: None)
    assert time.monotonic() - began >= 2


def test_failures_of_all_open_the_circuit_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_module, "FAILURES_IN_A_ROW", 4)
    first, second = limits(), limits()
    for worker in (first, second, first, second):
        with pytest.raises(TryAgain, match="no"):
            worker.call(failing("server-error"))
    for worker in (first, second):
        with pytest.raises(TryAgain) as error:
            worker.call(lambda: None)
        assert error.value.failure == "circuit-open"
    assert (first.requests, second.requests) == (2, 2)


def test_one_worker_and_a_folder_without_locks_are_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(lease("run", "test", share=1.0, concurrency=4), Alone)
    assert isinstance(lease("", "test", share=0.5, concurrency=4), Alone)
    (tmp_path / f"terrashard-{os.getuid()}").write_text("somebody else's")
    assert isinstance(lease("run", "test", share=0.5, concurrency=4), Alone)

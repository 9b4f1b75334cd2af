"""The door to the network, against a real server on loopback that fails as it is told to."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from rasterio.transform import Affine

from pipeline.errors import PASSING, GiveUp, RecipeError, TerrashardError, TryAgain
from pipeline.ports import ByteSource
from pipeline.raster.blocks import open_asset
from pipeline.raster.windows import Window
from pipeline.sources import limits as limits_module
from pipeline.sources.bytes.http import open_source
from pipeline.sources.bytes.spans import cut, spans_for
from pipeline.sources.limits import Limits
from pipeline.sources.providers import Provider
from pipeline.sources.signing import PlanetaryComputer

DATA = np.random.default_rng(0).integers(0, 256, 1_500_000, dtype=np.uint8).tobytes()
Reply = Callable[["_Handler"], None]


class _Handler(BaseHTTPRequestHandler):
    """Serves `DATA` by range, unless the script has something else for this request."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.seen.append((self.path, dict(self.headers)))
            reply = self.server.script.pop(0) if self.server.script else self.server.always
        reply(self)

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.Lock()
        self.script: list[Reply] = []
        self.always: Reply = part()
        self.seen: list[tuple[str, dict[str, str]]] = []

    @property
    def href(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/scene.tif"

    def handle_error(self, *_: Any) -> None:
        """Clients that hang up are part of the game."""


def part(data: bytes = DATA, *, etag: str = '"one"', send: int | None = None) -> Reply:
    """Answer a range as asked; `send`: break off after so many bytes."""

    def reply(handler: _Handler) -> None:
        first, last = handler.headers["Range"].removeprefix("bytes=").split("-")
        start, stop = int(first), min(int(last) + 1, len(data))
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        handler.send_header("Content-Length", str(stop - start))
        handler.send_header("ETag", etag)
        handler.end_headers()
        handler.wfile.write(data[start : stop if send is None else start + send])
        if send is not None:
            handler.close_connection = True

    return reply


def status(code: int, body: bytes = b"", **headers: str) -> Reply:
    def reply(handler: _Handler) -> None:
        handler.send_response(code)
        handler.send_header("Content-Length", str(len(body)))
        for key, value in headers.items():
            handler.send_header(key.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return reply


def reset(handler: _Handler) -> None:
    handler.close_connection = True
    handler.connection.close()


def drip(handler: _Handler) -> None:
    """Send a byte now and then, for ever: no single wait is long."""
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes 0-65535/{len(DATA)}")
    handler.send_header("Content-Length", "65536")
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.1)


def part_of(length: bytes) -> Reply:
    """Send a part of a file that is so long."""

    def reply(handler: _Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-65535/" + length)
        handler.wfile.write(b"\r\nContent-Length: 65536\r\n\r\n" + DATA[:65536])

    return reply


def endless(handler: _Handler) -> None:
    """Promise a part, and send without end."""
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes 0-65535/{len(DATA)}")
    handler.end_headers()
    handler.close_connection = True
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(DATA)


def silence(handler: _Handler) -> None:
    time.sleep(1.5)
    handler.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    monkeypatch.setattr(limits_module, "FIRST_PAUSE_S", 0.01)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with _Server() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def _provider(**facts: Any) -> Provider:
    values: dict[str, Any] = {
        "name": "test",
        "title": "Test",
        "kind": "stac-api",
        "url": "http://127.0.0.1",
        "hosts": ("127.0.0.1:*",),
        "schemes": ("http",),
        "requests_per_s": 1000,
        "timeout_s": 5,
    }
    return Provider.model_validate(values | facts)


def _source(**facts: Any) -> ByteSource:
    return open_source(_provider(**facts))


# --- what comes --------------------------------------------------------------------------------


def test_length_tag_and_head_come_with_one_request(server: _Server) -> None:
    source = _source()
    stat = source.stat(server.href)
    assert (stat.size_bytes, stat.etag) == (len(DATA), '"one"')
    assert source.ranges(server.href, [(0, 100), (50, 65536)]) == [DATA[:100], DATA[50:65536]]
    assert source.stat(server.href) == stat
    assert source.requests == len(server.seen) == 1


def test_near_ranges_come_in_one_request_and_far_ones_at_once(server: _Server) -> None:
    source = _source()
    wanted = [(100_000, 100_010), (1_400_000, 1_400_020), (100_020, 100_050), (100_005, 100_030)]
    assert source.ranges(server.href, wanted) == [DATA[start:stop] for start, stop in wanted]
    asked = sorted(headers["Range"] for _, headers in server.seen)
    assert asked == ["bytes=100000-100049", "bytes=1400000-1400019"]


RANGES = st.lists(
    st.tuples(st.integers(0, 400), st.integers(1, 60)).map(lambda r: (r[0], r[0] + r[1])),
    min_size=1,
    max_size=8,
)


@given(RANGES, st.integers(0, 50), st.integers(1, 100))
def test_spans_cover_every_range_and_cutting_gives_it_back(
    ranges: list[tuple[int, int]], gap: int, most: int
) -> None:
    data = bytes(range(256)) * 2
    spans = spans_for(ranges, gap_bytes=gap, most_bytes=most)
    assert all(0 < stop - start <= most for start, stop in spans)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    chunks = [data[start:stop] for start, stop in spans]
    assert cut(ranges, spans, chunks) == [data[start:stop] for start, stop in ranges]


def test_a_server_without_ranges_is_asked_once(server: _Server) -> None:
    server.always = status(200, DATA, Content_Type="image/tiff")
    source = _source()
    assert source.stat(server.href).size_bytes == len(DATA)
    far = [(1_000_000, 1_000_100), (10, 20)]
    assert source.ranges(server.href, far) == [DATA[start:stop] for start, stop in far]
    assert source.requests == 1


def test_windows_of_a_cog_cost_one_request_for_each_place(server: _Server, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 3000, (1, 2048, 2048)).astype(np.int16)
    path = tmp_path / "a.tif"
    profile = {"driver": "COG", "count": 1, "width": 2048, "height": 2048, "dtype": "int16"}
    grid = {"crs": "EPSG:32633", "transform": Affine(10, 0, 300000, 0, -10, 5800020)}
    options = {"compress": "deflate", "blocksize": 256, "overviews": "NONE"}
    with rasterio.open(path, "w", **profile, **grid, **options) as file:
        file.write(pixels)
    server.always = part(path.read_bytes())
    source = _source()
    # Two places far apart in the file, three windows each.
    windows = [Window(x, y, 200, 100) for y in (10, 1900) for x in (0, 210, 420)]
    with open_asset(source, server.href) as asset:
        found = asset.read([1], windows, fill=0)
        assert asset.blocks_touched == asset.blocks_decoded == 6
    for window, patch in zip(windows, found, strict=True):
        rows, cols = slice(window.row, window.row + 100), slice(window.col, window.col + 200)
        np.testing.assert_array_equal(patch[0], pixels[0, rows, cols])
    assert len(server.seen) == 3


# --- what fails in passing ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        status(503),
        status(429),
        status(429, Retry_After="\xb2"),  # a digit, and no number
        status(500),
        reset,
        part(send=70),
        part(send=0),
    ],
    ids=["503", "429", "odd-pause", "500", "reset", "short", "empty"],
)
def test_a_passing_failure_is_tried_again(server: _Server, fault: Reply) -> None:
    server.script = [fault, fault]
    source = _source()
    assert source.ranges(server.href, [(5, 200_000)]) == [DATA[5:200_000]]
    assert source.requests == 3


@pytest.mark.parametrize(
    ("fault", "failure"),
    [
        (status(503), "server-error"),
        (status(429), "throttled"),
        (reset, "connection"),
        (silence, "timeout"),
        (drip, "timeout"),
    ],
)
def test_a_failure_that_stays_has_its_class(
    server: _Server, fault: Reply, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sources.bytes.http._LEAST_BYTES_PER_S", 10**7)
    server.always = fault
    source = open_source(_provider(timeout_s=0.3), attempts=2)
    start = time.monotonic()
    with pytest.raises(TryAgain) as caught:
        source.stat(server.href)
    assert caught.value.failure == failure
    assert source.requests == 2
    assert time.monotonic() - start < 5


def test_short_reads_in_every_attempt_mean_truncated(server: _Server) -> None:
    server.always = part(send=70)
    with pytest.raises(GiveUp, match="5 times") as caught:
        _source().ranges(server.href, [(0, 1000)])
    assert caught.value.failure == "truncated"


def test_retry_after_is_waited_for(server: _Server) -> None:
    server.script = [status(429, Retry_After="1")]
    source = _source()
    start = time.monotonic()
    source.stat(server.href)
    assert time.monotonic() - start >= 1


def test_a_date_in_retry_after_is_waited_for(server: _Server) -> None:
    """Such a date has no fractions of a second, so this one is 1 to 2 seconds away."""
    date_s = int(time.time()) + 2
    server.script = [status(429, Retry_After=formatdate(date_s, usegmt=True))]
    _source().stat(server.href)
    assert time.time() > date_s - 0.1  # pauses go by another clock than dates


def test_a_pause_too_long_to_sit_out_is_passed_on(server: _Server) -> None:
    server.always = status(503, Retry_After="3600")
    with pytest.raises(TryAgain) as caught:
        _source().stat(server.href)
    assert caught.value.retry_after_s == 3600
    assert len(server.seen) == 1


def test_a_provider_that_is_down_is_left_alone(
    server: _Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits_module, "LONGEST_PAUSE_S", 0.02)
    server.always = status(500)
    source = open_source(_provider(), attempts=limits_module.FAILURES_IN_A_ROW)
    with pytest.raises(TryAgain, match="status 500"):
        source.stat(server.href)
    with pytest.raises(TryAgain) as caught:
        source.stat(server.href)
    assert caught.value.failure == "circuit-open"
    assert len(server.seen) == limits_module.FAILURES_IN_A_ROW


def test_the_pace_is_kept() -> None:
    limits = Limits("test", requests_per_s=100, concurrency=8, share=0.5, attempts=1)
    assert limits.concurrency == 4
    start = time.monotonic()
    for _ in range(75):
        limits.call(lambda: None)
    # 50 at once (one second's worth), the other 25 at 50 a second.
    assert time.monotonic() - start >= 0.45


# --- what is final -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "failure"),
    [
        (status(404), "gone"),
        (status(410), "gone"),
        (status(403), "forbidden"),
        (status(401), "forbidden"),
        (status(400), "forbidden"),
        (status(200, b"<html>", Content_Type="text/html; charset=utf-8"), "not-an-image"),
        (status(206, b"II*"), "corrupt"),
        (status(302, Location="http://example.com/a.tif"), "refused"),
        (status(302, Location="file:///etc/passwd"), "refused"),
        (status(302, Location="/again"), "refused"),
        (status(302, Location="http://[again"), "refused"),
        (status(302), "forbidden"),
        (status(304), "forbidden"),
        (part_of(b"9" * 5000), "corrupt"),
        (endless, "corrupt"),
    ],
)
def test_a_final_failure_is_not_tried_again(server: _Server, reply: Reply, failure: str) -> None:
    server.always = reply
    source = _source()
    with pytest.raises(GiveUp) as caught:
        source.stat(server.href)
    assert caught.value.failure == failure
    assert source.requests == 1


@pytest.mark.parametrize(
    ("reply", "auth", "cure"),
    [
        (status(404), None, "`retry` asks again"),
        (status(403), None, "asked without a login"),
        (status(401), "basic", "set TERRASHARD_TEST_USER and TERRASHARD_TEST_PASSWORD, or add 127"),
        (status(200, b"<html>", Content_Type="text/html"), "basic", "a login: set TERRASHARD_TEST"),
        (status(503), None, "the server failed"),
        (silence, None, "no answer in time"),
    ],
)
def test_messages_name_provider_and_address_and_what_to_do(
    server: _Server, reply: Reply, auth: str | None, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETRC", "/nowhere")
    monkeypatch.setenv("HOME", "/nowhere")
    server.always = reply
    source = open_source(_provider(auth=auth, timeout_s=0.3), attempts=1)
    with pytest.raises(TerrashardError) as caught:
        source.stat(f"{server.href}?sig=secret#frag")
    text = str(caught.value)
    assert text.startswith(f"provider test: {server.href}")
    assert cure in text
    assert "secret" not in text
    assert "\n" not in text


@pytest.mark.parametrize("now", [part(etag='"two"'), part(DATA[:-1]), status(416)])
def test_a_file_that_changes_while_it_is_read(server: _Server, now: Reply) -> None:
    source = _source()
    source.stat(server.href)
    server.always = now
    with pytest.raises(GiveUp) as caught:
        source.ranges(server.href, [(100_000, 100_100)])
    assert caught.value.failure == "changed"


def test_nothing_is_remembered_of_an_attempt_that_failed(server: _Server) -> None:
    """The first answer states another length and tag, and brings less than it states."""

    def lying(handler: _Handler) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 0-99/{len(DATA) - 5}")
        handler.send_header("ETag", '"gone"')
        handler.send_header("Content-Length", "10")
        handler.end_headers()
        handler.wfile.write(DATA[:10])

    server.script = [lying, part()]
    source = _source()
    assert source.ranges(server.href, [(0, 100)]) == [DATA[:100]]
    assert source.stat(server.href).etag == '"one"'


def test_an_end_before_the_range(server: _Server) -> None:
    with pytest.raises(GiveUp) as caught:
        _source().ranges(server.href, [(len(DATA) - 10, len(DATA) + 10)])
    assert caught.value.failure == "truncated"


def test_an_empty_file(server: _Server) -> None:
    server.always = status(416, Content_Range="bytes */0")
    assert _source().stat(server.href).size_bytes == 0


def test_an_address_of_another_host_is_never_asked(server: _Server) -> None:
    source = _source(hosts=("example.com",), schemes=("https",))
    for href in (server.href, "/etc/passwd", "/vsicurl/http://127.0.0.1", "s3://bucket/key"):
        with pytest.raises(GiveUp) as caught:
            source.stat(href)
        assert caught.value.failure == "refused"
    assert server.seen == []


# --- who may read ------------------------------------------------------------------------------


def test_credentials_stay_with_their_host(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERRASHARD_TEST_USER", "ann")
    monkeypatch.setenv("TERRASHARD_TEST_PASSWORD", "s3cret")
    with _Server() as other:
        thread = threading.Thread(target=other.serve_forever, args=(0.01,))
        thread.start()
        server.always = status(302, Location=other.href)
        source = _source(auth="basic")
        assert source.stat(server.href).size_bytes == len(DATA)
        other.shutdown()
        thread.join()
    assert all(headers["Authorization"].startswith("Basic ") for _, headers in server.seen)
    assert other.seen
    assert all("Authorization" not in headers for _, headers in other.seen)


def test_without_credentials_none_are_sent_and_no_message_holds_any(
    server: _Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "absent"))
    monkeypatch.setenv("HOME", str(tmp_path))
    server.always = status(403)
    with pytest.raises(GiveUp) as caught:
        _source(auth="basic").stat(server.href + "?sig=abc")
    assert "Authorization" not in server.seen[0][1]
    assert "sig" not in str(caught.value)
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login ann password s3cret\n")
    netrc.chmod(0o600)
    with pytest.raises(GiveUp) as caught:
        _source(auth="basic").stat(server.href)
    assert "Authorization" in server.seen[1][1]
    assert "s3cret" not in str(caught.value)


def test_addresses_are_signed_when_they_are_read(
    server: _Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PC_SDK_SAS_URL", server.href)
    monkeypatch.setenv("PC_SDK_SUBSCRIPTION_KEY", "my-key")
    moments = iter([datetime(2999, 1, 1, tzinfo=UTC), datetime.now(UTC) + timedelta(seconds=200)])
    numbers = iter("12345")

    def token(handler: _Handler) -> None:
        expiry = next(moments, datetime(2999, 1, 1, tzinfo=UTC))
        body = {"token": f"sig={next(numbers)}", "msft:expiry": expiry.isoformat()}
        status(200, json.dumps(body).encode(), Content_Type="application/json")(handler)

    def ask(url: str, headers: dict[str, str]) -> httpx.Response:
        return httpx.get(url, headers=headers)

    server.always = token
    signer = PlanetaryComputer(ask)
    href = "https://account.blob.core.windows.net/box/a/b.tif"
    assert signer.sign(href) == f"{href}?sig=1"
    assert signer.sign(f"{href}?x=1") == f"{href}?x=1&sig=1", "one token for a container"
    other = "https://account.blob.core.windows.net/other/b.tif"
    assert [signer.sign(other) for _ in range(2)] == [f"{other}?sig=2", f"{other}?sig=3"], (
        "one that expires soon is renewed before it does"
    )
    assert [path for path, _ in server.seen] == [
        "/scene.tif/account/box",
        *["/scene.tif/account/other"] * 2,
    ]
    assert server.seen[0][1]["Ocp-Apim-Subscription-Key"] == "my-key"
    for refused, next_one in (("0", "1"), ("1", "4"), ("1", "4")):
        signer.forget(href, f"{href}?sig={refused}")
        assert signer.sign(href) == f"{href}?sig={next_one}", "one renewal for all threads"


def test_a_signature_that_is_not_given_is_told_and_a_broken_answer_is_passing(
    server: _Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PC_SDK_SAS_URL", server.href)
    expiry = datetime(2999, 1, 1, tzinfo=UTC).isoformat()
    good = json.dumps({"token": "sig=1", "msft:expiry": expiry}).encode()
    server.script = [status(200, good[:30]), status(200, b"<html>"), status(200, good)]
    assert _source(sign="planetary-computer").stat(server.href).size_bytes == len(DATA)
    assert len(server.seen) == 4, "each broken answer was asked for again"
    server.always = status(404)
    with pytest.raises(GiveUp, match=r"gives no signature .*PC_SDK_SUBSCRIPTION_KEY") as caught:
        _source(sign="planetary-computer").stat(server.href)
    assert caught.value.failure == "forbidden"


# --- files on disk, buckets --------------------------------------------------------------------


def test_files_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(DATA[:1000])
    source = open_source(Provider(name="local", title="Local", kind="local"))
    assert source.stat(str(path)).size_bytes == 1000
    assert source.ranges(str(path), [(0, 4), (900, 1000)]) == [DATA[:4], DATA[900:1000]]
    failures = {
        "truncated": lambda: source.ranges(str(path), [(990, 1010)]),
        "gone": lambda: source.stat(str(tmp_path / "absent.tif")),
        "refused": lambda: source.stat("a.tif"),
    }
    for failure, action in failures.items():
        with pytest.raises(GiveUp) as caught:
            action()
        assert caught.value.failure == failure
    path.write_bytes(DATA[:999])
    with pytest.raises(GiveUp) as caught:
        source.ranges(str(path), [(0, 4)])
    assert caught.value.failure == "changed"


def test_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    boto3 = pytest.importorskip("boto3")
    moto = pytest.importorskip("moto.server")
    monkeypatch.setenv("TERRASHARD_TEST_USER", "key")
    monkeypatch.setenv("TERRASHARD_TEST_PASSWORD", "secret")
    service = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    service.start()
    try:
        host, port = service.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="key",
            aws_secret_access_key="secret",
        )
        client.create_bucket(Bucket="scenes")
        client.put_object(Bucket="scenes", Key="a/b 1.tif", Body=DATA[:200_000])
        source = _source(
            schemes=("s3",), hosts=("scenes",), auth="s3-keys", s3_endpoint=endpoint, url=None
        )
        href = "s3://scenes/a/b%201.tif"
        assert source.stat(href).size_bytes == 200_000
        assert source.stat(href).etag
        wanted = [(0, 10), (150_000, 200_000)]
        assert source.ranges(href, wanted) == [DATA[start:stop] for start, stop in wanted]
        with pytest.raises(GiveUp) as caught:
            source.stat("s3://scenes/absent.tif")
        assert caught.value.failure == "gone"
        with pytest.raises(GiveUp) as caught:
            source.stat("s3://other/a.tif")
        assert caught.value.failure == "refused"
    finally:
        service.stop()


def s3_error(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()


@pytest.mark.parametrize(
    ("reply", "failure", "words"),
    [
        (status(400, s3_error("ExpiredToken")), "forbidden", "ExpiredToken.*session .* is over"),
        (status(403, s3_error("RequestTimeTooSkewed")), "forbidden", "RequestTimeTooSkewed"),
        (status(401), "forbidden", "TERRASHARD_TEST_USER"),
        (status(405), "forbidden", "status 405"),
        (status(301), "forbidden", "another region"),
        (status(404), "gone", "is gone"),
        (status(416), "changed", "shorter"),
        (status(200, b"II*"), "corrupt", "the whole came"),
        (status(503, s3_error("SlowDown")), "throttled", "SlowDown"),
        (status(429), "throttled", "status 429"),
        (status(500, s3_error("InternalError")), "server-error", "status 500"),
        (reset, "connection", "connection failed"),
        (silence, "timeout", "no answer in time"),
    ],
)
def test_what_a_bucket_says_has_its_class(
    server: _Server,
    reply: Reply,
    failure: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERRASHARD_TEST_USER", "my-key")
    monkeypatch.setenv("TERRASHARD_TEST_PASSWORD", "my-secret")
    server.always = reply
    endpoint = server.href.rpartition("/")[0]
    facts = {"schemes": ("s3",), "hosts": ("box",), "auth": "s3-keys", "s3_endpoint": endpoint}
    source = open_source(_provider(**facts, timeout_s=0.4), attempts=1)
    with pytest.raises((TryAgain, GiveUp), match=words) as caught:
        source.stat("s3://box/a.tif")
    assert caught.value.failure == failure
    assert isinstance(caught.value, TryAgain) == (failure in PASSING)
    assert str(caught.value).startswith("provider test: s3://box/a.tif")
    assert "my-secret" not in str(caught.value)


def test_a_reader_pays_for_the_buckets_that_ask_for_it_and_for_no_other(
    server: _Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bucket(handler: _Handler) -> None:
        headers = {"Last-Modified": formatdate(0, usegmt=True), "Content-Range": "bytes 0-3/4"}
        status(206, b"II*\0", ETag='"one"', **headers)(handler)

    server.always = bucket
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    facts = {
        "schemes": ("s3",),
        "hosts": ("paid", "free"),
        "auth": "aws",
        "requester_pays": ("paid",),
        "s3_endpoint": server.href.rpartition("/")[0],
    }
    with pytest.raises(RecipeError, match="AWS_ACCESS_KEY_ID and AWS_SECRET"):
        _source(**facts).stat("s3://paid/a.tif")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "my-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "my-secret")
    for href in ("s3://paid/a.tif", "s3://free/a.tif"):
        assert _source(**facts).stat(href).size_bytes == 4
    (_, paid), (_, free) = server.seen
    paid, free = ({key.lower(): value for key, value in seen.items()} for seen in (paid, free))
    assert paid["x-amz-request-payer"] == "requester"
    assert "my-key" in paid["authorization"]
    assert "x-amz-request-payer" not in free
    assert "authorization" not in free

"""Range requests as RFC 9110 has them, and faults that are seeded, bounded and as ordered."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import RecipeError
from pipeline.simulate.service.faults import OF_FILES, FaultDice, Faults
from pipeline.simulate.service.guards import LOGIN, TOKENS
from pipeline.simulate.service.ranges import Unsatisfiable, parse_ranges
from pipeline.simulate.service.server import ArchiveServer


@pytest.fixture(scope="module")
def path(archive: Path) -> Path:
    return next((archive / "files").rglob("*_B04.tif"))


@pytest.fixture
def href(archive: Path, path: Path, server: ArchiveServer) -> str:
    return f"{server.url}/{path.relative_to(archive)}"


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client() as opened:
        yield opened


# --- ranges ---------------------------------------------------------------------------------------


@given(st.integers(1, 500), st.integers(0, 600), st.integers(0, 600))
def test_a_range_is_a_slice(size: int, first: int, last: int) -> None:
    data = bytes(i % 251 for i in range(size))
    header = f"bytes={first}-{last}"
    if last < first:
        assert parse_ranges(header, size) is None
    elif first >= size:
        with pytest.raises(Unsatisfiable):
            parse_ranges(header, size)
    else:
        assert [data[a:b] for a, b in parse_ranges(header, size) or []] == [data[first : last + 1]]
    if last:
        ((start, stop),) = parse_ranges(f"bytes=-{last}", size) or []
        assert data[start:stop] == data[-last:]


@pytest.mark.parametrize("header", ["", "bytes", "bytes=", "bytes=a-b", "lines=0-1", "bytes=-"])
def test_what_is_no_range_is_ignored(header: str) -> None:
    assert parse_ranges(header, 10) is None


def test_whole_head_single_and_open_ranges(href: str, path: Path, client: httpx.Client) -> None:
    data = path.read_bytes()
    whole, head = client.get(href), client.head(href)
    assert whole.content == data
    assert (whole.status_code, head.status_code, head.content) == (200, 200, b"")
    assert head.headers["content-length"] == whole.headers["content-length"] == str(len(data))
    assert head.headers["etag"] == whole.headers["etag"]
    assert whole.headers["accept-ranges"] == "bytes"
    for header, expected in (("0-99", data[:100]), ("100-", data[100:]), ("-7", data[-7:])):
        part = client.get(href, headers={"Range": f"bytes={header}"})
        assert (part.status_code, part.content) == (206, expected)
        assert part.headers["content-range"].endswith(f"/{len(data)}")


def test_several_ranges_come_as_parts(href: str, path: Path, client: httpx.Client) -> None:
    data = path.read_bytes()
    answer = client.get(href, headers={"Range": "bytes=0-3, 10-19"})
    assert answer.status_code == 206
    kind, boundary = answer.headers["content-type"].split("; boundary=")
    assert kind == "multipart/byteranges"
    parts = answer.content.split(f"--{boundary}".encode())[1:-1]
    bodies = [part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n") for part in parts]
    assert bodies == [data[:4], data[10:20]]


def test_beyond_the_end_and_if_range(href: str, path: Path, client: httpx.Client) -> None:
    size = path.stat().st_size
    beyond = client.get(href, headers={"Range": f"bytes={size}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{size}")
    tag = client.head(href).headers["etag"]
    same = client.get(href, headers={"Range": "bytes=0-9", "If-Range": tag})
    other = client.get(href, headers={"Range": "bytes=0-9", "If-Range": '"old"'})
    assert (same.status_code, other.status_code, len(other.content)) == (206, 200, size)


def test_a_connection_is_kept(server: ArchiveServer, href: str) -> None:
    parts = urlsplit(href)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    for _ in range(3):
        connection.request("GET", parts.path, headers={"Range": "bytes=0-0"})
        assert len(connection.getresponse().read()) == 1
        assert connection.sock is not None
    connection.close()


@pytest.mark.parametrize(
    "path", ["files/../archive.json", "files/%2e%2e/archive.json", "files/no.tif", "etc", "files"]
)
def test_nothing_outside_the_files_is_served(server: ArchiveServer, path: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    connection.request("GET", f"/{path}")
    assert connection.getresponse().status == 404
    connection.close()


def test_it_listens_on_loopback_only(server: ArchiveServer, archive: Path) -> None:
    assert urlsplit(server.url).hostname == "127.0.0.1"
    with pytest.raises(RecipeError, match="cannot listen"):
        ArchiveServer(archive, port=urlsplit(server.url).port or 0)


def test_a_folder_without_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"archive\.json"):
        ArchiveServer(tmp_path)


# --- faults ---------------------------------------------------------------------------------------


def asked(dice: FaultDice, keys: list[str]) -> dict[str, list[str | None]]:
    found: dict[str, list[str | None]] = {}
    for key in keys:
        found.setdefault(key, []).append(dice.throw(key, "bytes=0-9"))
    return found


@given(st.permutations([f"scene-{i % 6}.tif" for i in range(24)]), st.integers(0, 50))
def test_faults_do_not_depend_on_the_order_of_clients(keys: list[str], seed: int) -> None:
    faults = Faults(rate=0.5, seed=seed)
    assert asked(FaultDice(faults), keys) == asked(FaultDice(faults), sorted(keys))


def test_faults_are_as_many_as_ordered_and_end() -> None:
    dice = FaultDice(Faults(rate=0.3, seed=4))
    first = [dice.throw(f"{i}.tif", "") for i in range(2000)]
    assert sum(f is not None for f in first) / 2000 == pytest.approx(0.3, abs=0.04)
    assert {f for f in first if f} == set(OF_FILES)
    always = FaultDice(Faults(rate=1.0, at_most=2))
    assert [always.throw("a", "") is None for _ in range(6)] == [False, False, True] * 2
    assert always.thrown.total() == 4


def test_each_fault_looks_like_the_real_thing(archive: Path, path: Path) -> None:
    permanent = {
        "*B02*": "throttled",
        "*B03*": "server-error",
        "*B04*": "truncated",
        "*B05*": "reset",
        "*B06*": "html",
        "*B07*": "missing",
        "*B08*": "forbidden",
        "*B8A*": "throttled-bare",
        "*B09*": "internal-error",
        "*B11*": "expired",
        "*B12*": "stalled",
        "*SCL*": "wrong-length",
        "*B01*": "corrupt",
    }
    folder = path.parent

    def address(server: ArchiveServer, band: str) -> str:
        found = next(folder.rglob(f"*_{band}.tif"))
        return f"{server.url}/{found.relative_to(archive)}"

    faults = Faults(permanent=permanent, retry_after_s=3)
    with ArchiveServer(archive, faults=faults) as server, httpx.Client() as client:
        throttled = client.get(address(server, "B02"))
        assert (throttled.status_code, throttled.headers["retry-after"]) == (429, "3")
        page = client.get(address(server, "B06"))
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html")
        bare = client.get(address(server, "B8A"))
        assert (bare.status_code, "retry-after" in bare.headers) == (429, False)
        for band, status in (("B03", 503), ("B07", 404), ("B08", 403), ("B09", 500), ("B11", 403)):
            assert client.get(address(server, band)).status_code == status
        for band in ("B04", "B05", "B12"):
            with pytest.raises(httpx.RemoteProtocolError):
                client.get(address(server, band))
        part = client.get(address(server, "SCL"), headers={"Range": "bytes=0-99"})
        assert (part.status_code, len(part.content)) == (206, 50)
        assert part.headers["content-range"].startswith("bytes 0-49/")
        assert server.dice.thrown.total() == 12


def test_a_corrupt_byte_is_the_same_one_in_every_range(archive: Path, path: Path) -> None:
    data = path.read_bytes()
    faults = Faults(permanent={"*B04*": "corrupt"})
    with ArchiveServer(archive, faults=faults) as server, httpx.Client() as client:
        href = f"{server.url}/{path.relative_to(archive)}"
        whole = client.get(href).content
        (place,) = [i for i, (a, b) in enumerate(zip(whole, data, strict=True)) if a != b]
        assert data[place] == 0x78  # the first byte of a zlib stream
        header = {"Range": f"bytes={place - 5}-{place + 5}"}
        assert client.get(href, headers=header).content == whole[place - 5 : place + 6]


def test_late_answers_are_right(archive: Path, path: Path) -> None:
    faults = Faults(permanent={"*": "latency"}, latency_s=0.1)
    with ArchiveServer(archive, faults=faults) as server:
        answer = httpx.get(f"{server.url}/{path.relative_to(archive)}")
    assert answer.content == path.read_bytes()
    assert answer.elapsed.total_seconds() >= 0.1


def test_guarded_files_need_a_login_or_a_signature(archive: Path, path: Path) -> None:
    cube = next((archive / "files").rglob("*_image.tif"))
    with ArchiveServer(archive, guarded=True, token_s=2) as server, httpx.Client() as client:
        dlr, azure = (f"{server.url}/{p.relative_to(archive)}" for p in (cube, path))
        page = client.get(dlr)
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html")
        assert client.get(dlr, auth=LOGIN).headers["content-type"] == "image/tiff"
        assert client.get(azure).status_code == 403
        signature = client.get(f"{server.url}/{TOKENS}/127/files").json()
        signed = f"{azure}?{signature['token']}"
        assert client.get(signed).status_code == 200
        assert client.get(signed.replace("sig=", "sig=0")).status_code == 403
        expiry = datetime.fromisoformat(signature["msft:expiry"])
        time.sleep(max(0, (expiry - datetime.now(UTC)).total_seconds()) + 0.01)
        assert client.get(signed).status_code == 403


@pytest.mark.parametrize(
    "values", [{"rate": 2}, {"kinds": ("lightning",)}, {"rate": 0.5, "kinds": ()}]
)
def test_impossible_faults_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(RecipeError):
        Faults(**values)  # type: ignore[arg-type]


def test_many_clients_at_once(href: str, path: Path, client: httpx.Client) -> None:
    data, wrong = path.read_bytes(), []

    def read(start: int) -> None:
        part = client.get(href, headers={"Range": f"bytes={start}-{start + 99}"})
        if part.content != data[start : start + 100]:
            wrong.append(start)

    threads = [threading.Thread(target=read, args=(37 * i,)) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_errors_are_json(server: ArchiveServer, client: httpx.Client) -> None:
    for path in ("dlr/nowhere", "nowhere"):
        answer = client.get(f"{server.url}/{path}")
        assert answer.status_code == 404
        assert "description" in json.loads(answer.content)
    bad = client.post(f"{server.url}/dlr/search", content=b"{")
    assert bad.status_code == 400

"""Logins and signatures, as the project's own doors get through them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import rasterio

from pipeline.errors import GiveUp
from pipeline.ports import ByteSource
from pipeline.simulate.archive import make_archive
from pipeline.simulate.service.faults import Faults
from pipeline.simulate.service.guards import BUCKETS, BUCKETS_PATH, LOGIN, TOKENS
from pipeline.simulate.service.server import ArchiveServer
from pipeline.sources.bytes.http import open_source
from pipeline.sources.providers import Provider, load_provider


@pytest.fixture(scope="module")
def guarded(archive: Path) -> Iterator[ArchiveServer]:
    with ArchiveServer(archive, guarded=True, token_s=400) as server:
        yield server


def door(name: str, *, attempts: int = 1, **entry: object) -> ByteSource:
    """Return what reads files of a provider whose host is the simulated archive."""
    provider = Provider.model_validate(
        {
            "name": name,
            "title": name,
            "kind": "stac-api",
            "hosts": ("127.0.0.1:*",),
            "schemes": ("http",),
            **entry,
        }
    )
    return open_source(provider, attempts=attempts)


def bucket_door(server: ArchiveServer, name: str, **changes: Any) -> ByteSource:
    """Return what reads a real provider's bucket, at the simulated S3 service."""
    changes["s3_endpoint"] = f"{server.url}/{BUCKETS_PATH}"
    return open_source(load_provider(name).model_copy(update=changes), attempts=1)


def href(server: ArchiveServer, archive: Path, pattern: str) -> str:
    path = next((archive / "files").rglob(pattern))
    return f"{server.url}/{path.relative_to(archive)}"


def test_a_login_opens_dlr_and_its_page_is_no_image(
    guarded: ArchiveServer, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cube = href(guarded, archive, "*_image.tif")
    for name, value in zip(("USER", "PASSWORD"), LOGIN, strict=True):
        monkeypatch.setenv(f"TERRASHARD_SIMULATED_DLR_{name}", value)
    assert door("simulated-dlr", auth="basic").stat(cube).size_bytes > 1000
    monkeypatch.setenv("TERRASHARD_SIMULATED_DLR_PASSWORD", "wrong")
    with pytest.raises(GiveUp, match="not an image") as failed:
        door("simulated-dlr", auth="basic").stat(cube)
    assert failed.value.failure == "not-an-image"
    assert "wrong" not in str(failed.value)


def test_a_signature_opens_azure(
    guarded: ArchiveServer, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    band = href(guarded, archive, "*_B04.tif")
    monkeypatch.setenv("PC_SDK_SAS_URL", f"{guarded.url}/{TOKENS}")
    assert door("signed", sign="planetary-computer").stat(band).size_bytes > 1000
    with pytest.raises(GiveUp) as failed:
        door("unsigned").stat(band)
    assert failed.value.failure == "forbidden"


def test_a_signature_that_ends_while_it_is_used_is_renewed_at_once(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each range is refused once, as Azure refuses an old signature, though one attempt is made."""
    faults = Faults(rate=1, kinds=("expired",), at_most=1)
    with ArchiveServer(archive, guarded=True, faults=faults) as server:
        monkeypatch.setenv("PC_SDK_SAS_URL", f"{server.url}/{TOKENS}")
        band = href(server, archive, "*_B04.tif")
        source = door("signed", sign="planetary-computer")
        whole = next((archive / "files").rglob("*_B04.tif")).read_bytes()
        assert source.stat(band).size_bytes == len(whole)
        # More ranges than one request brings, by as many threads: each healed, none twice.
        far = [(at, at + 10) for at in range(0, len(whole) - 10, max(1, len(whole) // 7))]
        assert source.ranges(band, far) == [whole[start:stop] for start, stop in far]
        assert server.dice.thrown["expired"] == server.requests / 2
        assert source.requests == server.requests / 2, "no attempt was used up"


def test_a_signature_that_is_never_good_enough_stays_a_named_failure(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ArchiveServer(archive, faults=Faults(permanent={"*_B04.tif": "expired"})) as server:
        monkeypatch.setenv("PC_SDK_SAS_URL", f"{server.url}/{TOKENS}")
        with pytest.raises(GiveUp, match="a new one as well") as failed:
            door("signed", attempts=5, sign="planetary-computer").stat(
                href(server, archive, "*_B04.tif")
            )
        assert failed.value.failure == "forbidden"
        assert "sig=" not in str(failed.value)
        assert server.requests == 2


@pytest.fixture(scope="module")
def buckets(tmp_path_factory: pytest.TempPathFactory, orbits: Any) -> Iterator[ArchiveServer]:
    """One product in the bucket of each provider that keeps one."""
    folder = tmp_path_factory.mktemp("buckets") / "archive"
    make_archive(
        folder,
        products=["sentinel-2-l2a", "landsat-oli-sr"],
        providers={"sentinel-2-l2a": "copernicus", "landsat-oli-sr": "usgs"},
        region=(15.02, 51.9, 15.026, 51.904),
        start=date(2023, 4, 1),
        end=date(2023, 5, 1),
        orbits=orbits,
    )
    with ArchiveServer(folder) as server:
        yield server


def in_bucket(server: ArchiveServer, provider: str, pattern: str) -> str:
    path = next((server.folder / "files" / provider).rglob(pattern))
    return f"s3://{BUCKETS[provider]}/{path.relative_to(server.folder)}"


KEYS = {"usgs": "AWS_{}", "copernicus": "TERRASHARD_COPERNICUS_{}"}
NAMES = {"usgs": ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"), "copernicus": ("USER", "PASSWORD")}


def give_keys(monkeypatch: pytest.MonkeyPatch, provider: str, keys: tuple[str, str]) -> None:
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    for name, value in zip(NAMES[provider], keys, strict=True):
        monkeypatch.setenv(KEYS[provider].format(name), value)


def test_who_pays_reads_the_bucket_and_who_does_not_is_told_so(
    buckets: ArchiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    band = in_bucket(buckets, "usgs", "*_red.tif")
    give_keys(monkeypatch, "usgs", LOGIN)
    assert bucket_door(buckets, "usgs").stat(band).size_bytes > 1000
    with pytest.raises(GiveUp) as failed:
        bucket_door(buckets, "usgs", requester_pays=()).stat(band)
    assert failed.value.failure == "forbidden"
    give_keys(monkeypatch, "usgs", ("another", "s3cret"))
    with pytest.raises(GiveUp, match="account of AWS_ACCESS_KEY_ID") as failed:
        bucket_door(buckets, "usgs").stat(band)
    assert failed.value.failure == "forbidden"
    assert "s3cret" not in str(failed.value)


def test_jpeg_2000_is_read_out_of_a_bucket_by_its_keys_only(
    buckets: ArchiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    band = in_bucket(buckets, "copernicus", "*_B04_10m.jp2")
    give_keys(monkeypatch, "copernicus", LOGIN)
    source = bucket_door(buckets, "copernicus")
    assert source.ranges(band, [(4, 12)]) == [b"jP  \r\n\x87\n"]
    with pytest.raises(GiveUp, match="is gone") as failed:
        source.stat(band.replace("B04", "B14"))
    assert failed.value.failure == "gone"
    with rasterio.open(next(buckets.folder.rglob("*_B04_10m.jp2"))) as raster:
        assert (raster.driver, raster.nodata, raster.crs.to_epsg()) == ("JP2OpenJPEG", None, 32633)
    give_keys(monkeypatch, "copernicus", ("another", "s3cret"))
    with pytest.raises(GiveUp, match="TERRASHARD_COPERNICUS_USER") as failed:
        bucket_door(buckets, "copernicus").stat(band)
    assert failed.value.failure == "forbidden"

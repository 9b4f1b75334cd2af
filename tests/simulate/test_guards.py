"""Logins and signatures, as the project's own doors get through them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import GiveUp
from pipeline.ports import ByteSource
from pipeline.simulate.faults import Faults
from pipeline.simulate.guards import LOGIN, TOKENS
from pipeline.simulate.server import ArchiveServer
from pipeline.sources.http import open_source
from pipeline.sources.providers import Provider


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

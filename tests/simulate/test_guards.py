"""Logins and signatures, as the project's own doors get through them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import GiveUp
from pipeline.ports import ByteSource
from pipeline.simulate.guards import LOGIN, TOKENS
from pipeline.simulate.server import ArchiveServer
from pipeline.sources.http import open_source
from pipeline.sources.providers import Provider


@pytest.fixture(scope="module")
def guarded(archive: Path) -> Iterator[ArchiveServer]:
    with ArchiveServer(archive, guarded=True, token_s=400) as server:
        yield server


def door(name: str, **entry: object) -> ByteSource:
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
    return open_source(provider, attempts=1)


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

"""Checksums that catalogues state: what they are, and that a file is held to them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import GiveUp
from pipeline.sources.bytes import checksum
from pipeline.sources.bytes.checksum import check_bytes, check_file, parse_checksum
from pipeline.sources.bytes.http import open_source
from pipeline.sources.providers import Provider

PREFIX = {"md5": "d50110", "sha1": "1114", "sha256": "1220", "sha512": "1340", "sha3_256": "1620"}
DATA = b"II*\0" + bytes(range(256)) * 40
RECORDED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "stac"


@pytest.mark.parametrize("name", sorted(PREFIX))
def test_a_file_is_held_to_its_checksum_whatever_its_length(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksum, "_PIECE_BYTES", 1000)
    source = open_source(Provider(name="local", title="Local", kind="local"))
    for size in (0, 999, 1000, 1001, len(DATA)):
        path = tmp_path / f"{size}.tif"
        path.write_bytes(DATA[:size])
        stated = PREFIX[name] + hashlib.new(name, DATA[:size]).hexdigest()
        assert check_file(source, str(path), stated)
        check_bytes(str(path), DATA[:size], stated.upper())
        other = PREFIX[name] + hashlib.new(name, b"other").hexdigest()
        for check in (
            lambda o=other, p=path: check_file(source, str(p), o),
            lambda o=other, p=path, n=size: check_bytes(str(p), DATA[:n], o),
        ):
            with pytest.raises(GiveUp, match=f"has the {name}") as failed:
                check()
            assert failed.value.failure == "corrupt"


@given(st.one_of(st.none(), st.text(max_size=80), st.binary(max_size=80).map(bytes.hex)))
def test_whatever_a_catalogue_writes_is_read_or_passed_over(text: str | None) -> None:
    found = parse_checksum(text)
    if found is not None:
        assert text is not None
        assert text.lower().endswith(found.digest.hex())
        assert found.hasher().digest_size == len(found.digest)


def test_a_digest_without_its_prefix_proves_nothing() -> None:
    bare = hashlib.sha256(DATA).hexdigest()
    for text in (bare, f"1220{bare[:-2]}", f"1221{bare}", f"ff20{bare}", "", None):
        assert parse_checksum(text) is None


@pytest.mark.skipif(not RECORDED.is_dir(), reason="real data (../shared/data) not here")
def test_recorded_checksums_are_read() -> None:
    found: list[str] = []

    def collect(node: Any) -> None:
        if isinstance(node, dict):
            found.extend([node["file:checksum"]] if "file:checksum" in node else [])
            for value in node.values():
                collect(value)
        elif isinstance(node, list):
            for value in node:
                collect(value)

    for path in RECORDED.rglob("*.json"):
        collect(json.loads(path.read_text()))
    passed_over = [text for text in found if parse_checksum(text) is None]
    assert len(found) > 100
    assert {len(text) for text in passed_over} <= {32}, "a bare md5, of Sentinel-1 RTC"

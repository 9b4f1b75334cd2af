"""A very small archive, made once: a few frames and tiles of about 100 pixels on two days."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from pipeline.simulate.archive import make_archive
from pipeline.simulate.delivery.orbits import SMALL
from pipeline.simulate.service.server import ArchiveServer

_FRAMES = {"swath_m": 3000, "track_m": 2500, "frame_m": 3000, "frame_step_m": 2600}
ORBITS = {
    "enmap-l2a": replace(
        SMALL["enmap-l2a"], swath_m=2400, track_m=2000, frame_m=2400, frame_step_m=2200
    ),
    "sentinel-2-*": replace(SMALL["sentinel-2-*"], swath_m=3000, track_m=2500, square_m=2000),
    "landsat-*": replace(SMALL["landsat-*"], **_FRAMES),
    "sentinel-1-*": replace(SMALL["sentinel-1-*"], **_FRAMES),
}
ARGUMENTS: dict[str, Any] = {
    "products": ["enmap-l2a", "sentinel-2-l2a", "simulated-labels"],
    "region": (15.02, 51.9, 15.045, 51.915),
    "start": date(2023, 4, 1),
    "end": date(2023, 6, 1),
    "orbits": ORBITS,
}


@pytest.fixture(scope="session")
def orbits() -> dict[str, Any]:
    return ORBITS


@pytest.fixture(scope="session")
def arguments() -> dict[str, Any]:
    return ARGUMENTS


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "archive"
    make_archive(folder, **ARGUMENTS, workers=2)
    return folder


@pytest.fixture(scope="session")
def server(archive: Path) -> Iterator[ArchiveServer]:
    with ArchiveServer(archive) as running:
        yield running

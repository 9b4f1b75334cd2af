"""Rows of a plan, short to write."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from pipeline.records import Asset, PlannedPatch, Scene


@pytest.fixture
def planned_patch() -> Callable[..., PlannedPatch]:
    """Make a planned patch; what is not said does not matter."""

    def make(**values: Any) -> PlannedPatch:
        known: dict[str, Any] = {
            "shard": 0,
            "sample": 0,
            "time": 0,
            "location": "here",
            "product": "leading",
            "slot": "2021-07",
            "group": "leading",
            "candidates": [],
            "epsg": 32633,
            "x_min_m": 300_015.0,
            "y_max_m": 5_000_025.0,
            "size_m": 300.0,
            "lon_deg": 15.0,
            "lat_deg": 45.0,
        }
        return PlannedPatch(**{**known, **values})

    return make


@pytest.fixture
def scene_row() -> Callable[..., Scene]:
    """Make a scene of some metres, from its north-western corner."""

    def make(
        *,
        scene: str = "leading/d1/t1",
        x_min_m: float = 300_015.0,
        y_max_m: float = 5_000_025.0,
        width_m: float = 3000.0,
        height_m: float | None = None,
        epsg: int = 32633,
        provider: str = "local",
        assets: tuple[str, ...] = (),
    ) -> Scene:
        return Scene(
            scene=scene,
            product=scene.split("/")[0],
            provider=provider,
            item=scene,
            datatake=scene.split("/")[1],
            tile=scene.split("/")[2],
            acquired=datetime(2021, 7, 1, tzinfo=UTC),
            baseline="",
            offset_add=0,
            cloud_percent=None,
            sun_elevation_deg=None,
            epsg=epsg,
            x_min_m=x_min_m,
            y_min_m=y_max_m - (width_m if height_m is None else height_m),
            x_max_m=x_min_m + width_m,
            y_max_m=y_max_m,
            geometry=b"",
            assets=[
                Asset(name=name, href=f"/{name}", size_bytes=None, checksum=None) for name in assets
            ],
            band_indexes=[],
        )

    return make

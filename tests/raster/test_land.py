"""The coarse land mask: what it must know, and that it is what its script makes."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

from pipeline.raster.land import is_land

PLACES = {
    "Berlin": (13.4, 52.5, True),
    "Potosí": (-65.75, -19.58, True),
    "Greenland's ice": (-45.0, 75.0, True),
    "Antarctica": (100.0, -80.0, True),
    "Lisbon, on the coast": (-9.15, 38.72, True),
    "Fiji, west of the antimeridian": (178.0, -17.8, True),
    "Lake Victoria": (33.0, -1.0, True),
    "Atlantic": (-30.0, 0.0, False),
    "Pacific at the antimeridian": (180.0, 30.0, False),
    "Caspian Sea": (51.0, 42.0, False),
    "North Pole": (0.0, 90.0, False),
}


@pytest.mark.parametrize("name", PLACES)
def test_it_knows_land_from_sea(name: str) -> None:
    lon, lat, expected = PLACES[name]
    assert is_land([lon], [lat])[0] == expected
    assert is_land([lon + 360], [lat])[0] == expected


def test_land_is_a_good_quarter_of_the_globe() -> None:
    """29 % of it (CIA World Factbook), and a quarter of a degree of coast more."""
    rng = np.random.default_rng(0)
    lon = rng.uniform(-180, 180, 200_000)
    lat = np.degrees(np.arcsin(rng.uniform(-1, 1, lon.size)))
    assert 0.29 < is_land(lon, lat).mean() < 0.35


def test_the_mask_is_what_its_script_makes() -> None:
    pytest.importorskip("odc.geo", reason="Natural Earth comes with odc-geo, in the extra `bench`")
    script = Path(__file__).parent / "make_land_mask.py"
    squares = runpy.run_path(str(script))["land_squares"](every=16)
    rows, cols = squares.shape
    lat = 90 - (np.arange(rows) * 16 + 0.5) / 4
    lon = (np.arange(cols) + 0.5) * 360 / cols - 180
    np.testing.assert_array_equal(is_land(*np.meshgrid(lon, lat)), squares)

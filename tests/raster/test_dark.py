"""Dark objects tell whether an offset is in the numbers; where they cannot, nothing is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st

from pipeline.products.catalogue import load_product
from pipeline.raster.dark import contradicts, dark_object

SENTINEL = load_product("sentinel-2-l2a")
DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
TILE = "sentinel-2/T29UNU/*/GRANULE/*/IMG_DATA/R60m/*_{}_60m.jp2"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="real data (../shared/data) not here")


def scene(darkest: int, *, rng: np.random.Generator) -> np.ndarray:
    """A band with water from `darkest` on, land above it, and a corner that nobody saw."""
    band = rng.integers(darkest + 300, darkest + 4000, (200, 200)).astype("uint16")
    band[:40, :60] = rng.integers(darkest, darkest + 60, (40, 60))
    band[150:, 150:] = 0
    return band


@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from([0, -1000]))
def test_what_is_stated_must_be_what_is_there(seed: int, there: bool, offset_add: int) -> None:
    rng = np.random.default_rng(seed)
    bands = [scene(lift + 1000 * there, rng=rng) for lift in (120, 20)]
    dark = [dark_object(band, SENTINEL) for band in bands]
    why = contradicts(
        [value for value in dark if value is not None], offset_add=offset_add, product=SENTINEL
    )
    assert (why is None) == (there == bool(offset_add))


@needs_data
@pytest.mark.parametrize(
    ("taken_off", "offset_add", "said"),
    [(0, -1000, None), (0, 0, "still in"), (1000, -1000, "not in"), (1000, 0, None)],
)
def test_a_real_tile_is_audited(taken_off: int, offset_add: int, said: str | None) -> None:
    """S2A tile 29UNU of baseline 04.00, whose offset is in the numbers."""
    dark = []
    for name in ("B02", "B12"):
        (path,) = DATA.glob(TILE.format(name))
        with rasterio.open(path) as file:
            band = file.read(1, out_shape=(458, 458)).astype("int32")
        band[band != 0] -= taken_off
        value = dark_object(band, SENTINEL)
        assert value is not None
        dark.append(value)
    why = contradicts(dark, offset_add=offset_add, product=SENTINEL)
    assert (why is None) if said is None else (why is not None and said in why)


@pytest.mark.parametrize(
    "dark",
    [
        pytest.param([], id="nothing seen"),
        pytest.param([1050.0], id="one band"),
        pytest.param([1100.0, 2300.0], id="dry sand: dark in blue, bright in the infrared"),
        pytest.param([3500.0, 1900.0], id="closed cloud"),
    ],
)
@pytest.mark.parametrize("offset_add", [0, -1000])
def test_scenes_without_dark_objects_say_nothing(dark: list[float], offset_add: int) -> None:
    assert contradicts(dark, offset_add=offset_add, product=SENTINEL) is None


def test_pixels_beside_unseen_ones_are_left_out() -> None:
    """Thinning out mixes them with nothing, which looks dark."""
    band = np.full((100, 100), 1500, "uint16")
    band[:, :50] = 0
    band[:, 50] = 750
    assert dark_object(band, SENTINEL) == 1500
    assert dark_object(band[:20, :60], SENTINEL) is None

"""Dark objects tell whether an offset is in the numbers; where they cannot, nothing is said."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st

from pipeline.products.catalogue import load_product
from pipeline.products.model import Product
from pipeline.raster.dark import contradiction, dark_object, has_offset

SURFACE, TOP = load_product("sentinel-2-l2a"), load_product("sentinel-2-l1c")
DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
TILE = "sentinel-2/T29UNU/*/GRANULE/*/IMG_DATA/R60m/*_{}_60m.jp2"
PATCHES = {"sentinel-2-l1c": "s2c", "sentinel-2-l2a": "s2a"}
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="real data (../shared/data) not here")


def scene(darkest: int, *, rng: np.random.Generator) -> np.ndarray:
    """A band with water from `darkest` on, land above it, and a corner that nobody saw."""
    band = rng.integers(darkest + 300, darkest + 4000, (200, 200)).astype("uint16")
    band[:40, :60] = rng.integers(darkest, darkest + 60, (40, 60))
    band[150:, 150:] = 0
    return band


def seen(bands: Mapping[str, np.ndarray], product: Product) -> dict[str, float]:
    """Return the dark objects of some bands."""
    found = {name: dark_object(band, product) for name, band in bands.items()}
    assert None not in found.values()
    return {name: value for name, value in found.items() if value is not None}


def patch(product: Product, date: str, infrared: str) -> dict[str, float]:
    """Return the dark objects of a real patch of SSL4EO-S12, without an offset in its numbers."""
    (folder,) = (DATA / "ssl4eo-s12" / PATCHES[product.id]).glob(f"*/{date}T*")
    bands = {}
    for name in ("B02", infrared):
        with rasterio.open(folder / f"{name.replace('B0', 'B')}.tif") as file:
            bands[name] = file.read(1)
    return seen(bands, product)


@pytest.mark.parametrize(("product", "air"), [(SURFACE, 0), (TOP, 750)])
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_what_is_there_is_seen_through_the_air_and_below_it(
    product: Product, air: int, seed: int, there: bool
) -> None:
    rng = np.random.default_rng(seed)
    lifts = {"B02": 120 + air, "B12": 20}
    bands = {name: scene(lift + 1000 * there, rng=rng) for name, lift in lifts.items()}
    assert has_offset(seen(bands, product), product) is there


@needs_data
@pytest.mark.parametrize("infrared", ["B12", "B11"])
@pytest.mark.parametrize(("taken_off", "there"), [(0, True), (1000, False)])
def test_a_real_tile_is_audited(infrared: str, taken_off: int, there: bool) -> None:
    """S2A tile 29UNU of baseline 04.00, whose offset is in the numbers."""
    bands = {}
    for name in ("B02", infrared):
        (path,) = DATA.glob(TILE.format(name))
        with rasterio.open(path) as file:
            band = file.read(1, out_shape=(458, 458)).astype("int32")
        band[band != 0] -= taken_off
        bands[name] = band
    assert has_offset(seen(bands, SURFACE), SURFACE) is there


@needs_data
@pytest.mark.parametrize(
    ("date", "infrared", "as_delivered", "lifted"),
    [
        # A pond and shadows of clouds: it can tell both.
        ("20200823", "B12", False, True),
        # Fields alone, which are not dark in the infrared: 0.06 with an offset may be a dry plain.
        ("20200604", "B12", False, None),
        ("20200823", "B11", False, None),
        ("20200604", "B11", False, None),
    ],
)
def test_real_patches_of_the_top_of_the_atmosphere_are_audited(
    date: str, infrared: str, as_delivered: bool, lifted: bool | None
) -> None:
    """Their offset would be removed wrongly, or stay wrongly after it was put in."""
    dark = patch(TOP, date, infrared)
    assert has_offset(dark, TOP) is as_delivered
    assert has_offset({name: value + 1000 for name, value in dark.items()}, TOP) is lifted


@needs_data
@pytest.mark.parametrize(
    ("product", "date"),
    [(TOP, "20200604"), (TOP, "20200823"), (SURFACE, "20200604"), (SURFACE, "20200813")],
)
@pytest.mark.parametrize("infrared", ["B12", "B11"])
@pytest.mark.parametrize("there", [False, True])
def test_no_untouched_patch_is_contradicted(
    product: Product, date: str, infrared: str, there: bool
) -> None:
    dark = {name: value + 1000 * there for name, value in patch(product, date, infrared).items()}
    assert has_offset(dark, product) in (there, None)


@needs_data
def test_a_third_scene_at_the_top_of_the_atmosphere_tells_both() -> None:
    image = np.load(DATA / "cloud-mask" / "sentinel2.npz")["img"] * 1e4
    dark = seen({"B02": image[..., 0], "B12": image[..., 5]}, TOP)
    assert has_offset(dark, TOP) is False
    assert has_offset({name: value + 1000 for name, value in dark.items()}, TOP) is True


@pytest.mark.parametrize(
    "dark",
    [
        pytest.param({}, id="nothing seen"),
        pytest.param({"B02": 1050.0}, id="one band"),
        pytest.param({"B02": 1750.0, "B03": 1040.0}, id="bands of another pair"),
        pytest.param({"B02": 1100.0, "B12": 2300.0}, id="dry sand: dark in blue alone"),
        pytest.param({"B02": 1800.0, "B12": 2300.0}, id="dry sand through the air"),
        pytest.param({"B02": 3500.0, "B12": 1900.0}, id="closed cloud"),
    ],
)
@pytest.mark.parametrize("product", [SURFACE, TOP])
def test_scenes_without_dark_objects_say_nothing(dark: dict[str, float], product: Product) -> None:
    assert has_offset(dark, product) is None


def test_a_contradiction_names_the_bands_and_what_they_hold() -> None:
    dark = {"B02": 1750.0, "B12": 1020.0}
    found = contradiction(dark, there=True, product=TOP)
    assert found == (
        "dark objects are at 1750 in B02 and 1020 in B12, so the offset of 1000 is still in the "
        "file"
    )
    assert "not in the file" in contradiction(dark, there=False, product=TOP)


def test_pixels_beside_unseen_ones_are_left_out() -> None:
    """Thinning out mixes them with nothing, which looks dark."""
    band = np.full((100, 100), 1500, "uint16")
    band[:, :50] = 0
    band[:, 50] = 750
    assert dark_object(band, SURFACE) == 1500
    assert dark_object(band[:20, :60], SURFACE) is None

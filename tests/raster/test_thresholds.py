"""Masks from the image: what known surfaces are called, and how that agrees with a drawn mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.products.catalogue import load_product, product_ids
from pipeline.products.model import LEGEND, Product
from pipeline.raster.masks import fractions
from pipeline.raster.thresholds import classify, derive

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="real data (../shared/data) not here")
PRODUCT = load_product("sentinel-2-l1c")
BANDS = ("blue", "red", "nir", "swir16", "cirrus")
NAMES = {code: name for name, code in LEGEND.items()}

#: Reflectance at the top of the atmosphere, typical of each; the cirrus band sees no ground.
SPECTRA = {
    "cumulus": ((0.60, 0.62, 0.66, 0.50, 0.004), "cloud"),
    "stratus over the sea": ((0.30, 0.29, 0.30, 0.25, 0.002), "cloud"),
    "deep ice cloud": ((0.75, 0.76, 0.78, 0.35, 0.200), "cloud"),
    "thin cirrus over a forest": ((0.13, 0.09, 0.28, 0.16, 0.020), "thin-cloud"),
    "thin cirrus over the sea": ((0.14, 0.08, 0.06, 0.03, 0.015), "thin-cloud"),
    "fresh snow": ((0.85, 0.88, 0.83, 0.10, 0.002), "snow"),
    "patchy snow": ((0.24, 0.23, 0.22, 0.10, 0.001), "snow"),
    "Saharan sand": ((0.24, 0.42, 0.50, 0.60, 0.001), "land"),
    "dark soil": ((0.11, 0.13, 0.20, 0.28, 0.001), "land"),
    "deep water": ((0.11, 0.04, 0.02, 0.01, 0.001), "water"),
    "turbid water": ((0.15, 0.13, 0.08, 0.02, 0.001), "water"),
    "forest": ((0.09, 0.05, 0.28, 0.15, 0.001), "land"),
    "meadow": ((0.11, 0.08, 0.45, 0.24, 0.001), "land"),
}


@pytest.mark.parametrize("surface", SPECTRA)
def test_known_surfaces_are_told(surface: str) -> None:
    values, expected = SPECTRA[surface]
    (code,) = classify(*(np.array([value], "float32") for value in values))
    assert NAMES[code] == expected


def _delivered(values: tuple[float, ...], **changed: int) -> dict[str, np.ndarray]:
    assert PRODUCT.mask is not None
    numbers = {word: round(v * 10_000) + 1000 for word, v in zip(BANDS, values, strict=True)}
    return {
        str(getattr(PRODUCT.mask.bands, word)): np.full((2, 3), number, "uint16")
        for word, number in (numbers | changed).items()
    }


@pytest.mark.parametrize("surface", SPECTRA)
def test_delivered_numbers_mean_the_same(surface: str) -> None:
    """Their offset is removed, or snow would be cloud and the sea hazy."""
    values, expected = SPECTRA[surface]
    codes = derive(_delivered(values), PRODUCT, offset_add=-1000)
    assert codes.shape == (2, 3)
    assert (codes == LEGEND[expected]).all()


def test_what_was_not_delivered_is_neither_clear_nor_cloud() -> None:
    cloud = SPECTRA["cumulus"][0]
    lost = derive(_delivered(cloud, swir16=0), PRODUCT, offset_add=-1000)
    assert (lost == LEGEND["defective"]).all()
    nothing = derive(_delivered(cloud, **dict.fromkeys(BANDS, 0)), PRODUCT, offset_add=-1000)
    assert (nothing == LEGEND["fill"]).all()
    no_cirrus = derive(_delivered(cloud, cirrus=0), PRODUCT, offset_add=-1000)
    assert (no_cirrus == LEGEND["cloud"]).all()


def test_a_saturated_cloud_is_a_cloud() -> None:
    white = dict.fromkeys(("blue", "red", "nir"), 65535)
    codes = derive(_delivered(SPECTRA["cumulus"][0], **white), PRODUCT, offset_add=-1000)
    assert (codes == LEGEND["cloud"]).all()


@given(st.lists(st.integers(-1000, 15_000), min_size=4, max_size=4))
def test_every_spectrum_is_something_and_without_cirrus_never_thin_cloud(
    values: list[int],
) -> None:
    blue, red, nir, swir16 = np.array(values, "float32")[:, None] / np.float32(10_000)
    (code,) = classify(blue, red, nir, swir16)
    assert NAMES[code] in ("land", "water", "snow", "cloud")
    (below,) = classify(blue, red, nir, swir16, np.array([0.01], "float32"))
    assert below == code


@pytest.mark.parametrize("key", [k for k in product_ids() if load_product(k).mask])
def test_product_files_name_the_bands_that_the_thresholds_are_of(key: str) -> None:
    product = load_product(key)
    assert product.mask is not None
    middle = {"blue": 485, "red": 660, "nir": 840, "swir16": 1630, "cirrus": 1375}
    for word, name in product.mask.bands:
        assert product.band(name).wavelength_nm == pytest.approx(middle[word], rel=0.04)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"mask": {"method": "toa-thresholds", "bands": {"blue": "B02"}}}, "swir16"),
        (
            {
                "mask": {
                    "method": "toa-thresholds",
                    "bands": {"blue": "B02", "red": "B04", "nir": "B08", "swir16": "B13"},
                }
            },
            "no such bands .* swir16 = 'B13'",
        ),
        ({"unit": "dB"}, "needs reflectance"),
        ({"kind": "labels"}, "needs reflectance"),
    ],
)
def test_a_product_that_cannot_be_looked_at_is_refused(
    changed: dict[str, object], told: str
) -> None:
    with pytest.raises(ValidationError, match=told):
        Product.model_validate(PRODUCT.model_dump() | changed)


@needs_data
@pytest.mark.parametrize(
    ("day", "least", "most"), [("20200604", 0.0, 0.05), ("20200823", 0.3, 0.5)]
)
def test_two_days_of_a_farmland_are_told_apart(day: str, least: float, most: float) -> None:
    """Level 1C with all bands: a clear day, and one of cumulus, whose tile states 9.92 percent."""
    folder = next((DATA / "ssl4eo-s12" / "s2c").glob(f"*/{day}T*"))
    assert PRODUCT.mask is not None
    delivered = {}
    for name in PRODUCT.mask.names:
        with rasterio.open(folder / f"{name.replace('B0', 'B')}.tif") as file:
            pixels = file.read(1)
        times = 264 // len(pixels)
        delivered[name] = pixels.repeat(times, axis=0).repeat(times, axis=1)
    codes = derive(delivered, PRODUCT, offset_add=0)
    cloudy = fractions(codes, ["cloud", "thin-cloud"]).cloudy
    assert cloudy is not None
    assert least <= cloudy < most


@needs_data
def test_agreement_with_a_mask_drawn_by_hand() -> None:
    """Sentinel-2 without its cirrus band; figures of `python -m benchmarks.clouds`, less a little.

    The numbers of the method are the paper's: nothing was tuned on this scene.
    """
    with np.load(DATA / "cloud-mask" / "sentinel2.npz") as file:
        image, drawn = file["img"], file["msk"][..., 0]
    blue, _, red, nir, swir16, _ = np.moveaxis(image, -1, 0)
    found, cloud = classify(blue, red, nir, swir16) == LEGEND["cloud"], drawn == 4
    hits = np.count_nonzero(found & cloud)
    assert (found == cloud).mean() > 0.955
    assert hits / np.count_nonzero(cloud) > 0.87
    assert hits / np.count_nonzero(found) > 0.90

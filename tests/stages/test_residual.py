"""Bands of a spectrometer, weighted to those of another sensor, and how far apart patches are."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.products.catalogue import Band, load_product
from pipeline.stages.publish.residual import residuals, responses

ENMAP, SENTINEL_2 = load_product("enmap-l2a"), load_product("sentinel-2-l2a")
FINE = [Band(name=f"f{k}", wavelength_nm=400 + 10 * k, fwhm_nm=10, pixel_m=30) for k in range(60)]


def broad(centre_nm: float | None, fwhm_nm: float | None) -> Band:
    return Band(name="b", wavelength_nm=centre_nm, fwhm_nm=fwhm_nm, pixel_m=10)


def test_a_straight_spectrum_is_seen_at_the_centre_of_every_band() -> None:
    weights = responses(FINE, [broad(600, 40), broad(703.3, 15), broad(820, 120)])
    assert weights.sum(axis=1) == pytest.approx(1)
    spectrum = 3 * np.arange(400.0, 1000.0, 10.0)
    assert weights @ spectrum == pytest.approx(np.array([1800, 2109.9, 2460]), abs=3)


def test_weights_are_those_of_a_gaussian() -> None:
    weights = responses(FINE, [broad(600, 23.548)])[0]  # a standard deviation of 10 nm
    # Shares of a normal distribution within half a step of its centre, and one step off.
    assert weights[20] == pytest.approx(0.3829, abs=0.006)
    assert weights[19] == pytest.approx(0.2417, abs=0.006)
    assert weights[21] == pytest.approx(weights[19], abs=0.006)


def test_a_band_beyond_the_spectrometer_has_what_it_sees_of_it_and_no_more() -> None:
    weights = responses(FINE, [broad(10_900, 600), broad(395, 40), broad(None, None)])
    assert weights.sum(axis=1)[0] == 0
    # The first band is taken to see 10 nm more: 390 nm is 0.294 standard deviations below 395.
    assert weights.sum(axis=1)[1] == pytest.approx(0.616, abs=0.01)
    assert weights.sum(axis=1)[2] == 0


def test_enmap_sees_all_of_sentinel_2_but_for_its_water_gaps() -> None:
    covered = responses(ENMAP.bands, SENTINEL_2.bands).sum(axis=1)
    assert (covered > 0.99).all()


def rows(keys: list[str], means: np.ndarray, count: int = 9) -> pa.Table:
    return pa.table(
        {
            "location": keys,
            "slot": ["s"] * len(keys),
            "count": [[count] * means.shape[1]] * len(keys),
            "mean": means.tolist(),
        }
    )


def test_residuals_are_in_physical_units_and_found_by_place_and_slot() -> None:
    weights = responses(ENMAP.bands, SENTINEL_2.bands)
    grey = np.full((2, len(ENMAP.bands)), 2000.0)
    grey[1] = 3000.0
    reference = rows(["a", "b"], grey)
    own = rows(["b", "a", "c"], np.full((3, len(SENTINEL_2.bands)), 2500.0))
    found = residuals(own, reference, (SENTINEL_2, ENMAP), weights)
    assert found[0] == pytest.approx([-0.05] * len(SENTINEL_2.bands))
    assert found[1] == pytest.approx([0.05] * len(SENTINEL_2.bands))
    assert found[2] == []


def test_a_band_whose_partners_hold_no_value_has_no_residual() -> None:
    weights = responses(ENMAP.bands, SENTINEL_2.bands)
    reference = rows(["a"], np.full((1, len(ENMAP.bands)), 2000.0))
    counts = np.full(len(ENMAP.bands), 9)
    counts[weights[2] > 0] = 0
    reference = reference.set_column(2, "count", pa.array([counts.tolist()]))
    found = residuals(
        rows(["a"], np.full((1, len(SENTINEL_2.bands)), 2000.0)),
        reference,
        (SENTINEL_2, ENMAP),
        weights,
    )[0]
    assert np.isnan(found[2])
    assert found[9] == pytest.approx(0)

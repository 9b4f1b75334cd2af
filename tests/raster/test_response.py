"""Bands of a spectrometer, weighted to those of another sensor."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.products.catalogue import load_product
from pipeline.products.model import Band, Response
from pipeline.raster.response import described, expected, of_satellite, responses

ENMAP, SENTINEL_2 = load_product("enmap-l2a"), load_product("sentinel-2-l2a")
SENTINEL_2A = of_satellite(SENTINEL_2.responses, "S2A_20240812T103031")
SENTINEL_2B = of_satellite(SENTINEL_2.responses, "S2B_20240812T103031")
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


def test_weights_are_those_of_a_measured_response() -> None:
    """A band that sees twice as much on its long side has its weight there."""
    measured = Response(
        band="b",
        platform="x",
        start_nm=580,
        step_nm=10,
        values=(0, 1, 1, 2, 2, 0),
    )
    weights = responses(FINE, [broad(605, 40)], [measured])[0]
    assert weights.sum() == pytest.approx(1)
    assert weights[22] == pytest.approx(2 * weights[19], rel=0.15)
    assert (weights[:18] == 0).all()
    assert (weights[24:] == 0).all()
    spectrum = np.zeros(60)
    spectrum[21:] = 1
    gaussian = responses(FINE, [broad(605, 40)])[0] @ spectrum
    assert weights @ spectrum - gaussian > 0.1


@pytest.mark.parametrize("name", ["sentinel-2-l1c", "sentinel-2-l2a", "landsat-oli-sr"])
def test_measured_responses_are_those_of_their_bands(name: str) -> None:
    product = load_product(name)
    assert {response.band for response in product.responses} == {b.name for b in product.bands}
    for response in of_satellite(product.responses, ""):  # bands are those of the first
        band = product.band(response.band)
        at_nm = response.start_nm + response.step_nm * np.arange(len(response.values))
        fine_nm = np.arange(at_nm[0], at_nm[-1], 0.05)
        fine = np.interp(fine_nm, at_nm, response.values)
        half = fine_nm[fine >= fine.max() / 2]
        # ESA's centres are weighted by the response, those of OLI lie between its half maxima.
        assert half[-1] - half[0] == pytest.approx(band.fwhm_nm, abs=1.6), band.name
        weighted = float((fine_nm * fine.clip(0)).sum() / fine.clip(0).sum())
        middle = float(half[0] + half[-1]) / 2
        assert min(abs(weighted - band.wavelength_nm), abs(middle - band.wavelength_nm)) < 1, (
            band.name
        )  # type: ignore[operator]


def test_what_each_response_is_taken_from_is_said() -> None:
    oli = load_product("landsat-oli-tirs-toa")
    said = described(oli.bands, oli.responses)
    assert said["B5"] == "Landsat 8"
    assert said["B10"] == said["B8"] == "Gaussian"
    said = described(SENTINEL_2.bands, SENTINEL_2.responses)
    assert set(said.values()) == {"Sentinel-2A, Sentinel-2B"}


def test_a_scene_is_judged_by_the_responses_of_its_own_satellite() -> None:
    names = [band.name for band in SENTINEL_2.bands]
    for measured, platform in ((SENTINEL_2A, "Sentinel-2A"), (SENTINEL_2B, "Sentinel-2B")):
        assert [one.band for one in measured] == names
        assert {one.platform for one in measured} == {platform}
    assert of_satellite(SENTINEL_2.responses, "S2C_20250612T112131") == SENTINEL_2A
    assert of_satellite((), "S2A_20240812T103031") == ()


def test_sentinel_2b_has_its_centres_where_esa_states_them() -> None:
    """CENTRAL in the metadata of S2B_MSIL2A_20230122T231849_N0400_R087_T01UBT, in nm."""
    centres_nm = (442.3, 492.3, 559, 665, 703.8, 739.1, 779.7, 833, 864, 943.2, 1610.4, 2185.7)
    for one, centre_nm in zip(SENTINEL_2B, centres_nm, strict=True):
        at_nm = one.start_nm + one.step_nm * np.arange(len(one.values))
        mean_nm = float((at_nm * one.values).sum() / np.sum(one.values))
        assert mean_nm == pytest.approx(centre_nm, abs=0.1), one.band


def test_the_satellites_differ_where_a_spectrum_falls_in_b12() -> None:
    falling = np.array([2300 - (b.wavelength_nm or 0) for b in ENMAP.bands])
    b12 = [SENTINEL_2.band("B12")]
    seen = [(responses(ENMAP.bands, b12, m)[0] * falling).sum() for m in (SENTINEL_2A, SENTINEL_2B)]
    assert seen[1] - seen[0] == pytest.approx(2202.4 - 2185.7, abs=1)


def test_a_red_edge_is_where_the_response_says() -> None:
    """B8 of Sentinel-2 is no Gaussian: on a spectrum that falls in it, the two differ."""
    b08 = [SENTINEL_2.band("B08")]
    falling = np.array([1.0 if (b.wavelength_nm or 0) < 840 else 0.0 for b in ENMAP.bands])
    measured = responses(ENMAP.bands, b08, SENTINEL_2A)[0] @ falling
    gaussian = responses(ENMAP.bands, b08)[0] @ falling
    table = next(r for r in SENTINEL_2A if r.band == "B08")
    at_nm = table.start_nm + table.step_nm * np.arange(len(table.values))
    values = np.array(table.values)
    assert measured == pytest.approx(values[at_nm < 843.5].sum() / values.sum(), abs=0.02)
    assert abs(measured - gaussian) > 0.02


def test_enmap_sees_all_of_sentinel_2_but_for_its_water_gaps() -> None:
    for measured in ((), SENTINEL_2A):
        covered = responses(ENMAP.bands, SENTINEL_2.bands, measured).sum(axis=1)
        assert (covered > 0.99).all()


def test_a_grey_ground_is_as_bright_in_every_band() -> None:
    weights = responses(ENMAP.bands, SENTINEL_2.bands, SENTINEL_2A)
    grey, count = np.full(len(ENMAP.bands), 2000.0), np.full(len(ENMAP.bands), 9)
    assert expected(grey, count, weights) == pytest.approx(2000)


def test_a_band_whose_partners_counted_nothing_is_not_expected() -> None:
    weights = responses(ENMAP.bands, SENTINEL_2.bands, SENTINEL_2A)
    count = np.where(weights[2] > 0, 0, 9)
    due = expected(np.full(len(ENMAP.bands), 2000.0), count, weights)
    assert np.isnan(due[2])
    assert due[9] == pytest.approx(2000)

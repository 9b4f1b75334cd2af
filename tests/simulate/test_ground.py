"""The truth: plausible spectra, arrangements that no histogram tells apart, consistent skies."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from pipeline.products.catalogue import load_product
from pipeline.products.model import LEGEND
from pipeline.simulate.truth.clouds import is_fair, shadow_shift, sky, sun
from pipeline.simulate.truth.ground import codes, legend_codes, pixel_centres, reflectance, view
from pipeline.simulate.truth.landscape import ARRANGEMENTS, WHOLE, landscape
from pipeline.simulate.truth.noise import Place
from pipeline.simulate.truth.spectra import MATERIALS, spectra

ENMAP, SENTINEL = load_product("enmap-l2a"), load_product("sentinel-2-l2a")
SUMMER = datetime(2023, 7, 1, 9, 30, tzinfo=UTC)


def grid(width: int = 400, step: int = 30, *, x_m: int = 480_000, n_m: int = 5_770_020) -> Place:
    columns = x_m + step * np.arange(width, dtype=np.int64)
    return Place(33, columns, n_m - step * np.arange(width, dtype=np.int64))


def cloudy_hour(zone: int = 33) -> datetime:
    hours = (SUMMER + timedelta(days=days) for days in range(400))
    return next(w for w in hours if 0.1 < sky(grid(), w).covered.mean() < 0.6)


def test_values_are_the_same_for_ever() -> None:
    values = reflectance(ENMAP, ["B014", "B047", "B093"], grid(2), SUMMER)
    assert values[0].ravel().tolist() == [2845, 3339, 3345, 3730]
    assert values[2].ravel().tolist() == [3456, 3966, 3980, 4306]


def test_any_pixel_equals_the_raster_it_is_cut_from() -> None:
    when, whole = cloudy_hour(), grid(200)
    bands = ["B030", "B100", "B200"]
    values, mask = reflectance(ENMAP, bands, whole, when), legend_codes(ENMAP, whole, when)
    rng = np.random.default_rng(1)
    for row, column in rng.integers(0, 200, (20, 2)).tolist():
        one = Place(33, whole.x_m[column : column + 1], whole.n_m[row : row + 1])
        assert (
            reflectance(ENMAP, bands, one, when).ravel().tolist() == values[:, row, column].tolist()
        )
        assert legend_codes(ENMAP, one, when)[0, 0] == mask[row, column]


@pytest.mark.parametrize("north", [True, False])
def test_points_take_the_pixel_that_contains_them(north: bool) -> None:
    n_m = np.arange(5_000_000, 5_000_120, dtype=np.int64) * (1 if north else -1)
    place = Place(33, np.arange(500_000, 500_120, dtype=np.int64), n_m)
    fine = pixel_centres(place, SENTINEL, 20)
    assert set((fine.x_m % 20).tolist()) == {10}
    assert set((fine.n_m % 20).tolist()) == {10}
    assert np.abs(fine.n_m - place.n_m).max() <= 10
    assert set((pixel_centres(place, ENMAP, 30).n_m % 30).tolist()) == ({0} if north else {20})


def test_seasons_turn_about_the_equator() -> None:
    across = Place(33, np.array([500_000]), np.array([1500, 500, -500, -1500]))
    together = reflectance(SENTINEL, ["B08"], across, SUMMER)
    for row in range(4):
        alone = Place(33, across.x_m, across.n_m[row : row + 1])
        assert reflectance(SENTINEL, ["B08"], alone, SUMMER)[0, 0] == together[0, row]


def test_shares_of_a_pixel_never_exceed_the_whole() -> None:
    land = landscape(grid())
    assert land.weights.sum(axis=0, dtype=np.int64).max() <= WHOLE
    assert ((land.arrangement == 0) | ~land.water).all()


# --- materials ------------------------------------------------------------------------------------


def test_spectra_have_the_shapes_of_the_textbook() -> None:
    nm = [450.0, 552.0, 670.0, 800.0, 970.0, 1060.0, 1450.0, 1650.0, 1940.0, 2205.0]
    table = dict(
        zip(MATERIALS, spectra(nm, [6.0] * 10, SUMMER, south=False).T.tolist(), strict=True)
    )
    leaf = dict(zip(nm, table["broadleaf"], strict=True))
    assert leaf[552] > 1.3 * leaf[670]  # green peak
    assert leaf[800] > 6 * leaf[670]  # red edge
    assert leaf[970] < leaf[1060]  # water in leaves
    assert leaf[1450] < 0.5 * leaf[1650]
    assert leaf[1940] < 0.4 * leaf[1650]
    soil = table["dry-soil"]
    assert soil[:4] == sorted(soil[:4])
    water = dict(zip(nm, table["water"], strict=True))
    assert water[450] > 300
    assert water[1650] < 0  # atmospheric correction overshoots on dark water
    snow = dict(zip(nm, table["snow"], strict=True))
    assert snow[552] > 9000
    assert snow[1650] < 1500
    assert all(-20 <= value <= 10_000 for values in table.values() for value in values)


def test_crops_come_and_go() -> None:
    def ndvi(crop: str, month: int, *, south: bool = False) -> float:
        when = datetime(2023, month, 15, tzinfo=UTC)
        red, infrared = spectra([665, 865], [30, 20], when, south=south)[:, MATERIALS.index(crop)]
        return float((infrared - red) / (infrared + red))

    assert ndvi("cereal", 5) > 0.7 > 0.35 > ndvi("cereal", 8)
    assert ndvi("maize", 8) > 0.7 > 0.35 > ndvi("maize", 4)
    assert ndvi("maize", 2, south=True) > 0.7 > 0.35 > ndvi("maize", 8, south=True)


# --- arrangements ---------------------------------------------------------------------------------


def test_histograms_do_not_tell_arrangements_apart() -> None:
    """Each of the two crops of a pair covers half of any arrangement, so means are alike."""
    land = landscape(grid(1600))
    dominant = land.weights.argmax(axis=0)
    pairs_seen: dict[int, list[float]] = {}
    for code in range(1, len(ARRANGEMENTS)):
        crops = dominant[land.arrangement == code]
        shares = np.bincount(crops, minlength=len(MATERIALS)) / crops.size
        pairs_seen[code] = shares.tolist()
    spread = np.ptp(np.array(list(pairs_seen.values())), axis=0)
    assert spread.max() < 0.07
    areas = np.bincount(land.arrangement.ravel(), minlength=6)[1:]
    assert areas.min() > 0.7 * areas.max()


def test_neighbours_do_tell_them_apart() -> None:
    """The share of equal neighbours at two distances is a fingerprint of the arrangement."""
    land = landscape(grid(1600))
    crop = land.weights.argmax(axis=0)

    def alike(code: int, step: int) -> float:
        here = (land.arrangement[:, step:] == code) & (land.arrangement[:, :-step] == code)
        return float((crop[:, step:] == crop[:, :-step])[here].mean())

    prints = np.array([[alike(code, step) for step in (1, 3, 5, 10)] for code in range(1, 6)])
    apart = np.abs(prints[:, None] - prints[None]).max(axis=-1) + np.eye(5)
    assert apart.min() > 0.06


def test_a_class_rules_several_kilometres() -> None:
    land = landscape(grid(1024))
    windows = land.arrangement.reshape(32, 32, 32, 32).swapaxes(1, 2).reshape(-1, 1024)
    fields = windows[(windows > 0).mean(axis=1) > 0.8]
    top = np.array([np.bincount(w, minlength=6)[1:].max() / 1024 for w in fields])
    assert (top > 0.7).mean() > 0.55


# --- sky ------------------------------------------------------------------------------------------


def test_shadows_are_displaced_clouds() -> None:
    when, place = cloudy_hour(), grid()
    above = sky(place, when)
    east, north = shadow_shift(33, when)
    moved = sky(place.moved(-east, -north), when)
    assert (above.shadow == (moved.covered & ~above.covered)).all()
    assert above.shadow.any()
    assert north > 0 > east  # the sun stands in the south-east


def test_mask_and_pixels_agree() -> None:
    when, place = cloudy_hour(), grid()
    seen = view(place, when)
    mask, blue = codes(seen), reflectance(SENTINEL, ["B02"], place, when)[0]
    clear = (seen.sky.cloud == 0) & (seen.sky.cirrus == 0)
    land = blue[(mask == LEGEND["land"]) & clear].mean()
    assert blue[mask == LEGEND["cloud"]].mean() > 3 * land
    assert blue[(mask == LEGEND["cloud-shadow"]) & clear].mean() < 0.7 * land


def test_weather_is_constant_within_an_hour() -> None:
    when, place = cloudy_hour(), grid(50)
    later = when.replace(minute=59)
    assert (sky(place, when).cloud == sky(place, later).cloud).all()
    values = [reflectance(ENMAP, ["B050"], place, moment) for moment in (when, later)]
    assert (values[0] == values[1]).all()


def test_fair_hours_are_clear_and_not_rare() -> None:
    hours = [SUMMER + timedelta(days=days) for days in range(120)]
    fair = [when for when in hours if is_fair(33, when, 0)]
    assert 0.1 < len(fair) / len(hours) < 0.5
    for when in fair[:5]:
        above = sky(grid(100), when)
        assert not any(layer.any() for layer in (above.cloud, above.cirrus, above.shadow))


def test_the_sun_stands_where_it_should() -> None:
    """Solstice noon on the tropic: the zenith. Mid-morning in the north: south-east."""
    noon = datetime(2023, 6, 21, 11, 0, tzinfo=UTC)  # zone 33 is one hour ahead
    assert sun(33, 23.45 * 111_000, noon)[0] == pytest.approx(90, abs=1)
    elevation, azimuth = sun(33, 5_700_000, datetime(2023, 9, 22, 8, 0, tzinfo=UTC))
    assert 20 < elevation < 35
    assert 110 < azimuth < 150

"""One patch from several scenes: against a slow painter that looks at one pixel at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.products.model import LEGEND, Band, Product
from pipeline.task.paint import Exposure, Picture, paint

BANDS, EDGE, NODATA, SATURATED = 3, 4, -999, 999
CLEAR = {LEGEND[name] for name in ("land", "water", "snow", "valid")}
PRODUCT = Product(
    id="painted",
    title="painted",
    lattice="enmap30",
    nodata=NODATA,
    saturated=SATURATED,
    bands=tuple(Band(name=f"b{n}", index=n, pixel_m=30) for n in range(1, BANDS + 1)),
    sources=("made up here",),
)


def exposures(seed: int, count: int) -> list[Exposure]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        values = rng.integers(-50, 50, (BANDS, EDGE, EDGE)).astype("int16")
        values[rng.random(values.shape) < rng.choice([0.0, 0.3])] = NODATA
        values[rng.random(values.shape) < rng.choice([0.0, 0.1])] = SATURATED
        if rng.random() < 0.5:
            values[rng.integers(BANDS)] = NODATA
        codes = rng.choice(9, (EDGE, EDGE)).astype("uint8")
        codes[rng.random(codes.shape) < 0.4] = 0
        native = rng.integers(0, 200, (EDGE, EDGE), dtype="uint8")
        marks = rng.integers(0, 2, values.shape, dtype="uint8")
        made.append(Exposure(values, int(rng.choice([0, -10])), codes, native, marks))
    return made


def slowly(scenes: list[Exposure]) -> Picture:
    bands = np.full((BANDS, EDGE, EDGE), PRODUCT.fill, "int16")
    fill = np.ones(bands.shape, bool)
    codes = np.zeros((EDGE, EDGE), "uint8")
    native = scenes[0].native.copy()
    marks = scenes[0].marks.copy()
    saturated = np.zeros(bands.shape, bool)
    for y in range(EDGE):
        for x in range(EDGE):
            for scene in scenes:
                values = scene.delivered[:, y, x].astype(int)
                if scene.codes[y, x] == 0 or (values == NODATA).all():
                    continue
                has = values != NODATA
                bands[has, y, x] = values[has] + scene.offset_add
                fill[:, y, x] = ~has
                saturated[:, y, x] = values == SATURATED
                codes[y, x] = scene.codes[y, x]
                native[y, x] = scene.native[y, x]
                marks[:, y, x] = scene.marks[:, y, x]
                break
    present = [b for b in range(BANDS) if not fill[b].all()]
    marked = values_seen = 0
    for y in range(EDGE):
        for x in range(EDGE):
            if codes[y, x] == 0:
                continue
            values_seen += len(present)
            marked += int((marks[present, y, x] != 0).sum())
            spoilt = fill[present, y, x].any() or saturated[:, y, x].any()
            if spoilt and codes[y, x] in CLEAR:
                codes[y, x] = LEGEND["defective"]
    absent = tuple(b for b in range(BANDS) if b not in present) if codes.any() else ()
    share = marked / values_seen if values_seen else None
    return Picture(bands, fill, codes, native, absent, share, int(saturated.sum()))


@given(seed=st.integers(0, 10**6), count=st.integers(1, 3))
def test_painting_is_what_one_pixel_at_a_time_gives(seed: int, count: int) -> None:
    expected = slowly(exposures(seed, count))
    picture = paint(exposures(seed, count), PRODUCT)
    for name in ("bands", "fill", "codes", "native"):
        np.testing.assert_array_equal(getattr(picture, name), getattr(expected, name), name)
    assert picture.absent == expected.absent
    assert picture.saturated_count == expected.saturated_count
    assert picture.defective_fraction == pytest.approx(expected.defective_fraction)


def test_an_absent_band_is_no_defect_and_a_hole_is() -> None:
    values = np.ones((BANDS, EDGE, EDGE), "int16")
    values[1] = NODATA
    values[2, 0, 0] = NODATA
    land = np.full((EDGE, EDGE), LEGEND["land"], "uint8")
    land[3, 3] = LEGEND["cloud"]
    values[2, 3, 3] = NODATA
    picture = paint([Exposure(values, 0, land, None, None)], PRODUCT)
    assert picture.absent == (1,)
    assert picture.codes[0, 0] == LEGEND["defective"]
    assert picture.codes[3, 3] == LEGEND["cloud"]
    assert (picture.codes == LEGEND["land"]).sum() == EDGE * EDGE - 2

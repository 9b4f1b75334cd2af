"""The calibration of Sentinel-1 amplitudes, against its formula."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from pipeline.errors import GiveUp
from pipeline.raster.sentinel1 import (
    Calibration,
    decibels,
    may_have_border_noise,
    parse_calibration,
    parse_noise,
)

TABLE = """<calibration><calibrationVectorList count="2">
<calibrationVector><line>0</line><pixel count="3">0 40 90</pixel>
<sigmaNought count="3">300 340 390</sigmaNought></calibrationVector>
<calibrationVector><line>100</line><pixel count="3">0 40 90</pixel>
<sigmaNought count="3">500 540 590</sigmaNought></calibrationVector>
</calibrationVectorList></calibration>"""


def test_power_is_that_of_the_table_between_its_points_and_at_its_ends() -> None:
    table = parse_calibration(TABLE.encode(), "x")
    line, sample = np.mgrid[20:130, 10:80]
    delivered = (line + 7 * sample).astype("uint16")[None]
    amplitude = 300 + sample + 2 * np.minimum(line, 100)
    found = Calibration(table).power(delivered, 20, 10)
    np.testing.assert_allclose(found[0], (delivered[0] / amplitude) ** 2, rtol=1e-6)


def test_amplitude_0_is_nothing_and_decibels_are_rounded() -> None:
    table = parse_calibration(TABLE.encode(), "x")
    power = Calibration(table).power(np.array([[[0, 300]]], "uint16"), 0, 0)
    assert np.isnan(power[0, 0, 0])
    found = decibels(np.array([np.nan, 0.0, 1.0, 0.02]))
    np.testing.assert_array_equal(found, [np.nan, np.nan, 0.0, -16.99])


def test_noise_along_the_borders_of_old_scenes_is_nothing() -> None:
    table = parse_calibration(TABLE.encode(), "x")
    noise = parse_noise(
        b"<noise><noiseVectorList><noiseVector><line>0</line><pixel>0 2000</pixel>"
        b"<noiseLut>100 100</noiseLut></noiseVector><noiseVector><line>3000</line>"
        b"<pixel>0 2000</pixel><noiseLut>400 400</noiseLut></noiseVector></noiseVectorList>"
        b"</noise>",
        "x",
    )
    calibration = Calibration(table, noise)
    weak, strong = np.full((1, 1, 1), 9, "uint16"), np.full((1, 1, 1), 40, "uint16")
    for line, sample, border in (
        (0, 0, True),
        (499, 900, True),
        (2600, 900, True),
        (1500, 900, False),
    ):
        assert np.isnan(calibration.power(weak, line, sample))[0, 0, 0] == border
        assert not np.isnan(calibration.power(strong, line, sample)).any()


#: As processors write it from 2.90 on.
MARKED = """<noise><noiseRangeVectorList count="1"><noiseRangeVector>
<azimuthTime>2016-03-15T05:04:28.137817</azimuthTime><line>0</line><pixel count="2">0 2000</pixel>
<noiseRangeLut count="2">100 100</noiseRangeLut></noiseRangeVector></noiseRangeVectorList>
<noiseAzimuthVectorList count="1"><noiseAzimuthVector><swath>IW1</swath>
<line count="2">0 3000</line><noiseAzimuthLut count="2">1 1</noiseAzimuthLut></noiseAzimuthVector>
</noiseAzimuthVectorList></noise>"""


def test_the_layout_tells_who_marked_the_noise_along_the_borders() -> None:
    assert parse_noise(MARKED.encode(), "x") is None
    table = parse_calibration(TABLE.encode(), "x")
    weak = np.full((1, 1, 1), 9, "uint16")
    assert not np.isnan(Calibration(table, None).power(weak, 0, 0)).any()


def test_the_noise_of_new_scenes_need_not_be_read() -> None:
    assert may_have_border_noise(datetime(2018, 3, 13, 5, tzinfo=UTC))
    assert not may_have_border_noise(datetime(2018, 4, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<noise/>",
        "<noise><noiseRangeVectorList count='0'/></noise>",
        "<noise><noiseVectorList><noiseVector><line>0</line><pixel>0 9</pixel>"
        "<noiseLut>1 -1</noiseLut></noiseVector></noiseVectorList></noise>",
    ],
)
def test_noise_of_neither_layout_is_refused(text: str) -> None:
    with pytest.raises(GiveUp) as error:
        parse_noise(text.encode(), "x")
    assert error.value.failure == "corrupt"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<calibration/>",
        TABLE.replace("<line>100<", "<line>0<"),
        TABLE.replace("0 40 90", "0 40"),
        TABLE.replace("300 340 390", "300 0 390"),
        TABLE.replace("500 540 590", "500 nan 590"),
        TABLE.replace("500 540 590", "500 many 590"),
    ],
)
def test_a_table_out_of_order_is_refused(text: str) -> None:
    with pytest.raises(GiveUp) as error:
        parse_calibration(text.encode(), "x")
    assert error.value.failure == "corrupt"

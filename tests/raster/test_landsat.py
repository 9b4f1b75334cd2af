"""Landsat coefficients: from a real MTL.json to physical numbers, or to a named error."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import GiveUp
from pipeline.raster.landsat import conversion, parse_mtl

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "landsat"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="real data (../shared/data) not here")

SOUND: dict[str, Any] = {
    "IMAGE_ATTRIBUTES": {"SUN_ELEVATION": "30.0"},
    "LEVEL1_RADIOMETRIC_RESCALING": {
        "REFLECTANCE_MULT_BAND_4": "2.0000E-05",
        "REFLECTANCE_ADD_BAND_4": "-0.100000",
        "RADIANCE_MULT_BAND_6_VCID_1": "0.067",
        "RADIANCE_ADD_BAND_6_VCID_1": "-0.06709",
    },
    "LEVEL1_THERMAL_CONSTANTS": {
        "K1_CONSTANT_BAND_6_VCID_1": "666.09",
        "K2_CONSTANT_BAND_6_VCID_1": "1282.71",
    },
}


def test_reflectance_is_that_of_the_sun_s_height() -> None:
    read = conversion(SOUND, "B4")
    np.testing.assert_allclose(read(np.array([5000, 30000], "uint16")), [0.0, 1.0], atol=1e-12)


def test_temperature_is_in_hundredths_and_has_none_where_there_is_no_radiance() -> None:
    read = conversion(SOUND, "B6_VCID_1")
    (kelvin, none) = read(np.array([131, 1], "uint8"))
    radiance = 131 * 0.067 - 0.06709
    assert kelvin == round(1282.71 / math.log(666.09 / radiance + 1), 2)
    assert 290 < kelvin < 300
    assert math.isnan(none)


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("LEVEL1_RADIOMETRIC_RESCALING", "REFLECTANCE_MULT_BAND_4", None),
        ("LEVEL1_RADIOMETRIC_RESCALING", "REFLECTANCE_ADD_BAND_4", "nan"),
        ("LEVEL1_RADIOMETRIC_RESCALING", "REFLECTANCE_ADD_BAND_4", ["1"]),
        ("IMAGE_ATTRIBUTES", "SUN_ELEVATION", "-3.5"),
    ],
)
def test_what_is_missing_or_absurd_is_named(group: str, key: str, value: Any) -> None:
    broken = copy.deepcopy(SOUND)
    broken[group][key] = value
    with pytest.raises(GiveUp, match=key if group != "IMAGE_ATTRIBUTES" else "horizon") as error:
        conversion(broken, "B4")
    assert error.value.failure == "corrupt"


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'{"LANDSAT_METADATA_FILE": {"A": 1}}', b"[" * 9999]
)
def test_what_is_no_mtl_is_refused(text: bytes) -> None:
    with pytest.raises(GiveUp):
        parse_mtl(text, "x_MTL.json")


@needs_data
def test_the_real_metadata_of_level_2_tell_the_coefficients_of_level_1() -> None:
    (path,) = DATA.glob("LC08_L2SP_*/*_MTL.json")
    metadata = parse_mtl(path.read_bytes(), path.name)
    height = math.sin(math.radians(40.0015903))
    red = conversion(metadata, "B4")
    assert (red.gain, red.add) == pytest.approx((2e-5 / height, -0.1 / height))
    thermal = conversion(metadata, "B10")
    assert (thermal.gain, thermal.k1, thermal.k2) == (3.342e-4, 774.8853, 1321.0789)
    assert json.loads(path.read_text())["LANDSAT_METADATA_FILE"].keys() == metadata.keys()

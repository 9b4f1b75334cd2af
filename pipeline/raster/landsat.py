"""Landsat level 1: from delivered numbers to what the sensor saw at the top of the atmosphere.

Coefficients differ from scene to scene and from band to band, and stand in the scene's MTL.json. A
level 2 product repeats the names for its own scaling in another group, so groups matter.

Source: USGS, Using the USGS Landsat Level-1 Data Product; Landsat 8-9 Level 1 Data Format Control
Book (LSDS-1822).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import GiveUp

_SCALES = "LEVEL1_RADIOMETRIC_RESCALING"
_CONSTANTS = "LEVEL1_THERMAL_CONSTANTS"
#: Temperatures are rounded to hundredths of a kelvin, a tenth of the sensors' noise: the last bits
#: of a logarithm differ from processor to processor, and stored pixels must not.
_DECIMALS_K = 2

Metadata = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Conversion:
    """From the numbers of one band of one scene to reflectance, or to kelvin."""

    gain: float
    """Reflectance, or radiance in W/(m2 sr um), for one number."""
    add: float
    """The same for the number 0."""
    k1: float | None = None
    """Of thermal bands, in W/(m2 sr um): temperature is k2 / ln(k1 / radiance + 1)."""
    k2: float | None = None
    """Of thermal bands, in K."""

    def __call__(self, delivered: NDArray[Any]) -> NDArray[np.float64]:
        """Return reflectance (1) or temperature (K) of numbers of any shape.

        NaN where a radiance is not positive, which no temperature has.
        """
        linear = delivered.astype(np.float64) * self.gain + self.add
        if self.k1 is None or self.k2 is None:
            return linear
        seen = np.where(linear > 0, linear, np.nan)
        temperature: NDArray[np.float64] = np.round(
            self.k2 / np.log(self.k1 / seen + 1), _DECIMALS_K
        )
        return temperature


def parse_mtl(text: bytes, name: str) -> Metadata:
    """Return the groups of an MTL.json, each a table of texts.

    Raises
    ------
    GiveUp
        `corrupt`: it is not the JSON of a Landsat scene.
    """
    try:
        groups = json.loads(text)["LANDSAT_METADATA_FILE"]
        return {str(key): dict(values) for key, values in groups.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise GiveUp(f"{name} is not the MTL.json of a scene: {error}", failure="corrupt") from None


def conversion(metadata: Metadata, band: str) -> Conversion:
    """Return how the numbers of a band (`B4`, `B6_VCID_1`) become physical ones.

    Bands with thermal constants become temperatures; the others reflectance, corrected for the
    height of the sun over the scene's centre, as in Earth Engine's TOA collections.

    Raises
    ------
    GiveUp
        `corrupt`: a coefficient is missing or no number, or the sun was below the horizon.
    """
    key = band.removeprefix("B")
    if f"K1_CONSTANT_BAND_{key}" in metadata.get(_CONSTANTS, {}):
        return Conversion(
            gain=_number(metadata, _SCALES, f"RADIANCE_MULT_BAND_{key}"),
            add=_number(metadata, _SCALES, f"RADIANCE_ADD_BAND_{key}"),
            k1=_number(metadata, _CONSTANTS, f"K1_CONSTANT_BAND_{key}"),
            k2=_number(metadata, _CONSTANTS, f"K2_CONSTANT_BAND_{key}"),
        )
    height = math.sin(math.radians(_number(metadata, "IMAGE_ATTRIBUTES", "SUN_ELEVATION")))
    if height <= 0:
        raise GiveUp("the sun was below the horizon: no reflectance", failure="corrupt")
    return Conversion(
        gain=_number(metadata, _SCALES, f"REFLECTANCE_MULT_BAND_{key}") / height,
        add=_number(metadata, _SCALES, f"REFLECTANCE_ADD_BAND_{key}") / height,
    )


def _number(metadata: Metadata, group: str, key: str) -> float:
    text = metadata.get(group, {}).get(key)
    try:
        number = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise GiveUp(f"the MTL says {group}.{key} is {str(text)[:40]!r}", failure="corrupt")
    return number

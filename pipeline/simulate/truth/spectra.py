"""What a few materials look like: spectra from simple physical shapes, temperatures, radar echoes.

Nothing here is measured. The shapes are what a textbook draws (green peak, red edge, water
absorption near 970, 1200, 1450 and 1940 nm, clay at 2200 nm, snow dark in the short-wave infrared):
enough for a spectrometer's data to look and compress like data, and for materials to differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: Materials of the mixture, in the order of the weights' first axis.
MATERIALS = (
    "cereal",
    "maize",
    "rapeseed",
    "grass",
    "dry-soil",
    "moist-soil",
    "broadleaf",
    "conifer",
    "roof",
    "asphalt",
    "water",
    "silt",
    "snow",
    "cirrus",
    "cloud",
)

#: Stored integers per unit of reflectance, as Sentinel-2 and EnMAP deliver it.
SCALE = 10_000

#: Days of the year (northern hemisphere) at which a crop has half its leaves, rising and falling.
_LEAF_DAYS = {
    "cereal": (85, 195),
    "maize": (160, 265),
    "rapeseed": (75, 185),
    "broadleaf": (118, 295),
}


def spectra(
    wavelength_nm: Sequence[float], fwhm_nm: Sequence[float | None], when: datetime, *, south: bool
) -> npt.NDArray[np.int32]:
    """Return what each material looks like in each band on a day.

    Parameters
    ----------
    wavelength_nm, fwhm_nm : sequences of the same length
        Band centres and widths; a missing width is taken as very narrow.
    when : datetime
        Only the day of the year matters.
    south : bool
        Whether seasons are those of the southern hemisphere.

    Returns
    -------
    int32 array, shape (band, material)
        Reflectance x 10,000, rounded. The bands are sampled at the centre and at half a width to
        either side with weights 2, 1, 1.
    """
    day = (when.timetuple().tm_yday + (182 if south else 0)) % 365
    return _table(tuple(wavelength_nm), tuple(w or 0.0 for w in fwhm_nm), day)


@cache
def _table(
    centres: tuple[float, ...], widths: tuple[float, ...], day: int
) -> npt.NDArray[np.int32]:
    centre, half = np.array(centres), np.array(widths) / 2
    columns = []
    for name in MATERIALS:
        sides = _shape(name, centre - half, day) + _shape(name, centre + half, day)
        value = _shape(name, centre, day) / 2 + sides / 4
        columns.append(np.rint(value * SCALE))
    return np.stack(columns, axis=1).astype(np.int32)


#: How warm materials are against the air of the day, in hundredths of a kelvin.
_WARMTH = {"dry-soil": 900, "asphalt": 1100, "roof": 1000, "moist-soil": 300, "water": -300}
_WARMTH |= {"silt": -200, "snow": -800, "cirrus": -5000, "cloud": -3500, "conifer": -100}
#: Power that comes back to a radar at 5.4 GHz, in 10,000ths: like and cross polarised.
_ECHOES = {
    "water": (60, 6),
    "silt": (70, 7),
    "roof": (4000, 700),
    "asphalt": (250, 25),
    "broadleaf": (1300, 420),
    "conifer": (1500, 480),
    "snow": (450, 60),
    "dry-soil": (600, 60),
    "moist-soil": (1500, 130),
}
_CROP_ECHO = (900, 220)


def temperatures(when: datetime, *, south: bool) -> npt.NDArray[np.int32]:
    """Return how warm each material of `MATERIALS` is on a day, in hundredths of a kelvin."""
    day = (when.timetuple().tm_yday + (182 if south else 0)) % 365
    air = 28_600 - round(1100 * float(np.cos(2 * np.pi * (day - 20) / 365)))
    return np.array([air + _WARMTH.get(name, 0) for name in MATERIALS], np.int32)


def echoes(*, crossed: bool) -> npt.NDArray[np.int32]:
    """Return the power that each material of `MATERIALS` sends back, in 10,000ths; no season."""
    return np.array([_ECHOES.get(name, _CROP_ECHO)[crossed] for name in MATERIALS], np.int32)


def through_air(wavelength_nm: npt.NDArray[np.float64]) -> tuple[Floats, npt.NDArray[np.int32]]:
    """Return what air lets through, 0 to 1, and what it adds, as stored integers.

    Light scattered by air falls with the fourth power of the wavelength; vapour takes nearly all
    light near 1380 nm, where only what is high up is seen.
    """
    taken = 0.3 * _bump(wavelength_nm, 945, 25) + 0.997 * _bump(wavelength_nm, 1376, 30)
    added = 0.09 * (443 / wavelength_nm) ** 4
    return 0.92 * (1 - taken), np.rint(added * SCALE).astype(np.int32)


#: Materials above the air that vapour is in.
ABOVE_AIR = ("cirrus", "cloud")


def greenness(crop: str, day: int) -> float:
    """Return the share of a crop's ground that is under green leaves, 0 to 1."""
    if crop == "grass":
        return 0.65 + 0.25 * float(np.cos(2 * np.pi * (day - 165) / 365))
    rise, fall = _LEAF_DAYS[crop]
    return float(1 / (1 + np.exp(-(day - rise) / 10)) - 1 / (1 + np.exp(-(day - fall) / 7)))


# --- shapes ---------------------------------------------------------------------------------------


def _bump(nm: Floats, centre: float, width: float) -> Floats:
    return np.exp(-(((nm - centre) / width) ** 2))


def _step(nm: Floats, centre: float, width: float) -> Floats:
    return 1 / (1 + np.exp(-(nm - centre) / width))


def _water_in_leaves(nm: Floats) -> Floats:
    """Return the share of light that leaf water lets through."""
    depth = (
        0.10 * _bump(nm, 970, 35)
        + 0.18 * _bump(nm, 1200, 55)
        + 0.95 * _bump(nm, 1450, 75)
        + 1.75 * _bump(nm, 1940, 95)
        + 0.45 * _step(nm, 1380, 40)
        + 0.75 * _step(nm, 1880, 50)
        + 0.60 * _step(nm, 2380, 80)
    )
    return np.exp(-depth)


def _leaves(nm: Floats, *, chlorophyll: float = 1.0, plateau: float = 0.48) -> Floats:
    visible = 0.035 + (0.16 - 0.09 * chlorophyll) * _bump(nm, 552, 38)
    edge = _step(nm, 702 + 14 * chlorophyll, 13)
    return visible * (1 - edge) + plateau * edge * _water_in_leaves(nm)


def _straw(nm: Floats) -> Floats:
    rise = 0.09 + 0.33 * _step(nm, 720, 150)
    return (
        rise
        * (1 - 0.12 * _bump(nm, 2100, 60) - 0.25 * _bump(nm, 1930, 60))
        * (1 - 0.25 * _step(nm, 1900, 150))
    )


def _soil(nm: Floats, brightness: float, moisture: float) -> Floats:
    rise = brightness * (0.25 + 0.75 * (1 - np.exp(-(nm - 350) / 620)))
    clay = 1 - 0.10 * _bump(nm, 2205, 28) - 0.05 * _bump(nm, 1415, 28)
    wet = np.exp(-moisture * (_bump(nm, 1450, 80) + 1.4 * _bump(nm, 1940, 100) + 0.4))
    return rise * clay * wet


def _crop(name: str, soil: float, leaf: float) -> Callable[[Floats, int], Floats]:
    def shape(nm: Floats, day: int) -> Floats:
        green = greenness(name, day)
        ripe = name in _LEAF_DAYS and day > _LEAF_DAYS[name][1] - 15
        below = _straw(nm) if ripe else _soil(nm, soil, 0.25)
        value = green * _leaves(nm, plateau=leaf) + (1 - green) * below
        if name == "rapeseed":  # in flower: yellow, so bright in green and red but not in blue
            bloom = float(_bump(np.array(float(day)), 128, 11))
            value = value + bloom * 0.13 * _step(nm, 520, 9) * (1 - _step(nm, 700, 15))
        return value

    return shape


def _broadleaf(nm: Floats, day: int) -> Floats:
    green = greenness("broadleaf", day)
    return green * _leaves(nm, chlorophyll=1.1, plateau=0.40) + (1 - green) * 0.45 * _straw(nm)


def _conifer(nm: Floats) -> Floats:
    return 0.55 * _leaves(nm, chlorophyll=1.2, plateau=0.42)


def _water(nm: Floats) -> Floats:
    """Clear water: blue-green, black beyond 750 nm, and slightly negative in the short-wave
    infrared, as atmospheric correction leaves it."""
    return 0.045 * _bump(nm, 470, 130) + 0.004 * _step(-nm, -750, 30) - 0.0004


def _silt(nm: Floats) -> Floats:
    return 0.30 * _bump(nm, 590, 140) + 0.02 * _bump(nm, 810, 40)


def _snow(nm: Floats) -> Floats:
    ice = 0.25 * _bump(nm, 1030, 55) + 0.55 * _bump(nm, 1270, 70) + 2.6 * _step(nm, 1400, 45)
    return 0.95 * np.exp(-ice)


def _cloud(nm: Floats) -> Floats:
    vapour = 0.15 * _bump(nm, 940, 25) + 0.25 * _bump(nm, 1135, 35) + 0.35 * _step(nm, 1380, 60)
    return 0.78 * np.exp(-vapour - 0.35 * _step(nm, 1900, 80))


#: Materials that change with the day of the year ...
_SEASONAL: dict[str, Callable[[Floats, int], Floats]] = {
    "cereal": _crop("cereal", 0.38, 0.50),
    "maize": _crop("maize", 0.30, 0.46),
    "rapeseed": _crop("rapeseed", 0.36, 0.52),
    "grass": _crop("grass", 0.30, 0.36),
    "broadleaf": _broadleaf,
}
#: ... and those that do not.
_LASTING: dict[str, Callable[[Floats], Floats]] = {
    "dry-soil": lambda nm: _soil(nm, 0.46, 0.05),
    "moist-soil": lambda nm: _soil(nm, 0.28, 0.45),
    "conifer": _conifer,
    "roof": lambda nm: 0.16 + 0.20 * _step(nm, 590, 25),
    "asphalt": lambda nm: 0.08 + 0.06 * _step(nm, 900, 350),
    "water": _water,
    "silt": _silt,
    "snow": _snow,
    "cirrus": lambda nm: 0.45 + 0.25 * _bump(nm, 1380, 30),
    "cloud": _cloud,
}


def _shape(material: str, nm: Floats, day: int) -> Floats:
    if material in _SEASONAL:
        return _SEASONAL[material](nm, day)
    return _LASTING[material](nm)

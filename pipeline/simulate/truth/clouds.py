"""The sky over a place at a time: clouds, their displaced shadows, cirrus and haze."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from math import asin, cos, degrees, pi, radians, sin, tan

import numpy as np
import numpy.typing as npt

from pipeline.simulate.truth.noise import Place, below, smooth_noise

#: Height of cloud tops above ground: what displaces shadows, in metres.
CLOUD_HEIGHT_M = 1600
#: Weights of the sky are in 256ths, as those of the ground.
OPAQUE = 256

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
#: Which hash draws the weather: one by which world 0 shows the demo fair, broken and dull days.
_WEATHER_CHANNEL = 17_420
#: Height of the smoothed field above which there is cloud, by weather: three times fair, then few
#: clouds (2 %), scattered twice (14 and 17 %), broken (40 %), overcast (70 %). Fair skies hold none
#: at all, so that a clear candidate is usually there.
_CLOUD_FROM = (65_536, 65_536, 65_536, 50_000, 42_000, 41_000, 34_000, 26_000)
#: The same of cirrus.
_CIRRUS_FROM = (65_536, 65_536, 65_536, 65_536, 54_000, 50_000, 46_000, 36_000)


@dataclass(frozen=True, slots=True)
class Sky:
    """What is between the ground and the sensor; all arrays have the shape (y, x).

    Attributes
    ----------
    cloud : uint16 array
        Opacity of cloud in 256ths.
    cirrus : uint16 array
        Opacity of cirrus in 256ths.
    cirrus_class : uint8 array
        0 none, 1 thin, 2 medium, 3 thick: EnMAP's classes.
    haze : bool array
        Rim of a cloud: seen through, but not clear.
    shadow : bool array
        In the shadow of a cloud and not below one.
    """

    cloud: npt.NDArray[np.uint16]
    cirrus: npt.NDArray[np.uint16]
    cirrus_class: npt.NDArray[np.uint8]
    haze: npt.NDArray[np.bool_]
    shadow: npt.NDArray[np.bool_]

    @property
    def covered(self) -> npt.NDArray[np.bool_]:
        """Where cloud hides the ground."""
        return self.cloud >= OPAQUE // 2


def weather_hour(when: datetime) -> int:
    """Return the hour that weather is constant in, so that all scenes of a pass agree."""
    return int((when - _EPOCH).total_seconds() // 3600)


def is_fair(zone: int, when: datetime, seed: int) -> bool:
    """Whether there is no cloud and no cirrus anywhere in a zone at that hour."""
    place = Place(zone, np.zeros(1, np.int64), np.zeros(1, np.int64), seed)
    hour = weather_hour(when)
    return min(_of_weather(levels, place, hour) for levels in (_CLOUD_FROM, _CIRRUS_FROM)) > 65_535


def sky(place: Place, when: datetime) -> Sky:
    """Compute the sky at pixel centres; a pure function of place and hour."""
    hour = weather_hour(when)
    cloud = _cloud_opacity(place, hour)
    east_m, north_m = shadow_shift(place.zone, when)
    shaded = _cloud_opacity(place.moved(-east_m, -north_m), hour) >= OPAQUE // 2
    veil = smooth_noise(place, 60, 7000, when=hour)
    step = np.clip((veil - _of_weather(_CIRRUS_FROM, place, hour)) // 3500 + 1, 0, 3)
    return Sky(
        cloud=cloud,
        cirrus=(step * 18).astype(np.uint16),
        cirrus_class=step.astype(np.uint8),
        haze=(cloud > 0) & (cloud < OPAQUE // 2),
        shadow=shaded & (cloud < OPAQUE // 2),
    )


def _of_weather(levels: tuple[int, ...], place: Place, hour: int) -> int:
    return levels[int(below(len(levels), place.seed, place.zone, _WEATHER_CHANNEL, hour))]


def _cloud_opacity(place: Place, hour: int) -> npt.NDArray[np.uint16]:
    level = _of_weather(_CLOUD_FROM, place, hour)
    if level > 65_535:
        return np.zeros(place.shape, np.uint16)
    field = (
        5 * smooth_noise(place, 51, 5200, when=hour)
        + 2 * smooth_noise(place, 52, 1100, when=hour)
        + smooth_noise(place, 53, 260, when=hour)
    ) >> 3
    opacity: npt.NDArray[np.uint16] = np.clip((field - level) // 14, 0, OPAQUE).astype(np.uint16)
    return opacity


# --- sun ------------------------------------------------------------------------------------------


def sun(zone: int, n_m: float, when: datetime) -> tuple[float, float]:
    """Return the sun's elevation and azimuth in degrees at the middle of a zone.

    Low accuracy is enough (about half a degree): declination by the cosine rule of Cooper (1969),
    no equation of time; latitude from the northing at 111 km per degree.
    """
    latitude = radians(n_m / 111_000)
    declination = radians(-23.45 * cos(2 * pi * (when.timetuple().tm_yday + 10) / 365))
    clock = when.hour + when.minute / 60 + (6 * zone - 183) / 15
    hour_angle = radians(15 * (clock - 12))
    height = asin(
        sin(latitude) * sin(declination) + cos(latitude) * cos(declination) * cos(hour_angle)
    )
    east = -cos(declination) * sin(hour_angle)
    north = cos(latitude) * sin(declination) - sin(latitude) * cos(declination) * cos(hour_angle)
    azimuth = degrees(np.arctan2(east, north)) % 360
    return degrees(height), float(azimuth)


def shadow_shift(zone: int, when: datetime) -> tuple[int, int]:
    """Return how far clouds' shadows fall from them, in whole metres east and north.

    Simplified to the sun at 45 degrees north, never below 20 degrees, so that it is one vector for
    a zone and an hour: shadows then have no seams wherever a raster is cut.
    """
    hour = when.replace(minute=0, second=0, microsecond=0)
    elevation, azimuth = sun(zone, 45 * 111_000, hour)
    length = CLOUD_HEIGHT_M / tan(radians(max(elevation, 20)))
    away = radians(azimuth + 180)
    return round(length * sin(away)), round(length * cos(away))

"""Where the sun stands, for catalogues that do not say."""

from __future__ import annotations

import math
from datetime import UTC, datetime

_J2000 = datetime(2000, 1, 1, 12, tzinfo=UTC)


def sun_elevation_deg(when: datetime, *, lon_deg: float, lat_deg: float) -> float:
    """Return the elevation of the sun's centre above the horizon, in degrees, without refraction.

    The low-precision formulas of the Astronomical Almanac (section C), good to 0.01 degrees from
    1950 to 2050, which is far better than a footprint's centre stands for a whole scene.
    """
    days = (when - _J2000).total_seconds() / 86_400
    longitude = 280.460 + 0.9856474 * days
    anomaly = math.radians(357.528 + 0.9856003 * days)
    ecliptic = math.radians(longitude + 1.915 * math.sin(anomaly) + 0.020 * math.sin(2 * anomaly))
    obliquity = math.radians(23.439 - 0.0000004 * days)
    ascension = math.atan2(math.cos(obliquity) * math.sin(ecliptic), math.cos(ecliptic))
    declination = math.asin(math.sin(obliquity) * math.sin(ecliptic))
    sidereal = math.radians(280.46062 + 360.98564737 * days + lon_deg)
    latitude = math.radians(lat_deg)
    up = math.sin(latitude) * math.sin(declination) + math.cos(latitude) * math.cos(
        declination
    ) * math.cos(sidereal - ascension)
    return math.degrees(math.asin(max(-1.0, min(1.0, up))))

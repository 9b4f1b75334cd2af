"""Cells that are listed, not drawn: every one of a region, or every one that scenes cover."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from pipeline.products.model import Lattice
from pipeline.raster.lattice import Cells, cells_from_corners
from pipeline.raster.zones import (
    CENTRAL_EASTING_M,
    FALSE_NORTHING_SOUTH_M,
    NORTHERN_LIMIT_DEG,
    SOUTHERN_LIMIT_DEG,
    Bools,
    Floats,
    Ints,
    is_utm,
    to_plane,
    zones_at,
)
from pipeline.stages.sample.draws import Region, in_region, width_deg

#: Cells looked at together: bounds the memory of a large region.
_TOGETHER = 1_000_000


@dataclass(frozen=True, slots=True)
class Tiling:
    """Listed cells with the stratum of each."""

    cells: Cells
    stratum: list[str]


def tile_region(region: Region, lattice: Lattice, size_px: int) -> Tiling:
    """Return every admissible cell whose centre lies in a region, ordered by position."""
    parts = [
        cells[cells.admissible()]
        for number in range(1, 61)
        for north in (False, True)
        for cells in _zone_cells(region, lattice, size_px, number, north)
    ]
    cells = _join(parts, lattice, size_px)
    return Tiling(cells, [""] * len(cells))


def _zone_cells(
    region: Region, lattice: Lattice, size_px: int, number: int, north: bool
) -> Iterator[Cells]:
    """Yield the cells of one half zone whose centres lie in the region and in the zone."""
    bounds = _bounds_in_plane(region, number, north)
    if bounds is None:
        return
    x_min, n_min, x_max, n_max = bounds
    edge = lattice.pixel_m * size_px
    nearest, farthest = sorted((abs(n_min), abs(n_max)))
    cols = np.arange(int(x_min // edge) - 1, int(x_max // edge) + 2)
    first, last = max(0, int(nearest // edge) - 1), int(farthest // edge) + 2
    step = max(1, _TOGETHER // len(cols))
    for start in range(first, last, step):
        rows = np.arange(start, min(start + step, last))
        col, row = (grid.ravel() for grid in np.meshgrid(cols, rows))
        zone = np.full(col.shape, number, dtype=np.int64)
        cells = Cells(lattice, size_px, zone, np.full(col.shape, north), col, row)
        lon, lat = cells.centres()
        yield cells[in_region(lon, lat, region) & (zones_at(lon, lat)[0] == number)]


def _bounds_in_plane(
    region: Region, number: int, north: bool
) -> tuple[float, float, float, float] | None:
    """Return bounds in a zone's plane of the region's part in one half zone; None if apart.

    All zones are taken as 12° wide, as the widest at Svalbard: too many cells cost little.
    """
    west, south, _, top = region
    low = max(south, SOUTHERN_LIMIT_DEG, 0.0 if north else -90.0)
    high = min(top, NORTHERN_LIMIT_DEG, 90.0 if north else 0.0)
    reach, centre = 6.0, number * 6.0 - 183.0
    # The region's western edge, turned to within a circle before the zone's eastern one.
    start = centre + reach - np.mod(centre + reach - west, 360.0)
    spans = [
        (max(begin, centre - reach), min(begin + width_deg(region), centre + reach))
        for begin in (start, start - 360.0)
    ]
    spans = [span for span in spans if span[0] < span[1]]
    if low >= high or not spans:
        return None
    left, right = min(span[0] for span in spans), max(span[1] for span in spans)
    lon = np.array([left, right, np.clip(centre, left, right)])
    lon, lat = (grid.ravel() for grid in np.meshgrid(lon, [low, high]))
    x, n = to_plane(lon, lat, number)
    x = np.append(x, CENTRAL_EASTING_M) if left < centre < right else x
    return float(x.min()), float(n.min()), float(x.max()), float(n.max())


def tile_scenes(
    scenes: pa.Table,
    lattice: Lattice,
    size_px: int,
    *,
    tolerance_m: float,
    min_cover_fraction: float = 1.0,
    own_corner: bool = False,
) -> Tiling:
    """Return every admissible cell that the scenes of one datatake cover, ordered by position.

    Only scenes in a cell's own zone count, for no other is read without resampling. A cell keeps
    the first datatake that covers it as its stratum.

    Parameters
    ----------
    scenes : pa.Table
        Rows of `Scene` of one product.
    tolerance_m : float
        How far a cell may stick out of the footprints: catalogues round their corners. Half a
        pixel.
    min_cover_fraction : float
        Least share of a cell that must be covered.
    own_corner : bool
        Tile each scene from its own north-western corner with free cells, instead of taking
        tiles of the fixed tiling.
    """
    codes = scenes.column("epsg").to_numpy()
    scenes = scenes.filter(pa.array([is_utm(int(code)) for code in codes], type=pa.bool_()))
    epsg = scenes.column("epsg").to_numpy()
    bounds = _bounds_of(scenes)
    seen = _seen_in_plane(scenes.column("geometry").to_pylist(), epsg, bounds)
    parts, strata = [], []
    for (datatake, number), rows in _acquisitions(scenes):
        area = shapely.union_all(seen[rows])
        # Mitred, so that the corners of an image stay corners.
        area = shapely.buffer(area, tolerance_m, join_style="mitre")
        if own_corner:
            cells = _corner_cells(bounds[rows], number, lattice, size_px)
        else:
            cells = _cells_in_bounds(shapely.bounds(area), number, lattice, size_px)
        cells = cells[_covered(cells, area, min_cover_fraction)]
        cells = cells[cells.admissible()]
        parts.append(cells)
        strata.extend([datatake] * len(cells))
    cells = _join(parts, lattice, size_px, free=own_corner)
    _, first = np.unique(cells.keys(), return_index=True)
    return Tiling(cells[first], [strata[i] for i in first.tolist()])


def _bounds_of(scenes: pa.Table) -> Floats:
    """Return bounds of pixels as west, south, east, north, northings from the equator."""
    edges = ("x_min_m", "y_min_m", "x_max_m", "y_max_m")
    bounds = np.stack([scenes.column(name).to_numpy() for name in edges], axis=-1)
    south = scenes.column("epsg").to_numpy() >= 32700
    bounds[:, [1, 3]] -= np.where(south, FALSE_NORTHING_SOUTH_M, 0.0)[:, None]
    return bounds


def _seen_in_plane(wkb: list[bytes], epsg: Ints, bounds: Floats) -> Any:
    """Return what was seen of each scene, within its pixels, in the plane of its zone.

    Corners are projected and joined again by straight lines, for the edges of an image are
    straight in its own plane; drawn straight in longitude and latitude they stray by 240 m over
    the 110 km of a Sentinel-2 tile at 45°. What cannot be read, or reaches too far round the
    globe to have a place in the plane, has seen nothing.
    """
    shapes = shapely.force_2d(shapely.from_wkb(np.array(wkb, dtype=object), on_invalid="ignore"))
    shapes[shapely.is_missing(shapes)] = shapely.Polygon()
    lon_lat, owner = shapely.get_coordinates(shapes, return_index=True)
    x, n = to_plane(lon_lat[:, 0], lon_lat[:, 1], epsg[owner] % 100)
    shapes = shapely.set_coordinates(shapes, np.stack([x, n], axis=-1))
    shapes[owner[~(np.isfinite(x) & np.isfinite(n))]] = shapely.Polygon()
    return shapely.intersection(shapely.make_valid(shapes), shapely.box(*bounds.T))


def _acquisitions(scenes: pa.Table) -> list[tuple[tuple[str, int], list[int]]]:
    """Return the rows of each datatake and zone, in the order of datatake and zone."""
    groups: dict[tuple[str, int], list[int]] = {}
    keys = zip(
        scenes.column("datatake").to_pylist(), scenes.column("epsg").to_pylist(), strict=True
    )
    for row, (datatake, epsg) in enumerate(keys):
        groups.setdefault((datatake, epsg % 100), []).append(row)
    return sorted(groups.items())


def _cells_in_bounds(bounds: Floats, number: int, lattice: Lattice, size_px: int) -> Cells:
    """Return the tiles that meet bounds (x_min, n_min, x_max, n_max) in a zone's plane."""
    edge = lattice.pixel_m * size_px
    parts = []
    if np.isfinite(bounds).all():
        x_min, n_min, x_max, n_max = bounds.tolist()
        cols = np.arange(int(x_min // edge) - 1, int(x_max // edge) + 2)
        for north, near, far in ((True, n_min, n_max), (False, -n_max, -n_min)):
            rows = np.arange(max(0, int(near // edge) - 1), max(0, int(far // edge) + 2))
            col, row = (grid.ravel() for grid in np.meshgrid(cols, rows))
            zone = np.full(col.shape, number, dtype=np.int64)
            parts.append(Cells(lattice, size_px, zone, np.full(col.shape, north), col, row))
    return _join(parts, lattice, size_px)


def _corner_cells(bounds: Floats, number: int, lattice: Lattice, size_px: int) -> Cells:
    """Return free cells that tile each scene from its north-western corner, as many as fit."""
    edge = lattice.pixel_m * size_px
    slack = lattice.pixel_m / 2
    parts = []
    for west, south, east, north in bounds.tolist():
        across = np.arange(int((east - west + slack) // edge)) * edge
        down = np.arange(int((north - south + slack) // edge)) * edge
        x, n = (grid.ravel() for grid in np.meshgrid(west + across, north - down))
        # Northings from the equator are those of the northern code, as in Landsat's south.
        parts.append(cells_from_corners(32600 + number, x, n, lattice, size_px, free=True))
    return _join(parts, lattice, size_px, free=True)


def _covered(cells: Cells, area: Any, min_fraction: float) -> Bools:
    """Whether each cell is covered by an area of its zone's plane, or enough of it is."""
    west, south, edge = cells.x_min_m, cells.n_min_m, cells.size_m
    squares = shapely.box(west, south, west + edge, south + edge)
    shapely.prepare(area)
    covered = np.asarray(shapely.covers(area, squares))
    if min_fraction < 1:
        partly = shapely.intersects(area, squares) & ~covered
        shared = shapely.area(shapely.intersection(area, squares[partly]))
        covered[partly] = shared >= min_fraction * edge**2
    return covered


def _join(parts: list[Cells], lattice: Lattice, size_px: int, *, free: bool = False) -> Cells:
    """Return the cells of all parts, in order."""

    def column(name: str, kind: type) -> Any:
        columns = [getattr(part, name) for part in parts]
        return np.concatenate([np.empty(0, dtype=kind), *columns])

    return Cells(
        lattice,
        size_px,
        column("number", np.int64),
        column("north", np.bool_),
        column("col", np.int64),
        column("row", np.int64),
        free,
    )

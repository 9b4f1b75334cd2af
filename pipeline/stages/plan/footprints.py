"""What scenes have seen of the ground: does a scene, or several together, contain a cell?

Footprints come as longitude and latitude, but cells and the pixels of their scenes lie in the
plane of one UTM zone, so vertices are projected there once and all questions are answered in
metres. Edges are straight in that plane, as those of rasters are: the same edge drawn straight in
longitude and latitude strays by up to 400 m over 110 km at 60°.

What a scene has seen is its footprint within the bounds of its pixels. Nearly all of them are
convex polygons; these are kept as half-planes, and a square lies in one exactly if it passes a
sum per edge. Of the others the convex hull is kept: a square that sticks out of it is not
contained, and one that lies in it farther from its edge than any dent reaches is. Both leave
little open where edges are bent a bit, as long ones are that are straight in longitude and
latitude. What is left open, and cells that only several scenes cover together, goes the slow way,
through shapely.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from pipeline.raster.zones import Bools, Floats, Ints, to_plane
from pipeline.stages.plan.ragged import Ragged, codes_of, offsets, spans, starts_of_runs

#: Footprints decoded at a time: shapely's objects are ten times their coordinates.
_BATCH = 200_000

#: Sine of the angle by which a corner may be concave: 0.1 m over 100 km is rounding.
_CONCAVE = 1e-6

#: Part of a cell that may be missing although it counts as covered: rounding of areas.
_MISSING = 1e-7

#: How far a mitred corner may reach, in tolerances (GEOS's limit unless told).
_MITRE = 5.0

#: Half-planes that are asked at a time.
_EDGES = 1 << 20

#: How much of a hull is left out to have fewer half-planes, in metres: it leaves less than 0.1 % of
#: a large scene to shapely.
_COARSE_M = 50.0

#: Added to the depth of dents, in metres: rounding of corners that are computed.
_ROUNDING_M = 0.01


class Footprints:
    """Footprints of scenes in the planes of their zones.

    Parameters
    ----------
    wkb : large binary array, shape (scene,)
        Polygons in longitude and latitude; what cannot be read has seen nothing.
    zone : int array, shape (scene,)
        UTM zone number of each scene's pixels.
    bounds : float array, shape (scene, 4)
        Of the pixels: west, south, east, north, northings counted from the equator, in metres.
    tolerance_m : float
        How far a cell may stick out: half a pixel.
    """

    def __init__(self, wkb: pa.Array, zone: Ints, bounds: Floats, tolerance_m: float) -> None:
        encoded = wkb.dictionary_encode()  # Which does nothing to those that are encoded.
        code = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        self._shape, total = codes_of(code, zone)
        _, first = np.unique(self._shape, return_index=True)
        self._wkb = encoded.dictionary
        self._wkb_of_shape = code[first]
        self._zone_of_shape = zone[first]
        self._bounds = bounds
        self._tolerance_m = tolerance_m
        self._count = np.zeros(total, dtype=np.int64)
        planes = [self._half_planes(np.arange(total)[k : k + _BATCH]) for k in _batches(total)]
        self._planes = np.concatenate([np.empty((0, 4)), *planes])
        self._first = offsets(self._count)[:-1]

    def hold(self, scene: Ints, x: Floats, n: Floats, half: Floats) -> tuple[Bools, Bools]:
        """Return whether each scene alone contains a cell, as far as half-planes tell.

        Parameters
        ----------
        scene : int array, shape (pair,)
        x, n, half : float arrays, shape (pair,)
            Centre of the cell, and half its edge, in metres.

        Returns
        -------
        held : bool array, shape (pair,)
            It does.
        unclear : bool array, shape (pair,)
            It may, which `cover` decides; never for convex footprints.
        """
        west, south, east, north = self._bounds[scene].T
        slack = self._tolerance_m - half
        held: Bools = (x - west >= -slack) & (east - x >= -slack)
        held &= (n - south >= -slack) & (north - n >= -slack)
        count = self._count[self._shape[scene]]
        unclear = held & (count == 0)
        asked = np.flatnonzero(held & (count > 0))
        held &= False
        # Edges of all pairs together would fill the memory.
        batch = np.cumsum(count[asked]) // _EDGES
        for some in np.split(asked, starts_of_runs(batch)[1:]):
            held[some], unclear[some] = self._within(scene[some], x[some], n[some], half[some])
        return held, unclear

    def _within(self, scene: Ints, x: Floats, n: Floats, half: Floats) -> tuple[Bools, Bools]:
        """Return what `hold` does for footprints that have half-planes."""
        shape = self._shape[scene]
        count = self._count[shape]
        pair, edge = spans(self._first[shape], count)
        across, up, outer, inner = self._planes[edge].T
        # The farthest of a square's corners in a direction: its support function.
        reach = (np.abs(across) + np.abs(up)) * half[pair] + across * x[pair] + up * n[pair]
        first = offsets(count)[:-1]
        held = np.minimum.reduceat(inner - reach, first) >= 0
        return held, ~held & (np.minimum.reduceat(outer - reach, first) >= 0)

    def corners(self, scene: Ints, x: Floats, n: Floats, half: Floats) -> Bools:
        """Return which corners of a cell each scene may hold: shape (pair, 4).

        Exact for convex footprints; of the others, those in their convex hulls.
        """
        corner_x = x[:, None] + half[:, None] * np.array([-1, 1, 1, -1])
        corner_n = n[:, None] + half[:, None] * np.array([-1, -1, 1, 1])
        west, south, east, north = self._bounds[scene].T[:, :, None]
        slack = self._tolerance_m
        held: Bools = (corner_x - west >= -slack) & (east - corner_x >= -slack)
        held &= (corner_n - south >= -slack) & (north - corner_n >= -slack)
        asked = np.flatnonzero(self._count[self._shape[scene]])
        shape = self._shape[scene[asked]]
        count = self._count[shape]
        pair, edge = spans(self._first[shape], count)
        across, up, outer, _ = self._planes[edge].T[:, :, None]
        pair = asked[pair]
        within = across * corner_x[pair] + up * corner_n[pair] <= outer
        if len(asked):
            held[asked] &= np.logical_and.reduceat(within, offsets(count)[:-1])
        return held

    def cover(
        self, scenes: Ragged, x: Floats, n: Floats, half: Floats, *, contained: bool
    ) -> Ragged:
        """Choose the scenes that cover each cell together, through shapely.

        Parameters
        ----------
        scenes : Ragged, shape (cell, ...)
            Scenes of one acquisition, in order of preference.
        contained : bool
            Whether the whole cell must be covered; else any part of it is enough.

        Returns
        -------
        Ragged
            One scene where one is enough (the first in order of preference); else those that see
            most of the cell first, none that adds nothing; no scene where they do not cover it.
        """
        cell = np.repeat(np.arange(len(scenes)), scenes.counts)
        names, which = np.unique(scenes.values, return_inverse=True)
        squares = shapely.box(x - half, n - half, x + half, n + half)
        seen = shapely.intersection(self._shapes(names)[which], squares[cell])
        share = shapely.area(seen) / (4 * half[cell] ** 2)
        first = offsets(scenes.counts)[:-1]
        place = np.arange(len(cell)) - first[cell]
        whole = share >= 1 - _MISSING
        # Whole views before partial ones, in order of preference; then the largest part first.
        # Areas differ in their last digits from one library to another, hence the rounding.
        order = np.lexsort((place, np.where(whole, 0, -np.round(share, 6)), ~whole, cell))
        used = np.zeros(len(cell), dtype=bool)
        covered = np.zeros(len(scenes), dtype=bool)
        union, area = np.full(len(scenes), shapely.Polygon(), dtype=object), np.zeros(len(scenes))
        for step in range(int(scenes.counts.max(initial=0))):
            open_cells = np.flatnonzero(~covered & (scenes.counts > step))
            pick = order[first[open_cells] + step]
            joined = shapely.union(union[open_cells], seen[pick])
            gained = shapely.area(joined) / (4 * half[open_cells] ** 2)
            more = gained > area[open_cells] + _MISSING
            used[pick[more]] = True
            union[open_cells], area[open_cells] = joined, gained
            covered[open_cells] = gained >= 1 - _MISSING
        kept = order[used[order] & (covered[cell[order]] | (not contained))]
        return Ragged(np.bincount(cell[kept], minlength=len(scenes)), scenes.values[kept])

    def _half_planes(self, shapes: Ints) -> Floats:
        """Return the half-planes of footprints or their hulls, noting how many each shape has.

        Each is (a, b, outer, inner), with (a, b) of length 1. A square may lie in the footprint
        only if a x + b n <= outer at all its points (x, n), and does if that is at most inner for
        all half-planes. Footprints of no area have none.
        """
        polygons = self._on_plane(shapes)
        simple = shapely.get_type_id(polygons) == int(shapely.GeometryType.POLYGON)
        simple &= shapely.get_num_interior_rings(polygons) == 0
        convex = np.zeros(len(shapes), dtype=bool)
        convex[simple] = _edges(polygons[simple])[-1]
        dented = np.flatnonzero(~convex)
        polygons[dented], depth = _hulls(polygons[dented])
        planes, ring, sound = _edges(polygons)
        planes, ring = planes[sound[ring]], ring[sound[ring]]
        self._count[shapes] = np.bincount(ring, minlength=len(shapes))
        deepest = np.full(len(shapes), -self._tolerance_m)
        deepest[dented] = depth
        inner = planes[:, 2] - deepest[ring]
        slack = np.full(len(shapes), self._tolerance_m)
        slack[dented] = self._tolerance_m * _MITRE + _COARSE_M
        outer = planes[:, 2] + slack[ring]
        return np.column_stack([planes[:, :2], outer, inner])

    def _polygons(self, shapes: Ints) -> Any:
        """Return footprints in longitude and latitude; empty where they cannot be read."""
        wkb = self._wkb.take(pa.array(self._wkb_of_shape[shapes]))
        polygons = shapely.from_wkb(wkb.to_numpy(zero_copy_only=False), on_invalid="ignore")
        polygons[shapely.is_missing(polygons)] = shapely.Polygon()
        points, owner = shapely.get_coordinates(polygons, return_index=True)
        polygons[owner[~np.isfinite(points).all(axis=1)]] = shapely.Polygon()
        single = shapely.get_type_id(polygons) == int(shapely.GeometryType.MULTIPOLYGON)
        single &= shapely.get_num_geometries(polygons) == 1
        polygons[single] = shapely.get_geometry(polygons[single], 0)
        return polygons

    def _on_plane(self, shapes: Ints) -> Any:
        """Return footprints in the planes of their zones, in metres."""
        polygons = self._polygons(shapes)
        points, owner = shapely.get_coordinates(polygons, return_index=True)
        x, n = to_plane(points[:, 0], points[:, 1], self._zone_of_shape[shapes][owner])
        return shapely.set_coordinates(polygons, np.stack([x, n], axis=1))

    def _shapes(self, scenes: Ints) -> Any:
        """Return what scenes have seen as shapely geometries, grown by the tolerance."""
        # Scenes of one track, or of one tile, have seen the same ground again and again.
        seen, _ = codes_of(self._shape[scenes], *self._bounds[scenes].T)
        _, first = np.unique(seen, return_index=True)
        scenes = scenes[first]
        shapes, which = np.unique(self._shape[scenes], return_inverse=True)
        ground = shapely.make_valid(self._on_plane(shapes))[which]
        ground = shapely.intersection(ground, shapely.box(*self._bounds[scenes].T))
        return shapely.buffer(ground, self._tolerance_m, join_style="mitre", mitre_limit=_MITRE)[
            seen
        ]


def _hulls(polygons: Any) -> tuple[Any, Floats]:
    """Return the convex hulls of shapes, and how far inside them everything is in the shape.

    Hulls leave out corners that stand out by less than `_COARSE_M`. The depth is that of the
    deepest dent, in metres, and infinite where it says nothing, as in shapes of several parts.
    """
    points, owner = shapely.get_coordinates(polygons, return_index=True)
    polygons[owner[~np.isfinite(points).all(axis=1)]] = shapely.Polygon()
    hulls = shapely.convex_hull(shapely.simplify(polygons, _COARSE_M, preserve_topology=False))
    depth = shapely.hausdorff_distance(shapely.boundary(polygons), shapely.boundary(hulls))
    depth = np.where(np.isfinite(depth), depth + _ROUNDING_M, 0.0)
    within = shapely.buffer(hulls, -depth, join_style="mitre")
    sure = ~shapely.is_empty(within) & shapely.covers(shapely.make_valid(polygons), within)
    return hulls, np.where(sure, depth, np.inf)


def _edges(polygons: Any) -> tuple[Floats, Ints, Bools]:
    """Return the edges of polygons without holes as half-planes, and which are convex.

    Returns
    -------
    planes : float array, shape (edge, 3)
        a, b, c: points (x, n) on the inner side have a x + b n <= c, and (a, b) is of length 1.
    ring : int array, shape (edge,)
        The polygon.
    convex : bool array, shape (polygon,)
    """
    points, ring = shapely.get_coordinates(polygons, return_index=True)
    # Edges from each vertex to the next of the same ring, without those of no length.
    step = np.diff(points, axis=0)
    length = np.hypot(step[:, 0], step[:, 1])
    sound = (ring[1:] == ring[:-1]) & (length > 0) & np.isfinite(length)
    edge_x, edge_n = (step[sound] / length[sound, None]).T
    (at_x, at_n), ring = points[:-1][sound].T, ring[:-1][sound]
    turn, convex = _turns(edge_x, edge_n, ring, len(polygons))
    across, up = edge_n * turn[ring], -edge_x * turn[ring]
    return np.column_stack([across, up, across * at_x + up * at_n]), ring, convex


def _turns(edge_x: Floats, edge_n: Floats, ring: Ints, rings: int) -> tuple[Floats, Bools]:
    """Return the sense of each ring (1 anticlockwise, -1 clockwise), and which are convex.

    A ring is convex if it turns the same way at every corner and once around in all (a
    pentagram turns the same way too, but twice).
    """
    count = np.bincount(ring, minlength=rings)
    first = offsets(count)[:-1]
    following = np.arange(len(ring)) + 1
    last = first[count > 0] + count[count > 0] - 1
    following[last] = first[count > 0]
    cross = edge_x * edge_n[following] - edge_n * edge_x[following]
    along = edge_x * edge_x[following] + edge_n * edge_n[following]
    around = np.bincount(ring, np.arctan2(cross, along), minlength=rings)
    sense = np.where(around < 0, -1.0, 1.0)
    concave = np.bincount(ring, cross * sense[ring] < -_CONCAVE, minlength=rings)
    once = np.abs(np.abs(around) - 2 * np.pi) < 1e-3
    return sense, np.asarray((count > 2) & once & (concave == 0))


def _batches(total: int) -> range:
    return range(0, total, _BATCH)

"""What scenes have seen of the ground: does a scene, or several together, contain a cell?

Footprints come as longitude and latitude, but cells and the pixels of their scenes lie in the
plane of one UTM zone, so vertices are projected there once and all questions are answered in
metres. Edges are straight in that plane, as those of rasters are: the same edge drawn straight in
longitude and latitude strays by up to 400 m over 110 km at 60°.

What a scene has seen is its footprint within the bounds of its pixels. Nearly all of them are
convex polygons; these are kept as half-planes, and a square lies in one exactly if it passes a
sum per edge. Everything else (several parts, holes, concave edges, cells that only several scenes
cover together) goes the slow way, through shapely.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from pipeline.raster.zones import Bools, Floats, Ints, to_plane
from pipeline.stages.plan.ragged import Ragged, codes_of, offsets, spans

#: Footprints decoded at a time: shapely's objects are ten times their coordinates.
_BATCH = 200_000

#: Sine of the angle by which a corner may be concave: 0.1 m over 100 km is rounding.
_CONCAVE = 1e-6

#: Part of a cell that may be missing although it counts as covered: rounding of areas.
_MISSING = 1e-7


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
        encoded = wkb.dictionary_encode()
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
        self._planes = np.concatenate([np.empty((0, 3)), *planes])
        self._first = offsets(self._count)[:-1]

    def hold(self, scene: Ints, x: Floats, n: Floats, half: Floats) -> Bools:
        """Return whether each scene alone contains a cell, for convex footprints.

        Parameters
        ----------
        scene : int array, shape (pair,)
        x, n, half : float arrays, shape (pair,)
            Centre of the cell, and half its edge, in metres.

        Returns
        -------
        bool array, shape (pair,)
            False for footprints that are not convex (`convex`), which `cover` decides.
        """
        west, south, east, north = self._bounds[scene].T
        slack = self._tolerance_m - half
        held: Bools = (x - west >= -slack) & (east - x >= -slack)
        held &= (n - south >= -slack) & (north - n >= -slack) & self.convex(scene)
        asked = np.flatnonzero(held)
        shape = self._shape[scene[asked]]
        count = self._count[shape]
        pair, edge = spans(self._first[shape], count)
        across, up, limit = self._planes[edge].T
        pair = asked[pair]
        # The farthest of a square's corners in a direction: its support function.
        reach = (np.abs(across) + np.abs(up)) * half[pair]
        within = across * x[pair] + up * n[pair] + reach <= limit + self._tolerance_m
        if len(asked):
            held[asked] = np.logical_and.reduceat(within, offsets(count)[:-1])
        return held

    def convex(self, scene: Ints) -> Bools:
        """Return whether each footprint is one convex polygon."""
        return np.asarray(self._count[self._shape[scene]] > 0)

    def corners(self, scene: Ints, x: Floats, n: Floats, half: Floats) -> Bools:
        """Return which corners of a cell each scene may hold: shape (pair, 4).

        Exact for convex footprints; all true for the others.
        """
        corner_x = x[:, None] + half[:, None] * np.array([-1, 1, 1, -1])
        corner_n = n[:, None] + half[:, None] * np.array([-1, -1, 1, 1])
        west, south, east, north = self._bounds[scene].T[:, :, None]
        slack = self._tolerance_m
        held: Bools = (corner_x - west >= -slack) & (east - corner_x >= -slack)
        held &= (corner_n - south >= -slack) & (north - corner_n >= -slack)
        asked = np.flatnonzero(self.convex(scene))
        shape = self._shape[scene[asked]]
        count = self._count[shape]
        pair, edge = spans(self._first[shape], count)
        across, up, limit = self._planes[edge].T[:, :, None]
        pair = asked[pair]
        within = across * corner_x[pair] + up * corner_n[pair] <= limit + slack
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
        """Return the half-planes of convex footprints, noting how many each shape has.

        Each is (a, b, c): points (x, n) with a x + b n <= c, and (a, b) of length 1.
        """
        polygons = self._polygons(shapes)
        simple = shapely.get_type_id(polygons) == int(shapely.GeometryType.POLYGON)
        simple &= shapely.get_num_interior_rings(polygons) == 0
        points, ring = shapely.get_coordinates(polygons[simple], return_index=True)
        x, n = to_plane(points[:, 0], points[:, 1], self._zone_of_shape[shapes[simple]][ring])
        # Edges from each vertex to the next of the same ring, without those of no length.
        same = ring[1:] == ring[:-1]
        edge_x, edge_n = np.diff(x)[same], np.diff(n)[same]
        at_x, at_n, ring = x[:-1][same], n[:-1][same], ring[:-1][same]
        length = np.hypot(edge_x, edge_n)
        sound = (length > 0) & np.isfinite(length)
        edge_x, edge_n = edge_x[sound] / length[sound], edge_n[sound] / length[sound]
        at_x, at_n, ring = at_x[sound], at_n[sound], ring[sound]
        turn, convex = _turns(edge_x, edge_n, ring, int(simple.sum()))
        kept = convex[ring]
        across, up = (edge_n * turn[ring])[kept], (-edge_x * turn[ring])[kept]
        counts = np.bincount(ring[kept], minlength=int(simple.sum()))
        self._count[shapes[simple]] = counts
        return np.stack([across, up, across * at_x[kept] + up * at_n[kept]], axis=1)

    def _polygons(self, shapes: Ints) -> Any:
        """Return footprints in longitude and latitude; empty where they cannot be read."""
        wkb = self._wkb.take(pa.array(self._wkb_of_shape[shapes]))
        polygons = shapely.from_wkb(wkb.to_numpy(zero_copy_only=False), on_invalid="ignore")
        polygons[shapely.is_missing(polygons)] = shapely.Polygon()
        points, owner = shapely.get_coordinates(polygons, return_index=True)
        polygons[owner[~np.isfinite(points).all(axis=1)]] = shapely.Polygon()
        return polygons

    def _shapes(self, scenes: Ints) -> Any:
        """Return what scenes have seen as shapely geometries, grown by the tolerance."""
        shapes, which = np.unique(self._shape[scenes], return_inverse=True)
        polygons = self._polygons(shapes)
        points, owner = shapely.get_coordinates(polygons, return_index=True)
        x, n = to_plane(points[:, 0], points[:, 1], self._zone_of_shape[shapes][owner])
        shapely.set_coordinates(polygons, np.stack([x, n], axis=1))
        ground = shapely.make_valid(polygons)[which]
        ground = shapely.intersection(ground, shapely.box(*self._bounds[scenes].T))
        return shapely.buffer(ground, self._tolerance_m, join_style="mitre")


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

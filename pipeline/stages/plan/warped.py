"""Scenes whose pixels lie in no UTM zone: what they show of each zone, to plan cells by."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from pipeline.raster.zones import Floats, Ints, to_plane
from pipeline.stages.plan.ragged import offsets, spans

#: A cell belongs to the zone of its centre, and the bands of zones near Norway and Svalbard are up
#: to 12 degrees wide: what a zone's cells can show lies so far from its meridian, and no farther.
_REACH_DEG = 7.0
#: UTM ends at 84 degrees north and 80 south.
_UTM = (-80.0, 84.0)
#: Longest straight piece of an outline in degrees. In a zone's plane a parallel is bent: over a
#: tenth of a degree by less than a metre up to 80 degrees.
_STEP_DEG = 0.1


def in_zones(outlines: pa.Array) -> tuple[Ints, Ints, Floats, pa.Array]:
    """Cut footprints into what each UTM zone can show of them.

    Parameters
    ----------
    outlines : large binary array, shape (scene,)
        Polygons in longitude and latitude. Each distinct one is cut once.

    Returns
    -------
    which, zone : int arrays, shape (part,)
        The scene, and the number of the zone.
    bounds : float array, shape (part, 4)
        In the plane of the zone: west, south, east, north, northings from the equator.
    outlines : dictionary array of large binary, shape (part,)
        Polygons in longitude and latitude, with corners at most `_STEP_DEG` apart.
    """
    encoded = outlines.dictionary_encode()
    of_shape, zone, bounds, parts = _cut(encoded.dictionary)
    # Parts of one shape stand together, so each scene takes a run of them; so the result is by
    # scene, as a shortlist is sorted.
    shape = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    count = np.bincount(of_shape, minlength=len(encoded.dictionary))
    which, part = spans(offsets(count)[:-1][shape], count[shape])
    cut = pa.DictionaryArray.from_arrays(pa.array(part), parts)
    return which, zone[part], bounds[part], cut


def _cut(outlines: pa.Array) -> tuple[Ints, Ints, Floats, pa.Array]:
    """Return what `in_zones` does for distinct outlines, by outline."""
    shapes = shapely.from_wkb(outlines.to_numpy(zero_copy_only=False))
    tree = shapely.STRtree(shapes)
    scenes, zones, bounds, parts = [], [], [], []
    for zone in range(1, 61):
        for strip in _strips(zone):
            scene = np.sort(tree.query(strip, predicate="intersects"))
            part = _ground(shapely.intersection(shapes[scene], strip))
            there = ~shapely.is_empty(part)
            scene, part = scene[there], part[there]
            scenes.append(scene)
            zones.append(np.full(len(scene), zone))
            bounds.append(_bounds(part, zone))
            parts.append(part)
    which, number, part = (np.concatenate(column) for column in (scenes, zones, parts))
    order = np.argsort(which, kind="stable")
    wkb = pa.array(shapely.to_wkb(part[order]), pa.large_binary())
    return which[order], number[order], np.concatenate(bounds)[order], wkb


def _ground(shapes: Any) -> Any:
    """Return the polygons of what cuts have left, with many corners."""
    parts, owner = shapely.get_parts(shapes, return_index=True)
    polygons = shapely.get_type_id(parts) == int(shapely.GeometryType.POLYGON)
    left = np.full(len(shapes), shapely.MultiPolygon(), dtype=object)
    left = shapely.multipolygons(parts[polygons], indices=owner[polygons], out=left)
    return shapely.segmentize(left, _STEP_DEG)


def _bounds(parts: Any, zone: int) -> Floats:
    """Return the bounds of shapes that are not empty in the plane of a zone: shape (part, 4)."""
    lonlat, owner = shapely.get_coordinates(parts, return_index=True)
    x, n = to_plane(lonlat[:, 0], lonlat[:, 1], np.full(len(lonlat), zone))
    first = np.searchsorted(owner, np.arange(len(parts)))
    if not len(first):
        return np.empty((0, 4))
    low, high = np.minimum.reduceat, np.maximum.reduceat
    return np.stack([low(x, first), low(n, first), high(x, first), high(n, first)], axis=1)


def _strips(zone: int) -> list[shapely.Geometry]:
    """Return the part of the globe that cells of a zone may lie in; two across the antimeridian."""
    middle = zone * 6.0 - 183.0
    west, east = middle - _REACH_DEG, middle + _REACH_DEG
    low, high = _UTM
    strips = [shapely.box(max(west, -180), low, min(east, 180), high)]
    if west < -180:
        strips.append(shapely.box(west + 360, low, 180, high))
    if east > 180:
        strips.append(shapely.box(-180, low, east - 360, high))
    return strips

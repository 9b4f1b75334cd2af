"""Scenes whose pixels lie in no UTM zone: what they show of each zone, to plan cells by."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import shapely

from pipeline.raster.zones import Floats, Ints, to_plane

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
        Polygons in longitude and latitude.

    Returns
    -------
    which, zone : int arrays, shape (part,)
        The scene, and the number of the zone.
    bounds : float array, shape (part, 4)
        In the plane of the zone: west, south, east, north, northings from the equator.
    outlines : large binary array, shape (part,)
        Polygons in longitude and latitude, with corners at most `_STEP_DEG` apart.
    """
    shapes = shapely.from_wkb(outlines.to_numpy(zero_copy_only=False))
    tree = shapely.STRtree(shapes)
    parts: list[tuple[int, int, Floats, shapely.Geometry]] = []
    for zone in range(1, 61):
        for strip in _strips(zone):
            for scene in np.sort(tree.query(strip, predicate="intersects")).tolist():
                part = _ground(shapely.intersection(shapes[scene], strip))
                if part.is_empty:
                    continue
                lon, lat = shapely.get_coordinates(part).T
                x, n = to_plane(lon, lat, np.full(len(lon), zone))
                bounds = np.array([x.min(), n.min(), x.max(), n.max()])
                parts.append((scene, zone, bounds, part))
    # By scene, as a shortlist is sorted.
    parts.sort(key=lambda entry: entry[:2])
    return (
        np.array([entry[0] for entry in parts], dtype=np.int64),
        np.array([entry[1] for entry in parts], dtype=np.int64),
        np.array([entry[2] for entry in parts], dtype=np.float64).reshape(-1, 4),
        pa.array([shapely.to_wkb(entry[3]) for entry in parts], pa.large_binary()),
    )


def _ground(shape: shapely.Geometry) -> shapely.Geometry:
    """Return the polygons of what a cut has left, with many corners."""
    polygons = [part for part in shapely.get_parts(shape) if part.geom_type == "Polygon"]
    return shapely.segmentize(shapely.MultiPolygon(polygons), _STEP_DEG)


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

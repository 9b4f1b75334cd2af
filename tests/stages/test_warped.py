"""Footprints of scenes on no lattice, cut into what each zone can show."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import shapely

from pipeline.raster.zones import to_plane
from pipeline.stages.plan.footprints import Footprints
from pipeline.stages.plan.ragged import Ragged
from pipeline.stages.plan.warped import in_zones


def cut(*shapes: shapely.Geometry) -> tuple[np.ndarray, np.ndarray, np.ndarray, pa.Array]:
    return in_zones(pa.array([shapely.to_wkb(shape) for shape in shapes], pa.large_binary()))


def test_a_wide_map_serves_every_zone_that_it_touches() -> None:
    which, zone, bounds, outlines = cut(
        shapely.box(-125, 25, -66, 49), shapely.box(10, 45, 11, 46), shapely.box(60, 85, 70, 88)
    )
    assert set(zone[which == 0]) == set(range(9, 21)), "meridians of 129 to 63 west"
    assert set(zone[which == 1]) == {32, 33}
    assert not (which == 2).any(), "north of all zones"
    assert (bounds[:, 0] < bounds[:, 2]).all()
    assert len(outlines) == len(which)


@pytest.mark.parametrize(("lon", "lat"), [(11.0, 45.5), (14.9, 69.9), (179.98, -17.0)])
def test_cells_inside_are_held_and_cells_across_the_edge_are_not(lon: float, lat: float) -> None:
    east = lon + 0.5
    shape = shapely.box(lon - 0.5, lat - 0.5, min(east, 180), lat + 0.5)
    if east > 180:
        shape = shapely.union(shape, shapely.box(-180, lat - 0.5, east - 360, lat + 0.5))
    number = int((lon + 180) // 6) + 1
    _, zone, bounds, outlines = cut(shape)
    here = np.flatnonzero(zone == number)
    assert len(here) in (1, 2)
    footprints = Footprints(outlines, zone, bounds, 15.0)
    x, n = to_plane([lon, lon, lon], [lat, lat + 0.5, lat + 0.7], [number] * 3)
    held = [
        footprints.cover(
            Ragged(np.array([len(here)]), here),
            x[k : k + 1],
            n[k : k + 1],
            np.array([1000.0]),
            contained=True,
        ).counts[0]
        > 0
        for k in range(3)
    ]
    assert held == [True, False, False]


def test_equal_outlines_are_cut_once_and_serve_each_scene() -> None:
    here, there = shapely.box(10, 45, 11, 46), shapely.box(-60, 5, -59, 6)
    which, zone, bounds, outlines = cut(here, there, here)
    assert which.tolist() == sorted(which.tolist())
    for column in (zone, bounds, np.array(outlines.to_pylist())):
        assert (column[which == 0] == column[which == 2]).all()
    assert set(zone[which == 1]) == set(cut(there)[1])
    assert len(outlines.dictionary) < len(outlines)

"""Whether footprints contain cells: the fast way against shapely's."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.raster.zones import to_plane, to_sphere
from pipeline.stages.plan.footprints import Footprints
from pipeline.stages.plan.ragged import Ragged

HALF_M = 100.0


def footprints(*polygons: shapely.Geometry, zone: int = 33) -> Footprints:
    """Return footprints drawn in metres from a place in the zone."""
    moved = shapely.transform(
        np.array(polygons, dtype=object),
        lambda xy: np.stack(to_sphere(xy[:, 0] + 5e5, xy[:, 1] + 5e6, zone), axis=1),
    )
    bounds = np.tile([4e5, 4.9e6, 6e5, 5.1e6], (len(polygons), 1))
    wkb = pa.array(shapely.to_wkb(moved), pa.large_binary())
    return Footprints(wkb, np.full(len(polygons), zone), bounds, 5.0)


def at(x: float, n: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.array([5e5 + x]), np.array([5e6 + n]), np.array([HALF_M])


def cover(seen: Footprints, scenes: list[int], x: float = 0.0, *, contained: bool) -> list[int]:
    rows = Ragged(np.array([len(scenes)]), np.array(scenes))
    return seen.cover(rows, *at(x, 0.0), contained=contained).values.tolist()


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.integers(-30, 30), st.integers(-30, 30)), min_size=3, max_size=9),
    st.integers(-20, 20),
    st.integers(-20, 20),
)
def test_half_planes_say_what_shapely_says(points: list[tuple[int, int]], x: int, n: int) -> None:
    hull = shapely.MultiPoint(np.array(points) * 10.0).convex_hull
    if hull.geom_type != "Polygon":
        return
    grown = hull.buffer(5, join_style="mitre", mitre_limit=1e9)
    cell = shapely.box(10 * x - HALF_M, 10 * n - HALF_M, 10 * x + HALF_M, 10 * n + HALF_M)
    margin = grown.exterior.distance(cell.exterior)
    seen = footprints(hull)
    zero = np.array([0])
    assert seen.convex(zero).all()
    if margin > 0.01:
        assert seen.hold(zero, *at(10.0 * x, 10.0 * n)).tolist() == [grown.contains(cell)]
    for number, corner in enumerate(cell.exterior.coords[:4]):
        point = shapely.Point(corner)
        if grown.exterior.distance(point) > 0.01:
            # Corners are counted from the south-west, anticlockwise; shapely's from the south-east.
            held = seen.corners(zero, *at(10.0 * x, 10.0 * n))[0, (number + 1) % 4]
            assert held == grown.contains(point)


PENTAGRAM = [(np.sin(4 * np.pi * k / 5) * 500, np.cos(4 * np.pi * k / 5) * 500) for k in range(5)]


@pytest.mark.parametrize(
    ("polygon", "convex"),
    [
        (shapely.box(-200, -200, 200, 200), True),
        (shapely.box(-200, -200, 200, 200, ccw=False), True),
        (shapely.segmentize(shapely.box(-200, -200, 200, 200), 50), True),
        (shapely.Polygon([(-200, -200), (200, -200), (0, 0), (200, 200), (-200, 200)]), False),
        (shapely.box(-200, -200, 200, 200).difference(shapely.box(-20, -20, 20, 20)), False),
        (shapely.union(shapely.box(-200, -200, -9, 200), shapely.box(9, -200, 200, 200)), False),
        (shapely.Polygon(PENTAGRAM), False),
        (shapely.Polygon(), False),
    ],
)
def test_only_convex_polygons_go_the_fast_way(polygon: shapely.Geometry, convex: bool) -> None:
    assert footprints(polygon).convex(np.array([0])).tolist() == [convex]


def test_two_that_touch_cover_what_neither_contains() -> None:
    seen = footprints(shapely.box(-300, -300, 0, 300), shapely.box(0, -300, 300, 300))
    assert cover(seen, [0, 1], contained=True) == [0, 1]
    assert cover(seen, [0], contained=True) == []


@pytest.mark.parametrize(("gap_m", "found"), [(8, [0, 1]), (12, [])])
def test_half_a_pixel_may_be_missing_on_each_side(gap_m: float, found: list[int]) -> None:
    left, right = shapely.box(-300, -300, 0, 300), shapely.box(gap_m, -300, 300, 300)
    assert cover(footprints(left, right), [0, 1], contained=True) == found


def test_one_is_enough_where_one_contains_the_cell() -> None:
    half, whole = shapely.box(-300, -300, 0, 300), shapely.box(-300, -300, 300, 300)
    seen = footprints(half, whole, whole)
    assert cover(seen, [0, 2, 1], contained=True) == [2]
    assert cover(seen, [0, 2, 1], contained=False) == [2]


def test_the_largest_part_comes_first_and_what_adds_nothing_is_left_out() -> None:
    small, large = shapely.box(-300, -300, -50, 300), shapely.box(-60, -300, 80, 300)
    seen = footprints(small, shapely.box(-300, -300, -60, 300), large)
    assert cover(seen, [0, 1, 2], contained=True) == []
    assert cover(seen, [0, 1, 2], contained=False) == [2, 0]
    assert cover(seen, [0, 1], x=-800.0, contained=False) == []


def test_a_footprint_ends_where_its_pixels_end() -> None:
    wide = shapely.box(-3e5, -3e5, 3e5, 3e5)
    seen = footprints(wide)
    zero = np.array([0])
    assert seen.hold(zero, *at(0.0, 0.0)).tolist() == [True]
    assert seen.hold(zero, *at(1e5 - 96, 0.0)).tolist() == [True]
    assert seen.hold(zero, *at(1e5 - 94, 0.0)).tolist() == [False]
    assert cover(seen, [0], x=1e5 - 94, contained=True) == []
    assert cover(seen, [0], x=1e5 - 94, contained=False) == [0]


def test_what_cannot_be_read_has_seen_nothing() -> None:
    bounds = np.tile([4e5, 4.9e6, 6e5, 5.1e6], (4, 1))
    infinite = shapely.Polygon([(14, 45), (16, 45), (16, np.inf), (14, 47)])
    point = shapely.Point(15, 45.1)
    wkb = [b"", b"nonsense", shapely.to_wkb(infinite), shapely.to_wkb(point)]
    seen = Footprints(pa.array(wkb, pa.large_binary()), np.full(4, 33), bounds, 5.0)
    scenes = np.arange(4)
    x, n, half = (np.repeat(value, 4) for value in at(0.0, 0.0))
    assert not seen.hold(scenes, x, n, half).any()
    assert not seen.convex(scenes).any()
    assert cover(seen, [0, 1, 2, 3], contained=False) == []


def test_the_antimeridian_is_no_edge() -> None:
    """A footprint about 180 degrees, whole or split in two there, is one piece of ground."""
    west, east = 499_000.0 - 4.2e5, 499_000.0 + 3.2e5
    x, n = np.array([west, east, east, west]), np.array([1e6, 1e6, 1.2e6, 1.2e6])
    lon, lat = to_sphere(x, n, 1)
    assert lon.min() < -180 < lon.max()
    left = shapely.Polygon(zip(np.where(lon < -180, lon + 360, 180.0), lat, strict=True))
    right = shapely.Polygon(zip(np.maximum(lon, -180.0), lat, strict=True))
    wrapped = shapely.Polygon(zip((lon + 180) % 360 - 180, lat, strict=True))
    wkb = shapely.to_wkb(np.array([wrapped, shapely.MultiPolygon([left, right])]))
    bounds = np.tile([0.0, 0.9e6, 1e6, 1.3e6], (2, 1))
    seen = Footprints(pa.array(wkb, pa.large_binary()), np.array([1, 1]), bounds, 5.0)
    where = (*to_plane([-180.0], [lat.mean()], [1]), np.array([HALF_M]))
    assert seen.hold(np.array([0]), *where).tolist() == [True]
    split = Ragged(np.array([1]), np.array([1]))
    assert seen.cover(split, *where, contained=True).values.tolist() == [1]

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
    held, unclear = seen.hold(zero, *at(10.0 * x, 10.0 * n))
    assert not unclear.any()
    if margin > 0.01:
        assert held.tolist() == [grown.contains(cell)]
    for number, corner in enumerate(cell.exterior.coords[:4]):
        point = shapely.Point(corner)
        if grown.exterior.distance(point) > 0.01:
            # Corners are counted from the south-west, anticlockwise; shapely's from the south-east.
            held = seen.corners(zero, *at(10.0 * x, 10.0 * n))[0, (number + 1) % 4]
            assert held == grown.contains(point)


PENTAGRAM = [(np.sin(4 * np.pi * k / 5) * 500, np.cos(4 * np.pi * k / 5) * 500) for k in range(5)]
SQUARE = shapely.box(-200, -200, 200, 200)
DENT = shapely.Polygon([(-200, -200), (200, -200), (0, 0), (200, 200), (-200, 200)])
HOLE = SQUARE.difference(shapely.box(-20, -20, 20, 20))
PARTS = shapely.union(shapely.box(-200, -200, -9, 200), shapely.box(9, -200, 200, 200))


@pytest.mark.parametrize(
    ("polygon", "held", "unclear"),
    [
        (SQUARE, True, False),
        (SQUARE.reverse(), True, False),
        (shapely.segmentize(SQUARE, 50), True, False),
        (shapely.MultiPolygon([SQUARE]), True, False),
        (DENT, False, True),
        (HOLE, False, True),
        (PARTS, False, True),
        (shapely.Polygon(PENTAGRAM), False, True),
        (shapely.Polygon(), False, True),
        (shapely.LineString([(-500, -500), (500, 500)]), False, True),
    ],
)
def test_half_planes_settle_convex_polygons_and_leave_others_open(
    polygon: shapely.Geometry, held: bool, unclear: bool
) -> None:
    answer = footprints(polygon).hold(np.array([0]), *at(0.0, 0.0))
    assert [row.tolist() for row in answer] == [[held], [unclear]]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(0.85, 1)), min_size=3, max_size=40),
    st.integers(0, 2),
    st.tuples(st.integers(-140, 140), st.integers(-140, 140)),
)
def test_where_half_planes_decide_shapely_does_not_contradict(
    spokes: list[tuple[float, float]], holes: int, place: tuple[int, int]
) -> None:
    """Stars with shallow dents, with holes or without: what is held is covered, and the reverse."""
    turns = np.sort([turn for turn, _ in spokes]) * np.pi
    reach = 1500 * np.array([share for _, share in spokes])
    star = shapely.Polygon(np.stack([reach * np.cos(turns), reach * np.sin(turns)], axis=1))
    star = star.buffer(0)
    for k in range(holes):
        star = shapely.difference(star, shapely.box(400 * k, -50, 400 * k + 30, 20))
    seen, zero = footprints(star), np.array([0])
    x, n = 10.0 * place[0], 10.0 * place[1]
    held, unclear = seen.hold(zero, *at(x, n))
    rows = Ragged(np.array([1]), zero)
    if not unclear.any():
        whole = seen.cover(rows, *at(x, n), contained=True).counts
        assert whole.tolist() == held.tolist()
        if held.any():
            assert seen.corners(zero, *at(x, n)).all()


def test_a_shallow_dent_leaves_only_its_edge_open() -> None:
    dented = shapely.Polygon([(-5e4, -5e4), (5e4, -5e4), (4.96e4, 0), (5e4, 5e4), (-5e4, 5e4)])
    place = np.array([0.0, 40_000.0, 49_700.0, 50_300.0])
    many = np.zeros(4, dtype=np.int64)
    x, n, half = 5e5 + place, np.full(4, 5e6), np.full(4, HALF_M)
    held, unclear = footprints(dented).hold(many, x, n, half)
    assert held.tolist() == [True, True, False, False]
    assert unclear.tolist() == [False, False, True, False]


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
    assert seen.hold(zero, *at(0.0, 0.0))[0].tolist() == [True]
    assert seen.hold(zero, *at(1e5 - 96, 0.0))[0].tolist() == [True]
    assert seen.hold(zero, *at(1e5 - 94, 0.0))[0].tolist() == [False]
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
    assert not seen.hold(scenes, x, n, half)[0].any()
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
    assert seen.hold(np.array([0]), *where)[0].tolist() == [True]
    split = Ragged(np.array([1]), np.array([1]))
    assert seen.cover(split, *where, contained=True).values.tolist() == [1]

"""Laws of the tiling: position is identity, nothing overlaps, the same pixels come back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Transformer

from pipeline.errors import RecipeError
from pipeline.products.catalogue import lattices
from pipeline.products.model import Lattice
from pipeline.raster.lattice import (
    Cell,
    Cells,
    Window,
    cells_at,
    cells_from_corners,
    parse_cell,
    window_of,
)
from pipeline.raster.zones import (
    northing_from_equator,
    same_zone,
    to_plane,
    to_sphere,
    zones_at,
)

LATTICES = list(lattices().values())
SENTINEL = lattices()["s2r10"]
ENMAP = lattices()["enmap30"]
LANDSAT = lattices()["landsat30"]

#: Places where zones are special: Norway, Svalbard, antimeridian, equator, limits of UTM.
SPECIAL = [
    *[(lon, lat) for lon in (3, 6, 9, 12, 21, 33, 42) for lat in (56, 60, 64, 72, 78)],
    *[(180, lat) for lat in (-79, -40, 0, 40, 83)],
    *[(lon, 0) for lon in (-174, -3, 0, 6, 102)],
    *[(lon, lat) for lon in (0, 3, 30, 42) for lat in (-80, 84)],
]

longitudes = st.floats(-180, 180, allow_nan=False)
latitudes = st.floats(-79.9, 83.9, allow_nan=False)
sizes = st.sampled_from([1, 16, 64, 100, 264, 512])


def around_special(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points within 0.15° of the special places."""
    centre = np.array(SPECIAL, dtype=float)[rng.integers(len(SPECIAL), size=count)]
    lon, lat = (centre + rng.uniform(-0.15, 0.15, (count, 2))).T
    return (lon + 180) % 360 - 180, lat


# --- zones ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lon", "lat", "number"),
    [
        (0, 0, 31),
        (-180, 10, 1),
        (180, 10, 1),
        (179.9, 10, 60),
        (5.99, 55.99, 31),
        (2.99, 60, 31),
        (3.01, 60, 32),
        (4, 64, 31),
        (4, 63.99, 32),
        (8.9, 73, 31),
        (9, 73, 33),
        (20.9, 84, 33),
        (21, 72, 35),
        (33, 72, 37),
        (41.9, 80, 37),
        (42, 80, 38),
        (-1, 80, 30),
        (8, 71.9, 32),
        (0, 84.01, 0),
        (0, -80.01, 0),
        (0, -80, 31),
    ],
)
def test_zone_of_a_point(lon: float, lat: float, number: int) -> None:
    zone, north = zones_at([lon], [lat])
    assert zone[0] == number
    assert north[0] == (lat >= 0)


@given(longitudes, latitudes, st.integers(-3, 3))
def test_a_whole_turn_changes_nothing(lon: float, lat: float, turns: int) -> None:
    turned = (round(lon, 6) + 360 * turns, lat)
    assert zones_at([round(lon, 6)], [lat])[0] == zones_at([turned[0]], [turned[1]])[0]


@pytest.mark.parametrize("number", [1, 17, 31, 33, 60])
@pytest.mark.parametrize("south", [False, True])
def test_planes_are_those_of_epsg(number: int, south: bool) -> None:
    rng = np.random.default_rng(number)
    lon = number * 6 - 183 + rng.uniform(-6, 6, 200)
    lat = rng.uniform(-80, 0, 200) if south else rng.uniform(0, 84, 200)
    epsg = (32700 if south else 32600) + number
    x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(lon, lat)
    ours_x, ours_n = to_plane(lon, lat, number)
    np.testing.assert_allclose(ours_x, x, atol=1e-6)
    np.testing.assert_allclose(ours_n, [northing_from_equator(epsg, v) for v in y], atol=1e-6)
    back_lon, back_lat = to_sphere(ours_x, ours_n, number)
    np.testing.assert_allclose(back_lon, lon, atol=1e-9)
    np.testing.assert_allclose(back_lat, lat, atol=1e-9)


def test_both_codes_of_a_zone_are_one_zone() -> None:
    assert same_zone(32633, 32733)
    assert not same_zone(32633, 32634)
    assert not same_zone(3031, 3031)
    with pytest.raises(ValueError, match="EPSG:3031"):
        northing_from_equator(3031, 0.0)


# --- position is identity ------------------------------------------------------------------


@given(longitudes, latitudes, st.sampled_from(LATTICES), sizes, st.booleans())
def test_an_id_says_where_the_cell_is(
    lon: float, lat: float, lattice: Lattice, size_px: int, free: bool
) -> None:
    cells = cells_at([lon], [lat], lattice, size_px, free=free)
    if not cells.admissible()[0]:
        return
    cell = parse_cell(cells.ids()[0])
    assert cell.id == cells.ids()[0]
    assert (cell.epsg, cell.x_min_m, cell.y_max_m, cell.size_m) == (
        cells.epsg[0],
        cells.x_min_m[0],
        cells.y_max_m[0],
        cells.size_m,
    )
    again = cells_from_corners(
        cells.epsg, cells.x_min_m, cells.y_max_m, lattice, size_px, free=free
    )
    assert again.ids() == cells.ids()
    assert again.keys() == cells.keys()


@given(longitudes, latitudes, st.sampled_from(LATTICES), sizes)
def test_a_tile_holds_its_point(lon: float, lat: float, lattice: Lattice, size_px: int) -> None:
    cells = cells_at([lon], [lat], lattice, size_px)
    x, n = to_plane([lon], [lat], cells.number)
    assert 0 <= x[0] - cells.x_min_m[0] < cells.size_m + 1e-9
    # Southern tiles are closed towards the equator, from where their rows count.
    assert -1e-9 <= n[0] - cells.n_min_m[0] <= cells.size_m + 1e-9


@given(longitudes, latitudes, st.sampled_from(LATTICES), sizes)
def test_a_free_cell_is_centred_and_on_the_lattice(
    lon: float, lat: float, lattice: Lattice, size_px: int
) -> None:
    cells = cells_at([lon], [lat], lattice, size_px, free=True)
    x, n = to_plane([lon], [lat], cells.number)
    half, slack = cells.size_m / 2, lattice.pixel_m / 2 + 1e-6
    assert abs(cells.x_min_m[0] + half - x[0]) <= slack
    assert abs(cells.n_min_m[0] + half - n[0]) <= slack
    phase = lattice.y_phase_north_m if cells.north[0] else lattice.y_phase_south_m
    for value, wanted in ((cells.x_min_m[0], lattice.x_phase_m), (cells.n_min_m[0], phase)):
        assert (value - wanted) % lattice.pixel_m == 0


@pytest.mark.parametrize(
    ("lattice", "epsg", "modulo"),
    [(SENTINEL, 32633, 0), (SENTINEL, 32733, 0), (ENMAP, 32633, 15), (ENMAP, 32733, 15)],
)
def test_edges_are_where_the_products_have_theirs(
    lattice: Lattice, epsg: int, modulo: float
) -> None:
    """Corners in EPSG as the catalogues state them: EnMAP at 15 modulo 30 in both hemispheres."""
    cells = cells_at([15.3], [50.2 if epsg < 32700 else -20.7], lattice, 64)
    assert cells.epsg[0] == epsg
    assert cells.x_min_m[0] % lattice.pixel_m == modulo
    assert cells.y_max_m[0] % lattice.pixel_m == modulo


def test_rows_count_away_from_the_equator() -> None:
    for lattice in LATTICES:
        near = cells_at([15.3, 15.3], [0.001, -0.001], lattice, 64)
        assert near.row.tolist() == [0, 0]
        assert near.ids()[0].startswith("33N-")
        assert near.ids()[1].startswith("33S-")
        assert near.n_min_m[0] >= 0
        assert near.n_min_m[1] + near.size_m <= 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "33N-s2r10-264-152-02121",
        "33N-s2r10-264-00152-2121",
        "33N-s2r10-264-000152-02121",
        "33N-s2r10-0264-00152-02121",
        "00N-s2r10-264-00152-02121",
        "61N-s2r10-264-00152-02121",
        "33X-s2r10-264-00152-02121",
        "33N-s2r10-264-p00152-02121",
        "33N-s2r10-9000-00152-02121",
        "33N-s2r10-264-00152-02121\n",
        "33N-../..-264-00152-02121",
        "٣٣N-s2r10-264-00152-02121",
    ],
)
def test_only_canonical_ids_are_read(text: str) -> None:
    with pytest.raises(RecipeError, match="allowed is"):
        parse_cell(text)


def test_an_unknown_lattice_is_named() -> None:
    with pytest.raises(RecipeError, match="s2r11"):
        parse_cell("33N-s2r11-264-00152-02121")


def test_the_designs_example() -> None:
    cell = parse_cell("33N-s2r10-264-00152-02121")
    assert cell == Cell("33N", "s2r10", 264, 152, 2121)
    assert (cell.epsg, cell.x_min_m, cell.y_max_m) == (32633, 152 * 2640, 2122 * 2640)


# --- admissible ----------------------------------------------------------------------------


def dense_outline(cells: Cells, steps: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Return many points just inside the edges of each cell, in longitude and latitude."""
    t = np.linspace(0, 1, steps + 1)
    x = np.concatenate([t, t, np.zeros_like(t), np.ones_like(t)])
    n = np.concatenate([np.zeros_like(t), np.ones_like(t), t, t])
    edge, inset = cells.size_m, 1e-4
    return to_sphere(
        cells.x_min_m[:, None] + inset + x * (edge - 2 * inset),
        cells.n_min_m[:, None] + inset + n * (edge - 2 * inset),
        cells.number[:, None],
    )


@pytest.mark.parametrize("lattice", [SENTINEL, ENMAP], ids=lambda lattice: lattice.id)
@pytest.mark.parametrize("size_px", [64, 264, 1024])
def test_admissible_is_what_a_dense_outline_says(lattice: Lattice, size_px: int) -> None:
    lon, lat = around_special(np.random.default_rng(7), 6000)
    cells = cells_at(lon, lat, lattice, size_px)
    cells = cells[cells.number > 0]
    number, north = zones_at(*dense_outline(cells))
    inside = (number == cells.number[:, None]).all(1) & (north == cells.north[:, None]).all(1)
    admissible = cells.admissible()
    assert not (admissible & ~inside).any()
    # The box refuses more than the outline only beside the corners where zones change width.
    refused = cells[inside & ~admissible]
    centre_lon, centre_lat = refused.centres()
    reach_deg = 1.5 * cells.size_m / 111_000
    near_step = np.abs(centre_lat[:, None] - [56, 64, 72]).min(axis=1) < reach_deg
    away_deg = np.abs(centre_lon[:, None] - [0, 3, 6, 9, 12, 18, 21, 24, 30, 33, 36, 42])
    near_edge = away_deg.min(axis=1) * np.cos(np.radians(centre_lat)) < reach_deg
    assert (near_step & near_edge).all()
    assert len(refused) < 0.01 * len(cells)


@pytest.mark.parametrize(("lat", "share"), [(1.5, 0.004), (-1.5, 0.004), (70, 0.012), (-70, 0.012)])
def test_share_lost_at_zone_edges(lat: float, share: float) -> None:
    """The design's figures, which hold for cells of 2,640 m (264 px of 10 m).

    Over 2.4° of latitude, so that the slanting border meets the columns in every way.
    """
    rng = np.random.default_rng(3)
    lon = rng.uniform(-180, 180, 200_000)
    cells = cells_at(lon, lat + rng.uniform(-1.2, 1.2, lon.size), SENTINEL, 264)
    lost = 1 - cells.admissible().mean()
    assert lost == pytest.approx(share, rel=0.1)


def test_outlines_are_the_cells_on_the_sphere() -> None:
    rng = np.random.default_rng(5)
    lon, lat = rng.uniform(-180, 180, 500), rng.uniform(-79, 83, 500)
    cells = cells_at(lon, lat, ENMAP, 512)
    cells = cells[cells.admissible()]
    outlines = cells.outlines()
    assert shapely.is_valid(outlines).all()
    assert shapely.is_ccw(shapely.get_exterior_ring(outlines)).all()
    assert np.abs(shapely.bounds(outlines)[:, [0, 2]]).max() <= 180
    ring, owner = shapely.get_coordinates(outlines, return_index=True)
    x, n = to_plane(ring[:, 0], ring[:, 1], cells.number[owner])
    west, south = x - cells.x_min_m[owner], n - cells.n_min_m[owner]
    from_edge = np.minimum(
        np.minimum(np.abs(west), np.abs(west - cells.size_m)),
        np.minimum(np.abs(south), np.abs(south - cells.size_m)),
    )
    assert from_edge.max() < 1e-6
    centre = shapely.points(*cells.centres())
    assert shapely.contains(outlines, centre).all()


# --- windows -------------------------------------------------------------------------------


def window(
    cell: Cell, epsg: int, x: float, y: float, pixel_m: float
) -> tuple[Window, float, float]:
    return window_of(
        epsg=cell.epsg,
        x_min_m=cell.x_min_m,
        y_max_m=cell.y_max_m,
        size_m=cell.size_m,
        raster_epsg=epsg,
        raster_x_min_m=x,
        raster_y_max_m=y,
        pixel_m=pixel_m,
    )


def test_own_lattice_needs_no_shift() -> None:
    cell = parse_cell("33N-enmap30-64-00200-03000")
    found = window(cell, 32633, cell.x_min_m - 90, cell.y_max_m + 300, 30)
    assert found == (Window(3, 10, 64, 64), 0.0, 0.0)


def test_a_southern_scene_in_a_northern_code_is_the_same_ground() -> None:
    cell = parse_cell("33S-landsat30-64-00200-01000")
    assert cell.epsg == 32733
    as_327 = window(cell, 32733, cell.x_min_m, cell.y_max_m + 30, 30)
    as_326 = window(cell, 32633, cell.x_min_m, cell.y_max_m + 30 - 10_000_000, 30)
    assert as_326 == as_327 == (Window(0, 1, 64, 64), 0.0, 0.0)


def test_another_zone_has_no_window() -> None:
    cell = parse_cell("33N-enmap30-64-00200-03000")
    with pytest.raises(ValueError, match="EPSG:32634"):
        window(cell, 32634, 0, 0, 30)


@given(
    st.integers(0, 400),
    st.integers(0, 4000),
    st.sampled_from(LATTICES),
    st.sampled_from([10.0, 20.0, 30.0, 60.0]),
    st.floats(-1e5, 1e5),
    st.floats(-1e5, 1e5),
)
def test_windows_are_nearest_and_side_by_side(
    col: int, row: int, lattice: Lattice, pixel_m: float, x: float, y: float
) -> None:
    size_px = int(240 / lattice.pixel_m) * 8  # a whole number of every pixel size above
    size_px = size_px if size_px * lattice.pixel_m % 60 == 0 else size_px * 3
    found = []
    for step in (0, 1):
        cell = Cell("33N", lattice.id, size_px, col + step, row)
        win, east, south = window(cell, 32633, x, 6e6 + y, pixel_m)
        assert win.width == win.height == cell.size_m / pixel_m
        assert -0.5 - 1e-5 < east <= 0.5 + 1e-5
        assert -0.5 - 1e-5 < south <= 0.5 + 1e-5
        assert x + (win.col - east) * pixel_m == pytest.approx(cell.x_min_m, abs=1e-3)
        assert 6e6 + y - (win.row - south) * pixel_m == pytest.approx(cell.y_max_m, abs=1e-3)
        found.append(win)
    assert found[1].col == found[0].col + found[0].width
    assert found[1].row == found[0].row


def test_a_tie_goes_east_and_south_whatever_the_noise_of_the_transform() -> None:
    cell = parse_cell("33N-enmap30-64-00200-03000")
    for noise in (-1e-7, 0.0, 1e-7):
        win, east, south = window(
            cell, 32633, cell.x_min_m - 15 + noise, cell.y_max_m + 15 + noise, 10
        )
        assert (win.col, win.row) == (2, 2)
        assert math.isclose(east, 0.5, abs_tol=1e-6)
        assert math.isclose(south, 0.5, abs_tol=1e-6)

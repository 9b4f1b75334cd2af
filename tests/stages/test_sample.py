"""Laws of sampling: where, how evenly, in which order, and that no ground is taken twice."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod, Proj
from scipy import stats

from pipeline.errors import RecipeError
from pipeline.raster.lattice import Cells, cells_at, cells_from_corners, parse_cell
from pipeline.raster.zones import northing_from_equator, to_plane, to_sphere, zones_at
from pipeline.recipe import Cities, LoadedRecipe, Recipe, Uniform
from pipeline.records import Location, Scene
from pipeline.run.sample import run_sample
from pipeline.stages.sample.draws import drawer_of, scatter, uniforms
from pipeline.stages.sample.take import sample, take
from pipeline.store.objects import open_store
from pipeline.store.tables import append, fit, from_rows

#: Where zones are special, as centres of small regions.
SPECIAL = {
    "norway, west of 32V": (3.0, 60.0),
    "norway, corner at 56": (6.0, 56.0),
    "norway, corner at 64": (6.0, 64.0),
    "norway, east of 32V": (12.0, 60.0),
    "svalbard, corner at 72": (9.0, 72.0),
    "svalbard, 33X to 35X": (21.0, 78.0),
    "svalbard, corner at 72, 42": (42.0, 72.0),
    "antimeridian north": (180.0, 52.0),
    "antimeridian south": (180.0, -17.0),
    "equator at a zone edge": (-78.0, 0.0),
    "equator at the antimeridian": (180.0, 0.0),
    "south of Chile": (-72.0, -50.0),
}


def recipe(
    strategy: dict[str, Any],
    *,
    lattice: str = "s2r10",
    size_px: int = 264,
    snap: str = "lattice",
    seed: int = 0,
    folder: Path | None = None,
    **wish: Any,
) -> LoadedRecipe:
    """Return a loaded recipe that differs only in where it samples."""
    values = {
        "name": "where",
        "seed": seed,
        "sample": strategy,
        "cell": {"lattice": lattice, "size_px": size_px, "snap": snap},
        "slots": {"kind": "months", "start": "2021-01-01", "end": "2021-02-01"},
        "product": [
            {"id": "enmap-l2a" if lattice == "enmap30" else "sentinel-2-l2a", "path": "."} | wish
        ],
    }
    return LoadedRecipe(Recipe.model_validate(values), folder or Path())


def cells_of(table: pa.Table, loaded: LoadedRecipe) -> Cells:
    """Return the cells of a table of locations, from their corners."""
    columns = (table.column(name).to_numpy() for name in ("epsg", "x_min_m", "y_max_m"))
    return cells_from_corners(*columns, loaded.lattice, loaded.recipe.cell.size_px)


def around(lon: float, lat: float, half_deg: float) -> tuple[float, float, float, float]:
    """Return a region about a point; across the antimeridian, west is greater than east."""
    west, east = (((lon + side + 180) % 360) - 180 for side in (-half_deg, half_deg))
    return west, lat - half_deg, east, lat + half_deg


# --- draws -----------------------------------------------------------------------------------


@given(st.integers(0, 2**70), st.integers(0, 10**9), st.integers(1, 50), st.integers(0, 49))
def test_a_draw_depends_on_its_index_alone(seed: int, start: int, count: int, skip: int) -> None:
    together = uniforms(seed, "test", start, count + skip)
    alone = uniforms(seed, "test", start + skip, count)
    np.testing.assert_array_equal(together[skip:], alone)
    assert ((together >= 0) & (together < 1)).all()


def test_the_stream_is_frozen() -> None:
    """Locations of a data set must survive updates of every library: these are part of it."""
    table = sample(recipe({"strategy": "uniform", "count": 3}, seed=7))
    assert table.column("index").to_pylist() == [0, 1, 2]
    assert table.column("location").to_pylist() == [
        "02S-s2r10-264-00265-01258",
        "05N-s2r10-264-00284-00127",
        "21S-s2r10-264-00161-00425",
    ]


@pytest.mark.parametrize("seed", [0, 1])
def test_uniform_is_uniform_on_the_sphere(seed: int) -> None:
    draws = drawer_of(Uniform(strategy="uniform"), seed)(0, 200_000)
    band = np.digitize(np.sin(np.radians(draws.lat_deg)), np.linspace(-1, 1, 25)[1:-1])
    sector = ((draws.lon_deg + 180) / 10).astype(int)
    observed = np.bincount(band * 36 + sector, minlength=24 * 36)
    assert observed.size == 24 * 36
    assert stats.chisquare(observed).pvalue > 1e-3


def test_a_region_is_filled_evenly_across_the_antimeridian() -> None:
    region = (170.0, 40.0, -160.0, 70.0)
    draws = drawer_of(Uniform(strategy="uniform", region=region), 5)(0, 50_000)
    east = (draws.lon_deg - 170) % 360
    assert east.max() < 30
    assert stats.kstest(east, stats.uniform(0, 30).cdf).pvalue > 1e-3
    low, high = np.sin(np.radians([40, 70]))
    height = np.sin(np.radians(draws.lat_deg))
    assert stats.kstest(height, stats.uniform(low, high - low).cdf).pvalue > 1e-3


@pytest.mark.parametrize("lat", [0.0, 45.0, 70.0, -70.0])
@pytest.mark.parametrize("lon", [10.0, 179.9])
def test_spread_is_isotropic_in_metres(lon: float, lat: float) -> None:
    count, spread_m = 40_000, 50_000.0
    u = uniforms(11, "spread", 0, count)
    x, y = scatter(np.full(count, lon), np.full(count, lat), spread_m, u[:, 0], u[:, 1])
    east, north = Proj(proj="aeqd", lon_0=lon, lat_0=lat, ellps="WGS84")(x, y)
    # East and north each Gaussian with the same spread, and independent of one another.
    for offset in (east, north, (east + north) / np.sqrt(2)):
        assert stats.kstest(offset / spread_m, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(east, north)[0, 1]) < 4 / np.sqrt(count)
    assert np.std(east) / np.std(north) == pytest.approx(1, abs=0.02)


def test_cities_spread_as_the_recipe_says() -> None:
    strategy = Cities(strategy="cities", largest=1, spread_km=20)
    draws = drawer_of(strategy, 0)(0, 20_000)
    assert draws.names == ["Shanghai, CN"]
    _, _, distance = Geod(ellps="WGS84").inv(
        np.full(20_000, 121.45806), np.full(20_000, 31.22222), draws.lon_deg, draws.lat_deg
    )
    assert stats.kstest(distance / 20_000, "rayleigh").pvalue > 1e-3


@pytest.mark.parametrize("choice", ["uniform", "population"])
def test_places_are_chosen_as_the_recipe_says(choice: str) -> None:
    strategy = Cities(strategy="cities", largest=20, choice=choice)
    draws = drawer_of(strategy, 3)(0, 40_000)
    hits = np.bincount(draws.stratum, minlength=20)
    if choice == "uniform":
        assert stats.chisquare(hits).pvalue > 1e-3
    else:
        assert (np.diff(hits) <= 4 * np.sqrt(hits[:-1])).all()
        assert hits[0] > 1.5 * hits[-1]


# --- a location is a cell, taken once --------------------------------------------------------

STRATEGIES = [
    {"strategy": "uniform"},
    {"strategy": "uniform", "land_only": True},
    {"strategy": "uniform", "region": [177.5, -20, -177.5, -16]},
    {"strategy": "cities", "largest": 50, "spread_km": 10},
]


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(STRATEGIES),
    st.integers(0, 1000),
    st.lists(st.integers(1, 150), min_size=2, max_size=4, unique=True).map(sorted),
)
def test_location_k_is_the_same_whatever_the_count(
    strategy: dict[str, Any], seed: int, counts: list[int]
) -> None:
    most = sample(recipe(strategy | {"count": counts[-1]}, seed=seed))
    assert most.num_rows == counts[-1]
    known = most.slice(0, 0)
    for count in counts:
        loaded = recipe(strategy | {"count": count}, seed=seed)
        assert sample(loaded).equals(most.slice(0, count))
        known = pa.concat_tables([known, sample(loaded, known=known)])
        assert known.equals(most.slice(0, count))
        assert sample(loaded, known=known).num_rows == 0


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: str(len(strategy)))
def test_it_is_what_taking_one_draw_after_another_gives(strategy: dict[str, Any]) -> None:
    loaded = recipe(strategy | {"count": 300}, size_px=1020, seed=2)
    found = take(loaded)
    draws = drawer_of(loaded.recipe.sample, 2)(0, found.draws)
    taken: dict[str, int] = {}
    lost = 0
    for k in range(found.draws):
        cell = cells_at([draws.lon_deg[k]], [draws.lat_deg[k]], loaded.lattice, 1020)
        admissible = bool(cell.admissible()[0])
        lost += bool(draws.wanted[k]) and not admissible and bool(cell.number[0])
        if admissible and draws.wanted[k]:
            taken.setdefault(cell.ids()[0], k)
    assert found.table.column("location").to_pylist() == list(taken)
    assert found.table.column("index").to_pylist() == list(taken.values())
    assert found.lost_at_zone_edges == lost


def test_rows_say_what_their_cell_is() -> None:
    loaded = recipe({"strategy": "cities", "count": 200})
    table = fit(sample(loaded), Location, name="locations")
    for row in table.to_pylist():
        cell = parse_cell(row["location"])
        assert (cell.zone, cell.epsg, cell.x_min_m, cell.y_max_m, cell.size_m) == (
            row["zone"],
            row["epsg"],
            row["x_min_m"],
            row["y_max_m"],
            row["size_m"],
        )
        outline = shapely.from_wkb(row["geometry"])
        assert outline.contains(shapely.Point(row["lon_deg"], row["lat_deg"]))
        assert row["stratum"][-4:-2] == ", "


def test_more_cells_than_there_are_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"`sample\.count` is 500, but \d+ different cells"):
        sample(recipe({"strategy": "uniform", "count": 500, "region": [8, 50, 8.1, 50.1]}))


def test_land_only_keeps_to_the_land() -> None:
    anywhere = sample(recipe({"strategy": "uniform", "count": 4000}))
    on_land = take(recipe({"strategy": "uniform", "count": 4000, "land_only": True}))
    assert set(on_land.table.column("stratum").to_pylist()) == {"land"}
    # Land is 29 % of the globe; the coarse mask lets coasts pass, and UTM leaves the poles out.
    assert 0.27 < 4000 / on_land.draws < 0.35
    assert set(anywhere.column("stratum").to_pylist()) == {""}


# --- no two cells overlap --------------------------------------------------------------------


def overlaps_in_plane(cells: Cells) -> int:
    """Count pairs of cells of a zone that share ground, as squares in the zone's plane.

    Squares are drawn in by a millimetre, so that neighbours do not count as meeting.
    """
    pairs = 0
    for number in np.unique(cells.number):
        some = cells[cells.number == number]
        west, south, edge = some.x_min_m + 1e-3, some.n_min_m + 1e-3, some.size_m - 2e-3
        squares = shapely.box(west, south, west + edge, south + edge)
        pairs += meetings(squares, np.arange(len(some)))
    return pairs


def overlaps_on_the_sphere(cells: Cells) -> int:
    """Count pairs of cells of any zones that share ground, as polygons in longitude and latitude.

    Outlines are drawn in by a thousandth of the cell, for they are chords of their true edges;
    those west of the antimeridian are there twice, so that both sides of it meet.
    """
    outlines = cells.outlines()
    lon, lat = cells.centres()
    ring, owner = shapely.get_coordinates(outlines, return_index=True)
    ring += 1e-3 * (np.stack([lon, lat], axis=-1)[owner] - ring)
    outlines = shapely.set_coordinates(outlines, ring)
    west_side = np.flatnonzero(lon < -170)
    turned = shapely.transform(outlines[west_side], lambda xy: xy + np.array([360.0, 0.0]))
    home = np.concatenate([np.arange(len(cells)), west_side])
    return meetings(np.concatenate([outlines, turned]), home)


def meetings(polygons: Any, home: Any) -> int:
    """Count pairs of polygons that intersect and are not the same cell."""
    one, other = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    return int((home[one] != home[other]).sum()) // 2


def test_no_overlap_in_100_000_draws_over_the_globe() -> None:
    loaded = recipe({"strategy": "cities", "count": 100_000})
    table = sample(loaded)
    cells = cells_of(table, loaded)
    assert len(set(table.column("location").to_pylist())) == 100_000
    assert overlaps_in_plane(cells) == 0
    assert overlaps_on_the_sphere(cells) == 0


@pytest.mark.parametrize(("lattice", "size_px"), [("s2r10", 18), ("enmap30", 7)])
def test_no_overlap_in_100_000_draws_where_zones_meet(lattice: str, size_px: int) -> None:
    """Small cells in small regions, so that most have neighbours across the edge."""
    count = 100_000 // len(SPECIAL) + 1
    parts = []
    for lon, lat in SPECIAL.values():
        half_deg = 0.15 if abs(lat) < 70 else 0.2
        strategy = {"strategy": "uniform", "count": count, "region": around(lon, lat, half_deg)}
        loaded = recipe(strategy, lattice=lattice, size_px=size_px)
        parts.append(sample(loaded))
    cells = cells_of(pa.concat_tables(parts), loaded)
    assert len(cells) >= 100_000
    assert overlaps_in_plane(cells) == 0
    assert overlaps_on_the_sphere(cells) == 0


def test_without_the_rule_for_edges_cells_would_overlap() -> None:
    """What the tests above look for is there as soon as inadmissible cells are let in."""
    rng = np.random.default_rng(0)
    found = {}
    for name, (lon, lat) in SPECIAL.items():
        x, y = lon + rng.uniform(-0.1, 0.1, 9000), lat + rng.uniform(-0.1, 0.1, 9000)
        cells = cells_at((x + 180) % 360 - 180, y, recipe({"strategy": "cities"}).lattice, 64)
        cells = cells[np.unique(cells.keys(), return_index=True)[1]]
        found[name] = overlaps_on_the_sphere(cells)
    assert min(found.values()) > 0, found


@pytest.mark.parametrize(("lat", "share"), [(0, 0.004), (70, 0.012), (-70, 0.012)])
def test_share_of_draws_lost_at_zone_edges(lat: float, share: float) -> None:
    """The design's figures: cells of 2,640 m against zones 668 km wide, 228 km at 70°."""
    region = [-180, lat - 1.2, 180, lat + 1.2]
    found = take(recipe({"strategy": "uniform", "count": 120_000, "region": region}))
    assert found.lost_at_zone_edges / found.draws == pytest.approx(share, rel=0.12)


# --- grid ------------------------------------------------------------------------------------

REGIONS = [
    (8.0, 50.0, 9.0, 50.6),
    (179.6, -16.4, -179.5, -16.0),
    (5.6, 55.8, 6.5, 56.2),
    (2.5, 63.8, 6.3, 64.1),
    (-78.3, -0.3, -77.7, 0.3),
    (20.0, 71.8, 22.0, 72.3),
    (-180.0, 83.8, 180.0, 90.0),
]


@pytest.mark.parametrize("region", REGIONS, ids=str)
def test_a_grid_is_every_cell_of_a_region(region: tuple[float, ...]) -> None:
    loaded = recipe({"strategy": "grid", "region": region}, size_px=252)
    table = sample(loaded)
    cells = cells_of(table, loaded)
    assert cells.admissible().all()
    ids = table.column("location").to_pylist()
    assert len(set(ids)) == len(ids) > 20
    west, south, east, north = region
    width = (east - west) % 360 or 360
    rng = np.random.default_rng(0)
    lon = (west + rng.uniform(0, width, 20_000) + 180) % 360 - 180
    hit = cells_at(lon, rng.uniform(south, min(north, 84), lon.size), loaded.lattice, 252)
    hit = hit[hit.admissible()]
    centre_lon, centre_lat = hit.centres()
    within = ((centre_lon - west) % 360 < width) & (centre_lat >= south) & (centre_lat < north)
    assert set(hit[within].ids()) <= set(ids)
    centre_lon, centre_lat = cells.centres()
    assert ((centre_lon - west) % 360 < width).all()
    assert ((centre_lat >= south) & (centre_lat < north)).all()


def test_regions_side_by_side_share_no_cell_and_miss_none() -> None:
    def ids(*region: float) -> set[str]:
        return set(sample(recipe({"strategy": "grid", "region": region})).column(0).to_pylist())

    west, east, both = ids(178, -18, 180, -17), ids(-180, -18, -179, -17), ids(178, -18, -179, -17)
    assert west | east == both
    assert not west & east


def test_a_grid_needs_the_fixed_tiling() -> None:
    with pytest.raises(RecipeError, match=r"`cell\.snap` must be"):
        sample(recipe({"strategy": "grid", "region": REGIONS[0]}, snap="scene"))


@pytest.mark.parametrize(
    "region", [(5, 5, 5, 6), (0, 50, 1, 40), (-181, 0, 0, 1), (0, -91, 1, 0), (0, 0, 200, 1)]
)
@pytest.mark.parametrize("strategy", ["grid", "uniform"])
def test_what_is_no_region_is_refused(strategy: str, region: tuple[float, ...]) -> None:
    with pytest.raises(RecipeError, match=r"`sample\.region`"):
        sample(recipe({"strategy": strategy, "region": region}))


# --- points ----------------------------------------------------------------------------------

POINTS = [(13.1, 52.4, "lake"), (13.1005, 52.4, "same cell"), (-70.5, -33.4, ""), (6.0, 50, "edge")]


def write_points(folder: Path, kind: str) -> str:
    """Write the points in one of the formats and return the file's name."""
    path = folder / f"points.{kind}"
    lon, lat, names = zip(*POINTS, strict=True)
    if kind == "csv":
        lines = [f"{x},{y},{name}" for x, y, name in POINTS]
        path.write_text("lon,lat,name\n" + "\n".join(lines) + "\n")
    elif kind == "geojson":
        features = [
            {
                "type": "Feature",
                "geometry": {"type": "Point", "coordinates": [x, y, 30.0]},
                "properties": {"name": name} if name else None,
            }
            for x, y, name in POINTS
        ]
        path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    else:
        geo = {"primary_column": "where", "columns": {"where": {"encoding": "WKB"}}}
        wkb = shapely.to_wkb(shapely.points(lon, lat))
        table = pa.table({"where": list(wkb), "name": names})
        pq.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), path)
    return path.name


@pytest.mark.parametrize("kind", ["csv", "geojson", "parquet"])
def test_points_become_the_cells_that_hold_them(tmp_path: Path, kind: str) -> None:
    strategy = {"strategy": "points", "path": write_points(tmp_path, kind)}
    found = take(recipe(strategy, folder=tmp_path))
    assert found.table.column("index").to_pylist() == [0, 2]
    assert found.table.column("stratum").to_pylist() == ["lake", ""]
    assert (found.draws, found.lost_at_zone_edges) == (4, 1)
    again = take(recipe(strategy, folder=tmp_path), known=found.table)
    assert again.table.num_rows == 0


def test_free_cells_are_centred_on_their_points(tmp_path: Path) -> None:
    strategy = {"strategy": "points", "path": write_points(tmp_path, "csv")}
    table = sample(recipe(strategy, folder=tmp_path, snap="scene"))
    assert table.column("index").to_pylist() == [0, 1, 2]
    for row in table.to_pylist():
        assert "-p" in row["location"]
        assert parse_cell(row["location"]).free
        lon, lat, _ = POINTS[row["index"]]
        x, n = to_plane([lon], [lat], [int(row["zone"][:2])])
        assert abs(row["x_min_m"] + row["size_m"] / 2 - x[0]) <= 5
        top = northing_from_equator(row["epsg"], row["y_max_m"])
        assert abs(top - row["size_m"] / 2 - n[0]) <= 5


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "lon,latitude\n1,2\n", "column lat is missing"),
        ("a.csv", "lon,lat\n1,2\n181,2\n", "point 2 is at lon 181"),
        ("a.csv", "lon,lat\n1,\n", "point 1 is at lon 1.0, lat nan"),
        ("a.csv", "lon,lat\n1,north\n", "cannot be read"),
        ("a.geojson", "{", "cannot be read"),
        ("a.geojson", "[]", "not a FeatureCollection"),
        ("a.geojson", '{"type": "FeatureCollection", "features": [7]}', "feature 1 is not a Point"),
        (
            "a.geojson",
            '{"type": "FeatureCollection", "features": [{"geometry": '
            '{"type": "Point", "coordinates": [true, "2"]}}]}',
            "feature 1 is not a Point",
        ),
        ("a.parquet", "PAR1", "cannot be read"),
        ("a.shp", "", r"one of \.csv"),
    ],
)
def test_bad_points_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(RecipeError, match=message):
        sample(recipe({"strategy": "points", "path": name}, folder=tmp_path))


def test_points_in_metres_are_refused(tmp_path: Path) -> None:
    crs = {"id": {"authority": "EPSG", "code": 32633}}
    geo = {"primary_column": "g", "columns": {"g": {"encoding": "WKB", "crs": crs}}}
    table = pa.table({"g": [shapely.to_wkb(shapely.Point(1, 2))]})
    pq.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), tmp_path / "p.parquet")
    with pytest.raises(RecipeError, match="not longitude and latitude"):
        sample(recipe({"strategy": "points", "path": "p.parquet"}, folder=tmp_path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.csv: there is no such file"):
        sample(recipe({"strategy": "points", "path": "nowhere.csv"}, folder=tmp_path))


# --- scenes ----------------------------------------------------------------------------------


def scene(
    epsg: int,
    west: float,
    north: float,
    width_m: float,
    height_m: float | None = None,
    *,
    datatake: str = "d1",
    product: str = "enmap-l2a",
    cloud: float | None = 5.0,
    inset_m: float = 0.0,
) -> Scene:
    """Return a scene of square pixels; its footprint is its bounds, drawn in by `inset_m`."""
    height_m = width_m if height_m is None else height_m
    top = northing_from_equator(epsg, north)
    ring = shapely.box(
        west + inset_m, top - height_m + inset_m, west + width_m - inset_m, top - inset_m
    )
    footprint = shapely.transform(
        ring, lambda xy: np.stack(to_sphere(xy[:, 0], xy[:, 1], epsg % 100), axis=-1)
    )
    return Scene(
        scene=f"{product}/{datatake}/{west:.0f}-{north:.0f}",
        product=product,
        provider="local",
        item="i",
        datatake=datatake,
        tile=f"{west:.0f}",
        acquired=datetime(2022, 7, 1, tzinfo=UTC),
        baseline="",
        offset_add=0,
        cloud_percent=cloud,
        sun_elevation_deg=40.0,
        epsg=epsg,
        x_min_m=west,
        y_min_m=north - height_m,
        x_max_m=west + width_m,
        y_max_m=north,
        geometry=shapely.to_wkb(footprint),
        assets=[],
        band_indexes=[],
    )


def tiled(*scenes: Scene, known: pa.Table | None = None, **changes: Any) -> pa.Table:
    """Tile scenes into cells of 64 EnMAP pixels (1,920 m)."""
    strategy = {"strategy": "scenes", "product": "enmap-l2a"}
    strategy |= {
        key: changes.pop(key) for key in ("min_cover_fraction", "region") if key in changes
    }
    loaded = recipe(strategy, lattice="enmap30", size_px=64, **changes)
    return sample(loaded, scenes=from_rows(scenes, Scene), known=known)


#: North-western corner of two cells' worth of the fixed tiling: column 200, row 3001 and 3000.
CORNER = (200 * 1920 + 15, 3002 * 1920 + 15)


def test_scenes_are_tiled_with_what_they_cover() -> None:
    """The two HySpecNet patches of the test data: six cells, of which two span both files."""
    left, right = scene(32618, 688005, 4561935, 3840), scene(32618, 691845, 4561935, 3840)
    table = tiled(left, right)
    assert table.column("location").to_pylist() == [
        f"18N-enmap30-64-{col:05d}-{row:05d}" for row in (2374, 2375) for col in (359, 360, 361)
    ]
    assert table.column("index").to_pylist() == list(range(6))
    assert set(table.column("stratum").to_pylist()) == {"d1"}
    # Files of different acquisitions are not put together.
    other = scene(32618, 691845, 4561935, 3840, datatake="d2")
    assert tiled(left, other).num_rows == 4


def test_half_a_pixel_may_be_missing() -> None:
    x, y = CORNER
    assert tiled(scene(32633, x, y, 3840)).num_rows == 4
    assert tiled(scene(32633, x, y, 3840, inset_m=14)).num_rows == 4
    assert tiled(scene(32633, x, y, 3840, inset_m=16)).num_rows == 0
    assert tiled(scene(32633, x + 14, y - 14, 3840)).num_rows == 4
    assert tiled(scene(32633, x + 30, y, 3840)).num_rows == 2


@pytest.mark.parametrize(("fraction", "cells"), [(1.0, 4), (0.49, 8), (0.2, 9)])
def test_cells_may_be_partly_covered(fraction: float, cells: int) -> None:
    x, y = CORNER
    found = tiled(scene(32633, x, y, 3840 + 960, 3840 + 960), min_cover_fraction=fraction)
    assert found.num_rows == cells


def test_southern_scenes_in_either_code_are_the_same_cells() -> None:
    x, n = 200 * 1920 + 15, -999 * 1920 - 25
    as_327 = tiled(scene(32733, x, n + 10_000_000, 3840))
    as_326 = tiled(scene(32633, x, n, 3840))
    assert as_327.num_rows == 4
    assert as_326.equals(as_327)
    assert set(as_327.column("epsg").to_pylist()) == {32733}
    assert (
        cells_of(as_327, recipe({"strategy": "cities"}, lattice="enmap30", size_px=64)).north.sum()
        == 0
    )


def test_across_the_equator_each_hemisphere_has_its_own_cells() -> None:
    table = tiled(scene(32633, 200 * 1920 + 15, 1935, 1920, 4 * 1920))
    assert set(table.column("zone").to_pylist()) == {"33N", "33S"}
    assert sorted(table.column("location").to_pylist())[0].endswith("N-enmap30-64-00200-00000")


def test_only_a_scene_of_the_own_zone_counts() -> None:
    """A scene that reaches over the edge of its zone gives no cells beyond it."""
    x, n = (float(v[0]) for v in to_plane([11.99], [50.0], [32]))
    table = tiled(scene(32632, round(x / 30) * 30 + 15, round(n / 30) * 30 + 15, 9600))
    assert set(zones_at(table.column("lon_deg"), table.column("lat_deg"))[0].tolist()) <= {32}
    assert set(table.column("zone").to_pylist()) <= {"32N"}


def test_a_scene_can_be_tiled_from_its_own_corner() -> None:
    x, y = CORNER[0] + 300, CORNER[1] - 210
    table = tiled(scene(32633, x, y, 3840 + 600), snap="scene")
    assert table.num_rows == 4
    assert set(table.column("x_min_m").to_pylist()) == {x, x + 1920}
    assert set(table.column("y_max_m").to_pylist()) == {y, y - 1920}
    assert all("-p" in name for name in table.column("location").to_pylist())
    south = tiled(scene(32733, x, 9_000_015 - 210, 3840), snap="scene")
    assert set(south.column("y_max_m").to_pylist()) == {9_000_015 - 210, 9_000_015 - 210 - 1920}


def test_new_scenes_add_cells_and_move_none() -> None:
    x, y = CORNER
    first, second = scene(32633, x, y, 3840), scene(32633, x - 3840, y, 7680, 3840, datatake="d0")
    before = tiled(first)
    after = tiled(first, second, known=before)
    assert after.num_rows == 4
    assert after.column("index").to_pylist() == [4, 5, 6, 7]
    assert not set(after.column("location").to_pylist()) & set(
        before.column("location").to_pylist()
    )


def test_scenes_that_can_be_no_candidates_are_not_tiled() -> None:
    x, y = CORNER
    assert tiled(scene(32633, x, y, 3840, cloud=30), max_cloud_percent=20).num_rows == 0
    assert tiled(scene(32633, x, y, 3840, cloud=None), max_cloud_percent=20).num_rows == 0
    assert tiled(scene(32633, x, y, 3840, product="sentinel-2-l2a")).num_rows == 0


def test_a_region_keeps_the_cells_inside() -> None:
    x, y = CORNER
    lon, lat = to_sphere([x + 1920.0], [y - 1920.0], [33])
    region = (float(lon[0]), float(lat[0]), float(lon[0]) + 1, float(lat[0]) + 1)
    assert tiled(scene(32633, x, y, 3840), region=region).num_rows == 1


def test_broken_footprints_have_seen_nothing() -> None:
    x, y = CORNER
    good = scene(32633, x, y, 3840)
    wild = shapely.to_wkb(shapely.box(-180, -90, 180, 90))
    broken = [
        Scene(**{name: getattr(good, name) for name in Scene.__slots__} | {"geometry": geometry})
        for geometry in (b"", b"junk", wild)
    ]
    for row in broken[:2]:
        assert tiled(row).num_rows == 0
    assert tiled(good, *broken).num_rows == 4


def test_tiling_comes_after_searching() -> None:
    strategy = {"strategy": "scenes", "product": "enmap-l2a"}
    with pytest.raises(RecipeError, match="run the stage `search` first"):
        sample(recipe(strategy, lattice="enmap30", size_px=64))


# --- the stage in a root ---------------------------------------------------------------------


def test_a_root_grows_and_never_changes(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "root"))
    ten, thirty = (recipe({"strategy": "uniform", "count": count}) for count in (10, 30))
    first = run_sample(ten, store)
    assert (first.new, first.total) == (10, 10)
    before = store.get("locations/000001.parquet")
    assert run_sample(ten, store).new == 0
    grown = run_sample(thirty, store)
    assert (grown.new, grown.total) == (20, 30)
    assert first.draws + grown.draws == take(thirty).draws
    assert store.get("locations/000001.parquet") == before
    assert list(store.list("locations")) == ["locations/000001.parquet", "locations/000002.parquet"]
    at_once = open_store(str(tmp_path / "at-once"))
    assert run_sample(thirty, at_once).total == 30


def test_scenes_of_a_root_are_tiled(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "root"))
    loaded = recipe({"strategy": "scenes", "product": "enmap-l2a"}, lattice="enmap30", size_px=64)
    append(store, "scenes", from_rows([scene(32633, *CORNER, 3840)], Scene), Scene)
    report = run_sample(loaded, store)
    assert (report.new, report.total, report.lost_at_zone_edges) == (4, 4, 0)

"""What a plan will cost where files lie on no lattice: recorded radar items and label maps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import shapely

from pipeline.raster.lattice import cells_from_corners
from pipeline.recipe import LoadedRecipe, Recipe
from pipeline.records import Asset, Location, Scene
from pipeline.stages.plan.estimate import Estimate, estimate
from pipeline.stages.plan.plan import plan
from pipeline.stages.search.normalise import normalise
from pipeline.store.tables import from_rows

ITEMS = (
    Path(__file__).resolve().parents[2].parent
    / "shared/data/stac/earth-search/items-get_s1-grd_page1.json"
)
HEAD, PAGE = 2**16, 2**18
TABLE = 1_500_000
MAP_BYTES = 50_000_000


def recipe(product: str, provider: str, *, year: int = 2024) -> LoadedRecipe:
    wish: dict[str, Any] = {"id": product, "provider": provider, "allow_unmasked": True}
    if provider == "local":
        wish["path"] = "maps"
    window = {"name": "y", "start": f"{year}-01-01", "end": f"{year + 1}-01-01"}
    values = {
        "name": "toy",
        "sample": {"strategy": "uniform"},
        "cell": {"lattice": "s2r10", "size_px": 264},
        "slots": {"kind": "windows", "windows": [window]},
        "product": [wish],
        "shards": {"shard_mb": 1000},
    }
    return LoadedRecipe(Recipe.model_validate(values), Path())


def locations(loaded: LoadedRecipe, epsg: int, corners: Sequence[tuple[float, float]]) -> Any:
    """Return cells by their north-western corners, which are edges of the tiling."""
    size_m = loaded.recipe.cell.size_px * 10
    x, y = zip(*corners, strict=True)
    cells = cells_from_corners([epsg] * len(x), list(x), list(y), loaded.lattice, size_m // 10)
    lon, lat = cells.centres()
    rows = [
        Location(
            location=cells.ids()[k],
            index=k,
            zone=cells.ids()[k].partition("-")[0],
            epsg=epsg,
            x_min_m=float(cells.x_min_m[k]),
            y_max_m=float(cells.y_max_m[k]),
            size_m=float(size_m),
            lon_deg=float(lon[k]),
            lat_deg=float(lat[k]),
            stratum="",
            geometry=shapely.to_wkb(cells.outlines()[k]),
        )
        for k in range(len(x))
    ]
    return from_rows(rows, Location)


def stated(loaded: LoadedRecipe, scenes: list[Scene], places: Any) -> Estimate:
    made = plan(loaded, places, from_rows(scenes, Scene), cutoff=None)
    return estimate(loaded, made)


def radar_scene() -> Scene:
    if not ITEMS.exists():
        pytest.skip("real data (../shared/data) not here")
    loaded = recipe("sentinel-1-grd", "earth-search")
    items = json.loads(ITEMS.read_text())["response"]["features"]
    item = next(item for item in items if item["id"].startswith("S1A_IW_GRDH_1SDV_20240903T064605"))
    made = normalise(item, loaded.products["sentinel-1-grd"], "earth-search", None)
    assert isinstance(made, Scene)
    return made


def world_map(provider: str, *, href: str, size: int | None) -> Scene:
    """Return a tile of WorldCover, 3 by 3 degrees at the equator."""
    return Scene(
        scene="esa-worldcover/2024/N00E006",
        product="esa-worldcover",
        provider=provider,
        item="x",
        datatake="2024",
        tile="N00E006",
        acquired=datetime(2024, 7, 1, tzinfo=UTC),
        baseline="",
        offset_add=0,
        cloud_percent=None,
        sun_elevation_deg=None,
        epsg=4326,
        x_min_m=6.0,
        y_min_m=0.0,
        x_max_m=9.0,
        y_max_m=3.0,
        geometry=shapely.to_wkb(shapely.box(6, 0, 9, 3)),
        assets=[Asset(name="map", href=href, size_bytes=size, checksum=None)],
    )


# Places in the plane of zone 28 and 32 whose corners are edges of cells of 2640 m. Blocks of 1024
# pixels of 10 m begin at whole multiples of 10240 m, northings counted down from 10,000 km.
RADAR = (2640 * 281, 2640 * 1242)
LABELS = (2640 * 170, 2640 * 40)


def test_a_recorded_radar_scene_costs_the_blocks_under_its_windows_and_its_tables() -> None:
    loaded, scene = recipe("sentinel-1-grd", "earth-search"), radar_scene()
    one = stated(loaded, [scene], locations(loaded, 32628, [RADAR]))
    assert (one.patches, one.shards, one.scenes) == (1, 1, 1)
    # Two files of amplitudes of 16 bits, of each one block; head, first page, and a page beside
    # the block's own. Two tables of calibration: no noise table for a scene of 2024.
    block = 1024**2 * 2
    assert one.bytes_to_download == pytest.approx(
        2 * (HEAD + 2 * PAGE + block) + 2 * (HEAD + TABLE), rel=1e-6
    )
    assert one.requests == 2 * (1 + 1 + 1) + 2 * 2
    # The whole scene has 26271 x 16688 pixels: not even a hundredth of its bytes.
    assert one.bytes_to_download < 0.01 * 26271 * 16688 * 4
    assert one.hours(8) == pytest.approx(one.bytes_to_download / 3.6e9)
    # The next cell lies in the same block; one 20 cells away has blocks of its own.
    near = locations(loaded, 32628, [RADAR, (RADAR[0], RADAR[1] - 2640)])
    assert stated(loaded, [scene], near).bytes_to_download == one.bytes_to_download
    far = stated(loaded, [scene], locations(loaded, 32628, [RADAR, (RADAR[0] + 52800, RADAR[1])]))
    assert far.patches == 2
    assert one.bytes_to_download + 2 * block <= far.bytes_to_download
    assert far.bytes_to_download <= one.bytes_to_download + 2 * (4 * block + 2 * PAGE)


def test_an_old_radar_scene_brings_its_noise_tables_too() -> None:
    loaded, scene = recipe("sentinel-1-grd", "earth-search"), radar_scene()
    places = locations(loaded, 32628, [RADAR])
    older = recipe("sentinel-1-grd", "earth-search", year=2016)
    old = replace(scene, acquired=datetime(2016, 9, 3, tzinfo=UTC))
    new_cost, old_cost = stated(loaded, [scene], places), stated(older, [old], places)
    assert old_cost.bytes_to_download - new_cost.bytes_to_download == 2 * (HEAD + TABLE)
    assert old_cost.requests - new_cost.requests == 2 * 2


def test_a_label_map_costs_pages_by_the_length_of_its_file() -> None:
    """Of 36,000 by 36,000 pixels a cell sees one block or four, and never the whole file."""
    loaded = recipe("esa-worldcover", "planetary-computer")
    tile = world_map("planetary-computer", href="https://x/map.tif", size=MAP_BYTES)
    one = stated(loaded, [tile], locations(loaded, 32632, [LABELS]))
    block = MAP_BYTES * (10_240 / 333_500) ** 2
    assert 2 * PAGE + block < one.bytes_to_download < 4 * (PAGE + 1.1 * block)
    assert 3 <= one.requests <= 6
    # What is not longer than its first page is read once for each shard, and no longer.
    small = replace(tile, assets=[replace(tile.assets[0], size_bytes=200_000)])
    whole = stated(loaded, [small], locations(loaded, 32632, [LABELS]))
    assert (whole.bytes_to_download, whole.requests) == (HEAD + 200_000, 2)


def test_files_on_this_machine_cost_nothing_to_download() -> None:
    loaded = recipe("esa-worldcover", "local")
    tile = world_map("local", href="/data/map.tif", size=MAP_BYTES)
    cost = stated(loaded, [tile], locations(loaded, 32632, [LABELS]))
    assert (cost.patches, cost.scenes) == (1, 1)
    assert (cost.bytes_to_download, cost.requests) == (0, 0)


def test_what_is_computed_costs_its_own_pixels() -> None:
    loaded = recipe("esa-worldcover", "earth-engine")
    tile = world_map("earth-engine", href="ee://ESA/WorldCover/v200/2021", size=None)
    cost = stated(loaded, [tile], locations(loaded, 32632, [LABELS, (LABELS[0] + 2640, LABELS[1])]))
    assert (cost.bytes_to_download, cost.requests) == (2 * 264**2, 2)

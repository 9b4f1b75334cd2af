"""Search: what is asked, what becomes of the answers, and that no answer can break it."""

from __future__ import annotations

import copy
import json
import random
import re
import xml.etree.ElementTree as ET
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer

from pipeline.errors import RecipeError
from pipeline.ports import Query
from pipeline.products.catalogue import load_product
from pipeline.recipe import LoadedRecipe, Recipe
from pipeline.records import Scene, Unusable
from pipeline.stages.search.newest import Newest, baseline_kinds, deduplicate, version_of
from pipeline.stages.search.normalise import normalise
from pipeline.stages.search.questions import queries
from pipeline.store.tables import from_rows, to_rows

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="real data (../shared/data) not here")

ENMAP = load_product("enmap-l2a")
SENTINEL = load_product("sentinel-2-l2a")


BAND_TABLE = [{"center_wavelength": band.wavelength_nm} for band in ENMAP.bands]
WANTED = tuple(band.name for band in ENMAP.bands if band.default)


def enmap_item(**properties: Any) -> dict[str, Any]:
    """An item as DLR writes it: numbers as text, CRS and grid on the assets."""
    names = ENMAP.providers["dlr"].assets.values()
    href = "https://download.geoservice.dlr.de/ENMAP/files/L2A/{}_COG.TIF"
    assets = {file.asset: {"href": href.format(file.asset)} for files in names for file in files}
    assets["image"] |= {
        "proj:epsg": 32633,
        "proj:shape": [1200, 1200],
        "proj:transform": [30.0, 0.0, 364095.0, 0.0, -30.0, 5809965.0, 0.0, 0.0, 1.0],
        "eo:bands": [dict(row) for row in BAND_TABLE],
    }
    ring = [[13.1, 52.1], [13.5, 52.1], [13.5, 52.4], [13.1, 52.4], [13.1, 52.1]]
    return {
        "type": "Feature",
        "id": "ENMAP01-____L2A-DT0000001867",
        "collection": "ENMAP_HSI_L2A",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "start_datetime": "2022-07-24T10:45:26.5Z",
            "datetime": "2022-07-24T10:45:26Z",
            "proj:epsg": None,
            "eo:cloud_cover": "9",
            "view:sun_elevation": 55.5,
            "version": "01.04.02",
            "enmap:datatakeID": "0000001867",
            "enmap:tileID": "08",
            **properties,
        },
        "assets": assets,
        "links": [],
    }


def sentinel_item(provider: str = "planetary-computer", **properties: Any) -> dict[str, Any]:
    names = SENTINEL.providers[provider].assets.values()
    grid = {"proj:shape": [1830, 1830], "proj:transform": [60, 0, 499980, 0, -60, 5900040]}
    assets = {
        file.asset: {"href": f"https://files.example/{file.asset}.tif", **grid}
        for files in names
        for file in files
    }
    ring = [[-9, 53.2], [-9, 52.3], [-7.7, 52.3], [-7.7, 53.2], [-9, 53.2]]
    return {
        "id": "S2A_MSIL2A_20221005T115411_N0400_R023_T29UNU_20221005T164454",
        "collection": SENTINEL.providers[provider].collection,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "datetime": "2022-10-05T11:54:11.024Z",
            "proj:epsg": 32629,
            "s2:datatake_id": "GS2A_20221005T115411_038058_N04.00",
            "s2:mgrs_tile": "29UNU",
            "grid:code": "MGRS-29UNU",
            "s2:processing_baseline": "04.00",
            "processing:version": "04.00",
            **properties,
        },
        "assets": assets,
    }


def scene_of(item: dict[str, Any], provider: str = "dlr", **options: Any) -> Scene:
    product = ENMAP if item["collection"] == "ENMAP_HSI_L2A" else SENTINEL
    row = normalise(item, product, provider, options.pop("query", None), **options)
    assert isinstance(row, Scene), row
    return row


def reason_of(item: dict[str, Any], provider: str = "dlr", **options: Any) -> str:
    product = ENMAP if item["collection"] == "ENMAP_HSI_L2A" else SENTINEL
    row = normalise(item, product, provider, options.pop("query", None), **options)
    assert isinstance(row, Unusable), row
    return row.reason


# --- normalise -----------------------------------------------------------------------------------


def test_text_becomes_numbers_and_facts_come_from_where_they_are() -> None:
    scene = scene_of(enmap_item())
    assert scene.scene == "enmap-l2a/0000001867/8"
    assert scene.cloud_percent == 9.0
    assert scene.sun_elevation_deg == 55.5
    assert scene.acquired == datetime(2022, 7, 24, 10, 45, 26, 500_000, tzinfo=UTC)
    assert (scene.epsg, scene.x_min_m, scene.y_max_m) == (32633, 364095.0, 5809965.0)
    assert (scene.x_max_m, scene.y_min_m) == (364095.0 + 36_000, 5809965.0 - 36_000)
    assert [asset.name for asset in scene.assets][:2] == ["image", "quality_classes"]


def test_only_files_that_bands_and_layers_need_are_kept() -> None:
    item = enmap_item()
    item["assets"]["thumbnail"] = {"href": "file:///etc/passwd"}
    assert "thumbnail" not in {asset.name for asset in scene_of(item).assets}


@pytest.mark.parametrize("zone_epsg", [32601, 32618, 32633, 32660, 32701, 32736, 32760])
@pytest.mark.parametrize("lat", [2.0, 45.0, 70.0])
def test_a_missing_crs_is_found_from_footprint_and_grid(zone_epsg: int, lat: float) -> None:
    south = zone_epsg > 32700
    to_lonlat = Transformer.from_crs(zone_epsg, "OGC:CRS84", always_xy=True)
    to_plane = Transformer.from_crs("OGC:CRS84", zone_epsg, always_xy=True)
    lon = (zone_epsg % 100) * 6 - 183 + 2.6
    x, y = (15 + 30 * round(v / 30) for v in to_plane.transform(lon, -lat if south else lat))
    item = enmap_item()
    item["assets"]["image"] |= {
        "proj:epsg": None,
        "proj:transform": [30, 0, x, 0, -30, y],
        "proj:shape": [1000, 1000],
    }
    corners = [(x, y), (x, y - 30_000), (x + 30_000, y - 30_000), (x + 30_000, y), (x, y)]
    ring = [to_lonlat.transform(*corner) for corner in corners]
    item["geometry"]["coordinates"] = [ring]
    assert scene_of(item).epsg == zone_epsg


def test_a_grid_that_is_nowhere_near_the_footprint_has_no_crs() -> None:
    item = enmap_item()
    item["assets"]["image"] |= {
        "proj:epsg": None,
        "proj:transform": [30.0, 0.0, 364095.0, 0.0, -30.0, 809965.0],
    }
    assert reason_of(item) == "no-crs"


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (("id",), None, "bad-value"),
        (("collection",), "S5P", "other-collection"),
        (("geometry",), None, "no-geometry"),
        (("geometry", "coordinates"), [], "no-geometry"),
        (("geometry", "coordinates"), [[[0, 0], [0, 0], [0, 0], [0, 0]]], "no-geometry"),
        (("geometry", "coordinates"), [[[0, 0], [0, 999], [9, 9], [0, 0]]], "no-geometry"),
        (("properties",), None, "bad-value"),
        (("properties", "start_datetime"), "yesterday", "no-datetime"),
        (("properties", "eo:cloud_cover"), "many", "bad-value"),
        (("properties", "eo:cloud_cover"), "NaN", "bad-value"),
        (("properties", "eo:cloud_cover"), 150, "bad-value"),
        (("properties", "view:sun_elevation"), 123, "bad-value"),
        (("properties", "enmap:datatakeID"), "../../etc", "bad-value"),
        (("properties", "enmap:datatakeID"), None, "bad-value"),
        (("properties", "enmap:tileID"), {"a": 1}, "bad-value"),
        (("properties", "terrashard:problem"), "broken", "unreadable"),
        (("assets",), None, "no-assets"),
        (("assets", "image"), None, "no-assets"),
        (("assets", "image", "href"), None, "refused-href"),
        (("assets", "image", "href"), "x" * 5000, "refused-href"),
        (("assets", "image", "proj:transform"), [30, 1, 0, 0, -30, 0], "bad-grid"),
        (("assets", "image", "proj:transform"), [30, 0, 0, 0, 30, 0], "bad-grid"),
        (("assets", "image", "proj:shape"), [10**9, 10**9], "bad-grid"),
        (("assets", "image", "proj:shape"), None, "no-crs"),
        (("assets", "image", "eo:bands"), [{"center_wavelength": 500}] * 218, "other-bands"),
        (("assets", "image", "eo:bands", 99), {"center_wavelength": 1461.46}, "other-bands"),
        (("assets", "image", "eo:bands", 99), {"center_wavelength": "far"}, "bad-value"),
        (("assets", "image", "eo:bands", 99), {"center_wavelength": True}, "bad-value"),
        (("assets", "image", "eo:bands"), [{"center_wavelength": 500}] * 5000, "other-bands"),
        (("assets", "image", "eo:bands"), [{"name": "b"}] * 218, "other-bands"),
    ],
)
def test_what_cannot_be_used_says_why(place: tuple[Any, ...], value: Any, reason: str) -> None:
    item = enmap_item()
    target: Any = item
    for step in place[:-1]:
        target = target[step]
    target[place[-1]] = value
    row = normalise(item, ENMAP, "dlr", None, bands=WANTED)
    assert isinstance(row, Unusable)
    assert row.reason == reason
    assert len(row.detail) <= 200


def test_unknown_is_not_bad() -> None:
    assert scene_of(enmap_item(**{"eo:cloud_cover": -1})).cloud_percent is None


@pytest.mark.parametrize("stated", [None, -20.0])
@pytest.mark.parametrize("hour", [0, 10])
def test_a_scene_of_the_night_is_never_free_of_clouds(stated: float | None, hour: int) -> None:
    """Its cloud cover says nothing; where the sun stood is worked out if the item does not say."""
    when = f"2022-07-24T{hour:02d}:45:26Z"
    words = {"start_datetime": when, "datetime": when, "eo:cloud_cover": "0"}
    scene = scene_of(enmap_item(**words, **{"view:sun_elevation": stated}))
    assert scene.sun_elevation_deg is not None
    night = stated is not None or hour == 0
    assert (scene.sun_elevation_deg < 0) == night
    assert (scene.cloud_percent is None) == night


def test_missing_quality_layers_are_left_to_the_recipe_and_missing_bands_are_not() -> None:
    item = sentinel_item()
    del item["assets"]["SCL"]
    assert len(scene_of(item, "planetary-computer").assets) == 12
    del item["assets"]["B08"]
    assert len(scene_of(item, "planetary-computer", bands=("B02", "B03")).assets) == 11
    assert reason_of(item, "planetary-computer", bands=("B02", "B08")) == "no-assets"


# --- which of a file's bands is which -------------------------------------------------------------


def older_table() -> list[dict[str, float]]:
    """The real table of an older processor: another choice of channels, two pairs swapped."""
    root = ET.parse(DATA / "enmap" / "metadata" / "enmap_wavelength.xml").getroot()
    return [
        {
            "center_wavelength": float(row.findtext("wavelengthCenterOfBand", "")),
            "full_width_half_max": float(row.findtext("FWHMOfBand", "")),
        }
        for row in root.iter("bandID")
    ]


def with_table(table: list[dict[str, float]] | None, **properties: Any) -> dict[str, Any]:
    item = enmap_item(**properties)
    del item["assets"]["image"]["eo:bands"]
    if table is not None:
        item["assets"]["image"]["eo:bands"] = table
    return item


@needs_data
def test_bands_of_an_older_processor_are_found_by_wavelength_and_width() -> None:
    table = older_table()
    scene = scene_of(with_table(table), bands=WANTED)
    found = dict(zip(ENMAP.bands, scene.band_indexes, strict=True))
    for band, index in found.items():
        if not index:
            assert band.name in ("B136", "B165", "B166")  # 1449, 1770 and 1780 nm: not in its files
            continue
        row = table[index - 1]
        assert band.wavelength_nm == pytest.approx(row["center_wavelength"], abs=0.4), band.name
        assert band.fwhm_nm == row["full_width_half_max"], band.name  # the same channel
    taken = [index for index in scene.band_indexes if index]
    assert len(set(taken)) == len(taken) == 221
    assert found[ENMAP.band("B142")] == 141
    # VNIR and SWIR channels that lie 0.2 nm apart changed places
    swapped = [found[ENMAP.band(name)] for name in ("B082", "B083", "B100", "B101")]
    assert swapped == [83, 82, 101, 100]


@needs_data
def test_only_a_wanted_band_without_a_counterpart_refuses_a_scene() -> None:
    item = with_table(older_table())
    assert reason_of(item, bands=("B001", "B136")) == "other-bands"
    assert scene_of(item, bands=("B001", "B137")).band_indexes[136] == 136
    assert scene_of(item).band_indexes[135] == 0


@needs_data
@pytest.mark.parametrize("version", ["01.01.02", "01.01.10", "01.03.02"])
def test_without_a_table_of_its_own_a_file_has_that_of_its_processor(version: str) -> None:
    by_version = scene_of(with_table(None, version=version), bands=WANTED)
    assert by_version.band_indexes == scene_of(with_table(older_table())).band_indexes


@pytest.mark.parametrize("version", ["01.04.02", "01.05.02", "02.00.00"])
def test_what_is_in_the_product_s_order_needs_no_indexes(version: str) -> None:
    assert scene_of(with_table(None, version=version), bands=WANTED).band_indexes == []
    assert scene_of(enmap_item(version=version), bands=WANTED).band_indexes == []


@pytest.mark.parametrize(
    ("version", "reason"),
    [("00.02.04", "other-bands"), ("01.04.01", "other-bands"), ("", "no-baseline")],
)
def test_a_processor_of_which_no_table_is_known_must_state_one(version: str, reason: str) -> None:
    assert reason_of(with_table(None, version=version), bands=WANTED) == reason
    assert scene_of(enmap_item(version=version), bands=WANTED).band_indexes == []


def test_tables_in_another_order_and_of_more_bands_are_followed() -> None:
    rows = [
        {"center_wavelength": band.wavelength_nm, "full_width_half_max": band.fwhm_nm}
        for band in ENMAP.bands
    ]
    shuffled = list(range(224))
    random.Random(5).shuffle(shuffled)
    more = [{"center_wavelength": 300.0}, *(rows[k] for k in shuffled), {"name": "mask"}]
    scene = scene_of(with_table(more), bands=WANTED)  # type: ignore[arg-type]
    assert [more[index - 1] for index in scene.band_indexes] == rows


@pytest.mark.parametrize(("off_widths", "usable"), [(0.19, True), (0.21, False), (-0.21, False)])
def test_a_band_is_not_looked_for_further_away_than_a_fifth_of_its_width(
    off_widths: float, usable: bool
) -> None:
    item = enmap_item()
    row, band = item["assets"]["image"]["eo:bands"][199], ENMAP.bands[199]
    row["center_wavelength"] += off_widths * (band.fwhm_nm or 0)
    found = normalise(item, ENMAP, "dlr", None, bands=WANTED)
    assert isinstance(found, Scene) == usable


def test_of_two_bands_with_one_row_near_both_the_nearer_has_it() -> None:
    """Two detectors see 911.6 and 912.0 nm; a file with one of them does not hold both."""
    item = enmap_item()
    del item["assets"]["image"]["eo:bands"][81]
    assert reason_of(item, bands=WANTED) == "other-bands"
    indexes = scene_of(item, bands=tuple(n for n in WANTED if n != "B082")).band_indexes
    assert indexes[80:84] == [81, 0, 82, 83]


def test_products_with_files_of_one_band_have_no_indexes() -> None:
    assert scene_of(sentinel_item(), "planetary-computer").band_indexes == []


def test_micrometres_are_understood() -> None:
    item = enmap_item()
    for row in item["assets"]["image"]["eo:bands"]:
        row["center_wavelength"] /= 1000
    scene_of(item)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["1e999", "-0", "../..", "EPSG:4326", "2022-13-45", 10**400]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys: list[Any] = list(value) if isinstance(value, dict) else []
    if isinstance(value, list):
        keys = list(range(min(len(value), 6)))
    return [path] * bool(path) + [p for key in keys for p in places(value[key], (*path, key))]


@settings(max_examples=400, deadline=None)
@given(junk=JUNK, data=st.data(), sentinel=st.booleans())
def test_no_junk_anywhere_in_an_item_breaks_it(junk: Any, data: Any, sentinel: bool) -> None:
    item = sentinel_item("earth-search") if sentinel else enmap_item()
    path = data.draw(st.sampled_from(places(item)))
    target: Any = item
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = junk
    provider, product = ("earth-search", SENTINEL) if sentinel else ("dlr", ENMAP)
    row = normalise(item, product, provider, None)
    assert isinstance(row, Scene | Unusable)
    if isinstance(row, Scene):
        assert shapely.from_wkb(row.geometry).is_valid
        assert row.x_min_m < row.x_max_m


# --- footprints and the antimeridian -------------------------------------------------------------


@given(lon=st.floats(-180, 180), width=st.floats(0.1, 5), wrapped=st.booleans())
def test_a_footprint_keeps_its_area_wherever_it_lies(
    lon: float, width: float, wrapped: bool
) -> None:
    item = enmap_item()
    west, east = lon, lon + width
    if wrapped and east > 180:
        east -= 360
    ring = [[west, 10], [east, 10], [east, 11], [west, 11], [west, 10]]
    item["geometry"]["coordinates"] = [ring]
    shape = shapely.from_wkb(scene_of(item).geometry)
    assert shape.is_valid
    assert shape.area == pytest.approx(width, rel=1e-6)
    assert -180 <= shape.bounds[0] <= shape.bounds[2] <= 180


# --- the offset ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "baseline", "facts", "expected"),
    [
        ("planetary-computer", "03.01", {}, 0),
        ("planetary-computer", "04.00", {}, -1000),
        ("planetary-computer", "05.11", {}, -1000),
        ("planetary-computer", "10.00", {}, -1000),
        ("planetary-computer", None, {}, "no-baseline"),
        ("copernicus", "05.11", {}, -1000),
        ("earth-search", "05.11", {"earthsearch:boa_offset_applied": True}, 0),
        ("earth-search", "05.11", {"earthsearch:boa_offset_applied": False}, -1000),
        ("earth-search", "02.14", {"earthsearch:boa_offset_applied": False}, 0),
        ("earth-search", "02.14", {"earthsearch:boa_offset_applied": True}, "offset-contradiction"),
        ("earth-search", "05.11", {}, "offset-unknown"),
        ("earth-search", "02.14", {}, 0),
        ("earth-search", "05.11", {"earthsearch:boa_offset_applied": "maybe"}, "bad-value"),
        ("local", "04.00", {"terrashard:offset_add": -1000}, -1000),
        ("local", "02.14", {"terrashard:offset_add": 0}, 0),
        ("local", "04.00", {"terrashard:offset_add": 0}, "offset-contradiction"),
        ("local", "02.14", {"terrashard:offset_add": -1000}, "offset-contradiction"),
    ],
)
def test_the_offset_is_decided_by_baseline_and_provider(
    provider: str, baseline: str | None, facts: dict[str, Any], expected: int | str
) -> None:
    item = sentinel_item(
        provider,
        **{"s2:processing_baseline": baseline, "processing:version": baseline, **facts},
    )
    if isinstance(expected, int):
        assert scene_of(item, provider).offset_add == expected
    else:
        assert reason_of(item, provider) == expected


@pytest.mark.parametrize("provider", ["planetary-computer", "earth-search", "copernicus", "local"])
def test_one_acquisition_has_one_identity_at_every_provider(provider: str) -> None:
    item = sentinel_item(provider, **{"earthsearch:boa_offset_applied": True})
    if provider == "local":
        item["properties"]["terrashard:offset_add"] = -1000
    assert scene_of(item, provider).scene == "sentinel-2-l2a/S2A_20221005T115411/29UNU"


# --- facts that a recipe requires ----------------------------------------------------------------


def test_further_facts_are_kept_with_the_scene_in_one_form() -> None:
    """Numbers that came as text are numbers, and text is in lower case."""
    stated = {"enmap:overallQuality": "2", "enmap:haze_cover": 3.50, "enmap:cirrus_cover": "Many"}
    scene = scene_of(enmap_item(**stated))
    assert scene.facts == '{"cirrus_percent":"many","haze_percent":3.5,"quality":2}'
    assert scene_of(enmap_item()).facts == "{}"
    junk = {"enmap:overallQuality": [2], "enmap:haze_cover": None, "enmap:cirrus_cover": ""}
    assert scene_of(enmap_item(**junk)).facts == "{}"
    assert json.loads(scene_of(enmap_item(**{"enmap:haze_cover": "9" * 500})).facts) == {
        "haze_percent": "9" * 100
    }


@pytest.mark.parametrize(
    ("stated", "require", "passes"),
    [
        ({"enmap:overallQuality": "1"}, {"quality": [0, 1]}, True),
        ({"enmap:overallQuality": 1.0}, {"quality": ["1"]}, True),
        ({"enmap:overallQuality": "2"}, {"quality": [0, 1]}, False),
        ({}, {"quality": [0, 1, 2]}, False),
        ({"enmap:haze_cover": "20"}, {"haze_percent": {"at_most": 20}}, True),
        ({"enmap:haze_cover": "20.5"}, {"haze_percent": {"at_most": 20}}, False),
        ({"enmap:haze_cover": 0}, {"haze_percent": {"at_least": 1}}, False),
        ({"enmap:haze_cover": "much"}, {"haze_percent": {"at_most": 20}}, False),
        ({"enmap:overallQuality": "0"}, {"quality": [0], "haze_percent": {"at_most": 5}}, False),
    ],
)
def test_what_the_recipe_requires_decides_and_is_named(
    stated: dict[str, Any], require: dict[str, Any], passes: bool
) -> None:
    wish = recipe(MONTHS, require=require).wishes["enmap-l2a"]
    row = normalise(enmap_item(**stated), ENMAP, "dlr", None, require=wish.require)
    if passes:
        assert isinstance(row, Scene)
        return
    assert isinstance(row, Unusable)
    assert row.reason == "not-as-required"
    assert re.search(r"^(quality|haze_percent) is .*; `require` allows [\w ,]+$", row.detail)


def test_what_is_required_is_asked_of_catalogues_however_they_write_it() -> None:
    values = recipe(MONTHS).recipe.model_dump(mode="json")
    require = {"orbit_direction": ["Descending"], "relative_orbit": [22, 95]}
    values["cell"] = {"lattice": "s2r10", "size_px": 60}
    values["product"] = [
        {"id": "sentinel-1-rtc", "provider": "planetary-computer", "require": require}
    ]
    loaded = LoadedRecipe(Recipe.model_validate(values), Path())
    (query, *_) = queries(loaded, "sentinel-1-rtc", table_of(np.array([[13.0, 52.0]])))
    assert dict(query.only) == {
        "sar:instrument_mode": ("IW",),
        "sat:orbit_state": ("descending", "DESCENDING"),
        "sat:relative_orbit": (22, 95, "22", "95"),
    }
    hazy = recipe(MONTHS, require={"haze_percent": {"at_least": 1, "at_most": 20}})
    (query, *_) = queries(hazy, "enmap-l2a", table_of(np.array([[13.0, 52.0]])))
    assert query.at_most == (("enmap:haze_cover", 20.0),)


# --- duplicates ----------------------------------------------------------------------------------


@given(order=st.permutations(["02.14", "05.00", "05.11", "5.2", ""]))
def test_the_newest_baseline_wins_whatever_the_order(order: list[str]) -> None:
    base = scene_of(enmap_item())
    rows = [
        Scene(**{**{k: getattr(base, k) for k in base.__slots__}, "baseline": b, "item": f"i{b}"})
        for b in order
    ]
    kept, lost = deduplicate(from_rows(rows, Scene))
    assert kept.column("baseline").to_pylist() == ["05.11"]
    assert sorted(row.item for row in lost) == ["i", "i02.14", "i05.00", "i5.2"]
    assert {row.reason for row in lost} == {"duplicate"}


LANDSAT = load_product("landsat-oli-sr")


def landsat_rows(stated: list[tuple[str, str]]) -> list[Scene]:
    """One scene of Landsat, as providers have it with their baselines."""
    base = scene_of(enmap_item())
    facts = {k: getattr(base, k) for k in base.__slots__}
    facts |= {"product": LANDSAT.id, "scene": f"{LANDSAT.id}/LC08_202_20220327/033"}
    return [Scene(**{**facts, "provider": p, "baseline": b, "item": f"{p}-{b}"}) for p, b in stated]


@pytest.mark.parametrize(
    ("preferred", "stated", "best"),
    [
        # A level of correction, and a day of processing: two numbers, and neither is the newer one.
        (("planetary-computer", "earth-engine"), "pc-L2SP ee-20220405", "pc-L2SP"),
        (("earth-engine", "planetary-computer"), "pc-L2SP ee-20220405", "ee-20220405"),
        # The same provider's newer one wins, and so does a later provider's of the same kind ...
        (("earth-engine",), "ee-20220405 ee-20230101 ee-20220101", "ee-20230101"),
        (
            ("planetary-computer", "earth-engine"),
            "pc-L2SP ee-20220405 ee-20230101",
            "pc-L2SP",
        ),
        (
            ("earth-engine", "planetary-computer"),
            "pc-L2SP ee-20220405 ee-20230101",
            "ee-20230101",
        ),
        (
            ("planetary-computer", "earth-engine", "usgs"),
            "pc-L1 ee-20220405 usgs-L2",
            "usgs-L2",
        ),
        # ... but only if a provider of that kind comes before all others that have the scene.
        (
            ("planetary-computer", "earth-engine", "usgs"),
            "ee-20220405 usgs-L2",
            "ee-20220405",
        ),
    ],
)
def test_baselines_that_count_different_things_leave_it_to_the_order_of_providers(
    preferred: tuple[str, ...], stated: str, best: str
) -> None:
    short = {"pc": "planetary-computer", "ee": "earth-engine", "usgs": "usgs"}
    words = [tuple(word.split("-")) for word in stated.split()]
    for order in permutations(words):
        newest = Newest({}, {LANDSAT.id: preferred}, baseline_kinds([LANDSAT]))
        rows = from_rows(landsat_rows([(short[p], b) for p, b in order]), Scene)
        newest.note_all(rows)
        kept, _ = deduplicate(rows, newest)
        provider, baseline = best.split("-")
        (row,) = kept.to_pylist()
        assert (row["provider"], row["baseline"]) == (short[provider], baseline), order


@pytest.mark.parametrize(
    ("known", "comes", "new"),
    [
        (("planetary-computer", "L2SP"), ("earth-engine", "20230101"), False),
        (("earth-engine", "20220405"), ("planetary-computer", "L2SP"), False),
        (("earth-engine", "20220405"), ("earth-engine", "20230101"), True),
        (("earth-engine", "20220405"), ("earth-engine", "20220405"), False),
    ],
)
def test_what_is_in_the_root_gives_way_only_to_a_newer_baseline_of_its_kind(
    known: tuple[str, str], comes: tuple[str, str], new: bool
) -> None:
    (row,) = landsat_rows([comes])
    newest = Newest({row.scene: known}, None, baseline_kinds([LANDSAT]))
    newest.note(row)
    assert newest.is_new(row.scene) is new


def test_versions_compare_as_numbers() -> None:
    assert version_of("9.2") < version_of("10.0") < version_of("10.00.1")
    assert version_of("") < version_of("00.01")


# --- what is asked -------------------------------------------------------------------------------


def recipe(slots: dict[str, Any], **wish: Any) -> LoadedRecipe:
    values = {
        "name": "x",
        "sample": {"strategy": "uniform", "count": 10},
        "cell": {"lattice": "enmap30", "size_px": 64},
        "slots": slots,
        "product": [{"id": "enmap-l2a", "provider": "dlr", **wish}],
    }
    return LoadedRecipe(Recipe.model_validate(values), Path())


def table_of(lonlat: np.ndarray, half_deg: float = 0.01) -> pa.Table:
    boxes = shapely.box(*(lonlat - half_deg).T, *(lonlat + half_deg).T)
    return pa.table(
        {"lon_deg": lonlat[:, 0], "lat_deg": lonlat[:, 1], "geometry": shapely.to_wkb(boxes)}
    )


MONTHS = {"kind": "months", "start": date(2021, 3, 1), "end": date(2021, 6, 1)}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 100))
def test_queries_cover_every_location_and_moment_and_are_few(seed: int, count: int) -> None:
    draw = random.Random(seed)
    lonlat = np.array([[draw.uniform(-179, 179), draw.uniform(-60, 80)] for _ in range(count)])
    asked = queries(recipe(MONTHS), "enmap-l2a", table_of(lonlat))
    areas = {query.bbox for query in asked}
    tiles = {tuple(row) for row in np.floor((lonlat + np.array([180, 90])) / 5).tolist()}
    assert len(areas) == len(tiles)
    assert len(asked) == len(areas)
    for lon, lat in lonlat:
        assert any(b[0] <= lon - 0.01 and lon + 0.01 <= b[2] and b[1] < lat < b[3] for b in areas)
    spans = sorted({(query.start, query.end) for query in asked})
    assert spans[0][0] == datetime(2021, 3, 1, tzinfo=UTC)
    assert spans[-1][1] == datetime(2021, 6, 1, tzinfo=UTC)
    assert all(a[1] == b[0] for a, b in pairwise(spans))


@pytest.mark.parametrize(("years", "pieces"), [(1, 1), (2, 2), (3, 3)])
def test_years_are_asked_apart_around_locations(years: int, pieces: int) -> None:
    slots = {"kind": "all", "start": date(2020, 12, 1), "end": date(2020 + years, 12, 1)}
    around = queries(recipe(slots), "enmap-l2a", table_of(np.array([[10.0, 50.0]])))
    spans = [(query.start, query.end) for query in around if query.start and query.end]
    assert len(spans) == pieces
    assert all(before[1] == after[0] for before, after in pairwise(spans))
    assert {end - start < timedelta(days=367) for start, end in spans} == {True}


def test_months_are_asked_apart_over_regions() -> None:
    winter = {"kind": "seasons", "start": date(2020, 12, 1), "end": date(2021, 3, 1)}
    world = queries(recipe(winter), "enmap-l2a", None)
    boxes = {query.bbox for query in world if query.bbox is not None}
    assert (len(boxes), len(world)) == (72, 72 * 3)
    assert sum((e - w) * (n - s) for w, s, e, n in boxes) == 360 * 180


@pytest.mark.parametrize(
    ("product", "provider", "only"),
    [
        ("landsat-oli-sr", "usgs", {"platform": ("LANDSAT_8", "LANDSAT_9")}),
        ("landsat-etm-sr", "planetary-computer", {"platform": ("landsat-7",)}),
        ("sentinel-1-rtc", "planetary-computer", {"sar:instrument_mode": ("IW",)}),
        ("sentinel-2-l2a", "copernicus", {}),
    ],
)
def test_what_tells_products_of_a_collection_apart_is_asked_for(
    product: str, provider: str, only: dict[str, tuple[str, ...]]
) -> None:
    if product.startswith("landsat"):
        only = {**only, "landsat:collection_category": ("T1",)}
    wish: dict[str, Any] = {"id": product, "provider": provider}
    asked = queries(recipe(MONTHS, **wish), product, None)
    assert {query.only for query in asked} == {tuple(only.items())}
    names = load_product(product).providers[provider].only
    for source, values in only.items():
        assert all(re.fullmatch(names[source], value) for value in values)


def test_a_cloud_limit_is_asked_for_with_some_way_above_it_unless_scenes_are_counted() -> None:
    wish: dict[str, Any] = {
        "id": "sentinel-2-l2a",
        "provider": "earth-search",
        "max_cloud_percent": 20,
    }
    limited = recipe(MONTHS, **wish)
    asked = queries(limited, "sentinel-2-l2a", None)
    assert {query.at_most for query in asked} == {(("eo:cloud_cover", 40.0),)}
    counted = queries(limited, "sentinel-2-l2a", None, all_weathers=True)
    high = queries(recipe(MONTHS, **(wish | {"max_cloud_percent": 80})), "sentinel-2-l2a", None)
    assert {query.at_most for query in [*counted, *high]} == {()}


def test_windows_that_meet_are_asked_once_and_followers_ask_wider() -> None:
    windows = [
        {"name": "a", "start": date(2021, 3, 10), "end": date(2021, 3, 20)},
        {"name": "b", "start": date(2021, 3, 15), "end": date(2021, 3, 25)},
    ]
    loaded = recipe({"kind": "windows", "windows": windows})
    assert {(q.start.day, q.end.day) for q in queries(loaded, "enmap-l2a", None)} == {(10, 25)}  # type: ignore[union-attr]
    values = loaded.recipe.model_dump()
    leader = {**values["product"][0], "id": "sentinel-2-l2a", "provider": "earth-search"}
    follower = {**values["product"][0], "follows": "sentinel-2-l2a", "within_days": 2}
    values["product"] = [leader, follower]
    wider = LoadedRecipe(Recipe.model_validate(values), Path())
    assert {(q.start.day, q.end.day) for q in queries(wider, "enmap-l2a", None)} == {(8, 27)}  # type: ignore[union-attr]


def test_a_region_across_the_antimeridian_is_asked_in_two_halves() -> None:
    values = recipe(MONTHS).recipe.model_dump()
    values["sample"] = {
        "strategy": "scenes",
        "product": "enmap-l2a",
        "region": (178.0, -20.0, -178.0, -10.0),
    }
    loaded = LoadedRecipe(Recipe.model_validate(values), Path())
    boxes = {query.bbox for query in queries(loaded, "enmap-l2a", None)}
    assert boxes == {(178.0, -20.0, 180.0, -10.0), (-180.0, -20.0, -178.0, -10.0)}


def test_no_locations_ask_nothing_and_an_unserved_product_is_the_user_s_mistake() -> None:
    assert queries(recipe(MONTHS), "enmap-l2a", table_of(np.empty((0, 2)))) == []
    with pytest.raises(RecipeError, match=r"does not serve enmap-l2a.*dlr"):
        queries(recipe(MONTHS, provider="earth-search"), "enmap-l2a", None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"collection": "other"}, "other-collection"),
        ({"bbox": (0.0, 0.0, 1.0, 1.0)}, "outside-query"),
        ({"start": datetime(2022, 7, 24, 10, 45, 27, tzinfo=UTC)}, "outside-query"),
        ({"end": datetime(2022, 7, 24, 10, 45, 26, tzinfo=UTC)}, "outside-query"),
        ({"end": datetime(2022, 7, 24, 10, 45, 26, tzinfo=UTC) + timedelta(seconds=1)}, None),
    ],
)
def test_answers_are_checked_against_the_question(
    change: dict[str, Any], reason: str | None
) -> None:
    asked: dict[str, Any] = {
        "collection": "ENMAP_HSI_L2A",
        "bbox": (13.4, 52.0, 14.0, 53.0),
        "start": datetime(2022, 7, 1, tzinfo=UTC),
        "end": datetime(2022, 8, 1, tzinfo=UTC),
    }
    if "collection" in change:  # a catalogue that answers with another collection
        item = {**enmap_item(), "collection": change["collection"]}
    else:
        item, asked = enmap_item(), {**asked, **change}
    row = normalise(item, ENMAP, "dlr", Query("enmap-l2a", **asked))
    assert getattr(row, "reason", None) == reason


# --- recorded answers ----------------------------------------------------------------------------


def recorded(service: str) -> list[dict[str, Any]]:
    items = []
    for path in sorted((DATA / "stac" / service).glob("*.json")):
        answer = json.loads(path.read_text())["response"]
        items += answer.get("features", [answer] if answer.get("type") == "Feature" else [])
    return items


@needs_data
@pytest.mark.parametrize(
    ("service", "product", "collection", "scenes", "added"),
    [
        ("dlr", ENMAP, "ENMAP_HSI_L2A", 43, {0}),
        ("earth-search", SENTINEL, "sentinel-2-l2a", 19, {0}),
        ("planetary-computer", SENTINEL, "sentinel-2-l2a", 3, {0, -1000}),
    ],
)
def test_every_recorded_item_is_a_scene_or_says_why(
    service: str, product: Any, collection: str, scenes: int, added: set[int]
) -> None:
    found: dict[str, Scene] = {}
    for item in recorded(service):
        before = copy.deepcopy(item)
        row = normalise(item, product, service, None)
        assert item == before
        if isinstance(row, Unusable):
            assert row.reason == "other-collection"
            assert item["collection"] != collection
        else:
            found[row.item] = row
    assert len(found) == scenes
    assert {row.offset_add for row in found.values()} == added
    for row in found.values():
        assert row.cloud_percent is not None
        assert row.sun_elevation_deg is not None
        inside = Transformer.from_crs(row.epsg, "OGC:CRS84", always_xy=True)
        middle = inside.transform((row.x_min_m + row.x_max_m) / 2, (row.y_min_m + row.y_max_m) / 2)
        assert shapely.from_wkb(row.geometry).envelope.buffer(1).contains(shapely.Point(middle))


@needs_data
def test_reprocessed_recorded_scenes_keep_their_identity() -> None:
    rows = [normalise(item, SENTINEL, "earth-search", None) for item in recorded("earth-search")]
    table, lost = deduplicate(from_rows((r for r in rows if isinstance(r, Scene)), Scene))
    kept = to_rows(table, Scene)
    assert len(kept) == 11
    assert len(lost) == 8
    march = [row for row in kept if row.acquired.year == 2020]
    assert {row.baseline for row in march} == {"05.00"}

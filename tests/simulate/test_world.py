"""The catalogue of the size of the real ones: dense as the orbits are, paged, and sound."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import shapely

from benchmarks.dry_run import recipe_text
from pipeline.ports import Query
from pipeline.raster.land import is_land
from pipeline.recipe import LoadedRecipe, Recipe, load_recipe
from pipeline.records import Scene, Unusable
from pipeline.run.search import Answers
from pipeline.simulate.world.catalogue import World, WorldServer
from pipeline.simulate.world.items import survey_of
from pipeline.simulate.world.scenes import scene_tables
from pipeline.simulate.world.survey import FLIGHTS
from pipeline.sources.providers import load_provider
from pipeline.sources.stac.catalogue import Catalogue
from pipeline.stages.plan.plan import plan
from pipeline.stages.sample.take import take
from pipeline.stages.search.newest import deduplicate
from pipeline.stages.search.questions import facts_of, queries
from pipeline.store.tables import from_rows, to_rows

#: Half a degree of Saxony and the equator's crossing of Kenya's coast: both hemispheres.
BOXES = ((13.0, 51.0, 13.5, 51.5), (38.8, -0.2, 39.2, 0.2))
START, END = datetime(2021, 6, 1, tzinfo=UTC), datetime(2021, 7, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with WorldServer(tmp_path_factory.mktemp("world")) as server:
        yield server.url


@pytest.fixture(scope="module")
def loaded(url: str, tmp_path_factory: pytest.TempPathFactory) -> LoadedRecipe:
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(recipe_text("ssl4eo-s12", url))
    return load_recipe(path)


def asked(loaded: LoadedRecipe, product: str, provider: str) -> list[Query]:
    facts = facts_of(loaded.products[product], provider)
    return [Query(product, facts.collection, box, START, END) for box in BOXES]


def comparable(row: Scene) -> tuple[Any, ...]:
    """What planning reads of a scene; times to the second, and corners to a millimetre."""
    ground = shapely.get_coordinates(shapely.from_wkb(row.geometry)).round(6).tolist()
    sides = [round(side, 3) for side in (row.x_min_m, row.y_min_m, row.x_max_m, row.y_max_m)]
    sun = None if row.sun_elevation_deg is None else round(row.sun_elevation_deg, 4)
    names = (row.scene, row.provider, row.datatake, row.tile, row.baseline)
    files = [asset.name for asset in row.assets]
    second = row.acquired.replace(microsecond=0)
    return *names, second, row.cloud_percent, sun, row.epsg, *sides, ground, files


@pytest.mark.parametrize("product", ["sentinel-2-l2a", "sentinel-2-l1c", "sentinel-1-grd"])
def test_the_table_for_planning_is_what_a_search_of_the_catalogue_finds(
    loaded: LoadedRecipe, product: str
) -> None:
    (provider,) = loaded.wishes[product].providers
    questions = asked(loaded, product, provider)
    found = [*Answers(loaded, product, provider).rows(questions)]
    scenes = [row for row in found if isinstance(row, Scene)]
    assert len(scenes) == len(found) > 10
    tables = scene_tables(loaded, product, provider, questions)
    made = [row for table in tables for row in to_rows(table, Scene)]
    scenes = to_rows(from_rows(scenes, Scene), Scene)
    assert sorted(map(comparable, made)) == sorted(map(comparable, scenes))


def test_a_required_orbit_is_asked_for_and_loses_nothing(loaded: LoadedRecipe) -> None:
    (provider,) = loaded.wishes["sentinel-1-grd"].providers
    questions = asked(loaded, "sentinel-1-grd", provider)
    every = [*Answers(loaded, "sentinel-1-grd", provider).rows(questions)]
    facts = {row.item: json.loads(row.facts) for row in every if isinstance(row, Scene)}
    assert {own["orbit_direction"] for own in facts.values()} == {"descending"}
    orbit = next(iter(facts.values()))["relative_orbit"]
    wanted = {name for name, own in facts.items() if own["relative_orbit"] == orbit}
    assert 0 < len(wanted) < len(facts)
    values = loaded.recipe.model_dump(mode="json")
    require = {"orbit_direction": ["descending"], "relative_orbit": [orbit]}
    for wish in values["product"]:
        if wish["id"] == "sentinel-1-grd":
            wish["require"] = require
    choosy = LoadedRecipe(Recipe.model_validate(values), loaded.folder)
    ground = pa.table(
        {
            "lon_deg": [(west + east) / 2 for west, _, east, _ in BOXES],
            "lat_deg": [(south + north) / 2 for _, south, _, north in BOXES],
            "geometry": [shapely.to_wkb(shapely.box(*box)) for box in BOXES],
        }
    )
    only = queries(choosy, "sentinel-1-grd", ground)[0].only
    filtered = [replace(query, only=only) for query in questions]
    rows = [*Answers(choosy, "sentinel-1-grd", provider).rows(filtered)]
    assert {row.item for row in rows if isinstance(row, Scene)} == wanted
    assert len(rows) == len(wanted), "the catalogue sent no other"
    rows = [*Answers(choosy, "sentinel-1-grd", provider).rows(questions)]
    assert {row.item for row in rows if isinstance(row, Scene)} == wanted
    lost = {row.item for row in rows if isinstance(row, Unusable)}
    assert lost == set(facts) - wanted


def test_no_scene_of_two_satellites_is_taken_for_another(loaded: LoadedRecipe) -> None:
    """Each counts its own data takes, so the same numbers come from both."""
    (provider,) = loaded.wishes["sentinel-1-grd"].providers
    questions = asked(loaded, "sentinel-1-grd", provider)
    rows = [*Answers(loaded, "sentinel-1-grd", provider).rows(questions)]
    scenes = [row for row in rows if isinstance(row, Scene)]
    takes: dict[str, set[str]] = {"S1A": set(), "S1B": set()}
    for row in scenes:
        takes[row.item[:3]].add(f"{row.item.split('_')[7]}/{row.tile}")
    assert takes["S1A"] & takes["S1B"]
    kept, lost = deduplicate(from_rows(scenes, Scene))
    assert not lost
    assert kept.num_rows == len(scenes)


def test_hollow_pages_are_as_many_and_ask_for_as_many(tmp_path: Path, url: str) -> None:
    query = Query("", "sentinel-2-l2a", BOXES[0], START, END, at_most=(("eo:cloud_cover", 60.0),))

    def count(base: str) -> tuple[int, int]:
        provider = load_provider("earth-search", url=f"{base}/earth-search")
        with Catalogue(provider.model_copy(update={"page_size": 3})) as catalogue:
            return len(list(catalogue.search(query))), catalogue.requests

    with WorldServer(tmp_path, hollow=True) as hollow:
        assert count(hollow.url) == count(url)
    assert count(url)[0] > 6


def test_pages_hold_every_item_once_and_newest_first() -> None:
    world, mark, found = World(), {}, []
    wish = {"collections": ["landsat-c2l1"], "bbox": BOXES[0], "limit": 2}
    wish["datetime"] = "2022-06-01T00:00:00Z/2022-08-01T00:00:00Z"
    while mark is not None:
        page = json.loads(world.answer("", "POST", "usgs/search", {}, {**wish, **mark}).data())
        found += page["features"]
        mark = next((link["body"] for link in page["links"] if link["rel"] == "next"), None)
    times = [item["properties"]["datetime"] for item in found]
    assert len({item["id"] for item in found}) == len(found) == page["numberMatched"] > 10
    assert times == sorted(times, reverse=True)
    platforms = {item["properties"]["platform"] for item in found}
    assert platforms == {"LANDSAT_7", "LANDSAT_8", "LANDSAT_9"}


@pytest.mark.parametrize(
    ("mission", "days"), [("sentinel-2", 5), ("landsat", 8), ("sentinel-1", 6)]
)
def test_a_place_is_seen_as_often_as_orbits_and_swath_say(mission: str, days: float) -> None:
    """Swaths of neighbouring tracks overlap by what the swath is wider than their distance."""
    survey, tree = survey_of(mission)
    flight = FLIGHTS[mission]
    random = np.random.default_rng(1)
    lon, lat = random.uniform(15, 45, 500), random.uniform(-30, 55, 500)
    which, place = tree.query(shapely.points(lon, lat), predicate="intersects")
    # Tiles and frames overlap one another: each track counts once.
    looks = np.unique(np.stack([which, survey.track[place]]), axis=1)
    seen = np.bincount(looks[0], minlength=500)
    land = is_land(lon, lat)
    # The track runs some 10 degrees off the meridian, so its width along the parallel is more.
    slant = np.radians(flight.inclination_deg - 90) / np.cos(np.radians(lat))
    apart_km = 40_075 / flight.orbits * np.cos(np.radians(lat)) * np.cos(slant)
    ratio = seen[land].mean() / (flight.swath_km / apart_km[land]).mean()
    assert ratio == pytest.approx(1, abs=0.08)
    passes = survey.passes(place[:1], 0, 8 * 365 * 86_400)[2]
    assert np.diff(np.unique(passes)).min() == days * 86_400


def test_followers_asked_for_beside_their_leader_plan_the_same() -> None:
    """Questions by region and month bring hundreds of scenes for each that can serve."""
    values = load_recipe("triplets").recipe.model_dump()
    values["sample"]["region"] = (0.0, 40.0, 20.0, 54.0)
    values["slots"] |= {"start": date(2022, 6, 1), "end": date(2022, 7, 1)}
    loaded = LoadedRecipe(Recipe.model_validate(values), Path())
    tables: dict[bool, list[pa.Table]] = {}
    for beside in (False, True):
        found: list[pa.Table] = []
        for product in loaded.leaders_first():
            provider = loaded.wishes[product].providers[0]
            leaders = pa.concat_tables(found[:1]) if beside and found else None
            questions = queries(loaded, product, None, leaders=leaders, provider=provider)
            found.append(pa.concat_tables(scene_tables(loaded, product, provider, questions)))
        tables[beside] = found
    whole, near = (pa.concat_tables(tables[beside]) for beside in (False, True))
    assert whole.num_rows > 20 * near.num_rows
    locations = take(loaded, scenes=tables[True][0]).table
    plans = [plan(loaded, locations, scenes, cutoff=None) for scenes in (whole, near)]
    assert plans[0].patches.equals(plans[1].patches)
    filled = [row for row in plans[0].patches.column("candidates").to_pylist() if row]
    assert len(filled) > 50

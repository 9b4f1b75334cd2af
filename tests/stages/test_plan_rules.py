"""The rules of planning, one small example each."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import shapely

from pipeline.errors import IntegrityError
from pipeline.products.model import Product
from pipeline.recipe import LoadedRecipe, Recipe
from pipeline.stages.plan.plan import plan

START = datetime(2021, 1, 1, tzinfo=UTC)
#: Footprint about the cell, in longitude and latitude.
EVERYTHING = shapely.box(13, -4, 17, 4)
CELL = {
    "location": "north",
    "epsg": 32633,
    "x_min_m": 500_480.0,
    "y_max_m": 100_480.0,
    "size_m": 640.0,
    "lon_deg": 15.0,
    "lat_deg": 0.9,
}
SOUTHERN = {**CELL, "location": "south", "epsg": 32733, "y_max_m": 9_900_160.0}
SLOTS = {"kind": "windows", "windows": [{"name": "w", "start": "2021-01-01", "end": "2021-02-01"}]}
ALL = {"kind": "all", "start": "2021-01-01", "end": "2021-02-01"}


def scene(name: str, day: float = 10, **values: Any) -> dict[str, Any]:
    """Return a scene `<product>/<datatake>/<tile>` of everything in zone 33."""
    product, datatake, _ = name.split("/")
    return {
        "scene": name,
        "product": product,
        "item": name,
        "datatake": datatake,
        "acquired": START + timedelta(days=day),
        "baseline": "01.00",
        "cloud_percent": 10.0,
        "sun_elevation_deg": 40.0,
        "epsg": 32633,
        "x_min_m": 400_000.0,
        "y_min_m": -400_000.0,
        "x_max_m": 600_000.0,
        "y_max_m": 400_000.0,
        "geometry": shapely.to_wkb(EVERYTHING),
        **values,
    }


def planned(
    scenes: list[dict[str, Any]],
    *wishes: dict[str, Any],
    slots: dict[str, Any] = SLOTS,
    cells: tuple[dict[str, Any], ...] = (CELL,),
    cutoff: datetime | None = None,
    static: str = "",
    settling_days: float = 0,
) -> dict[tuple[str, ...], list[list[str]]]:
    """Return candidates by (location, product, slot)."""
    wishes = wishes or ({"id": "image"},)
    facts = {
        wish["id"]: Product.model_validate(
            {
                "id": wish["id"],
                "title": "made up",
                "lattice": "s2r10",
                "bands": [{"name": "a", "pixel_m": 10}],
                "temporal": "static" if wish["id"] == static else "dated",
                "settling_days": settling_days,
                "sources": ["made up"],
            }
        )
        for wish in wishes
    }
    recipe = Recipe.model_validate(
        {
            "name": "toy",
            "sample": {"strategy": "uniform"},
            "cell": {"lattice": "s2r10", "size_px": 64},
            "slots": slots,
            "product": [{"provider": "simulated", "candidates": 9, **wish} for wish in wishes],
        }
    )
    made = plan(
        LoadedRecipe(recipe, Path(), facts=facts),
        pa.Table.from_pylist(list(cells)),
        pa.Table.from_pylist(scenes or [scene("image/none/T", epsg=4326)]),
        cutoff=cutoff,
    )
    return {
        (row["location"], row["product"], row["slot"]): row["candidates"]
        for row in made.patches.to_pylist()
    }


def takes(found: dict[tuple[str, ...], list[list[str]]], product: str = "image") -> list[str]:
    """Return the datatakes of the candidates of the only slot."""
    (candidates,) = (views for key, views in found.items() if key[1] == product)
    return [view[0].split("/")[1] for view in candidates]


def test_a_patch_without_candidates_has_a_row_too() -> None:
    assert planned([]) == {("north", "image", "w"): []}


@pytest.mark.parametrize(
    ("choice", "order"),
    [
        ("least-cloudy", ["clear", "near", "far", "unknown"]),
        ("nearest", ["near", "clear", "unknown", "far"]),
        ("newest", ["far", "unknown", "near", "clear"]),
    ],
)
def test_candidates_are_ranked_by_choice(choice: str, order: list[str]) -> None:
    """Ties in cloud cover go to what is nearer to the slot's middle, the 16th at noon."""
    scenes = [
        scene("image/clear/T", 8, cloud_percent=0.0),
        scene("image/near/T", 16),
        scene("image/far/T", 30),
        scene("image/unknown/T", 24.5, cloud_percent=None),
    ]
    assert takes(planned(scenes, {"id": "image", "choice": choice})) == order
    some = planned(scenes, {"id": "image", "choice": choice, "candidates": 2})
    assert takes(some) == order[:2]


def test_limits_leave_out_scenes_and_unknown_cloud_counts_as_100() -> None:
    scenes = [
        scene("image/cloudy/T", cloud_percent=20.1),
        scene("image/unknown/T", cloud_percent=None),
        scene("image/night/T", sun_elevation_deg=-3.0),
        scene("image/dim/T", sun_elevation_deg=None),
        scene("image/fine/T", cloud_percent=20.0),
    ]
    found = planned(scenes, {"id": "image", "max_cloud_percent": 20, "min_sun_elevation_deg": 5})
    assert takes(found) == ["dim", "fine"]


def test_a_slot_holds_its_start_and_not_its_end() -> None:
    scenes = [
        scene("image/before/T", -0.001),
        scene("image/first/T", 0),
        scene("image/after/T", 31),
    ]
    assert takes(planned(scenes)) == ["first"]


def test_other_zones_are_no_candidates_but_both_hemispheres_of_one_zone_are() -> None:
    landsat = scene("image/landsat/T", 9)
    sentinel = scene("image/sentinel/T", 10, epsg=32733, y_min_m=9_600_000.0, y_max_m=10_400_000.0)
    other = scene("image/other/T", 11, epsg=32632)
    polar = scene("image/polar/T", 12, epsg=3031)
    found = planned([landsat, sentinel, other, polar], cells=(CELL, SOUTHERN))
    for cell in ("north", "south"):
        views = found[cell, "image", "w"]
        assert [view[0].split("/")[1] for view in views] == ["sentinel", "landsat"]


def test_scenes_of_one_datatake_make_up_a_candidate_and_of_two_do_not() -> None:
    west = shapely.box(13, -4, 15.005, 4)
    east = shapely.box(15.004, -4, 17, 4)
    cut = {"geometry": shapely.to_wkb(west)}, {"geometry": shapely.to_wkb(east)}
    cell = {**CELL, "x_min_m": 500_200.0}
    together = [scene("image/a/W", **cut[0]), scene("image/a/E", **cut[1])]
    apart = [scene("image/a/W", **cut[0]), scene("image/b/E", **cut[1])]
    assert planned(together, cells=(cell,))["north", "image", "w"] == [["image/a/E", "image/a/W"]]
    assert planned(apart, cells=(cell,))["north", "image", "w"] == []
    loose = planned(apart, {"id": "image", "contained": False}, cells=(cell,))
    assert loose["north", "image", "w"] == [["image/a/W"], ["image/b/E"]]


def test_a_follower_stands_and_falls_with_its_leader() -> None:
    leader, follower = {"id": "image"}, {"id": "radar", "follows": "image", "within_days": 2}
    scenes = [
        scene("image/alone/T", 5, cloud_percent=0.0),
        scene("image/led/T", 12),
        scene("radar/early/T", 9.999),
        scene("radar/late/T", 13.9, cloud_percent=90.0),
        scene("radar/edge/T", 14),
    ]
    found = planned(scenes, leader, follower)
    assert takes(found) == ["led"]
    assert takes(found, "radar") == ["edge"]
    near = planned(scenes, leader, {**follower, "choice": "nearest"})
    assert takes(near, "radar") == ["late"]
    none = planned(scenes[:3], leader, follower)
    assert none == {("north", "image", "w"): [], ("north", "radar", "w"): []}


def test_the_same_acquisition_is_the_same_datatake() -> None:
    leader, follower = {"id": "image"}, {"id": "second", "follows": "image"}
    scenes = [
        scene("image/a/T", 10),
        scene("image/b/T", 11),
        scene("second/b/U", 11.01),
        scene("second/c/U", 10),
    ]
    found = planned(scenes, leader, follower)
    assert takes(found) == takes(found, "second") == ["b"]


@pytest.mark.parametrize("follows", [{}, {"follows": "image"}])
def test_a_static_product_serves_every_slot(follows: dict[str, str]) -> None:
    two = [
        {"name": "one", "start": "2021-01-01", "end": "2021-02-01"},
        {"name": "two", "start": "2021-02-01", "end": "2021-03-01"},
    ]
    scenes = [scene("image/a/T", 10), scene("image/b/T", 40), scene("map/m/T", -900)]
    found = planned(
        scenes,
        {"id": "image"},
        {"id": "map", **follows},
        slots={"kind": "windows", "windows": two},
        static="map",
    )
    assert found["north", "map", "one"] == found["north", "map", "two"] == [["map/m/T"]]


def test_with_all_every_acquisition_that_shows_the_cell_is_a_slot() -> None:
    elsewhere = shapely.to_wkb(shapely.box(13, 2, 17, 4))
    scenes = [
        scene("image/b/T", 3),
        scene("image/a/T", 12),
        scene("image/away/T", 13, geometry=elsewhere),
        scene("image/late/T", 40),
        scene("second/a/T", 12),
    ]
    assert planned(scenes, slots=ALL) == {
        ("north", "image", "b"): [["image/b/T"]],
        ("north", "image", "a"): [["image/a/T"]],
    }
    found = planned(scenes, {"id": "image"}, {"id": "second", "follows": "image"}, slots=ALL)
    assert found["north", "image", "a"] == [["image/a/T"]]
    assert found["north", "second", "a"] == [["second/a/T"]]
    assert found["north", "image", "b"] == found["north", "second", "b"] == []


@pytest.mark.parametrize(("day", "rows"), [(35.9, 0), (36, 1)])
def test_a_slot_closes_when_leader_and_follower_have_settled(day: float, rows: int) -> None:
    """31 days of January, 2 for the follower's distance, 3 to settle."""
    found = planned(
        [scene("image/a/T")],
        {"id": "image"},
        {"id": "radar", "follows": "image", "within_days": 2},
        cutoff=START + timedelta(days=day),
        settling_days=3,
    )
    assert len(found) == 2 * rows


def test_with_all_an_acquisition_closes_on_its_own() -> None:
    scenes = [scene("image/a/T", 10), scene("image/b/T", 12)]
    found = planned(scenes, slots=ALL, cutoff=START + timedelta(days=14), settling_days=3)
    assert list(found) == [("north", "image", "a")]


def test_a_location_must_not_be_listed_twice() -> None:
    with pytest.raises(IntegrityError, match="twice"):
        planned([scene("image/a/T")], cells=(CELL, CELL))

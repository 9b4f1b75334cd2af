"""Followers are asked for beside their leader's scenes: nothing is missed, and pages are few."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.ports import Query
from pipeline.recipe import LoadedRecipe, Recipe
from pipeline.stages.search.questions import queries

START = datetime(2023, 1, 1, tzinfo=UTC)
WITHIN_DAYS = 5


def recipe(**follower: Any) -> LoadedRecipe:
    values = {
        "name": "x",
        "sample": {"strategy": "scenes", "product": "enmap-l2a"},
        "cell": {"lattice": "enmap30", "size_px": 128},
        "slots": {"kind": "all", "start": date(2023, 1, 1), "end": date(2024, 1, 1)},
        "product": [
            {"id": "enmap-l2a", "provider": "dlr", "max_cloud_percent": 30},
            {
                "id": "sentinel-2-l2a",
                "provider": "earth-search",
                "follows": "enmap-l2a",
                "within_days": WITHIN_DAYS,
                **follower,
            },
        ],
    }
    return LoadedRecipe(Recipe.model_validate(values), Path())


def scenes(*rows: tuple[shapely.Geometry, datetime, float | None]) -> pa.Table:
    """Return a leader's scenes; those of one minute are of one datatake."""
    moments = [when for _, when, _ in rows]
    return pa.table(
        {
            "acquired": pa.array(moments, pa.timestamp("us", "UTC")),
            "datatake": [f"{when:%Y%m%dT%H%M}" for when in moments],
            "geometry": pa.array([shape.wkb for shape, _, _ in rows], pa.binary()),
            "product": ["enmap-l2a"] * len(rows),
            "cloud_percent": pa.array([cloud for _, _, cloud in rows], pa.float64()),
            "sun_elevation_deg": pa.nulls(len(rows), pa.float64()),
        }
    )


def square(lon: float, lat: float, edge: float = 0.3) -> shapely.Geometry:
    return shapely.box(lon, lat, lon + edge, lat + edge)


def drawn(seed: int, count: int) -> list[tuple[shapely.Geometry, datetime, float]]:
    """Strips of scenes, as a pointed sensor takes them."""
    draw, rows = random.Random(seed), []
    while len(rows) < count:
        lon, lat = draw.uniform(-179, 178), draw.uniform(-60, 78)
        when = START + timedelta(minutes=draw.randrange(365 * 1440))
        for step in range(draw.randint(1, 8)):
            shape = square(lon - 0.05 * step, lat - 0.27 * step)
            rows.append((shape, when + timedelta(seconds=4.5 * step), 10.0))
    return rows[:count]


def asked(leaders: pa.Table) -> list[Query]:
    return queries(recipe(), "sentinel-2-l2a", None, leaders=leaders)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 300))
def test_every_scene_that_may_accompany_one_is_asked_for(seed: int, count: int) -> None:
    rows, draw = drawn(seed, count), random.Random(seed)
    questions = asked(scenes(*rows))
    for shape, when, _ in rows:
        west, south, east, north = shape.bounds
        # A follower's scene that shows a corner at least, at any time within the limit.
        corner = square(draw.choice([west - 1, east]), draw.choice([south - 1, north]), 1.0)
        later = when + timedelta(days=draw.choice([-1, 1]) * draw.uniform(0, WITHIN_DAYS))
        assert any(q.wants("sentinel-2-l2a", corner.bounds, [later]) for q in questions), (
            corner,
            later,
        )
    for query in questions:
        assert query.bbox is not None
        assert -180 <= query.bbox[0] < query.bbox[2] <= 180


def test_neighbours_are_asked_for_together_and_others_apart() -> None:
    strip = [(square(10, 45 - 0.27 * k), START, 0.0) for k in range(4)]
    assert len(asked(scenes(*strip))) == 1
    far = [
        (square(100, -20), START + timedelta(minutes=30), 0.0),
        (square(10, 45), START + timedelta(days=200), 0.0),
    ]
    (first, *others) = sorted(asked(scenes(*far, *strip)), key=lambda q: (q.start, q.bbox))
    assert len(others) == 2
    assert first.bbox is not None
    assert first.start is not None
    assert first.end is not None
    # All of the strip, a cell's edge around it, and no more.
    assert first.bbox == pytest.approx((9.95, 44.155, 10.35, 45.335), abs=0.02)
    assert START - first.start == first.end - START
    assert timedelta(days=WITHIN_DAYS) < first.end - START < timedelta(days=WITHIN_DAYS, hours=2)


def test_a_pass_is_never_torn_apart_for_the_sake_of_another() -> None:
    rows = scenes(*drawn(3, 3000))
    strips = len(rows.column("datatake").unique())
    assert strips / 2 < len(asked(rows)) < strips


def test_a_crowd_is_asked_for_in_few_questions() -> None:
    """As where a sensor is pointed at one country, day after day."""
    draw = random.Random(5)
    crowd = [
        (square(10 + draw.random(), 45 + draw.random()), START + timedelta(hours=7 * k), 0.0)
        for k in range(100)
    ]
    assert len(asked(scenes(*crowd))) < 10


def test_leaders_that_cannot_be_candidates_ask_nothing() -> None:
    rows = scenes((square(10, 45), START, 80.0), (square(20, 45), START, None))
    assert asked(rows) == []
    clear = scenes((square(10, 45), START, 30.0))
    assert len(asked(clear)) == 1


def test_a_scene_across_the_antimeridian_asks_on_both_sides() -> None:
    shape = shapely.MultiPolygon([square(179.9, 10, 0.1), square(-180, 10, 0.2)])
    boxes = {query.bbox for query in asked(scenes((shape, START, 0.0)))}
    assert len(boxes) == 2
    assert all(box is not None and box[2] - box[0] < 0.4 for box in boxes)


def test_maps_that_stand_still_are_asked_for_by_region() -> None:
    loaded = recipe(id="cop-dem-glo-30", within_days=0, provider="planetary-computer")
    questions = queries(
        loaded, "cop-dem-glo-30", None, leaders=scenes((square(10, 45), START, 0.0))
    )
    assert {(query.start, query.end) for query in questions} == {(None, None)}
    assert len(questions) > 1

"""The planner against a slow reference that asks one cell, one slot, one datatake at a time."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import shapely
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyproj import Transformer

from pipeline.products.catalogue import Product
from pipeline.recipe import LoadedRecipe, Recipe
from pipeline.stages.packing import patch_bytes
from pipeline.stages.plan import closed_slots, plan

START = datetime(2021, 1, 1, tzinfo=UTC)
CELL_M = 640.0
#: West and equator-side corners of the playground, in zones 33 and 34.
WEST_M, LOW_M = 499_840.0, 5_100_160.0
TRANSFORMERS = {
    epsg: Transformer.from_crs(f"EPSG:{epsg}", "OGC:CRS84", always_xy=True)
    for epsg in (32633, 32634, 32733)
}


def product(name: str, temporal: str = "dated") -> Product:
    return Product.model_validate(
        {
            "id": name,
            "title": name,
            "lattice": "s2r10",
            "temporal": temporal,
            "bands": [{"name": "B1", "pixel_m": 10}],
            "settling_days": 2,
            "sources": ["made up"],
        }
    )


def load(slots: dict[str, Any], *wishes: dict[str, Any], shard_mb: float = 512) -> LoadedRecipe:
    recipe = Recipe.model_validate(
        {
            "name": "toy",
            "sample": {"strategy": "uniform"},
            "cell": {"lattice": "s2r10", "size_px": 64},
            "slots": slots,
            "product": [{"provider": "simulated", **wish} for wish in wishes],
            "shards": {"shard_mb": shard_mb},
        }
    )
    facts = {
        wish["id"]: product(wish["id"], "static" if wish["id"] == "labels" else "dated")
        for wish in wishes
    }
    return LoadedRecipe(recipe, Path(), facts=facts)


MONTHS = {"kind": "months", "start": "2021-01-01", "end": "2021-04-01"}


def cell(col: int, row: int, epsg: int = 32633) -> dict[str, Any]:
    """Return a location: columns eastwards, rows northwards."""
    west, low = WEST_M + col * CELL_M, LOW_M + row * CELL_M
    if epsg == 32733:
        low += 10_000_000 - 2 * LOW_M
    return {
        "location": f"{epsg}-{col:02d}-{row:02d}",
        "epsg": epsg,
        "x_min_m": west,
        "y_max_m": low + CELL_M,
        "size_m": CELL_M,
        "lon_deg": 15.0,
        "lat_deg": 46.0,
    }


def scene(
    datatake: str,
    tile: str,
    *rings: list[tuple[float, float]],
    product: str = "image",
    epsg: int = 32633,
    day: float = 10.0,
    cloud: float | None = 10.0,
    sun: float | None = 40.0,
    baseline: str = "05.00",
    bounds: tuple[float, float, float, float] | None = None,
) -> dict[str, Any]:
    """Return a scene; its rings and bounds are in cells from the corner of the playground."""
    parts = []
    low_m = LOW_M if epsg != 32733 else 10_000_000 - LOW_M
    for ring in rings:
        x = [WEST_M + a * CELL_M for a, _ in ring]
        y = [low_m + b * CELL_M for _, b in ring]
        parts.append(shapely.Polygon(zip(*TRANSFORMERS[epsg].transform(x, y), strict=True)))
    west, south, east, north = bounds or (-20.0, -20.0, 20.0, 20.0)
    return {
        "scene": f"{product}/{datatake}/{tile}",
        "product": product,
        "item": f"{datatake}_{tile}_{baseline}",
        "datatake": datatake,
        "acquired": START + timedelta(days=day),
        "baseline": baseline,
        "cloud_percent": cloud,
        "sun_elevation_deg": sun,
        "epsg": epsg,
        "x_min_m": WEST_M + west * CELL_M,
        "y_min_m": low_m + south * CELL_M,
        "x_max_m": WEST_M + east * CELL_M,
        "y_max_m": low_m + north * CELL_M,
        "geometry": shapely.to_wkb(parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)),
    }


def box(west: float, south: float, east: float, north: float) -> list[tuple[float, float]]:
    return [(west, south), (east, south), (east, north), (west, north)]


WORLD = box(-10, -10, 10, 10)

LOCATIONS = pa.schema(
    [("location", "string"), ("epsg", "int64")]
    + [(name, "float64") for name in ("x_min_m", "y_max_m", "size_m", "lon_deg", "lat_deg")]
)
SCENES = pa.schema(
    [(name, "string") for name in ("scene", "product", "item", "datatake")]
    + [("acquired", pa.timestamp("us", tz="UTC")), ("baseline", "string")]
    + [("cloud_percent", "float64"), ("sun_elevation_deg", "float64"), ("epsg", "int64")]
    + [(name, "float64") for name in ("x_min_m", "y_min_m", "x_max_m", "y_max_m")]
    + [("geometry", "binary")]
)

Rows = list[dict[str, Any]]
Answer = dict[tuple[str, str, str], list[list[str]]]


def planned(loaded: LoadedRecipe, cells: Rows, scenes: Rows, cutoff: datetime | None = None) -> Any:
    return plan(
        loaded,
        pa.Table.from_pylist(cells, schema=LOCATIONS),
        pa.Table.from_pylist(scenes, schema=SCENES),
        cutoff=cutoff,
    )


def answers(made: Any) -> Answer:
    rows = made.patches.to_pylist()
    found = {(row["location"], row["product"], row["slot"]): row["candidates"] for row in rows}
    assert len(found) == len(rows), "a patch has several rows"
    return found


# --- the reference ---------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """One datatake of a product as one cell sees it."""

    scenes: tuple[str, ...]
    datatake: str
    time: datetime
    """Of its earliest scene there."""
    best: dict[str, Any]
    """Its best scene there."""


class Reference:
    """Plans by asking everything of everything."""

    def __init__(self, loaded: LoadedRecipe, scenes: Rows) -> None:
        self.loaded = loaded
        newest: dict[str, dict[str, Any]] = {}
        for row in sorted(scenes, key=lambda row: (row["baseline"], row["item"])):
            newest[row["scene"]] = row
        self.scenes = [row for row in newest.values() if self.good(row)]
        self.ground = {row["scene"]: self.seen(row) for row in self.scenes}

    def good(self, row: dict[str, Any]) -> bool:
        wish = self.loaded.wishes.get(row["product"])
        cloud = 100 if row["cloud_percent"] is None else row["cloud_percent"]
        sun = 90 if row["sun_elevation_deg"] is None else row["sun_elevation_deg"]
        return (
            wish is not None
            and cloud <= wish.max_cloud_percent
            and sun >= wish.min_sun_elevation_deg
        )

    def seen(self, row: dict[str, Any]) -> Any:
        """Return what a scene has seen, in its own CRS, grown by half a pixel."""
        to_plane = TRANSFORMERS[row["epsg"]]
        footprint = shapely.transform(
            shapely.from_wkb(row["geometry"]),
            lambda x, y: to_plane.transform(x, y, direction="INVERSE"),
            interleaved=False,
        )
        pixels = shapely.box(row["x_min_m"], row["y_min_m"], row["x_max_m"], row["y_max_m"])
        return shapely.make_valid(footprint).intersection(pixels).buffer(5, join_style="mitre")

    def answer(self, cells: Rows, cutoff: datetime | None) -> Answer:
        found: Answer = {}
        for leader in set(self.loaded.leader.values()):
            members = [leader]
            members += [p for p, l in self.loaded.leader.items() if l == leader and p != leader]
            for here in cells:
                for slot, chosen in self.wanted(leader, members[1:], here, cutoff):
                    for number, member in enumerate(members):
                        found[here["location"], member, slot] = [
                            list(views[number].scenes) for views in chosen
                        ]
        return found

    def wanted(
        self, leader: str, followers: list[str], here: dict[str, Any], cutoff: datetime | None
    ) -> Any:
        """Yield slots and, for each candidate, a view of the leader and of each follower."""
        wish = self.loaded.wishes[leader]
        for slot in closed_slots(self.loaded, leader, cutoff):
            middle = slot.start + (slot.end - slot.start) / 2

            def rank(row: dict[str, Any], middle: datetime = middle) -> Any:
                return preference(wish.choice, row, row["acquired"], middle)

            views = self.views(leader, here, rank, slot.start, slot.end)
            views.sort(key=lambda view: rank(view.best))
            beside = [[v, *(self.companion(f, here, v) for f in followers)] for v in views]
            if slot.id:
                yield slot.id, [views for views in beside if None not in views][: wish.candidates]
            else:
                for views in beside:
                    yield views[0].datatake, [views] if None not in views else []

    def views(
        self, name: str, here: dict[str, Any], rank: Any, start: datetime, end: datetime
    ) -> list[View]:
        """Return the acquisitions in [start, end) that show a cell."""
        static = self.loaded.products[name].temporal == "static"
        west, top = here["x_min_m"], here["y_max_m"]
        square = shapely.box(west, top - CELL_M, west + CELL_M, top)
        takes = defaultdict(list)
        for row in self.scenes:
            sides = (row["x_min_m"], row["y_min_m"], row["x_max_m"], row["y_max_m"])
            near = row["epsg"] == here["epsg"] and shapely.box(*sides).intersection(square).area
            in_time = static or start <= row["acquired"] < end
            if row["product"] == name and in_time and near:
                takes[row["datatake"]].append(row)
        found = []
        for datatake, rows in takes.items():
            rows.sort(key=rank)
            names = [row["scene"] for row in rows]
            scenes = self.mosaic(names, square, self.loaded.wishes[name].contained)
            if scenes:
                time = min(row["acquired"] for row in rows)
                found.append(View(tuple(scenes), datatake, time, rows[0]))
        return found

    def mosaic(self, scenes: list[str], square: Any, contained: bool) -> list[str]:
        pieces = {name: self.ground[name].intersection(square) for name in scenes}
        for name in scenes:
            if pieces[name].area >= square.area * (1 - 1e-7):
                return [name]
        share = {name: round(pieces[name].area / square.area, 6) for name in scenes}
        used, union = [], shapely.Polygon()
        for name in sorted(scenes, key=lambda name: (-share[name], scenes.index(name))):
            joined = union.union(pieces[name])
            if joined.area > union.area + 1e-7 * square.area:
                used.append(name)
                union = joined
            if union.area >= square.area * (1 - 1e-7):
                return used
        return [] if contained else used

    def companion(self, follower: str, here: dict[str, Any], beside: View) -> View | None:
        wish = self.loaded.wishes[follower]
        within = timedelta(days=wish.within_days)
        always = START - timedelta(days=9999), START + timedelta(days=9999)
        views = self.views(follower, here, lambda row: (cloud_of(row), row["scene"]), *always)
        if self.loaded.products[follower].temporal == "dated" and within:
            views = [view for view in views if abs(view.time - beside.time) <= within]
        elif self.loaded.products[follower].temporal == "dated":
            views = [view for view in views if view.datatake == beside.datatake]
        return min(
            views,
            key=lambda view: preference(wish.choice, view.best, view.time, beside.time),
            default=None,
        )


def preference(choice: str, best: dict[str, Any], time: datetime, wanted: datetime) -> Any:
    distance = abs(time - wanted)
    if choice == "nearest":
        return distance, cloud_of(best), best["scene"]
    if choice == "newest":
        return START - time, cloud_of(best), best["scene"]
    return cloud_of(best), distance, best["scene"]


def cloud_of(row: dict[str, Any]) -> float:
    return 100.0 if row["cloud_percent"] is None else row["cloud_percent"]


# --- parity ----------------------------------------------------------------------------------

#: Edges of footprints, in cells: on cell borders, inside cells, and 3 or 8 m off a border, which
#: is within and beyond the tolerance of half a pixel.
EDGES = st.sampled_from(
    [-4, -1, 0, 1, 1.5, 2, 2 + 3 / CELL_M, 2 - 3 / CELL_M, 2 + 8 / CELL_M, 3, 5]
)


@st.composite
def rings(draw: Any) -> list[list[tuple[float, float]]]:
    west, east = sorted(draw(st.lists(EDGES, min_size=2, max_size=2, unique=True)))
    south, north = sorted(draw(st.lists(EDGES, min_size=2, max_size=2, unique=True)))
    lean = draw(st.sampled_from([0.0, 0.0, 0.4]))
    kind = draw(st.sampled_from(["box", "box", "box", "concave", "parts"]))
    ring = [(west, south), (east, south), (east + lean, north), (west + lean, north)]
    if kind == "concave":
        ring.insert(2, ((east + west) / 2, (south + north) / 2))
    if draw(st.booleans()):
        ring.reverse()
    return [ring, box(4, 4, 5, 5)] if kind == "parts" else [ring]


@st.composite
def archives(draw: Any, products: tuple[str, ...]) -> Rows:
    days = {take: draw(st.floats(-2, 95)) for take in "abcde"}
    keys = draw(
        st.lists(
            st.tuples(st.sampled_from(products), st.sampled_from("abcde"), st.sampled_from("ABC")),
            max_size=14,
            unique=True,
        )
    )
    return [
        scene(
            take,
            tile,
            *draw(rings()),
            product=name,
            epsg=draw(st.sampled_from([32633, 32633, 32633, 32634])),
            day=round(days[take], 2) + draw(st.sampled_from([0, 0, 0.001])),
            cloud=draw(st.sampled_from([0.0, 0.0, 10.0, 40.0, 90.0, None])),
            sun=draw(st.sampled_from([30.0, 30.0, -5.0, None])),
            bounds=draw(st.sampled_from([None, (-1.0, -1.0, 2.0, 4.0), (0.0, 0.0, 4.0, 4.0)])),
        )
        for name, take, tile in keys
    ]


CELLS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from([32633, 32633, 32634])),
    min_size=1,
    max_size=6,
    unique=True,
).map(lambda places: [cell(*place) for place in places])

SLOTS = st.sampled_from(
    [
        MONTHS,
        {
            "kind": "windows",
            "windows": [
                {"name": "late", "start": "2021-02-01", "end": "2021-03-20"},
                {"name": "early", "start": "2021-01-10", "end": "2021-02-10"},
            ],
        },
        {"kind": "all", "start": "2021-01-05", "end": "2021-03-20"},
    ]
)
CHOICES = st.sampled_from(["least-cloudy", "nearest", "newest"])


@st.composite
def recipes(draw: Any) -> LoadedRecipe:
    leader = {
        "id": "image",
        "choice": draw(CHOICES),
        "candidates": draw(st.integers(1, 3)),
        "contained": draw(st.sampled_from([True, True, False])),
        "max_cloud_percent": draw(st.sampled_from([100, 100, 50])),
    }
    other = {"id": "other", "choice": draw(CHOICES)}
    labels = {"id": "labels", "choice": draw(CHOICES)}
    wishes = draw(
        st.sampled_from(
            [
                [leader],
                [leader, other],
                [{**other, "follows": "image"}, leader],
                [leader, {**other, "follows": "image", "within_days": 20}],
                [leader, {**labels, "follows": "image"}],
                [leader, labels],
                [leader, {**labels, "follows": "image"}, {**other, "follows": "image"}],
            ]
        )
    )
    shard_mb = draw(st.sampled_from([0.013, 0.05, 512]))
    return load(draw(SLOTS), *wishes, shard_mb=shard_mb)


@st.composite
def jobs(draw: Any) -> tuple[LoadedRecipe, Rows, Rows]:
    loaded = draw(recipes())
    return loaded, draw(CELLS), draw(archives(tuple(loaded.products)))


CUTOFFS = st.sampled_from([None, None, START + timedelta(days=61.5)])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(jobs(), CUTOFFS)
def test_it_finds_what_the_reference_finds(
    job: tuple[LoadedRecipe, Rows, Rows], cutoff: datetime | None
) -> None:
    loaded, cells, scenes = job
    assert answers(planned(loaded, cells, scenes, cutoff)) == Reference(loaded, scenes).answer(
        cells, cutoff
    )

"""The planner against a slow reference that asks one cell, one slot, one datatake at a time."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyproj import Transformer

from pipeline.products.model import Product
from pipeline.recipe import LoadedRecipe, Recipe
from pipeline.stages.plan.growth import DONE_SCHEMA
from pipeline.stages.plan.packing import patch_bytes
from pipeline.stages.plan.plan import closed_slots, plan

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


def planned(
    loaded: LoadedRecipe,
    cells: Rows,
    scenes: Rows,
    cutoff: datetime | None = None,
    done: pa.Table | None = None,
) -> Any:
    return plan(
        loaded,
        pa.Table.from_pylist(cells, schema=LOCATIONS),
        pa.Table.from_pylist(scenes, schema=SCENES),
        cutoff=cutoff,
        done=done,
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
        seen = shapely.make_valid(footprint).intersection(pixels)
        # Footprints and rasters of this test share edges, which rounding turns into slivers.
        return seen.buffer(5, join_style="mitre") if seen.area > 1 else shapely.Polygon()

    def answer(self, cells: Rows, cutoff: datetime | None) -> Answer:
        found: Answer = {}
        for leader in set(self.loaded.leader.values()):
            members = [leader]
            members += [p for p, its in self.loaded.leader.items() if its == leader != p]
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


LAWS = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
CUTOFFS = st.sampled_from([None, None, START + timedelta(days=61.5)])


@LAWS
@given(jobs(), CUTOFFS)
def test_it_finds_what_the_reference_finds(
    job: tuple[LoadedRecipe, Rows, Rows], cutoff: datetime | None
) -> None:
    loaded, cells, scenes = job
    assert answers(planned(loaded, cells, scenes, cutoff)) == Reference(loaded, scenes).answer(
        cells, cutoff
    )


# --- laws ------------------------------------------------------------------------------------


@LAWS
@given(jobs(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(job: Any, random: Any) -> None:
    loaded, cells, scenes = job
    made = planned(loaded, cells, scenes)
    random.shuffle(cells)
    random.shuffle(scenes)
    again = planned(loaded, cells, scenes)
    assert again.patches.equals(made.patches)
    assert again.scenes.equals(made.scenes)


@LAWS
@given(jobs())
def test_a_multipolygon_of_one_part_is_that_polygon(job: Any) -> None:
    loaded, cells, scenes = job
    wrapped = []
    for row in scenes:
        parts = shapely.get_parts(shapely.from_wkb(row["geometry"]))
        wrapped.append(row | {"geometry": shapely.to_wkb(shapely.MultiPolygon(list(parts)))})
    assert answers(planned(loaded, cells, wrapped)) == answers(planned(loaded, cells, scenes))


@LAWS
@given(jobs())
def test_shards_are_whole_within_their_limit_and_in_order(job: Any) -> None:
    loaded, cells, scenes = job
    made = planned(loaded, cells, scenes)
    rows = made.patches.to_pylist()
    keys = [(row["shard"], row["product"], row["sample"], row["time"]) for row in rows]
    assert keys == sorted(set(keys))
    shards = [row["shard"] for row in rows]
    assert sorted(set(shards)) == list(range(len(made.shard_rows)))
    assert [shards.count(k) for k in range(len(made.shard_rows))] == made.shard_rows.tolist()
    limit = loaded.recipe.shards.shard_mb * 1e6
    for shard, stated in enumerate(made.shard_bytes.tolist()):
        mine = [row for row in rows if row["shard"] == shard]
        size = sum(patch_bytes(loaded, row["product"]) for row in mine if row["candidates"])
        groups = {(row["location"], row["slot"], row["group"]) for row in mine}
        assert size == stated
        assert size <= limit or len(groups) == 1
        samples = {row["location"]: row["sample"] for row in mine}
        assert sorted(samples.values()) == list(range(len(samples)))
        assert all(row["sample"] == samples[row["location"]] for row in mine)
        for place in {(row["product"], row["sample"]) for row in mine}:
            times = [row["time"] for row in mine if (row["product"], row["sample"]) == place]
            assert times == list(range(len(times)))
    together = defaultdict(set)
    for row in rows:
        together[row["location"], row["slot"], row["group"]].add(row["shard"])
    assert all(len(found) == 1 for found in together.values())


@LAWS
@given(jobs())
def test_a_plan_holds_the_scenes_it_names_and_no_other(job: Any) -> None:
    loaded, cells, scenes = job
    made = planned(loaded, cells, scenes)
    named = {s for views in answers(made).values() for view in views for s in view}
    assert made.scenes.column("scene").to_pylist() == sorted(named)


# --- growth ----------------------------------------------------------------------------------


def history(made: Any, states: dict[tuple[str, str, str], str | None], number: int = 1) -> pa.Table:
    """Return what a plan held, and what became of it (as long as nothing is said: written)."""
    rows = [
        {
            "plan": number,
            "state": states.get((row["location"], row["slot"], row["group"]), "written"),
            **{name: row[name] for name in ("location", "product", "slot", "candidates")},
        }
        for row in made.patches.to_pylist()
    ]
    return pa.Table.from_pylist(rows, schema=DONE_SCHEMA)


@LAWS
@given(jobs(), st.integers(0, 6))
def test_two_plans_hold_what_one_would(job: Any, early: int) -> None:
    """More locations and a later cut-off add rows, and never touch an earlier one."""
    loaded, cells, scenes = job
    half = START + timedelta(days=61.5)
    first = planned(loaded, cells[:early], scenes, half)
    second = planned(loaded, cells, scenes, done=history(first, {}))
    whole = answers(planned(loaded, cells, scenes))
    before, after = answers(first), answers(second)
    assert not before.keys() & after.keys()
    assert before | after == whole


@LAWS
@given(jobs(), jobs(), st.randoms(use_true_random=False))
def test_only_a_rejected_patch_with_other_candidates_opens_again(
    job: Any, other: Any, random: Any
) -> None:
    loaded, cells, scenes = job
    first = planned(loaded, cells, scenes)
    more = [
        row
        for row in other[2]
        if row["product"] in loaded.products and row["scene"] not in {s["scene"] for s in scenes}
    ]
    groups = {(r["location"], r["slot"], r["group"]) for r in first.patches.to_pylist()}
    states = {g: random.choice(["written", "failed", "rejected", None]) for g in sorted(groups)}
    second = planned(loaded, cells, scenes + more, done=history(first, states))
    before, now = answers(first), answers(planned(loaded, cells, scenes + more))
    due = set()
    for key in now:
        location, product, slot = key
        group = location, slot, loaded.leader[product]
        if group not in states:
            due.add(key)
        members = [(location, p, slot) for p, leader in loaded.leader.items() if leader == group[2]]
        if states.get(group) == "rejected" and any(before[m] != now[m] for m in members):
            due.add(key)
    assert answers(second) == {key: now[key] for key in due}


def test_the_last_plan_of_a_patch_counts() -> None:
    loaded = load(MONTHS, {"id": "image"})
    cells = [cell(0, 0)]
    first = planned(loaded, cells, [scene("a", "A", WORLD)])
    january = (cells[0]["location"], "2021-01", "image")
    old = history(first, {january: "rejected"})
    two = [scene("a", "A", WORLD), scene("b", "A", WORLD, day=12)]
    second = planned(loaded, cells, two, done=old)
    assert list(answers(second)) == [(january[0], "image", "2021-01")]
    for state, due in (("written", 0), (None, 0), ("rejected", 0)):
        done = pa.concat_tables([history(second, {january: state}, number=2), old])
        assert planned(loaded, cells, two, done=done).patches.num_rows == due
    three = [*two, scene("c", "A", WORLD, day=14)]
    for state, due in (("written", 0), ("rejected", 1)):
        done = pa.concat_tables([history(second, {january: state}, number=2), old])
        assert planned(loaded, cells, three, done=done).patches.num_rows == due

"""The stage `search` as a whole: from a recipe to the tables of a root."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import permutations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import shapely

from pipeline.errors import GiveUp, RecipeError, TryAgain
from pipeline.recipe import LoadedRecipe, Recipe, load_recipe
from pipeline.records import Location, Scene, Unusable
from pipeline.run.compare import run_compare
from pipeline.run.search import run_search
from pipeline.run.spool import Spool
from pipeline.stages.search.gaps import Gap
from pipeline.store.layout import SCENES
from pipeline.store.objects import open_store
from pipeline.store.tables import append, read_all, schema_of, to_rows

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
REAL = Path(__file__).resolve().parents[1] / "real"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="real data (../shared/data) not here")


@contextmanager
def careless_api(
    items: list[dict[str, Any]], *, searches: int = 10**6, per_page: int = 10**6
) -> Iterator[str]:
    """Serve an item search that answers every question with everything.

    `searches`: how many it answers; then it forbids them.
    """
    left = iter(range(searches))

    class Http(BaseHTTPRequestHandler):
        def answer(self) -> None:
            text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            start = json.loads(text or "{}").get("start", 0)
            more = {"rel": "next", "method": "POST", "href": f"{url}/search"}
            links = [{**more, "body": {"start": start + per_page}}] * (
                start + per_page < len(items)
            )
            landing = {"type": "Catalog", "id": "x", "description": "x", "stac_version": "1.0.0"}
            conforms = {"conformsTo": ["https://api.stacspec.org/v1.0.0/core"]}
            found = items[start : start + per_page]
            page = {"type": "FeatureCollection", "features": found, "links": links}
            document = {**landing, **conforms, "links": []} if self.command == "GET" else page
            data = json.dumps(document).encode()
            allowed = self.command == "GET" or next(left, None) is not None
            self.send_response(200 if allowed else 403)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = answer

        def log_message(self, format: str, *args: Any) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Http)
    url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def item(
    name: str, *, lon: float = 9.5, baseline: str = "03.01", day: int = 5, host: str = "127.0.0.1"
) -> dict[str, Any]:
    grid = {"proj:shape": [1830, 1830], "proj:transform": [60, 0, 499980, 0, -60, 5300040]}
    keys = [f"B{n:02d}" for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12)] + ["B8A", "SCL"]
    ring = [[lon, 47], [lon + 1, 47], [lon + 1, 48], [lon, 48], [lon, 47]]
    return {
        "id": name,
        "collection": "sentinel-2-l2a",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "datetime": f"2020-03-{day:02d}T10:37:41Z",
            "proj:epsg": 32632,
            "eo:cloud_cover": 3,
            "s2:datatake_id": f"GS2A_202003{day:02d}T103021_024558_N{baseline}",
            "s2:mgrs_tile": "32TNT",
            "s2:processing_baseline": baseline,
        },
        "assets": {key: {"href": f"http://{host}/{name}/{key}.tif", **grid} for key in keys},
    }


def recipe(url: str) -> LoadedRecipe:
    wish = {"id": "sentinel-2-l2a", "provider": "simulated", "url": url}
    months = {"kind": "months", "start": date(2020, 3, 1), "end": date(2020, 5, 1)}
    values = {
        "name": "x",
        "sample": {"strategy": "uniform", "count": 2},
        "cell": {"lattice": "s2r10", "size_px": 60},
        "slots": months,
        "product": [wish],
    }
    return LoadedRecipe(Recipe.model_validate(values), Path())


def root(folder: Path) -> Any:
    """Return a store with two locations, one in each of two areas."""
    store = open_store(str(folder))
    rows = [
        {
            "location": f"cell-{lon}",
            "index": number,
            "zone": "32N",
            "epsg": 32632,
            "x_min_m": 500_000.0,
            "y_max_m": 5_300_000.0,
            "size_m": 600.0,
            "lon_deg": lon,
            "lat_deg": 47.5,
            "stratum": "",
            "geometry": shapely.to_wkb(shapely.box(lon, 47.5, lon + 0.01, 47.51)),
        }
        for number, lon in enumerate((9.6, 12.1))
    ]
    append(store, "locations", pa.Table.from_pylist(rows, schema=schema_of(Location)), Location)
    return store


def unusable(store: Any) -> dict[str, str]:
    rows = read_all(store, SCENES, Unusable, suffix="unusable").to_pylist()
    return {row["item"]: row["reason"] for row in rows}


def test_only_what_was_asked_for_and_may_be_read_becomes_a_scene(tmp_path: Path) -> None:
    items = [
        item("first"),
        item("in-the-second-area", lon=12.0, day=6),
        item("elsewhere", lon=100.0, day=7),
        item("later", day=8) | {"collection": "sentinel-1-grd"},
        item("stolen", day=9, host="evil.example"),
        item("old", day=10, baseline="02.14"),
        item("new", day=10, baseline="03.00"),
    ]
    store = root(tmp_path)
    with careless_api(items) as url:
        loaded = recipe(url)
        report = run_search(loaded, store)
        again = run_search(loaded, store)
        items.append(item("newest", day=10, baseline="03.01"))
        later = run_search(loaded, store)
    assert report.found == {"sentinel-2-l2a": 3}
    assert report.new == 3
    assert report.requests == 1 + 2, "a landing page, then two areas"
    assert unusable(store) == {
        "elsewhere": "outside-query",
        "later": "other-collection",
        "stolen": "refused-href",
        "old": "duplicate",
        "new": "duplicate",
    }
    assert (again.new, later.new) == (0, 1)
    assert report.nothing is None
    scenes = read_all(store, SCENES, Scene).to_pylist()
    assert [row["item"] for row in scenes] == ["first", "in-the-second-area", "new", "newest"]


def test_without_locations_or_a_catalogue_nothing_is_written(tmp_path: Path) -> None:
    with careless_api([]) as url:
        loaded = recipe(url)
    empty = open_store(str(tmp_path / "empty"))
    with pytest.raises(RecipeError, match="run `terrashard sample` first"):
        run_search(loaded, empty)
    store = root(tmp_path / "root")
    with pytest.raises(TryAgain):
        run_search(loaded, store)
    assert not list(store.list(SCENES))


def test_a_static_catalogue_on_disk_is_searched_too(tmp_path: Path) -> None:
    entries = [item("wanted"), item("elsewhere", lon=100.0, day=7)]
    links = []
    for entry in entries:
        for key, asset in entry["assets"].items():
            asset["href"] = f"./{key}.tif"
        (tmp_path / f"{entry['id']}.json").write_text(json.dumps({"type": "Feature", **entry}))
        links.append({"rel": "item", "href": f"./{entry['id']}.json"})
    catalogue = {"type": "Catalog", "id": "x", "description": "", "links": links}
    (tmp_path / "catalog.json").write_text(json.dumps(catalogue))
    values = recipe("http://127.0.0.1:1").recipe.model_dump()
    wish = {**values["product"][0], "provider": "static", "url": "catalog.json"}
    values["product"] = [wish]
    values["sample"] = {
        "strategy": "scenes",
        "product": "sentinel-2-l2a",
        "region": (9.0, 46.0, 11.0, 49.0),
    }
    loaded = LoadedRecipe(Recipe.model_validate(values), tmp_path)
    store = open_store(str(tmp_path / "root"))
    report = run_search(loaded, store)
    assert (report.found, report.unusable) == ({"sentinel-2-l2a": 1}, {})
    (scene,) = read_all(store, SCENES, Scene).to_pylist()
    assert scene["assets"][0]["href"] == str(tmp_path / "B01.tif")


@needs_data
@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("enmap", {"enmap-l2a": 2}),
        ("enmap-potsdam", {"enmap-potsdam": 6, "potsdam-labels": 6}),
        ("sentinel-2", {"sentinel-2-l2a": 1}),
    ],
)
def test_real_folders_are_searched_from_their_recipes(
    tmp_path: Path, name: str, found: dict[str, int]
) -> None:
    store = open_store(str(tmp_path))
    loaded = load_recipe(REAL / f"{name}.toml")
    there = [wish for wish in loaded.recipe.product if loaded.path(wish.path or "").is_dir()]
    changes = {"product": tuple(there), "evaluate": None}  # labels may be made by a test alone
    loaded = LoadedRecipe(loaded.recipe.model_copy(update=changes), loaded.folder)
    report = run_search(loaded, store)
    assert (report.found, report.unusable, report.requests) == (found, {}, 0)
    assert run_search(loaded, store).new == 0
    assert read_all(store, SCENES, Scene).num_rows == sum(found.values())


@needs_data
@pytest.mark.parametrize("chunk_rows", [1, 3, 100])
def test_chunks_make_no_difference(tmp_path: Path, chunk_rows: int) -> None:
    store = open_store(str(tmp_path))
    run_search(load_recipe(REAL / "enmap-potsdam.toml"), store)
    rows = to_rows(read_all(store, SCENES, Scene), Scene)
    with Spool(
        {rows[0].scene: (rows[0].provider, rows[0].baseline)}, chunk_rows=chunk_rows
    ) as spool:
        for row in rows:
            spool.add(row)
        kept = [name for scenes, _ in spool.chunks() for name in scenes["scene"].to_pylist()]
    assert sorted(kept) == sorted(row.scene for row in rows[1:])


# --- several providers ---------------------------------------------------------------------------


def wishing(**changes: Any) -> LoadedRecipe:
    """Return the recipe with another wish."""
    values = recipe("http://127.0.0.1:1").recipe.model_dump()
    values["product"] = [{**values["product"][0], **changes}]
    return LoadedRecipe(Recipe.model_validate(values), Path())


def two(first: str, second: str) -> LoadedRecipe:
    """A recipe that lists two providers, whose catalogues are on loopback."""
    return wishing(provider=["simulated", "stac"], url={"simulated": first, "stac": second})


def at(url: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Return an item with its files beside a catalogue."""
    assets = {key: {**asset, "href": f"{url}/{key}.tif"} for key, asset in entry["assets"].items()}
    return {**entry, "assets": assets}


def test_a_later_provider_fills_what_an_earlier_one_lacks(tmp_path: Path) -> None:
    here: list[dict[str, Any]] = []
    there: list[dict[str, Any]] = []
    store = root(tmp_path)
    with careless_api(here) as one, careless_api(there) as other:
        here += [at(one, item("both")), at(one, item("old", day=6))]
        there += [at(other, item("twin")), at(other, item("only-there", day=7))]
        there += [at(other, item("newer", day=6, baseline="03.02"))]
        loaded = two(one, other)
        report = run_search(loaded, store)
        table = run_compare(loaded, store)
    assert (report.found, report.new, report.unanswered) == ({"sentinel-2-l2a": 3}, 3, None)
    scenes = {row["item"]: row["provider"] for row in read_all(store, SCENES, Scene).to_pylist()}
    assert scenes == {"both": "simulated", "newer": "stac", "only-there": "stac"}
    assert unusable(store) == {}, "a scene that another provider gives is not unusable"
    assert table.gaps == [
        Gap("sentinel-2-l2a", "2020-03", "simulated", 2, 1),
        Gap("sentinel-2-l2a", "2020-03", "stac", 3, 0),
        Gap("sentinel-2-l2a", "2020-04", "simulated", 0, 0),
        Gap("sentinel-2-l2a", "2020-04", "stac", 0, 0),
    ]
    assert "2 (1)" in str(table)


@pytest.mark.parametrize("order", list(permutations(("02.14", "05.00", "05.10"))))
def test_the_newest_processing_stays_in_whatever_page_and_order_it_comes(
    tmp_path: Path, order: tuple[str, ...]
) -> None:
    """One datatake, a page for each processing: two of them at either provider, one at both."""
    here: list[dict[str, Any]] = []
    there: list[dict[str, Any]] = []
    store = root(tmp_path)
    with careless_api(here, per_page=1) as one, careless_api(there, per_page=1) as other:
        here += [at(one, item(f"here-{baseline}", baseline=baseline)) for baseline in order[:2]]
        there += [at(other, item(f"there-{baseline}", baseline=baseline)) for baseline in order[1:]]
        report = run_search(two(one, other), store)
    (scene,) = read_all(store, SCENES, Scene).to_pylist()
    best = "here" if "05.10" in order[:2] else "there"
    assert (scene["item"], scene["baseline"]) == (f"{best}-05.10", "05.10")
    assert (report.found, report.new) == ({"sentinel-2-l2a": 1}, 1)
    assert set(unusable(store).values()) == {"duplicate"}
    assert scene["item"] not in unusable(store)


def test_a_provider_that_fails_is_passed_over_with_all_that_it_said(tmp_path: Path) -> None:
    """It answers the first question and no more: what it said then must not count."""
    here: list[dict[str, Any]] = []
    there: list[dict[str, Any]] = []
    store = root(tmp_path / "a")
    with careless_api(here, searches=1) as one, careless_api(there) as other:
        here += [at(one, item("first")), at(one, item("stolen", day=9, host="evil.example"))]
        there += [at(other, item("second"))]
        report = run_search(two(one, other), store)
    assert report.unanswered is not None
    assert "provider simulated" in report.unanswered
    scenes = {row["item"]: row["provider"] for row in read_all(store, SCENES, Scene).to_pylist()}
    assert scenes == {"second": "stac"}
    assert unusable(store) == {}
    with careless_api([], searches=0) as one, careless_api([], searches=0) as other:
        loaded = two(one, other)
        with pytest.raises(GiveUp):
            run_search(loaded, root(tmp_path / "b"))
        with pytest.raises(GiveUp, match=r"provider simulated(.|\n)*provider stac"):
            run_compare(loaded, root(tmp_path / "c"))


def test_where_nothing_is_found_the_report_says_what_to_look_at(tmp_path: Path) -> None:
    with careless_api([]) as empty:
        report = run_search(recipe(empty), root(tmp_path))
    assert report.found == {"sentinel-2-l2a": 0}
    assert report.nothing is not None
    assert "sentinel-2-l2a at simulated" in report.nothing


def test_one_provider_in_a_list_is_that_provider() -> None:
    plain = wishing()
    assert plain.dump()["recipe"]["product"][0]["provider"] == "simulated"
    assert wishing(provider=["simulated"]).identity == plain.identity
    both = two("http://127.0.0.1:1", "http://127.0.0.1:2")
    assert both.identity != plain.identity
    assert LoadedRecipe.restore(json.loads(json.dumps(both.dump()))).identity == both.identity


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"provider": ["simulated", "simulated"]}, "each once"),
        ({"provider": []}, "at least one"),
        ({"provider": ["simulated", "stac"]}, "write a table"),
        ({"provider": ["simulated", "stac"], "url": {"dlr": "https://x.example"}}, "for dlr"),
        ({"provider": ["simulated", "local"], "url": {}}, "needs `path`"),
    ],
)
def test_lists_of_providers_that_make_no_sense_are_refused(
    wish: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        wishing(**wish)


def test_a_folder_that_holds_nothing_of_a_product_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "scenes").mkdir()
    values = recipe("http://127.0.0.1:1").recipe.model_dump(exclude_unset=True)
    values["product"] = [{"id": "sentinel-2-l2a", "provider": "local", "path": "scenes"}]
    loaded, store = LoadedRecipe(Recipe.model_validate(values), tmp_path), root(tmp_path / "root")
    with pytest.raises(RecipeError, match="holds nothing of the kind 'safe'"):
        run_search(loaded, store)

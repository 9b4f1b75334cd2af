"""A recipe of complete places draws in rounds, and what it publishes depends on none of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.engine.serial import SerialEngine
from pipeline.errors import RecipeError
from pipeline.recipe import LoadedRecipe, Recipe
from pipeline.records import Location
from pipeline.run.everything import run_everything
from pipeline.run.status import run_status
from pipeline.simulate.service.server import ArchiveServer
from pipeline.stages.sample.complete import Standing, more, published, standing, wanted_patches
from pipeline.store import layout
from pipeline.store.ledger import states
from pipeline.store.objects import open_store
from pipeline.store.reader import open_dataset
from pipeline.store.tables import read_all
from pipeline.watch.progress import Progress

WANTED = 6


def recipe(server: ArchiveServer, folder: Path, **sample: Any) -> LoadedRecipe:
    """Two months of one sensor, so strict that about half of all places lack one."""
    values = {
        "name": "whole",
        "seed": 3,
        "sample": {
            "strategy": "uniform",
            "region": (15.022, 51.901, 15.043, 51.914),
            "count": WANTED,
            **sample,
        },
        "cell": {"lattice": "enmap30", "size_px": 4},
        "slots": {"kind": "months", "start": "2023-04-01", "end": "2023-06-01"},
        "product": [
            {
                "id": "enmap-l2a",
                "provider": "simulated",
                "url": f"{server.url}/dlr",
                "max_cloud_fraction": 0.2,
                "bands": ["B010", "B050"],
            }
        ],
    }
    return LoadedRecipe(Recipe.model_validate(values), folder)


def run(loaded: LoadedRecipe) -> tuple[list[tuple[str, Any]], Any]:
    store = open_store(loaded.folder / "root")
    with Progress(live=False) as progress:
        done = list(
            run_everything(loaded, store, engine=SerialEngine, until="publish", progress=progress)
        )
    return done, store


def test_rounds_end_with_the_first_complete_places(server: ArchiveServer, tmp_path: Path) -> None:
    loaded = recipe(server, tmp_path, complete=True, max_draws=400)
    done, store = run(loaded)
    rounds = [report for stage, report in done if stage == "sample"]
    assert rounds[0].new == WANTED
    assert rounds[0].complete is None
    assert len(rounds) > 2, "the first round was complete: nothing is tested"
    assert rounds[-1].new == 0
    assert rounds[-1].complete >= WANTED
    assert not rounds[-1].exhausted

    # The same places, found at once and judged by the ledger alone.
    more_than_enough = recipe(server, tmp_path / "at-once", count=rounds[-1].total)
    _, plain = run(more_than_enough)
    by_place: dict[str, list[str]] = {}
    for row in states(plain).to_pylist():
        by_place.setdefault(row["location"], []).append(row["state"])
    order = read_all(plain, layout.LOCATIONS, Location).sort_by("index")["location"].to_pylist()
    whole = [name for name in order if by_place[name] == ["written"] * 2]

    index = open_dataset(store.url).index
    assert sorted(set(index["location"].to_pylist())) == sorted(whole[:WANTED])
    assert index.num_rows == 2 * WANTED
    assert done[-1][1].locations == WANTED
    assert done[-1][1].left_out == rounds[-1].total - WANTED

    said = str(run_status(loaded, store))
    assert re.search(rf"complete +{rounds[-1].complete}\b", said)

    again, _ = run(loaded)
    assert [report.new for stage, report in again if stage == "sample"] == [0, 0]
    assert again[-1][1].new is False


def test_draws_end_where_the_recipe_says(server: ArchiveServer, tmp_path: Path) -> None:
    loaded = recipe(server, tmp_path, complete=True, max_draws=WANTED + 1)
    done, store = run(loaded)
    last = [report for stage, report in done if stage == "sample"][-1]
    assert last.exhausted
    assert last.complete < WANTED
    assert read_all(store, layout.LOCATIONS, Location)["index"].to_numpy().max() <= WANTED
    assert done[-1][1].locations == last.complete


def _standing(loaded: LoadedRecipe, *patches: tuple[str, str, str | None]) -> Standing:
    names = sorted({place for place, _, _ in patches})
    columns = ("location", "slot", "state")
    rows = {name: [patch[k] for patch in patches] for k, name in enumerate(columns)}
    table = pa.table({"location": pa.array([*names, "unplanned"])})
    return standing(loaded, table, pa.table(rows))


def test_a_place_is_complete_when_every_wanted_patch_is_written(
    server: ArchiveServer, tmp_path: Path
) -> None:
    loaded = recipe(server, tmp_path, complete=True)
    assert wanted_patches(loaded) == 2
    now = _standing(
        loaded,
        *[("a", month, "written") for month in ("2023-04", "2023-05")],
        ("b", "2023-04", "written"),  # its other month is not planned yet
        ("c", "2023-04", "written"),
        ("c", "2023-05", None),
        ("d", "2023-04", "rejected"),
        ("d", "2023-05", None),
        ("e", "2023-04", "written"),
        ("e", "2023-05", "failed"),
    )
    assert now.complete.to_pylist() == ["a"]
    assert (now.incomplete, now.open) == (2, 3)


@pytest.mark.parametrize(
    ("complete", "incomplete", "still_open", "wanted", "new"),
    [
        (10, 90, 0, 10, 0),  # there are enough
        (9, 0, 1, 10, 0),  # the open one may do
        (0, 10, 0, 10, 110),  # none so far: a limited guess
        (49, 50, 0, 99, 100),  # half of them were complete
        (99, 0, 0, 199, 100),  # all of them were
    ],
)
def test_a_round_draws_what_is_missing_at_the_share_so_far(
    complete: int, incomplete: int, still_open: int, wanted: int, new: int
) -> None:
    ids = pa.array([f"{k}" for k in range(complete)], "string")
    assert more(Standing(ids, incomplete, still_open), wanted) == new


def test_the_first_complete_places_by_index_are_published() -> None:
    places = pa.table({"location": ["a", "b", "c", "d"], "index": [7, 3, 5, 1]})
    now = Standing(pa.array(["a", "b", "c"]), 1, 0)
    assert published(now, places, 2).to_pylist() == ["b", "c"]


@pytest.mark.parametrize(
    ("sample", "slots", "message"),
    [
        ({"max_draws": 100}, {}, "`complete = true`"),
        ({"complete": True, "max_draws": 5}, {}, "cannot give `count` 6"),
        ({"complete": True}, {"kind": "all"}, "slots of a known number"),
    ],
)
def test_what_cannot_be_complete_is_refused(
    server: ArchiveServer, tmp_path: Path, sample: Any, slots: Any, message: str
) -> None:
    values = recipe(server, tmp_path).recipe.model_dump(mode="json")
    values["sample"] |= sample
    values["slots"] |= slots
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate(values)


def test_nothing_complete_is_said_not_published(server: ArchiveServer, tmp_path: Path) -> None:
    loaded = recipe(server, tmp_path, complete=True, max_draws=8, count=3)
    strict = loaded.recipe.model_dump(mode="json")
    strict["product"][0]["min_valid_fraction"] = 1.0
    strict["product"][0]["max_cloud_percent"] = 0
    with pytest.raises(RecipeError, match="no complete location"):
        run(LoadedRecipe(Recipe.model_validate(strict), tmp_path))

"""From a recipe to an evaluated model, on real EnMAP tiles over land with labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.engine.serial import SerialEngine
from pipeline.pretrain import checkpoint
from pipeline.recipe import load_recipe
from pipeline.run.everything import run_everything
from pipeline.store.objects import open_store
from pipeline.store.reader import open_dataset
from pipeline.watch.progress import Progress

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1].parent / "shared" / "data" / "enmap" / "potsdam"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"the real scenes are not at {DATA}"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Every stage of the recipe, run once: its store and the report of each stage."""
    store = open_store(tmp_path_factory.mktemp("potsdam"))
    loaded = load_recipe(HERE / "enmap-potsdam.toml")
    with Progress() as progress:
        stages = run_everything(loaded, store, engine=SerialEngine, device="cpu", progress=progress)
        return store, dict(stages)


def test_the_stages_run_in_the_recipes_order(run):
    _, reports = run
    assert list(reports) == [
        "search",
        "sample",
        "plan",
        "extract",
        "publish",
        "pretrain",
        "evaluate",
    ]


def test_the_model_learned_from_the_tiles_twenty_steps_long(run):
    store, reports = run
    report = reports["pretrain"]
    assert (report.steps, report.patches, report.collapsed) == (20, 6, False)
    model = checkpoint.load(store, report.model)
    # The selection of the literature leaves out the six bands that hold nothing in this scene.
    assert len(model.bands) == 202
    assert min(model.std) > 0
    assert model.fill is None  # these tiles are float32, and NaN where nothing was seen


def test_the_probe_is_judged_on_ground_that_it_was_not_fitted_on(run):
    store, reports = run
    report = reports["evaluate"]
    parts = open_dataset(store).index.select(["location", "split"]).to_pylist()
    assert len({(row["location"], row["split"]) for row in parts}) == 6
    assert set(report.windows) == {"train", "val", "test"}
    assert all(len(classes) >= 2 for classes in report.windows.values())
    # Real spectra of lake, forest, field and town: a probe far below this is a bug, not a model.
    linear = {r.features: r.macro.value for r in report.results if r.probe == "linear"}
    assert min(linear.values()) > 0.8


def test_the_report_is_kept_beside_the_model_and_owns_up_to_what_it_saw(run):
    store, reports = run
    report = reports["evaluate"]
    assert json.loads(store.get(report.path))["transductive"] is True
    assert "**Transductive**" in store.get(report.path.replace(".json", ".md")).decode()
    assert {c.baseline for c in report.comparisons} == {
        "untrained",
        "image-statistics",
        "random-filters",
    }

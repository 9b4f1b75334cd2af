"""Which candidate is taken, what is rejected and why: the pure part of extraction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.products.model import BandAsset, MaskLayer, Product, ProviderFacts
from pipeline.raster.masks import Fractions
from pipeline.recipe import LoadedRecipe, ProductWish, Recipe
from pipeline.records import PlannedPatch, Rejected, Scene
from pipeline.stages.extract import (
    Failure,
    Trial,
    choose_file,
    judge,
    listed_by,
    masked,
    needed_scenes,
    passes_unmasked,
    too_many_failures,
    trials_of,
    unsuitable,
)

MakePatch = Callable[..., PlannedPatch]
MakeScene = Callable[..., Scene]
CLOUDY = Rejected(reason="cloudy")


def product(name: str, **values: Any) -> Product:
    bands = ({"name": "b1", "pixel_m": 30},)
    known = {"id": name, "title": name, "lattice": "enmap30", "bands": bands, "sources": ("here",)}
    return Product.model_validate({**known, **values})


def loaded(*, snap: str = "lattice") -> LoadedRecipe:
    recipe = Recipe.model_validate(
        {
            "name": "test",
            "sample": {"strategy": "grid", "region": (0, 0, 1, 1)},
            "cell": {"lattice": "enmap30", "size_px": 10, "snap": snap},
            "slots": {"kind": "months", "start": "2021-01-01", "end": "2022-01-01"},
            "product": [{"id": "leading", "path": "x"}],
        }
    )
    return LoadedRecipe(recipe, Path(), facts={"leading": product("leading")})


# --- candidates ------------------------------------------------------------------------------


def test_a_group_is_leader_and_followers_of_one_slot(planned_patch: MakePatch) -> None:
    patches = [
        planned_patch(product="a-follower", group="leading"),
        planned_patch(product="leading"),
        planned_patch(product="leading", slot="2021-08"),
        planned_patch(product="alone", group="alone"),
    ]
    groups = trials_of(patches, ["leading", "alone", "a-follower"])
    assert [[m.product for m in g.members] for g in groups] == [
        ["leading", "a-follower"],
        ["leading"],
        ["alone"],
    ]


def test_a_rejection_of_any_member_sends_all_to_the_next_candidate(
    planned_patch: MakePatch,
) -> None:
    leader = planned_patch(candidates=[["l0"], ["l1"]])
    follower = planned_patch(product="following", candidates=[["f0"], ["f1"]])
    trial = Trial((leader, follower))
    trial.reject(follower, Rejected(reason="cloudy", detail="0.5"))
    assert trial.open
    assert trial.scenes(leader) == ("l1",)
    trial.reject(leader, Rejected(reason="not-seen"))
    assert not trial.open
    assert trial.verdict(leader) == Rejected(reason="not-seen", detail="candidate 1: not-seen")
    assert trial.verdict(follower) == Rejected(reason="cloudy", detail="candidate 0: cloudy (0.5)")


def test_a_member_that_was_never_unsuitable_falls_with_its_group(
    planned_patch: MakePatch,
) -> None:
    leader = planned_patch(candidates=[["l0"]])
    follower = planned_patch(product="following", candidates=[["f0"]])
    trial = Trial((leader, follower))
    trial.reject(leader, CLOUDY)
    assert trial.verdict(follower) == Rejected(reason="with-group", detail="leading")


def test_without_candidates_there_is_nothing_to_decide(planned_patch: MakePatch) -> None:
    trial = Trial((planned_patch(candidates=[["l0"]]), planned_patch(product="following")))
    assert not trial.open
    assert trial.verdict(trial.members[1]).reason == "no-candidate"
    assert trial.verdict(trial.members[0]).reason == "with-group"


def test_a_failure_ends_the_group_without_falling_back(planned_patch: MakePatch) -> None:
    trial = Trial((planned_patch(candidates=[["l0"], ["l1"]]),))
    trial.fail(Failure("gone", "first"))
    trial.fail(Failure("timeout", "second"))
    assert not trial.open
    assert trial.failure == Failure("gone", "first")


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 3))
def test_over_half_failed_is_too_many(failed: int, fine: int, without: int) -> None:
    row = {
        "shard": 0, "sample": 0, "time": 0, "location": "", "product": "p", "slot": "",
        "group": "p", "epsg": 32633, "x_min_m": 0.0, "y_max_m": 0.0, "size_m": 1.0,
        "lon_deg": 0.0, "lat_deg": 0.0,
    }  # fmt: skip
    patch = PlannedPatch(**row, candidates=[["s"]])
    bare = PlannedPatch(**row, candidates=[])
    trials = [Trial((patch,)) for _ in range(failed + fine)]
    trials += [Trial((bare,)) for _ in range(without)]
    for trial in trials[:failed]:
        trial.fail(Failure("gone", ""))
    assert too_many_failures(trials) == (failed > fine)


def test_masks_are_read_for_all_that_may_still_need_them(planned_patch: MakePatch) -> None:
    a = Trial((planned_patch(sample=0, candidates=[["s0"], ["s1", "s2"]]),))
    b = Trial((planned_patch(sample=1, candidates=[["s1"], ["s0"]]),))
    b.reject(b.members[0], CLOUDY)
    listed = listed_by([a, b])
    assert {scene: [p.sample for p in patches] for scene, patches in listed.items()} == {
        "s0": [0, 1],
        "s1": [0],
        "s2": [0],
    }
    assert needed_scenes([a, b], lambda trial: trial.members) == ["s0"]


# --- before reading --------------------------------------------------------------------------


def test_a_scene_on_the_cells_own_lattice_suits(
    planned_patch: MakePatch, scene_row: MakeScene
) -> None:
    assert unsuitable(planned_patch(), [scene_row()], loaded()) is None


@pytest.mark.parametrize(
    ("scene", "reason"),
    [
        ({"epsg": 32634}, "other-zone"),
        ({"x_min_m": 300_000.0}, "off-lattice"),
        ({"y_max_m": 5_000_030.0}, "off-lattice"),
    ],
)
def test_other_zones_and_lattices_are_rejected(
    planned_patch: MakePatch, scene_row: MakeScene, scene: dict[str, float], reason: str
) -> None:
    rejected = unsuitable(planned_patch(), [scene_row(**scene)], loaded())
    assert rejected is not None
    assert rejected.reason == reason


def test_free_cells_take_any_lattice_but_one(
    planned_patch: MakePatch, scene_row: MakeScene
) -> None:
    off = scene_row(x_min_m=300_007.0)
    assert unsuitable(planned_patch(), [off], loaded(snap="scene")) is None
    assert unsuitable(planned_patch(), [off, off], loaded(snap="scene")) is None
    mixed = unsuitable(planned_patch(), [off, scene_row()], loaded(snap="scene"))
    assert mixed is not None
    assert mixed.reason == "off-lattice"


# --- masks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("valid", "cloudy", "reason"),
    [
        (1.0, 0.1, None),
        (1.0, 0.11, "cloudy"),
        (0.9, 0.0, None),
        (0.89, 0.5, "not-seen"),
        (0.0, None, "not-seen"),
    ],
)
def test_thresholds_are_inclusive(valid: float, cloudy: float | None, reason: str | None) -> None:
    wish = ProductWish(id="p", path="x", max_cloud_fraction=0.1, min_valid_fraction=0.9)
    clear = None if cloudy is None else 1 - cloudy
    rejected = judge(Fractions(valid=valid, clear=clear, cloudy=cloudy), wish)
    assert (rejected.reason if rejected else None) == reason


def test_what_was_not_seen_at_all_is_never_written() -> None:
    wish = ProductWish(id="p", path="x", min_valid_fraction=0)
    assert judge(Fractions(valid=0.0, clear=None, cloudy=None), wish) is not None


def test_a_scene_is_masked_if_it_has_every_required_layer(scene_row: MakeScene) -> None:
    layers = (
        MaskLayer(name="classes", pixel_m=30),
        MaskLayer(name="haze", pixel_m=30, optional=True),
        MaskLayer(name="pixels", pixel_m=30, optional=True, per_band=True),
    )
    assets = {name: (BandAsset(asset=name),) for name in ("classes", "haze", "pixels")}
    facts = {"local": ProviderFacts(collection="", assets=assets)}
    made = product("leading", mask_layers=layers, providers=facts)
    assert masked(scene_row(assets=("classes",)), made)
    assert not masked(scene_row(assets=("haze", "pixels")), made)
    assert not masked(scene_row(assets=("pixels",)), product("leading"))


def test_only_labels_pass_unmasked_unasked() -> None:
    wish = ProductWish(id="p", path="x")
    assert not passes_unmasked(product("leading"), wish)
    assert passes_unmasked(product("leading", kind="labels", stored_dtype="uint8"), wish)
    assert passes_unmasked(product("leading"), wish.model_copy(update={"allow_unmasked": True}))


# --- files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "stored_m", "finer", "chosen"),
    [
        ((10, 20, 60), 20, False, 20),
        ((10, 60), 20, True, 10),
        ((10, 60), 20, False, 60),
        ((10, 20), 60, True, 20),
        ((10, 20), 60, False, None),
        ((20, 60), 10, True, 20),
        ((), 10, True, None),
    ],
)
def test_the_file_that_needs_least_resampling_is_read(
    there: tuple[int, ...], stored_m: int, finer: bool, chosen: int | None
) -> None:
    files = [BandAsset(asset=f"r{m}", pixel_m=None if m == 10 else m) for m in there]
    file = choose_file(files, native_m=10, stored_m=stored_m, finer=finer)
    assert (file.asset if file else None) == (f"r{chosen}" if chosen else None)

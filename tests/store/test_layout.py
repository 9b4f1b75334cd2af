"""Names of keys, and who a root belongs to."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import IntegrityError, RecipeError
from pipeline.recipe import LoadedRecipe, Recipe
from pipeline.store import layout
from pipeline.store.objects import open_store


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 10**6), st.integers(0, 10**7))
def test_shard_names_parse_back(plan: int, shard: int) -> None:
    name = layout.shard_name(plan, shard)
    if plan < 10**6:
        assert layout.parse_shard(name) == (plan, shard)
        assert layout.parse_commit(layout.commit(name, 3)) == (name, 3)


@pytest.mark.parametrize("name", ["", "p1-s1", "p000001-s00001/..", "../p000001-s00001"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(IntegrityError, match="not the name of a shard"):
        layout.parse_shard(name)
    assert layout.parse_commit(f"commits/{name}/r1.parquet") is None


def test_numbers_are_read_from_files_and_folders() -> None:
    assert layout.number_of("scenes", "scenes/000012.unusable.parquet") == 12
    assert layout.number_of("versions", "versions/000003/index.parquet") == 3
    assert layout.number_of("versions", "versions/notes.txt") is None


def recipe(folder: Path, **changes: object) -> LoadedRecipe:
    values = {
        "name": "one",
        "sample": {"strategy": "uniform", "count": 10},
        "cell": {"lattice": "s2r10", "size_px": 240},
        "slots": {"kind": "months", "start": "2021-01-01", "end": "2022-01-01"},
        "product": [{"id": "sentinel-2-l2a", "path": "."}],
    }
    return LoadedRecipe(Recipe.model_validate({**values, **changes}), folder)


def test_a_root_may_grow_but_not_become_another(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    layout.claim(store, recipe(tmp_path))
    layout.claim(store, recipe(tmp_path))
    layout.claim(store, recipe(tmp_path, sample={"strategy": "uniform", "count": 99}))
    with pytest.raises(RecipeError, match="Choose another root"):
        layout.claim(store, recipe(tmp_path, seed=1))
    assert list(store.list()) == ["dataset.json"]


def test_a_root_of_another_format_is_left_alone(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.put("dataset.json", layout.dump_json({"format": 99}))
    with pytest.raises(RecipeError, match="has format 99"):
        layout.claim(store, recipe(tmp_path))
    store.put("dataset.json", b"{")
    with pytest.raises(IntegrityError, match="not JSON"):
        layout.claim(store, recipe(tmp_path))

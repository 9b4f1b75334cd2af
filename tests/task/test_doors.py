"""Each scene is read through the door of the provider that it was found at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.recipe import LoadedRecipe, Recipe
from pipeline.records import Scene
from pipeline.sources.bytes.disk import DiskSource
from pipeline.sources.bytes.remote import RemoteSource
from pipeline.task.shard import sources_of


def test_scenes_of_two_providers_of_one_product_have_two_doors(
    scene_row: Callable[..., Scene], tmp_path: Path
) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "sample": {"strategy": "uniform", "count": 1},
            "cell": {"lattice": "enmap30", "size_px": 16},
            "slots": {"kind": "months", "start": "2021-01-01", "end": "2022-01-01"},
            "product": [{"id": "enmap-l2a", "provider": ["local", "dlr"], "path": "here"}],
        }
    )
    source_of = sources_of(LoadedRecipe(recipe, tmp_path), 1.0, "run")
    here = scene_row(scene="enmap-l2a/d1/t1", provider="local")
    there = scene_row(scene="enmap-l2a/d2/t1", provider="dlr")
    assert isinstance(source_of(here), DiskSource)
    assert isinstance(source_of(there), RemoteSource)
    assert source_of(there) is source_of(scene_row(scene="enmap-l2a/d3/t1", provider="dlr"))

"""A root belongs to what its data set is, not to who serves it."""

from pathlib import Path

import pytest

from pipeline.errors import RecipeError
from pipeline.products.catalogue import load_product
from pipeline.recipe import LoadedRecipe, load_recipe
from pipeline.store import layout
from pipeline.store.objects import open_store

PRODUCT = "sentinel-2-l2a"


def _with(folder: Path, **changes: object) -> LoadedRecipe:
    recipe = load_recipe("sentinel-2-quickstart").recipe
    return LoadedRecipe(
        recipe, folder, facts={PRODUCT: load_product(PRODUCT).model_copy(update=changes)}
    )


def test_a_product_file_that_changes_pixels_is_named_with_its_key(tmp_path: Path) -> None:
    store = open_store(tmp_path / "root")
    layout.claim(store, _with(tmp_path))
    with pytest.raises(RecipeError, match=rf"`products\.{PRODUCT}\.scale` is 2\.0"):
        layout.claim(store, _with(tmp_path, scale=2.0))


def test_another_server_or_title_keeps_the_root(tmp_path: Path) -> None:
    store = open_store(tmp_path / "root")
    layout.claim(store, _with(tmp_path))
    facts = load_product(PRODUCT)
    fewer = {name: facts.providers[name] for name in sorted(facts.providers)[:2]}
    layout.claim(store, _with(tmp_path, title="another", sources=("a book",), providers=fewer))

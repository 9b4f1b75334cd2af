"""A recipe is checked at the door: what it says, what it is, and in which order it runs."""

import json
import re
from pathlib import Path

import pytest

from pipeline.errors import RecipeError
from pipeline.recipe import LoadedRecipe, load_recipe, recipe_names
from pipeline.stages.plan.plan import closed_slots
from pipeline.stages.search.questions import queries

PRODUCT = """
id = "{id}"
title = "A test product"
lattice = "s2r10"
nodata = 0
sources = ["made up for this test"]
bands = [
  {{ name = "fine", pixel_m = 10, wavelength_nm = 490 }},
  {{ name = "coarse", pixel_m = 60, wavelength_nm = 443, default = {coarse} }},
]
[providers.local]
collection = "geotiff"
"""

RECIPE = """
name = "test"
[sample]
strategy = "uniform"
count = 10
[cell]
lattice = "s2r10"
size_px = 264
[slots]
kind = "months"
start = 2021-01-01
end = 2021-04-01
[[product]]
id = "a.toml"
path = "scenes"
[[product]]
id = "b.toml"
path = "scenes"
follows = "a.toml"
"""


@pytest.fixture
def load(tmp_path: Path):
    (tmp_path / "a.toml").write_text(PRODUCT.format(id="a", coarse="true"))
    (tmp_path / "b.toml").write_text(PRODUCT.format(id="b", coarse="false"))

    def _load(*changes: tuple[str, str], more: str = "") -> LoadedRecipe:
        text = RECIPE
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "recipe.toml"
        path.write_text(text + more)
        return load_recipe(path)

    return _load


def test_products_are_known_by_their_own_ids_and_leaders(load):
    loaded = load()
    assert list(loaded.products) == ["a", "b"]
    assert loaded.leader == {"a": "a", "b": "a"}
    assert loaded.bands("a") == ("fine", "coarse")
    assert loaded.bands("b") == ("fine",)
    assert loaded.size_px("a") == 264
    assert loaded.cell_m == 2640


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("count = 10", "cuont = 10"), r"sample\.cuont.* is not a known key"),
        (("count = 10", "count = 0"), r"count.*greater than or equal to 1.*found 0"),
        (("kind =", "kynd ="), r"slots.*kind"),
        (('follows = "a.toml"', 'follows = "c.toml"'), r"follows 'c\.toml'.* not one of: a\.toml"),
        (('id = "b.toml"', 'id = "a.toml"'), r"'a\.toml' is listed twice"),
        (('id = "a.toml"', 'id = "nothing.toml"'), r"follows 'a\.toml'"),
        (('lattice = "s2r10"', 'lattice = "s2"'), r"no lattice 's2'; known are: .*s2r10"),
        (("size_px = 264", "size_px = 100"), r"1000 m is not a whole number of the 60 m pixels"),
        (('path = "scenes"\nfollows', "follows"), r"needs `path`"),
        (("end = 2021-04-01", "end = soon"), r"not valid TOML"),
    ],
)
def test_a_wrong_recipe_says_which_key_and_what_is_allowed(load, change, said):
    with pytest.raises(RecipeError) as raised:
        load(change)
    assert re.search(said, str(raised.value)), str(raised.value)


@pytest.mark.parametrize(
    "change",
    [
        ("count = 10", "count = 99"),
        ("end = 2021-04-01", "end = 2031-04-01"),
        ('path = "scenes"\nfollows', 'path = "elsewhere"\nfollows'),
        ('name = "test"', 'name = "test"\ndescription = "words"'),
    ],
)
def test_growing_does_not_change_what_a_data_set_is(load, change):
    assert load(change).identity == load().identity


@pytest.mark.parametrize(
    "change",
    [
        ("size_px = 264", "size_px = 132"),
        ('name = "test"', 'name = "test"\nseed = 1'),
        ('kind = "months"', 'kind = "seasons"'),
        ('follows = "a.toml"', 'follows = "a.toml"\nmax_cloud_fraction = 0.1'),
    ],
)
def test_other_rules_make_another_data_set(load, change):
    assert load(change).identity != load().identity


@pytest.fixture
def stating(load, tmp_path):
    """A recipe whose first product's provider states two facts."""
    facts = 'collection = "geotiff"\nfacts = { quality = "x:q", haze_percent = "x:h" }\n'
    text = PRODUCT.format(id="a", coarse="true").replace('collection = "geotiff"\n', facts)
    (tmp_path / "a.toml").write_text(text)
    first = '[[product]]\nid = "a.toml"\n'
    return lambda require: load((first, f"{first}require = {require}\n"))


def test_what_is_required_is_part_of_what_a_data_set_is_however_it_is_written(stating, load):
    before = load()
    assert "require" not in before.frozen()["product"][0], "older roots are the same data set"
    assert stating("{}").identity == before.identity
    some = stating("{ quality = [1, 0] }")
    assert some.wishes["a"].require == {"quality": (0, 1)}
    assert some.identity != before.identity
    assert stating('{ quality = ["0", 1.0, 1] }').identity == some.identity
    assert stating("{ quality = [0] }").identity != some.identity
    hazy = stating("{ haze_percent = { at_most = 20 } }")
    assert hazy.identity == stating("{ haze_percent = { at_most = 20.0 } }").identity
    assert hazy.identity != stating("{ haze_percent = { at_least = 20 } }").identity
    for loaded in (some, hazy):
        assert LoadedRecipe.restore(json.loads(json.dumps(loaded.dump()))).recipe == loaded.recipe


@pytest.mark.parametrize(
    ("require", "said"),
    [
        (
            "{ qualty = [0] }",
            r"'qualty'.*'local' states \(did you mean `quality`\?\): quality, haze",
        ),
        ("{ tilt = [0] }", r"product a names 'tilt'.*: quality, haze_percent"),
        ("{ quality = 0 }", r"require` has 0 for `quality`; allowed are a list"),
        ("{ quality = [] }", r"has \[\] for `quality`"),
        ("{ quality = [nan] }", r"has \[nan\] for `quality`"),
        ("{ quality = [[0]] }", r"has \[\[0\]\] for `quality`"),
        ("{ haze_percent = {} }", r"has \{\} for `haze_percent`; a table has `at_least`"),
        ("{ haze_percent = { at_moost = 1 } }", r"at_moost.*; a table has `at_least`, `at_most`"),
        ('{ haze_percent = { at_most = "1" } }', r"for `haze_percent`; a table .* with numbers"),
        ("{ haze_percent = { at_most = true } }", r"with numbers"),
        ("{ haze_percent = { at_least = 3, at_most = 2 } }", r"at least 3 and at most 2, which"),
    ],
)
def test_a_demand_that_makes_no_sense_says_what_may_be_demanded(stating, require, said):
    with pytest.raises(RecipeError) as raised:
        stating(require)
    assert re.search(said, str(raised.value)), str(raised.value)


def test_another_product_file_makes_another_data_set(load, tmp_path):
    before = load().identity
    (tmp_path / "b.toml").write_text(
        PRODUCT.format(id="b", coarse="false").replace("nodata = 0", "nodata = 0\nscale = 2.0")
    )
    assert load().identity != before


def test_training_is_not_part_of_what_a_data_set_is(load):
    assert load(more='[pretrain]\nmethod = "mae"\n').identity == load().identity


def test_a_recipe_survives_its_own_dump(load):
    loaded = load(more="[pretrain]\nsteps = 3\n")
    again = LoadedRecipe.restore(loaded.dump())
    assert again.recipe == loaded.recipe
    assert again.products == loaded.products
    assert again.identity == loaded.identity
    assert again.leader == loaded.leader


def test_what_exists_is_searched_before_it_is_tiled(load):
    ordinary = load().stages()
    tiled = load(('"uniform"\ncount = 10', '"scenes"\nproduct = "a.toml"')).stages()
    assert ordinary == ("sample", "search", "plan", "extract", "publish")
    assert tiled[:2] == ("search", "sample")
    assert load(more="[pretrain]\n").stages()[-1] == "pretrain"


def test_an_unknown_name_lists_the_built_in_recipes():
    with pytest.raises(RecipeError, match=r"built in are: .*demo"):
        load_recipe("no-such-recipe")


def test_every_built_in_recipe_loads_and_describes_itself():
    for name in recipe_names():
        loaded = load_recipe(name)
        assert loaded.recipe.name == name
        assert loaded.recipe.description


WINDOWS = (
    'kind = "months"\nstart = 2021-01-01\nend = 2021-04-01\n',
    'kind = "windows"\nwindows = [\n'
    '  { name = "old", start = 2010-03-01, end = 2010-06-01 },\n'
    '  { name = "new", start = 2022-03-01, end = 2022-06-01 },\n]\n',
)


def test_a_product_is_wanted_in_the_windows_it_names_and_its_follower_with_it(load) -> None:
    loaded = load(WINDOWS, ('id = "a.toml"', 'id = "a.toml"\nslots = ["old"]'))
    assert [slot.id for slot in closed_slots(loaded, "a", None)] == ["old"]
    for product in ("a", "b"):
        spans = {(q.start, q.end) for q in queries(loaded, product, None)}
        assert {start.year for start, _ in spans} == {2010}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('id = "a.toml"\nslots = ["1999"]', r"'a.toml' names the slot '1999'.*old, new"),
        ('id = "a.toml"\nslots = []', r"slots"),
        ('id = "a.toml"\ncompare_with = "a.toml"', r"compare_with.*b.toml"),
    ],
)
def test_windows_and_partners_that_are_not_there_are_refused(load, line, message) -> None:
    with pytest.raises(RecipeError, match=re.compile(message, re.DOTALL)):
        load(WINDOWS, ('id = "a.toml"', line))
    with pytest.raises(RecipeError, match=r"needs .slots\.kind"):
        load(('id = "a.toml"', 'id = "a.toml"\nslots = ["2021-01"]'))
    with pytest.raises(RecipeError, match="whose slots are its own"):
        load(WINDOWS, ('id = "b.toml"', 'id = "b.toml"\nslots = ["old"]'))


def test_what_follows_can_be_compared_with_what_leads_and_is_the_same_data_set(load) -> None:
    loaded = load(('id = "b.toml"', 'id = "b.toml"\ncompare_with = "a.toml"'))
    assert loaded.compared == {"b": "a"}
    assert loaded.identity == load().identity

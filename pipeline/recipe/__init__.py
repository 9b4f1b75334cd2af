"""The recipe: one TOML file that describes a data set, checked, hashed, and put in order.

Fields are *identity* (what the data set is: hashed, frozen for a root) or *extent* (how much of
it: may grow, marked so). What is trained on it is neither. `fields` and `training` are the tables,
`loaded` is what the code works with.
"""

from pipeline.recipe.fields import (
    All,
    Between,
    Cell,
    Cities,
    Grid,
    Months,
    Points,
    ProductWish,
    Recipe,
    Required,
    Sample,
    Scenes,
    Seasons,
    Shards,
    Slots,
    Split,
    Uniform,
    Window,
    Windows,
    admits,
    told,
)
from pipeline.recipe.loaded import (
    LoadedRecipe,
    load_recipe,
    midnight,
    recipe_names,
)
from pipeline.recipe.training import (
    BACKBONES,
    BEFORE_BACKBONE,
    USUAL,
    Evaluate,
    Intensity,
    Pretrain,
)

__all__ = [
    "BACKBONES",
    "BEFORE_BACKBONE",
    "USUAL",
    "All",
    "Between",
    "Cell",
    "Cities",
    "Evaluate",
    "Grid",
    "Intensity",
    "LoadedRecipe",
    "Months",
    "Points",
    "Pretrain",
    "ProductWish",
    "Recipe",
    "Required",
    "Sample",
    "Scenes",
    "Seasons",
    "Shards",
    "Slots",
    "Split",
    "Uniform",
    "Window",
    "Windows",
    "admits",
    "load_recipe",
    "midnight",
    "recipe_names",
    "told",
]

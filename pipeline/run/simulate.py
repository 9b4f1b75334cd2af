"""Run the command `simulate`: make an archive of scenes, or a data set without them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import RecipeError
from pipeline.ports import ObjectStore
from pipeline.recipe import Grid, LoadedRecipe, Scenes, Uniform, load_recipe
from pipeline.run.publish import run_publish
from pipeline.simulate.shards import ShardsReport, write_shards
from pipeline.stages.slots import slots_of
from pipeline.store.objects import open_store
from pipeline.watch.progress import Progress

if TYPE_CHECKING:
    from pipeline.simulate.archive import ArchiveReport, Region

#: Scenes of which less lies in the recipe's region are not made: they would add little but time.
_LEAST_SHARE = 0.1


def run_simulate(
    folder: str,
    *,
    recipe: str | Path = "demo",
    shards: int | None = None,
    seed: int = 0,
    progress: Progress,
) -> ArchiveReport | ShardsReport:
    """Make what a recipe's simulated products need.

    Parameters
    ----------
    folder : str
        New folder for an archive; root (path or URL) for shards.
    recipe : str or Path
        Says which products, region and period; only products with `provider = "simulated"` count,
        and those of a simulated Earth Engine.
    shards : int or None
        Write a published data set of so many locations, without scenes, instead of an archive.
    seed : int
        Which world.

    Raises
    ------
    RecipeError
        The recipe has no simulated product or no region, or the folder is not empty.
    """
    loaded = load_recipe(recipe)
    if shards is not None:
        progress.start("simulate shards", shards)
        made = simulate_shards(open_store(folder), loaded, locations=shards, seed=seed)
        progress.advance(shards)
        return made
    # Scenes need geospatial libraries, which shards do not.
    from pipeline.simulate.archive import make_archive
    from pipeline.simulate.delivery.shelves import STANDS_FOR

    products = [
        STANDS_FOR.get(key, key)
        for key, wish in loaded.wishes.items()
        if {"simulated", "earth-engine"} & set(wish.providers)
    ]
    slots = slots_of(loaded.recipe.slots, settling_days=0, cutoff=None)
    progress.start("simulate scenes")
    return make_archive(
        Path(folder),
        products=products,
        region=_region(loaded),
        start=min(slot.start for slot in slots).date(),
        end=max(slot.end for slot in slots).date(),
        seed=seed,
        least_share=_LEAST_SHARE,
        advance=progress.advance,
    )


def simulate_shards(
    store: ObjectStore, loaded: LoadedRecipe, *, locations: int, seed: int = 0
) -> ShardsReport:
    """Fill a new root with simulated patches, and publish them."""
    report = write_shards(store, loaded, locations=locations, seed=seed)
    run_publish(loaded, store)
    return report


def _region(loaded: LoadedRecipe) -> Region:
    sample = loaded.recipe.sample
    region = sample.region if isinstance(sample, Grid | Uniform | Scenes) else None
    if region is None:
        raise RecipeError(
            f"recipe {loaded.name}: a simulated archive needs `sample.region`; the strategies "
            "grid, uniform and scenes have one."
        )
    return region

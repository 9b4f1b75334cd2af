"""Run the stage `sample`: add to the root the locations that the recipe asks for."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import RecipeError
from pipeline.ports import ObjectStore
from pipeline.recipe import LoadedRecipe
from pipeline.records import Location, Scene
from pipeline.stages.sample.complete import more, standing, to_complete
from pipeline.stages.sample.take import take
from pipeline.store.layout import LOCATIONS, SCENES, claim, is_claimed
from pipeline.store.ledger import states
from pipeline.store.tables import append, read_all

#: What must be known of earlier locations to draw on.
_KNOWN = ["location", "index", "epsg", "x_min_m", "y_max_m"]


@dataclass(frozen=True, slots=True)
class SampleReport:
    """What a run of `sample` did."""

    new: int
    """Locations added."""
    total: int
    """Locations the root now has."""
    draws: int
    """Draws made, points read or cells listed, to find them."""
    lost_at_zone_edges: int
    """Those of them that fell on a cell across the edge of a zone."""
    complete: int | None = None
    """Locations with every wanted patch written; None: the recipe does not ask for that."""
    exhausted: bool = False
    """Whether the recipe's `max_draws` left fewer locations than were wanted."""


def run_sample(loaded: LoadedRecipe, store: ObjectStore) -> SampleReport:
    """Sample what is missing, and append it as one table; nothing is written if nothing is.

    Where locations must be complete, each such table is one round: what the rounds before it did
    not bring.

    Raises
    ------
    RecipeError
        The root is another recipe's, or the recipe asks for what does not exist.
    TryAgain
        Another run added locations meanwhile.
    """
    is_claimed(store, loaded)
    known = read_all(store, LOCATIONS, Location, columns=_KNOWN)
    tiled = loaded.recipe.sample.strategy == "scenes"
    scenes = read_all(store, SCENES, Scene) if tiled else None
    if scenes is not None and not scenes.num_rows:
        raise RecipeError(
            f"{store.url} has no scenes to cut cells from yet: run `terrashard search` first."
        )
    strategy, now, count = to_complete(loaded), None, None
    if strategy and known.num_rows:
        now = standing(loaded, known, states(store))
        count = known.num_rows + more(now, strategy.count)
    found = take(loaded, scenes=scenes, known=known, count=count)
    if not known.num_rows and not found.table.num_rows:
        raise RecipeError(
            f"recipe {loaded.name}: `sample` asks for places and gets none "
            f"({found.draws:,} draws, {found.lost_at_zone_edges:,} of them lost at the edge of a "
            "zone); the region, the points or the scenes hold no whole cell."
        )
    claim(store, loaded)  # only now: a mistake found before leaves the root free
    if found.table.num_rows:
        append(store, LOCATIONS, found.table, Location)
    return SampleReport(
        new=found.table.num_rows,
        total=known.num_rows + found.table.num_rows,
        draws=found.draws,
        lost_at_zone_edges=found.lost_at_zone_edges,
        complete=None if now is None else len(now.complete),
        exhausted=strategy is not None
        and known.num_rows + found.table.num_rows < (count or strategy.count),
    )

"""Which locations have all that the recipe wants of them, and how many more must be drawn.

Where a data set must be complete (`sample.complete`), places are drawn in rounds: a round draws
what the last one left missing, and a version holds the first `count` complete places by index. So
what is published depends on neither the number nor the size of the rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.recipe import Cities, LoadedRecipe, Uniform
from pipeline.stages.slots import slots_of


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """How the sampled locations stand."""

    complete: pa.Array
    """Ids of those with every wanted patch written."""
    incomplete: int
    """How many lack a patch that was rejected or failed."""
    open: int
    """How many have none of those, but patches that are not built or not planned yet."""


def to_complete(loaded: LoadedRecipe) -> Cities | Uniform | None:
    """Return the strategy of a recipe that wants complete locations, None of another."""
    sample = loaded.recipe.sample
    return sample if isinstance(sample, Cities | Uniform) and sample.complete else None


def wanted_patches(loaded: LoadedRecipe) -> int:
    """Return how many patches the recipe wants of each location."""
    every = len(slots_of(loaded.recipe.slots, settling_days=0, cutoff=None))
    return sum(
        every if loaded.wishes[leader].slots is None else len(loaded.wishes[leader].slots or ())
        for leader in loaded.leader.values()
    )


def standing(loaded: LoadedRecipe, locations: pa.Table, states: pa.Table) -> Standing:
    """Return how locations stand.

    Parameters
    ----------
    loaded : LoadedRecipe
    locations : pa.Table
        Column `location` of every sampled location.
    states : pa.Table
        Columns `location` and `state` of every planned patch (`pipeline.store.ledger.states`); null
        where its shard is not committed.
    """
    flags = pa.table(
        {
            "location": states["location"],
            "written": pc.fill_null(pc.equal(states["state"], "written"), False).cast("int64"),
            "lost": pc.is_in(states["state"], pa.array(["rejected", "failed"])).cast("int64"),
        }
    )
    sums = flags.group_by("location").aggregate([("written", "sum"), ("lost", "sum")])
    known = sums.filter(pc.is_in(sums["location"], locations["location"].combine_chunks()))
    whole = pc.and_(
        pc.equal(known["lost_sum"], 0), pc.equal(known["written_sum"], wanted_patches(loaded))
    )
    complete = known.filter(whole)["location"].combine_chunks()
    lost = pc.sum(pc.greater(known["lost_sum"], 0).cast("int64")).as_py() or 0
    return Standing(complete, lost, locations.num_rows - len(complete) - lost)


def more(now: Standing, wanted: int) -> int:
    """Return how many new locations should make up for what is missing.

    That is at the share which was complete so far; what is still open may become complete.
    """
    missing = wanted - len(now.complete) - now.open
    if missing <= 0:
        return 0
    # One of each is added, so that a first round without any complete place asks for a limited,
    # larger second one.
    share = (len(now.complete) + 1) / (len(now.complete) + now.incomplete + 1)
    return ceil(missing / share)


def published(now: Standing, locations: pa.Table, wanted: int) -> pa.Array:
    """Return the ids of the first `wanted` complete locations, by index.

    Parameters
    ----------
    locations : pa.Table
        Columns `location` and `index`.
    """
    complete = locations.filter(pc.is_in(locations["location"], now.complete))
    return complete.sort_by("index")["location"].combine_chunks().slice(0, wanted)

"""Products that follow another: which acquisition of theirs accompanies one of the leader."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.raster.zones import Ints
from pipeline.recipe import LoadedRecipe
from pipeline.stages.plan.acquisitions import Acquisitions, Lists, Square
from pipeline.stages.plan.ragged import Ragged, offsets, spans, starts_of_runs
from pipeline.stages.plan.shortlist import SceneList, by_preference, shortlist

_DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Follower:
    """How one product accompanies its leader."""

    product: str
    acquisitions: Acquisitions
    contained: bool
    choice: str
    within_us: int
    """Largest distance in time to the leader, in microseconds; 0: the same datatake."""
    static: bool
    """Whether one acquisition serves every time."""


def follower_of(loaded: LoadedRecipe, product: str, scenes: SceneList) -> Follower:
    """Return a product of the recipe that follows another, with its acquisitions."""
    wish = loaded.wishes[product]
    static = loaded.products[product].temporal != "dated"
    listed = shortlist(scenes, loaded, product)
    best_first = np.lexsort((listed.number, listed.cloud_percent))
    acquisitions = Acquisitions(
        listed,
        best_first,
        np.zeros_like(best_first),
        "time" if wish.within_days or static else "datatake",
    )
    within_us = round(wish.within_days * _DAY_US)
    choice = loaded.choice(product)
    return Follower(product, acquisitions, wish.contained, choice, within_us, static)


def accompany(
    follower: Follower, lists: Lists, cell: Ints, squares: Square, time: Ints, datatake: Ints
) -> Ragged:
    """Return the scenes of a follower beside each acquisition of its leader; none if it has none.

    Of several acquisitions that show the cell, the follower's `choice` takes one; `nearest` is to
    the leader.

    Parameters
    ----------
    lists : Lists
        The follower's acquisitions.
    cell, time, datatake : int arrays, shape (acquisition of the leader,)
        The cell it shows (a number in `squares`), when, and its datatake.
    """
    source = follower.acquisitions
    asked, which = spans(*_in_reach(follower, lists, cell, time, datatake))
    distance = np.abs(lists.time[which] - time[asked])
    if follower.within_us and not follower.static:
        near = distance <= follower.within_us
        asked, which, distance = asked[near], which[near], distance[near]
    views = source.views(lists, which, squares.take(cell[asked]), contained=follower.contained)
    seen = np.flatnonzero(views.counts)
    asked, which, distance = asked[seen], which[seen], distance[seen]
    best = lists.scenes.values[offsets(lists.scenes.counts)[:-1][which]]
    keys = by_preference(
        follower.choice,
        cloud_percent=source.scenes.cloud_percent[best],
        distance=distance,
        time=lists.time[which],
    )
    order = np.lexsort((lists.entry[which], *keys, asked))
    taken = order[starts_of_runs(asked[order])]
    place = np.full(len(cell), -1)
    place[asked[taken]] = seen[taken]
    # An empty row stands last, for those that found nothing.
    nothing = Ragged(np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.int64))
    return Ragged.concat([views, nothing]).take(place % (len(views) + 1))


def _in_reach(
    follower: Follower, lists: Lists, cell: Ints, time: Ints, datatake: Ints
) -> tuple[Ints, Ints]:
    """Return the acquisitions that may accompany each of the leader's: start and count."""
    if follower.static:
        return lists.between(cell, np.zeros_like(cell), np.full_like(cell, np.iinfo(np.int64).max))
    if not follower.within_us:
        return lists.between(cell, datatake, datatake + 1)
    second = follower.acquisitions.second
    low, high = second(time - follower.within_us), second(time + follower.within_us)
    return lists.between(cell, low, high + 1)

"""Choose candidates: for every wanted slot of every cell, ranked acquisitions and companions.

Slots are walked in rounds: each still open one is offered its next few acquisitions, in order of
preference, until it has enough that contain the cell or none is left. So the costly question,
whether a footprint contains a cell, is asked for a few acquisitions of a slot, not for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np

from pipeline.raster.zones import Bools, Ints
from pipeline.recipe import LoadedRecipe
from pipeline.stages.plan.acquisitions import Acquisitions, Lists, Square
from pipeline.stages.plan.companions import Follower, accompany, follower_of
from pipeline.stages.plan.ground import Ground
from pipeline.stages.plan.ragged import Ragged, offsets, place_in_run, spans, starts_of_runs
from pipeline.stages.plan.shortlist import SceneList, Shortlist, by_preference, shortlist
from pipeline.stages.slots import Slot

#: Cells worked on at a time, and scenes that touch them: bounds the memory used.
_CELLS = 16_384
_ENTRIES = 1 << 21

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """Wanted slots of one group of products, with their candidates: columns of one length."""

    cell: Ints
    """Number in the `Ground`."""
    slot: Ints
    """Number of the slot; with `all`, of the datatake."""
    time: Ints
    """Sorts the slots of a cell: their number, or the time of the acquisition."""
    counts: Ints
    """How many candidates each has."""
    scenes: Mapping[str, Ragged]
    """By product: the scenes of each candidate of all rows, one after the other; numbers in the
    `SceneList`. Candidate k of a follower accompanies candidate k of its leader."""

    def take(self, rows: Ints) -> Chosen:
        """Return some of the rows."""
        _, candidates = spans(offsets(self.counts)[rows], self.counts[rows])
        return Chosen(
            self.cell[rows],
            self.slot[rows],
            self.time[rows],
            self.counts[rows],
            {product: scenes.take(candidates) for product, scenes in self.scenes.items()},
        )

    @staticmethod
    def concat(parts: Sequence[Chosen], products: Sequence[str]) -> Chosen:
        """Join the rows of several."""
        none = np.empty(0, dtype=np.int64)
        return Chosen(
            np.concatenate([none, *(part.cell for part in parts)]),
            np.concatenate([none, *(part.slot for part in parts)]),
            np.concatenate([none, *(part.time for part in parts)]),
            np.concatenate([none, *(part.counts for part in parts)]),
            {p: Ragged.concat([part.scenes[p] for part in parts]) for p in products},
        )


@dataclass(slots=True)
class Group:
    """A product that leads, and those that follow it.

    Parameters
    ----------
    loaded : LoadedRecipe
    leader : str
    scenes : SceneList
    slots : sequence of Slot
        Closed ones, in the order in which they are stored; for `all`, the one that spans them.
    """

    loaded: LoadedRecipe
    leader: str
    scenes: SceneList
    slots: Sequence[Slot]
    followers: list[Follower] = field(init=False)
    _acquisitions: Acquisitions = field(init=False)
    _first_entry: Ints = field(init=False)
    _every: bool = field(init=False)
    _limit: int = field(init=False)

    def __post_init__(self) -> None:
        wish = self.loaded.wishes[self.leader]
        self._every = self.loaded.recipe.slots.kind == "all"
        self._limit = np.iinfo(np.int32).max if self._every else wish.candidates
        scenes = shortlist(self.scenes, self.loaded, self.leader)
        choice = self.loaded.choice(self.leader)
        static = self.loaded.products[self.leader].temporal != "dated"
        scene, slot, self._first_entry = _entries(scenes, choice, self.slots, static=static)
        self._acquisitions = Acquisitions(scenes, scene, slot, "preference")
        self.followers = [
            follower_of(self.loaded, product, self.scenes)
            for product, leader in self.loaded.leader.items()
            if leader == self.leader and product != leader
        ]

    @property
    def products(self) -> list[str]:
        """The leader, then its followers in the recipe's order."""
        return [self.leader, *(follower.product for follower in self.followers)]

    def choose(self, ground: Ground, wanted: Bools | None) -> Chosen:
        """Return the wanted slots with their candidates.

        Parameters
        ----------
        ground : Ground
        wanted : bool array, shape (cell, slot), or None
            Which slots to fill. None for `all`, where every acquisition that shows a cell is one.
        """
        found = [part for cells in _chunks(ground) for part in self._chunk(ground, cells, wanted)]
        chosen = Chosen.concat(found, self.products)
        numbers = {self.leader: self._acquisitions.scenes.number}
        numbers |= {f.product: f.acquisitions.scenes.number for f in self.followers}
        scenes = {
            product: Ragged(kept.counts, numbers[product][kept.values])
            for product, kept in chosen.scenes.items()
        }
        return Chosen(chosen.cell, chosen.slot, chosen.time, chosen.counts, scenes)

    def _chunk(self, ground: Ground, cells: Ints, wanted: Bools | None) -> Iterator[Chosen]:
        if wanted is not None:
            cells = cells[wanted[cells].any(axis=1)]
        if len(cells) == 0 or len(self.slots) == 0:
            return
        zone = int(ground.zone[cells[0]])
        squares = Square(ground.x[cells], ground.n[cells], ground.half[cells])
        sources = [self._acquisitions, *(f.acquisitions for f in self.followers)]
        touched = [source.touching(zone, squares) for source in sources]
        volumes = zip(sources, touched, strict=True)
        if len(cells) > 1 and sum(s.volume(t) for s, t in volumes) > _ENTRIES:
            for half in np.array_split(cells, 2):
                yield from self._chunk(ground, half, wanted)
            return
        lists = [source.lists(cells) for source, cells in zip(sources, touched, strict=True)]
        if wanted is None:
            seek, slot = np.arange(len(cells)), np.zeros(len(cells), dtype=np.int64)
        else:
            seek, slot = np.nonzero(wanted[cells])
        walk = self._walk(seek, slot, squares, lists)
        yield (
            self._by_acquisition(cells, walk)
            if self._every
            else self._by_slot(cells[seek], slot, walk)
        )

    def _walk(self, cell: Ints, slot: Ints, squares: Square, lists: list[Lists]) -> _Found:
        """Offer each slot its next acquisitions, until it needs no more or has had all."""
        at, left = lists[0].between(cell, self._first_entry[slot], self._first_entry[slot + 1])
        need = np.full(len(cell), self._limit)
        asking, patience = np.flatnonzero(left), 1
        rounds: list[_Found] = []
        while len(asking):
            offered = np.minimum(left[asking], need[asking] * patience)
            owner, which = spans(at[asking], offered)
            at[asking] += offered
            left[asking] -= offered
            owner = asking[owner]
            found = self._offer(owner, which, cell[owner], squares, lists)
            found = found.take(np.flatnonzero(place_in_run(found.owner) < need[found.owner]))
            np.subtract.at(need, found.owner, 1)
            rounds.append(found)
            asking = asking[(need[asking] > 0) & (left[asking] > 0)]
            # Slots that found little will find little: twice as much at a time, few rounds.
            patience *= 2
        found = _Found.concat(rounds, self.products)
        return found.take(np.argsort(found.owner, kind="stable"))

    def _offer(
        self, owner: Ints, which: Ints, cell: Ints, squares: Square, lists: list[Lists]
    ) -> _Found:
        """Return those of the offered acquisitions that show their cells, with companions."""
        wish = self.loaded.wishes[self.leader]
        views = self._acquisitions.views(
            lists[0], which, squares.take(cell), contained=wish.contained
        )
        kept = np.flatnonzero(views.counts)
        owner, which, cell = owner[kept], which[kept], cell[kept]
        scenes = {self.leader: views.take(kept)}
        time = lists[0].time[which]
        datatake = self._acquisitions.scenes.datatake[scenes[self.leader].values]
        datatake = datatake[offsets(scenes[self.leader].counts)[:-1]]
        complete = np.ones(len(kept), dtype=bool)
        for follower, listed in zip(self.followers, lists[1:], strict=True):
            scenes[follower.product] = accompany(follower, listed, cell, squares, time, datatake)
            complete &= scenes[follower.product].counts > 0
        found = _Found(owner, time, datatake, complete, scenes)
        return found if self._every else found.take(np.flatnonzero(complete))

    def _by_slot(self, cell: Ints, slot: Ints, found: _Found) -> Chosen:
        counts = np.bincount(found.owner, minlength=len(cell))
        return Chosen(cell, slot, slot, counts, found.scenes)

    def _by_acquisition(self, cells: Ints, found: _Found) -> Chosen:
        """With `all`, every acquisition is a slot; one that lacks a follower has no candidate."""
        whole = found.take(np.flatnonzero(found.complete))
        return Chosen(
            cells[found.owner],
            found.datatake,
            found.time,
            found.complete.astype(np.int64),
            whole.scenes,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """Acquisitions that were chosen: columns of one length."""

    owner: Ints
    """Who asked."""
    time: Ints
    datatake: Ints
    complete: Bools
    """Whether every follower was found."""
    scenes: Mapping[str, Ragged]

    def take(self, rows: Ints) -> _Found:
        return _Found(
            self.owner[rows],
            self.time[rows],
            self.datatake[rows],
            self.complete[rows],
            {product: scenes.take(rows) for product, scenes in self.scenes.items()},
        )

    @staticmethod
    def concat(parts: Sequence[_Found], products: Sequence[str]) -> _Found:
        none = np.empty(0, dtype=np.int64)
        return _Found(
            np.concatenate([none, *(part.owner for part in parts)]),
            np.concatenate([none, *(part.time for part in parts)]),
            np.concatenate([none, *(part.datatake for part in parts)]),
            np.concatenate([none.astype(bool), *(part.complete for part in parts)]),
            {p: Ragged.concat([part.scenes[p] for part in parts]) for p in products},
        )


def _entries(
    scenes: Shortlist, choice: str, slots: Sequence[Slot], *, static: bool
) -> tuple[Ints, Ints, Ints]:
    """Return scenes in the slots they may fill, best first.

    Returns
    -------
    scene, slot : int arrays, shape (entry,)
        Sorted by slot, then preference, then id.
    first : int array, shape (slot + 1,)
        Where each slot starts.
    """
    by_time = np.argsort(scenes.time, kind="stable")
    parts = [np.empty(0, dtype=np.int64)]
    for slot in slots:
        low, high = (_microseconds(when) for when in (slot.start, slot.end))
        first, last = np.searchsorted(scenes.time[by_time], (low, high), "left")
        scene = by_time if static else by_time[first:last]
        time = scenes.time[scene]
        keys = by_preference(
            choice,
            cloud_percent=scenes.cloud_percent[scene],
            distance=np.abs(time - (low + high) // 2),
            time=time,
        )
        parts.append(scene[np.lexsort((scene, *keys))])
    counts = np.array([len(part) for part in parts[1:]], dtype=np.int64)
    return np.concatenate(parts), np.repeat(np.arange(len(counts)), counts), offsets(counts)


def _microseconds(when: datetime) -> int:
    return (when - _EPOCH) // timedelta(microseconds=1)


def _chunks(ground: Ground) -> Iterator[Ints]:
    """Yield cells that follow one another, those of a zone together."""
    edges = np.append(starts_of_runs(ground.zone), len(ground))
    for start, stop in pairwise(edges.tolist()):
        for part in range(start, stop, _CELLS):
            yield np.arange(part, min(part + _CELLS, stop))

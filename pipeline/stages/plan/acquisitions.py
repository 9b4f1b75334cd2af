"""Which acquisitions touch which cells, and what of them contains a cell.

An acquisition is what one datatake saw: one scene, or several that adjoin. Cells are joined to
scenes by the bounds of their pixels, which a catalogue repeats from date to date (Sentinel-2 has
57,000 tiles and tens of millions of scenes): so distinct bounds are joined, once, and all cells
that touch the same ones share one list of acquisitions, sorted once. Whether an acquisition
contains a cell is asked later, and only until enough of them do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import shapely

from pipeline.raster.zones import Floats, Ints
from pipeline.stages.plan.ragged import Ragged, codes_of, offsets, spans, starts_of_runs
from pipeline.stages.plan.shortlist import Shortlist

#: What a list of acquisitions is sorted by.
Order = Literal["preference", "time", "datatake"]

#: Bits of a sort key below the number of the list.
_KEY_BITS = 40
_KEY_END = (1 << _KEY_BITS) - 1

#: Times in sort keys are whole seconds.
SECOND_US = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Square:
    """Cells of one zone: columns of one length, in metres."""

    x: Floats
    n: Floats
    half: Floats

    def __len__(self) -> int:
        return len(self.x)

    def take(self, which: Any) -> Square:
        """Return some of them."""
        return Square(self.x[which], self.n[which], self.half[which])


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """Acquisitions that touch some cells: columns of one length, sorted by list and `Order`."""

    of_cell: Ints
    """By cell: the number of its list."""
    key: Ints
    """By acquisition: its list, and below that what the list is sorted by."""
    scenes: Ragged
    """By acquisition: its scenes there, numbers in the shortlist, in order of preference."""
    entry: Ints
    """By acquisition: its best scene as an entry of `Acquisitions`; ranks acquisitions."""
    time: Ints
    """By acquisition: its earliest scene there, in microseconds since 1970."""

    def between(self, cell: Ints, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """Return the acquisitions of each cell whose sort value is in [low, high): start, count."""
        upper = self.of_cell[cell] << _KEY_BITS
        start = np.searchsorted(self.key, upper | np.clip(low, 0, _KEY_END), "left")
        stop = np.searchsorted(self.key, upper | np.clip(high, 0, _KEY_END), "left")
        return start, np.maximum(stop - start, 0)


class Acquisitions:
    """The acquisitions of one product, ready to be listed for cells.

    Parameters
    ----------
    scenes : Shortlist
    scene, slot : int arrays, shape (entry,)
        Scenes in the slots they may fill, in order of preference.
    order : str
        What lists are sorted by: `preference` (the position of an acquisition's best entry),
        `time` (seconds, see `second`), or `datatake`.
    """

    def __init__(self, scenes: Shortlist, scene: Ints, slot: Ints, order: Order) -> None:
        self.scenes = scenes
        self._scene = scene
        self._order = order
        datatakes = int(scenes.datatake.max(initial=0)) + 1
        self._acquisition = slot * datatakes + scenes.datatake[scene]
        # Entries by acquisition and, within it, preference: sorting by this place groups them.
        self._by_place = np.argsort(self._acquisition, kind="stable")
        self._place = np.empty(len(scene), dtype=np.int64)
        self._place[self._by_place] = np.arange(len(scene))
        self._epoch = int(scenes.time.min(initial=0))
        frame, total = codes_of(scenes.zone, *scenes.bounds.T.copy())
        _, first = np.unique(frame, return_index=True)
        self._frame_zone = scenes.zone[first]
        self._frame_bounds = scenes.bounds[first]
        by_frame = np.argsort(frame[scene], kind="stable")
        self._entries = Ragged(np.bincount(frame[scene], minlength=total), by_frame)
        self._first_entry = offsets(self._entries.counts)[:-1]
        self._zone, self._tree, self._frames = -1, shapely.STRtree([]), first[:0]

    def second(self, time_us: Ints) -> Ints:
        """Return the sort value of a time, rounded down."""
        return (time_us - self._epoch) // SECOND_US

    def touching(self, zone: int, cells: Square) -> Ragged:
        """Return, for each cell of a zone, the distinct scene bounds that it overlaps."""
        if zone != self._zone:
            self._zone = zone
            self._frames = np.flatnonzero(self._frame_zone == zone)
            self._tree = shapely.STRtree(shapely.box(*self._frame_bounds[self._frames].T))
        west, south = cells.x - cells.half, cells.n - cells.half
        east, north = cells.x + cells.half, cells.n + cells.half
        cell, found = self._tree.query(shapely.box(west, south, east, north))
        frame = self._frames[found]
        bounds = self._frame_bounds[frame].T
        overlap = (west[cell] < bounds[2]) & (bounds[0] < east[cell])
        overlap &= (south[cell] < bounds[3]) & (bounds[1] < north[cell])
        cell, frame = cell[overlap], frame[overlap]
        order = np.lexsort((frame, cell))
        return Ragged(np.bincount(cell, minlength=len(cells)), frame[order])

    def volume(self, touched: Ragged) -> int:
        """Return how many entries lists of these cells would hold, were none shared."""
        return int(self._entries.counts[touched.values].sum())

    def lists(self, touched: Ragged) -> Lists:
        """Return the lists of the cells that touch these bounds."""
        of_cell, example = _same_rows(touched)
        frames = touched.take(example)
        bounds_of, entry_of = spans(
            self._first_entry[frames.values], self._entries.counts[frames.values]
        )
        number = np.repeat(np.arange(len(example)), frames.counts)[bounds_of]
        packed = number << _KEY_BITS | self._place[self._entries.values[entry_of]]
        packed.sort()
        number, entry = packed >> _KEY_BITS, self._by_place[packed & _KEY_END]
        first = starts_of_runs(number, self._acquisition[entry])
        counts = np.diff(np.append(first, len(entry)))
        scene = self._scene[entry]
        number, best = number[first], entry[first]
        time = self.scenes.time[scene]
        time = np.minimum.reduceat(time, first) if len(first) else time
        key = number << _KEY_BITS | self._sort_value(best, time)
        order = np.argsort(key, kind="stable")
        scenes = Ragged(counts, scene).take(order)
        return Lists(of_cell, key[order], scenes, best[order], time[order])

    def views(self, lists: Lists, which: Ints, cells: Square, *, contained: bool) -> Ragged:
        """Return the scenes by which acquisitions show cells; none where they do not.

        Parameters
        ----------
        which : int array, shape (pair,)
            Acquisitions of `lists`.
        cells : Square, shape (pair,)
        contained : bool
            Whether the whole cell must be shown; else any part of it is enough.

        Returns
        -------
        Ragged
            By pair, one scene where one is enough, else several (`Footprints.cover`).
        """
        scenes = lists.scenes.take(which)
        pair = np.repeat(np.arange(len(which)), scenes.counts)
        there = cells.take(pair)
        holds, unclear = self.scenes.footprints.hold(scenes.values, there.x, there.n, there.half)
        # The first scene that contains the cell is taken, unless one before it must be looked at
        # more closely.
        marked = np.flatnonzero(holds | unclear)
        marked = marked[starts_of_runs(pair[marked])]
        single = np.full(len(which), -1)
        single[pair[marked]] = np.where(holds[marked], scenes.values[marked], -1)
        open_pairs = np.ones(len(which), dtype=bool)
        open_pairs[pair[marked[holds[marked]]]] = False
        if contained:
            several = scenes.counts > 1
            several[pair[marked]] = True
            open_pairs &= several
            open_pairs[open_pairs] = self._plausible(
                scenes.take(np.flatnonzero(open_pairs)), cells.take(open_pairs)
            )
        return self._joined(scenes, single, np.flatnonzero(open_pairs), cells, contained)

    def _joined(
        self, scenes: Ragged, single: Ints, several: Ints, cells: Square, contained: bool
    ) -> Ragged:
        """Put pairs shown by one scene and pairs that need several into one column."""
        one = Ragged((single >= 0).astype(np.int64), single[single >= 0])
        if len(several) == 0:
            return one
        there = cells.take(several)
        mosaics = self.scenes.footprints.cover(
            scenes.take(several), there.x, there.n, there.half, contained=contained
        )
        place = np.arange(len(single))
        place[several] = len(single) + np.arange(len(several))
        return Ragged.concat([one, mosaics]).take(place)

    def _plausible(self, scenes: Ragged, cells: Square) -> Any:
        """Return whether every corner of each cell is in one of the scenes."""
        if len(scenes) == 0:
            return np.empty(0, dtype=bool)
        there = cells.take(np.repeat(np.arange(len(scenes)), scenes.counts))
        corners = self.scenes.footprints.corners(scenes.values, there.x, there.n, there.half)
        first = offsets(scenes.counts)[:-1]
        return np.logical_or.reduceat(corners, first, axis=0).all(axis=1)

    def _sort_value(self, entry: Ints, time: Ints) -> Ints:
        if self._order == "preference":
            return entry
        if self._order == "time":
            return self.second(time)
        return self.scenes.datatake[self._scene[entry]]


def _same_rows(rows: Ragged) -> tuple[Ints, Ints]:
    """Number the distinct rows: the number of each row, and an example of each number."""
    start = offsets(rows.counts)[:-1]
    code = np.zeros(len(rows), dtype=np.int64)
    for step in range(int(rows.counts.max(initial=0))):
        longer = np.flatnonzero(rows.counts > step)
        code[longer], _ = codes_of(code[longer], rows.values[start[longer] + step])
    # Rows of one length went through the same steps, so they have a code of their own.
    code, _ = codes_of(rows.counts, code)
    _, example = np.unique(code, return_index=True)
    return code, example

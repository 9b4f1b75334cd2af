"""Columns whose rows hold several values each: one flat array and a count per row.

Millions of short lists are handled as two arrays, the way Arrow stores them, never row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.raster.zones import Ints


def spans(starts: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """Write out index ranges.

    Parameters
    ----------
    starts, counts : int arrays, shape (range,)

    Returns
    -------
    owner : int array
        For every index, the range it belongs to.
    index : int array
        `starts[r], starts[r] + 1, ...` of every range r, one after the other.

    Examples
    --------
    >>> spans(np.array([5, 0]), np.array([2, 1]))
    (array([0, 0, 1]), array([5, 6, 0]))
    """
    owner = np.repeat(np.arange(len(counts)), counts)
    shift = starts - offsets(counts)[:-1]
    return owner, np.arange(len(owner)) + shift[owner]


def offsets(counts: Ints) -> Ints:
    """Return where each row starts in the flat array, and its end: shape (row + 1,)."""
    return np.concatenate([[0], np.cumsum(counts)])


def starts_of_runs(*keys: Ints) -> Ints:
    """Return where runs of equal keys start, in arrays that are sorted by them."""
    length = len(keys[0])
    if length == 0:
        return np.empty(0, dtype=np.int64)
    new = np.zeros(length, dtype=bool)
    new[0] = True
    for key in keys:
        new[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(new)


def place_in_run(*keys: Ints) -> Ints:
    """Return how many rows with the same keys stand before each, in arrays sorted by them."""
    first = starts_of_runs(*keys)
    length = len(keys[0])
    return np.arange(length) - np.repeat(first, np.diff(np.append(first, length)))


def codes_of(*keys: Ints) -> tuple[Ints, int]:
    """Number the distinct rows of some integer columns, from 0 in sorted order.

    Returns the number of each row, and how many there are.
    """
    code = np.zeros(len(keys[0]), dtype=np.int64)
    total = 1
    for key in keys:
        values, inverse = np.unique(key, return_inverse=True)
        # Both factors are at most the number of rows, so the product fits.
        values, code = np.unique(code * len(values) + inverse, return_inverse=True)
        total = len(values)
    return code, total


@dataclass(frozen=True, slots=True, eq=False)
class Ragged:
    """Rows of integers, of any number each."""

    counts: Ints
    """How many values each row has."""
    values: Ints
    """All values, row after row."""

    def __len__(self) -> int:
        return len(self.counts)

    def take(self, rows: Ints) -> Ragged:
        """Return some rows, in the given order."""
        counts = self.counts[rows]
        _, index = spans(offsets(self.counts)[rows], counts)
        return Ragged(counts, self.values[index])

    @staticmethod
    def concat(parts: Sequence[Ragged]) -> Ragged:
        """Join rows of several, one after the other."""
        none = np.empty(0, dtype=np.int64)
        return Ragged(
            np.concatenate([none, *(part.counts for part in parts)]),
            np.concatenate([none, *(part.values for part in parts)]),
        )

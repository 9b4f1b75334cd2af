"""Which patches make up each batch: a function of (seed, step), so that no position need be saved.

Neither threads nor the number of processes enter: they share what a step is made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RecipeError

if TYPE_CHECKING:
    from pipeline.store.patches import PatchReader

Numbers = NDArray[np.int64]


class Pick(NamedTuple):
    """The patches of one view of a batch."""

    product: str
    numbers: Numbers
    """Rows of the product's reader, shape (batch,)."""


class Picks(Protocol):
    """What decides which patches a step is made of."""

    def picks(self, step: int) -> tuple[Pick, ...]:
        """Return the patches of a step, one pick for each view; equal steps give equal picks."""
        ...


class Order:
    """The order of one product's patches, epoch after epoch.

    An item is a patch, or a location. A location's views are patches of different times, drawn
    anew every epoch, or the same patch twice where it has but one (SSL4EO-S12 and SpectralEarth
    pair in the same way).

    Parameters
    ----------
    location : int array, shape (patch,)
        Which location each patch belongs to.
    views : int
        1 or 2; with two, an item is a location.
    batch_size : int
        Items in a batch. Epochs follow one another without a gap, so all batches are full, and a
        set smaller than a batch simply repeats.
    seed : int
    by_location : bool
        Make locations the items of one view, too.
    """

    def __init__(
        self,
        location: NDArray[np.integer],
        *,
        views: int,
        batch_size: int,
        seed: int,
        by_location: bool = False,
    ) -> None:
        if not len(location):
            raise ValueError("there are no patches to put in order")
        self.views = views
        self.batch_size = batch_size
        self.seed = seed
        self._patches = np.argsort(location, kind="stable").astype(np.int64)
        if views == 1 and not by_location:
            self._start: Numbers = np.arange(len(location), dtype=np.int64)
        else:
            _, start = np.unique(location[self._patches], return_index=True)
            self._start = start.astype(np.int64)
        self._times = np.diff(self._start, append=len(location))
        self._known: tuple[int, Numbers] = (-1, np.empty((views, 0), np.int64))

    @property
    def items(self) -> int:
        """Items in an epoch."""
        return len(self._start)

    def epoch(self, number: int) -> Numbers:
        """Return the patches of an epoch in order, shape (view, item)."""
        if self._known[0] != number:
            self._known = (number, self._draw(number))
        return self._known[1]

    def batch(self, step: int) -> Numbers:
        """Return the patches of a step, shape (view, batch)."""
        wanted = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(wanted, self.items)
        parts = [self.epoch(int(e))[:, places[epochs == e]] for e in np.unique(epochs)]
        return np.concatenate(parts, axis=1)

    def _draw(self, number: int) -> Numbers:
        random = np.random.default_rng([self.seed, number])
        items = random.permutation(self.items)
        start, times = self._start[items], self._times[items]
        draws = random.random((2, self.items))
        first = (draws[0] * times).astype(np.int64)
        # A step of 1 to times - 1 from the first leads to any other; of 0 to itself if it is alone.
        stride = 1 + (draws[1] * np.maximum(times - 1, 1)).astype(np.int64)
        second = (first + stride) % times
        places = np.stack([start + first, start + second])[: self.views]
        return np.take(self._patches, places)


@dataclass(frozen=True)
class OneProduct:
    """Every view from one product."""

    product: str
    order: Order
    views: int
    """More than the order's: views of the same patch."""

    def picks(self, step: int) -> tuple[Pick, ...]:
        picks = [Pick(self.product, numbers) for numbers in self.order.batch(step)]
        return tuple(picks[view % len(picks)] for view in range(self.views))


class Mixed:
    """Batches of one product each, for an encoder that takes several.

    In every round each product has as many batches as its items fill, in an order drawn anew; so
    all items come up about equally often, and the batch of a step is found without counting.

    Parameters
    ----------
    parts : sequence of OneProduct
    seed : int
    """

    def __init__(self, parts: tuple[OneProduct, ...], *, seed: int) -> None:
        self._parts, self._seed = parts, seed
        counts = [max(part.order.items // part.order.batch_size, 1) for part in parts]
        self._round = np.repeat(np.arange(len(parts)), counts)
        self._counts = counts

    def picks(self, step: int) -> tuple[Pick, ...]:
        number, place = divmod(step, len(self._round))
        deal = np.random.default_rng([self._seed, number]).permutation(self._round)
        part = int(deal[place])
        earlier = int((deal[:place] == part).sum())
        return self._parts[part].picks(number * self._counts[part] + earlier)


class Paired:
    """All products of the same location and slot, once for each view.

    Parameters
    ----------
    matches : mapping of product to int array, shape (match,)
        Rows of each product's reader that belong together.
    order : Order
        Of the matches.
    views : int
        More than the order's: views of the same patches.
    """

    def __init__(self, matches: Mapping[str, Numbers], order: Order, views: int = 1) -> None:
        self._matches, self._order, self._views = matches, order, views

    def picks(self, step: int) -> tuple[Pick, ...]:
        matches = self._matches.items()
        groups = [
            tuple(Pick(product, rows[chosen]) for product, rows in matches)
            for chosen in self._order.batch(step)
        ]
        return tuple(p for view in range(self._views) for p in groups[view % len(groups)])


@dataclass(frozen=True)
class InTurn:
    """The views of a step the other way round in every second one, so that each product is first
    in half of them: for methods whose two views are not treated alike."""

    inner: Picks

    def picks(self, step: int) -> tuple[Pick, ...]:
        picks = self.inner.picks(step)
        return picks[::-1] if step % 2 else picks


def times_or_views(
    readers: Mapping[str, PatchReader], *, views: int, times: bool, batch_size: int, seed: int
) -> Picks:
    """Put each product's patches in order; where there are several, each batch is of one.

    Parameters
    ----------
    readers : mapping of product to PatchReader
    views : int
        1 or 2 for each item.
    times : bool
        Two views are of two times of a location; else of the same patch.
    batch_size, seed : int
        See `Order`.
    """
    parts = tuple(
        OneProduct(
            product,
            Order(
                reader.sample_row,
                views=views if times else 1,
                batch_size=batch_size,
                seed=seed,
            ),
            views,
        )
        for product, reader in readers.items()
    )
    return parts[0] if len(parts) == 1 else Mixed(parts, seed=seed)


def pairs_of_products(readers: Mapping[str, PatchReader], *, batch_size: int, seed: int) -> Paired:
    """Pair the products' patches by location and slot.

    An item is a location; its slot is drawn anew every epoch from those that all products have.

    Raises
    ------
    RecipeError
        No location has all of them at one slot.
    """
    location, rows = _match(readers)
    order = Order(location, views=1, batch_size=batch_size, seed=seed, by_location=True)
    return Paired(rows, order)


def all_products(
    readers: Mapping[str, PatchReader], *, views: int, times: bool, batch_size: int, seed: int
) -> Paired:
    """Put slots that all products have in order; see `times_or_views`.

    Raises
    ------
    RecipeError
        No location has all of them at one slot.
    """
    location, rows = _match(readers)
    order = Order(location, views=views if times else 1, batch_size=batch_size, seed=seed)
    return Paired(rows, order, views)


def _match(readers: Mapping[str, PatchReader]) -> tuple[Numbers, dict[str, Numbers]]:
    """Match the products' patches by location and slot.

    Returns the location of each match, and its rows of each product's reader.

    Raises
    ------
    RecipeError
        No location has all of them at one slot.
    """
    tables = {product: _places(reader) for product, reader in readers.items()}
    first, *others = tables.values()
    shared = [place for place in first if all(place in other for other in others)]
    if not shared:
        raise RecipeError(f"no location has {' and '.join(readers)} at the same slot.")
    rows = {
        product: np.array([places[place] for place in shared], np.int64)
        for product, places in tables.items()
    }
    return np.array([row for row, _ in shared], np.int64), rows


def _places(reader: PatchReader) -> dict[tuple[int, str], int]:
    """Return the number of the patch at each location and slot."""
    slots = reader.rows["slot"].to_pylist()
    return {
        (int(row), slot): n
        for n, (row, slot) in enumerate(zip(reader.sample_row, slots, strict=True))
    }

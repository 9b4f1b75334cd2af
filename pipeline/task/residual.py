"""How far a patch lies from that of an imaging spectrometer, on ground that both saw clear.

Clouds are not where they were some days before, and they are bright: means of whole patches would
tell of them and not of the sensors. So both means are taken over the same ground, cell by cell of
the coarsest grid whose pixels hold whole ones of both, where every pixel of both masks is clear.
(Lattices may lie a few metres apart; the shift is in the ledger.) Masks come before bands, so that
each patch's means are taken while its pixels are at hand, and none is read or kept for it.

A pixel of which only the bands tell that it lacks a value is left out of its own mean alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.raster.masks import CLEAR
from pipeline.raster.response import expected, of_satellite, responses
from pipeline.recipe import LoadedRecipe

Where = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class SharedMeans:
    """Means of a patch's bands over clear ground that another patch shares; shape (band,)."""

    count: NDArray[np.int64]
    mean: NDArray[np.float64]
    """In stored units; 0 where nothing was counted."""


def clear_in_both(own: NDArray[np.uint8], other: NDArray[np.uint8]) -> tuple[Where, Where]:
    """Return where the pixels of two masks of one cell lie on ground that is clear in both.

    Parameters
    ----------
    own, other : uint8 array, shape (y, x)
        Codes of the common legend, each on its own pixels; both are square, and cover the cell.

    Returns
    -------
    pair of bool array
        On the pixels of `own`, and on those of `other`.
    """
    cells = gcd(len(own), len(other))
    clear = _whole(own, cells) & _whole(other, cells)
    return _spread(clear, len(own)), _spread(clear, len(other))


def _whole(codes: NDArray[np.uint8], cells: int) -> Where:
    """Return which of `cells` x `cells` squares hold nothing but clear pixels."""
    edge = len(codes) // cells
    squares = np.isin(codes, CLEAR).reshape(cells, edge, cells, edge)
    return np.asarray(squares.all(axis=(1, 3)))


def _spread(squares: Where, size_px: int) -> Where:
    times = size_px // len(squares)
    return squares.repeat(times, axis=0).repeat(times, axis=1)


def shared_means(
    stored: NDArray[Any], fill: Where, codes: NDArray[np.uint8], where: Where
) -> SharedMeans:
    """Return the means of a painted patch over some of its pixels, those that are clear.

    Parameters
    ----------
    stored : array, shape (band, y, x)
    fill : bool array, shape (band, y, x)
        Where `stored` holds nothing.
    codes : uint8 array, shape (y, x)
        Its mask, which may have become `defective` since `where` was found.
    where : bool array, shape (y, x)
        From `clear_in_both`.
    """
    good = where & np.isin(codes, CLEAR)
    count, mean = np.zeros(len(stored), np.int64), np.zeros(len(stored))
    for band in range(len(stored)):
        values = stored[band][good & ~fill[band]]
        count[band] = values.size
        mean[band] = values.sum(dtype=np.float64) / max(values.size, 1)
    return SharedMeans(count, mean)


class Comparison:
    """Compares the products of a recipe with the spectrometers that it names."""

    def __init__(self, loaded: LoadedRecipe) -> None:
        self._loaded = loaded
        self._weights: dict[tuple[str, ...], NDArray[np.float64]] = {}

    def residual(
        self, product: str, datatake: str, means: Mapping[str, Mapping[str, SharedMeans]]
    ) -> list[float]:
        """Return mean minus expected mean of every stored band, in the product's unit.

        Parameters
        ----------
        product : str
        datatake : str
            Of its scenes: each satellite has responses of its own.
        means : mapping of str to mapping of str to SharedMeans
            For each product of a group, its means over the ground it shares with another.

        Returns
        -------
        list of float
            Empty if it is compared with nothing, or its group lacks the spectrometer. NaN where the
            spectrometer does not see enough of a band's response, or no ground is clear in both.
        """
        reference = self._loaded.compared.get(product)
        if reference is None or reference not in means[product]:
            return []
        weights = self._weights_of(product, reference, datatake)
        own, other = means[product][reference], means[reference][product]
        facts, spectrometer = (self._loaded.products[name] for name in (product, reference))
        due = expected(other.mean, other.count, weights)
        due = due * spectrometer.scale + spectrometer.offset
        found = np.where(own.count > 0, own.mean * facts.scale + facts.offset, np.nan)
        return [float(value) for value in found - due]

    def _weights_of(self, product: str, reference: str, datatake: str) -> NDArray[np.float64]:
        measured = of_satellite(self._loaded.products[product].responses, datatake)
        key = (product, *(response.platform for response in measured))
        if key not in self._weights:
            bands = {p: self._bands(p) for p in (product, reference)}
            self._weights[key] = responses(bands[reference], bands[product], measured)
        return self._weights[key]

    def _bands(self, product: str) -> list[Any]:
        facts = self._loaded.products[product]
        return [facts.band(name) for name in self._loaded.bands(product)]

"""Reproducible randomness from integers: the same everywhere, for ever, in any order.

No generator state: a value is a hash of a place. Only integer arithmetic is used, so that two
machines, two processes and a whole raster or a single pixel of it agree to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

#: Increment and multipliers of SplitMix64 (Steele, Lea, Flood 2014; constants as published by
#: Vigna, https://prng.di.unimi.it/splitmix64.c, public domain).
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True, slots=True)
class Place:
    """Pixel centres on a grid of rows and columns in one UTM zone.

    Attributes
    ----------
    zone : int
        UTM zone number, 1 to 60; 326xx and 327xx of one number are one zone.
    x_m : int64 array, shape (x,)
        Eastings of the columns in whole metres.
    n_m : int64 array, shape (y,)
        Northings of the rows counted from the equator, in whole metres (negative south of it).
    seed : int
        Which world.
    """

    zone: int
    x_m: Integers
    n_m: Integers
    seed: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.n_m), len(self.x_m)

    def moved(self, east_m: int, north_m: int) -> Place:
        """Return the same grid displaced."""
        return Place(self.zone, self.x_m + east_m, self.n_m + north_m, self.seed)


def hash64(*parts: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """Hash integers elementwise: 64 well-mixed bits for each tuple of parts.

    Parts broadcast against each other; their order matters.

    Examples
    --------
    >>> int(hash64(1, 2)) == int(hash64(2, 1))
    False
    """
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = _mixed(state + _INCREMENT + np.asarray(part, np.int64).astype(np.uint64))
    return state


def _mixed(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return np.asarray(state ^ (state >> np.uint64(31)), np.uint64)


def below(limit: int, *parts: npt.ArrayLike) -> Integers:
    """Hash integers to 0 ... `limit` - 1 (limits far below 2**31: the bias is negligible)."""
    return ((hash64(*parts) >> np.uint64(33)) % np.uint64(limit)).astype(np.int64)


def tiled(place: Place, channel: int, size_m: int, limit: int) -> Integers:
    """Return one number, 0 to `limit` - 1, for each square of a tiling: shape (y, x)."""
    columns, column = np.unique(place.x_m // size_m, return_inverse=True)
    rows, row = np.unique(place.n_m // size_m, return_inverse=True)
    table = below(limit, place.seed, place.zone, channel, rows[:, None], columns)
    return table[row][:, column]


def smooth_noise(
    place: Place, channel: int, spacing_m: int, *, when: int = 0
) -> npt.NDArray[np.int32]:
    """Return smooth value noise: hashed lattice points, blended between them.

    Parameters
    ----------
    place : Place
        Where.
    channel : int
        Which of many independent fields.
    spacing_m : int
        Distance of the lattice points: the size of what is seen.
    when : int
        Time step, for fields that change.

    Returns
    -------
    int32 array, shape (y, x)
        0 to 65535; symmetric about 32768, which is therefore the median.
    """
    west, east, blend_x, columns = _lattice(place.x_m, spacing_m)
    south, north, blend_y, rows = _lattice(place.n_m, spacing_m)
    key = (place.seed, place.zone, channel, spacing_m, when)
    table = (hash64(*key, rows[:, None], columns[None, :]) >> np.uint64(48)).astype(np.int32)
    along = table[south] * (256 - blend_y[:, None]) + table[north] * blend_y[:, None] >> 8
    return along[:, west] * (256 - blend_x) + along[:, east] * blend_x >> 8


def _lattice(
    positions_m: Integers, spacing_m: int
) -> tuple[Integers, Integers, npt.NDArray[np.int32], Integers]:
    """Return the two lattice points around each position, the blend (0 to 256), and the points."""
    lower = positions_m // spacing_m
    points = np.unique(np.concatenate([lower, lower + 1]))
    step = (positions_m - lower * spacing_m) * 256 // spacing_m
    blend = step * step * (768 - 2 * step) >> 16  # 3 t**2 - 2 t**3: no creases at lattice lines
    return (
        np.searchsorted(points, lower),
        np.searchsorted(points, lower + 1),
        blend.astype(np.int32),
        points,
    )

"""Per-band moments of a patch, which can be merged into those of a data set.

A second pass over terabytes is never needed: every patch leaves its moments in the ledger, and a
version's statistics are their sum. Formulas: Chan, Golub and LeVeque 1979, "Updating formulae and
a pairwise algorithm for computing sample variances".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments of every band over the values that are not fill; arrays of shape (band,).

    Of no values: count, mean and m2 are 0, minimum is +inf and maximum -inf, so that merging it
    changes nothing.
    """

    count: NDArray[np.int64]
    mean: NDArray[np.float64]
    """In stored units."""
    m2: NDArray[np.float64]
    """Sum of squared deviations from the mean."""
    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]

    @property
    def std(self) -> NDArray[np.float64]:
        """Population standard deviation; NaN where nothing was counted."""
        with np.errstate(invalid="ignore", divide="ignore"):
            result: NDArray[np.float64] = np.sqrt(self.m2 / self.count)
        return result


def moments(stored: NDArray[Any], fill: NDArray[np.bool_]) -> Moments:
    """Return the moments of one patch.

    Of integer patches up to 1024 pixels wide every sum is a whole number below 2^53, so the
    result is exact and the same on every machine.

    Parameters
    ----------
    stored : array, shape (band, y, x)
        Values in stored units.
    fill : bool array, shape (band, y, x)
        Where nothing was seen.
    """
    bands = stored.shape[0]
    count = np.zeros(bands, np.int64)
    mean, m2 = np.zeros(bands), np.zeros(bands)
    minimum, maximum = np.full(bands, np.inf), np.full(bands, -np.inf)
    # Band by band: one band stays in the processor's cache, the whole patch would not.
    for band in range(bands):
        values = stored[band].ravel()
        absent = fill[band].ravel()
        if absent.any():
            values = values[~absent]
        if not values.size:
            continue
        count[band] = values.size
        minimum[band], maximum[band] = values.min(), values.max()
        mean[band], m2[band] = _centred(values)
    return Moments(count, mean, m2, minimum, maximum)


def merge(a: Moments, b: Moments) -> Moments:
    """Return the moments of both sets together; the order of merging changes rounding only."""
    count = a.count + b.count
    share = b.count / np.maximum(count, 1)
    step = b.mean - a.mean
    return Moments(
        count=count,
        mean=a.mean + step * share,
        m2=a.m2 + b.m2 + step * step * a.count * share,
        minimum=np.minimum(a.minimum, b.minimum),
        maximum=np.maximum(a.maximum, b.maximum),
    )


def _centred(values: NDArray[Any]) -> tuple[float, float]:
    """Return mean and sum of squared deviations of a non-empty vector.

    Deviations are taken from a whole number near the mean, so that those of integers are integers
    and no digit is lost whatever the order of summation.
    """
    apart = values.astype(np.float64)
    sum_of_all = float(apart.sum())
    near = np.rint(sum_of_all / values.size)
    apart -= near
    total = sum_of_all - near * values.size
    # Not `apart @ apart`: BLAS would start threads for vectors this short.
    apart *= apart
    squares = float(apart.sum())
    mean = float(near + total / values.size)
    return mean, max(float(squares - total * total / values.size), 0.0)

"""Land or sea: a coarse mask in quarters of a degree, for sampling.

Derived from Natural Earth's ocean, 1:110 million (public domain, naturalearthdata.com), by
`tests/raster/make_land_mask.py`. A square is land unless it is all ocean, so coasts and coastal
water pass; islands that the 1:110 million map leaves out are sea, lakes other than the Caspian are
land.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import ArrayLike

from pipeline.raster.zones import Bools


def is_land(lon_deg: ArrayLike, lat_deg: ArrayLike) -> Bools:
    """Return whether each point lies in a square with land; longitudes may be any turn."""
    land = _squares()
    rows, cols = land.shape
    turn = (np.asarray(lon_deg, dtype=np.float64) + 180.0) % 360.0 / 360.0
    down = (90.0 - np.asarray(lat_deg, dtype=np.float64)) / 180.0
    col = np.minimum((turn * cols).astype(np.int64), cols - 1)
    row = np.clip((down * rows).astype(np.int64), 0, rows - 1)
    return np.asarray(land[row, col])


@cache
def _squares() -> Bools:
    """Return the mask, shape (latitude from the north, longitude from -180°)."""
    with files("pipeline.raster").joinpath("land.npz").open("rb") as file:
        stored = np.load(file, allow_pickle=False)
        packed, cols = stored["packed"], 360 * int(stored["per_degree"])
    return np.unpackbits(packed, axis=1, count=cols).astype(bool)

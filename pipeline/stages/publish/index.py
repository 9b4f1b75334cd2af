"""What a version says of its patches: their index, their split, and their statistics.

Pure: ledgers and locations in, tables and numbers out. The split deals *blocks* of ground, not
patches: near patches look alike, and a test on the neighbours of what was learned tells nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import IntegrityError
from pipeline.raster.statistics import Moments
from pipeline.recipe import Split

#: Columns of the ledger that the index repeats.
_FROM_LEDGER = (
    "location",
    "product",
    "slot",
    "shard",
    "sample",
    "time",
    "scenes",
    "acquired",
    "clear_fraction",
    "valid_fraction",
    "mask_source",
    "absent_bands",
    "residual",
    "pixel_digest",
    "facts",
)
#: Columns of the locations that the index repeats.
_FROM_LOCATION = ("epsg", "x_min_m", "y_max_m", "lon_deg", "lat_deg", "geometry")
#: Northing of the equator in EPSG 327xx, in metres (UTM's false northing in the south).
_FALSE_NORTHING_M = 10_000_000.0

PARTS: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")


class Places:
    """The locations of a data set: where they are, and which part of the split they belong to.

    Parameters
    ----------
    locations : pa.Table
        Rows of `Location`.
    split : Split
        Blocks and shares.
    seed : int
        Of the recipe.
    """

    def __init__(self, locations: pa.Table, split: Split, seed: int) -> None:
        names = np.array(locations["location"].to_pylist(), dtype="S")
        order = np.lexsort((names, locations["index"].to_numpy()))
        self.table = locations.take(order)
        self._names = names[order]
        self._sorted = np.argsort(self._names)
        self.parts = deal(
            self.table["epsg"].to_numpy(),
            self.table["x_min_m"].to_numpy() + self.table["size_m"].to_numpy() / 2,
            self.table["y_max_m"].to_numpy() - self.table["size_m"].to_numpy() / 2,
            split=split,
            seed=seed,
        )

    def find(self, locations: Sequence[str]) -> NDArray[np.int64]:
        """Return the position of each location in `table`.

        Raises
        ------
        IntegrityError
            One of them was never sampled.
        """
        wanted = np.array(locations, dtype="S")
        at = np.searchsorted(self._names, wanted, sorter=self._sorted)
        found = self._sorted[np.minimum(at, len(self._sorted) - 1)]
        unknown = self._names[found] != wanted
        if unknown.any():
            name = wanted[unknown][0].decode(errors="replace")
            raise IntegrityError(f"the ledger names the location {name}, which was never sampled.")
        return found.astype("int64")


def deal(
    epsg: NDArray[np.integer[Any]],
    x_m: NDArray[np.float64],
    y_m: NDArray[np.float64],
    *,
    split: Split,
    seed: int,
) -> NDArray[np.str_]:
    """Deal points to `train`, `val` and `test` by the block of ground they lie in.

    A block is a square of `split.block_km` in its UTM zone, counted from the equator, so 326xx and
    327xx of one zone share one grid. Its part follows from a hash of the seed and its position
    alone: more locations, or another order, move no point.

    Parameters
    ----------
    epsg : int array, shape (point,)
    x_m, y_m : float arrays, shape (point,)
        In `epsg`.
    split : Split
    seed : int

    Returns
    -------
    str array, shape (point,)
    """
    block_m = split.block_km * 1000
    south, utm = epsg // 100 == 327, np.isin(epsg // 100, (326, 327))
    zone = np.where(utm, epsg % 100, epsg)
    row_m = np.where(south, y_m - _FALSE_NORTHING_M, y_m)
    blocks = np.stack([zone, np.floor(x_m / block_m), np.floor(row_m / block_m)], axis=1)
    unique, where = np.unique(blocks.astype("int64"), axis=0, return_inverse=True)
    draws = np.array([_draw(seed, block) for block in unique.tolist()])
    part = np.searchsorted(np.cumsum([split.train, split.val]), draws, side="right")
    return np.array(PARTS)[part[where.reshape(-1)]] if len(epsg) else np.empty(0, "U5")


def make_index(written: pa.Table, places: Places, products: Sequence[str]) -> pa.Table:
    """Return the rows of a version's index (`IndexRow`), sorted by row, product and time.

    Parameters
    ----------
    written : pa.Table
        Written rows of the ledgers, with the columns `shard` (`p000001-s00042/r1`) and `facts` (of
        each of the `scenes`).
    places : Places
    products : sequence of str
        In the order of the recipe.

    Raises
    ------
    IntegrityError
        A patch is there twice, or its location was never sampled.
    """
    at = places.find(written["location"].to_pylist())
    _, row = np.unique(at, return_inverse=True)
    columns = {name: written[name] for name in _FROM_LEDGER}
    for name in ("clear_fraction", "valid_fraction"):
        columns[name] = pc.fill_null(columns[name], float("nan"))
    columns |= {name: places.table[name].take(at) for name in _FROM_LOCATION}
    columns["row"] = pa.array(row, "int64")
    columns["split"] = pa.array(places.parts[at].tolist(), "string")
    columns["order"] = pc.index_in(written["product"], pa.array(products, "string"))
    index = pa.table(columns)
    keys = ("row", "order", "acquired", "slot")
    index = index.sort_by([(key, "ascending") for key in keys]).drop_columns("order")
    _expect_once(index)
    return index


def sum_moments(rows: pa.Table, bands: int) -> Moments:
    """Return the moments of all patches of some ledger rows together, per band."""

    def matrix(name: str) -> NDArray[Any]:
        values: NDArray[Any] = pc.list_flatten(rows[name]).to_numpy()
        if len(values) != rows.num_rows * bands:
            raise IntegrityError(f"a ledger has `{name}` for another number of bands than {bands}.")
        return values.reshape(rows.num_rows, bands)

    count = matrix("count").astype("int64")
    means = matrix("mean")
    total = count.sum(axis=0)
    mean = (count * means).sum(axis=0) / np.maximum(total, 1)
    m2 = (matrix("m2") + count * (means - mean) ** 2).sum(axis=0)
    low = np.where(count > 0, matrix("minimum"), np.inf).min(axis=0, initial=np.inf)
    high = np.where(count > 0, matrix("maximum"), -np.inf).max(axis=0, initial=-np.inf)
    return Moments(total, mean, m2, low, high)


def describe(moments: Moments, bands: Sequence[str]) -> list[dict[str, Any]]:
    """Return moments as JSON values, one entry per band; null where nothing was seen."""
    found = []
    for k, name in enumerate(bands):
        seen = bool(moments.count[k])
        numbers = {
            "mean": moments.mean[k],
            "std": moments.std[k],
            "minimum": moments.minimum[k],
            "maximum": moments.maximum[k],
        }
        values = {key: float(value) if seen else None for key, value in numbers.items()}
        found.append({"name": name, "count": int(moments.count[k]), **values})
    return found


def _draw(seed: int, block: list[int]) -> float:
    """Return a number in [0, 1) that depends on seed and block alone."""
    text = f"{seed}/{block[0]}/{block[1]}/{block[2]}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _expect_once(index: pa.Table) -> None:
    key = ["location", "product", "slot"]
    counts = index.group_by(key).aggregate([([], "count_all")])
    twice = counts.filter(pc.greater(counts["count_all"], 1))
    if twice.num_rows:
        row = twice.slice(0, 1).to_pylist()[0]
        raise IntegrityError(
            f"the patch {row['location']} {row['product']} {row['slot']} was written twice."
        )

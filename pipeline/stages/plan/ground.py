"""Locations as arrays, in an order in which neighbours follow one another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import IntegrityError
from pipeline.raster.zones import FALSE_NORTHING_SOUTH_M, Floats, Ints

#: Columns of `Location` that planning reads.
LOCATION_COLUMNS = (
    "location",
    "epsg",
    "x_min_m",
    "y_max_m",
    "size_m",
    "lon_deg",
    "lat_deg",
)

#: Step of the curve that orders cells, in metres.
_STEP_M = 100.0

#: Northings from the equator reach this far south, in metres.
_SOUTH_END_M = -FALSE_NORTHING_SOUTH_M


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """Cells, sorted by zone and then along a space-filling curve: columns of one length.

    The order depends on the cells alone, never on the order of the table's rows.
    """

    table: pa.Table
    """`LOCATION_COLUMNS`, in the same order."""
    zone: Ints
    """UTM zone number; the plane is the zone's, with northings counted from the equator."""
    x: Floats
    """Easting of the centre in metres."""
    n: Floats
    """Northing of the centre from the equator in metres."""
    half: Floats
    """Half the edge in metres."""

    def __len__(self) -> int:
        return len(self.zone)

    @property
    def ids(self) -> pa.ChunkedArray:
        """Cell ids."""
        return self.table.column("location")


def ground_of(locations: pa.Table) -> Ground:
    """Return the cells of a table of `Location` rows.

    Raises
    ------
    IntegrityError
        A location is listed twice.
    """
    table = locations.select(LOCATION_COLUMNS)
    if pc.count_distinct(table.column("location")).as_py() != table.num_rows:
        raise IntegrityError("the locations of this root list a cell twice.")
    table = table.take(pc.sort_indices(table.column("location")))
    zone, x, n, half = _plane(table)
    order = np.lexsort((_curve(x, n), zone))
    table = table.take(pa.array(order))
    return Ground(table, zone[order], x[order], n[order], half[order])


def _plane(table: pa.Table) -> tuple[Ints, Floats, Floats, Floats]:
    epsg, west, top, edge = (
        table.column(name).to_numpy() for name in ("epsg", "x_min_m", "y_max_m", "size_m")
    )
    top = np.where(epsg >= 32700, top - FALSE_NORTHING_SOUTH_M, top)
    return epsg % 100, west + edge / 2, top - edge / 2, edge / 2


def _curve(x: Floats, n: Floats) -> Ints:
    """Return positions along a Z-order curve (Morton 1966): near on it is near on the ground."""
    return _spread(x / _STEP_M) | _spread((n - _SOUTH_END_M) / _STEP_M) << 1


def _spread(steps: Floats) -> Ints:
    """Put a zero before every bit of numbers below 2^32."""
    bits = np.clip(steps, 0, 2**31).astype(np.int64)
    for shift, mask in (
        (16, 0x0000FFFF0000FFFF),
        (8, 0x00FF00FF00FF00FF),
        (4, 0x0F0F0F0F0F0F0F0F),
        (2, 0x3333333333333333),
        (1, 0x5555555555555555),
    ):
        bits = (bits | bits << shift) & mask
    return bits

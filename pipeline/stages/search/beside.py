"""Where and when to look for a follower's scenes: beside those of its leader. Pure.

Where cells are cut from scenes, the leader's may be few and far between (EnMAP takes what is
ordered), while a follower sees all land every few days. Asked for by region and month, a hundred
of the follower's items would come for one that can serve.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import ceil

import numpy as np
import pyarrow as pa
import shapely

from pipeline.raster.zones import Floats, Ints
from pipeline.recipe import LoadedRecipe
from pipeline.stages.limits import LIMITED_COLUMNS, may_serve

#: Columns of the leader's scenes that are looked at.
LEADER_COLUMNS = ("acquired", "datatake", "geometry", *LIMITED_COLUMNS)
#: Items that a day brings of each square degree, and the edge of one: those of Sentinel-2, the
#: densest of our products (tiles of 110 km, each of them seen every 2 to 5 days). They decide how
#: questions are put together, not what is found.
_ITEMS_PER_DEG2_DAY = 0.4
_ITEM_DEG = 1.0
#: A question is worth as much as so many items that nobody needs: the least that catalogues give at
#: once. Those that give 1,000 would be asked half as often and send six times the bytes.
_ITEMS_OF_A_QUESTION = 100
#: The scenes of one datatake are seen within this time, and one of them stands for all.
_DATATAKE_DAYS = 1 / 24
_M_PER_DEG = 111_000.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, eq=False)
class _Reach:
    """Where and when followers of some of the leader's scenes may lie: columns of one length."""

    low: Floats
    """Western and southern edge in degrees, first moment in days: shape (scene, 3)."""
    high: Floats

    def __len__(self) -> int:
        return len(self.low)

    @classmethod
    def around(cls, parts: list[_Reach]) -> _Reach:
        """Return as many rows as there are parts, each around one of them."""
        return cls(
            np.stack([part.low.min(axis=0) for part in parts]),
            np.stack([part.high.max(axis=0) for part in parts]),
        )

    def take(self, which: Ints) -> _Reach:
        return _Reach(self.low[which], self.high[which])

    def pages(self) -> int:
        """Return about how many pages the answer to one question about all of them has."""
        width, height, days = (self.high.max(axis=0) - self.low.min(axis=0)).tolist()
        items = _ITEMS_PER_DEG2_DAY * days * (width + _ITEM_DEG) * (height + _ITEM_DEG)
        return int(max(1, ceil(items / _ITEMS_OF_A_QUESTION)))

    def halves(self) -> tuple[_Reach, _Reach]:
        """Cut where there are as many on one side as on the other, along the longest axis."""
        centre = (self.low + self.high) / 2
        # As long as what one scene takes up is the unit of each axis.
        unit = np.array([_ITEM_DEG, _ITEM_DEG, 1.0]) + (self.high - self.low).mean(axis=0)
        axis = int(np.argmax(np.ptp(centre, axis=0) / unit))
        order = np.argsort(centre[:, axis], kind="stable")
        middle = len(order) // 2
        return self.take(order[:middle]), self.take(order[middle:])


def beside(
    loaded: LoadedRecipe, product: str, leaders: pa.Table
) -> Iterator[tuple[Box, tuple[datetime, datetime]]]:
    """Yield the boxes and spans that hold every scene that may accompany one of the leader's.

    They are put together where one question takes no more pages than two.

    Parameters
    ----------
    loaded : LoadedRecipe
    product : str
        It follows another.
    leaders : table with `LEADER_COLUMNS`
        Scenes, of which those of the leader count that are within the recipe's limits.

    Yields
    ------
    box : tuple of float
        West, south, east, north in degrees; none crosses the antimeridian.
    span : tuple of datetime
        First moment, and the first that is too late.
    """
    leaders = leaders.filter(may_serve(loaded, loaded.leader[product]))
    if not leaders.num_rows:
        return
    # First the scenes of one pass, so that none is torn apart for the sake of another.
    reach, datatake = _reach(loaded, product, leaders)
    order = np.argsort(datatake, kind="stable")
    ends = np.flatnonzero(np.diff(datatake[order])) + 1
    passes = [_together(reach.take(some)) for some in np.split(order, ends)]
    strips = _Reach.around([part for _, parts in passes for part in parts])
    for part in _together(strips)[1]:
        west, south, start = part.low.min(axis=0).tolist()
        east, north, end = part.high.max(axis=0).tolist()
        yield (
            (west, south, east, north),
            (_EPOCH + timedelta(days=start), _EPOCH + timedelta(days=end)),
        )


def _reach(loaded: LoadedRecipe, product: str, leaders: pa.Table) -> tuple[_Reach, Ints]:
    """Return where and when, and the numbers of the leader's datatakes."""
    days = leaders.column("acquired").cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    days = days / 86_400e6
    outlines = shapely.from_wkb(leaders.column("geometry").to_numpy())
    # A scene across the antimeridian has a part on either side of it.
    parts, owner = shapely.get_parts(outlines, return_index=True)
    bounds = shapely.bounds(parts)
    # Cells may stick out of a footprint.
    latitude = np.radians(np.minimum(np.abs(bounds[:, 1::2]).max(axis=1, initial=0), 85))
    margin = loaded.cell_m / _M_PER_DEG
    around = np.stack([margin / np.cos(latitude), np.full(len(bounds), margin)], axis=1)
    low = np.maximum(bounds[:, :2] - around, (-180, -90)).round(4)
    high = np.minimum(bounds[:, 2:] + around, (180, 90)).round(4)
    within = loaded.wishes[product].within_days + _DATATAKE_DAYS
    when = days[owner][:, None]
    reach = _Reach(np.hstack([low, when - within]), np.hstack([high, when + within]))
    datatakes = leaders.column("datatake").combine_chunks().dictionary_encode()
    return reach, datatakes.indices.to_numpy()[owner].astype(np.int64)


def _together(reach: _Reach) -> tuple[int, list[_Reach]]:
    """Cut in halves, and those again, wherever that takes fewer pages; also return how many."""
    pages = reach.pages()
    if pages == 1 or len(reach) == 1:
        return pages, [reach]
    halves = [_together(half) for half in reach.halves()]
    fewer = sum(number for number, _ in halves)
    if fewer >= pages:
        return pages, [reach]
    return fewer, [part for _, parts in halves for part in parts]

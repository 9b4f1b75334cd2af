"""The gaps of Landsat 7 since its scan line corrector failed: wedges that open to both edges."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import Any

import numpy as np
import pytest
import shapely

from pipeline.simulate.delivery.orbits import REAL, Scene, orbit_of, scenes_over
from pipeline.simulate.delivery.scenes import seen_by
from pipeline.simulate.truth.noise import Place

FAILED = datetime(2003, 5, 31, tzinfo=UTC)


@cache
def scene(product: str = "landsat-etm-toa") -> Scene:
    area = shapely.box(500_000, 5_700_000, 510_000, 5_710_000)
    return scenes_over(orbit_of(product, REAL), 33, area, date(2004, 4, 1), date(2004, 5, 1))[0]


def lost(scene: Scene) -> tuple[Any, Any]:
    """Return, for every seventh column and each line of a swath's middle part, how far the pixel is
    from the middle (-1 to 1) and whether it is in a gap; what lies beyond the swath is NaN."""
    columns = np.arange(scene.x_min_m + 15, scene.x_min_m + scene.width_m, 210)
    middle = scene.n_max_m - scene.height_m // 2
    place = Place(scene.zone, columns, middle - 30 * np.arange(-600, 600), seed=0)
    across = 9 * place.x_m - 2 * place.n_m[:, None]
    off = (2 * across - sum(scene.across)) / (scene.across[1] - scene.across[0])
    return np.where(scene.seen(place), off, np.nan), ~seen_by(scene, place)


def share(off: Any, gap: Any, low: float, high: float) -> float:
    return float(gap[(off >= low) & (off < high)].mean())


@pytest.mark.parametrize(
    ("product", "when"),
    [
        ("landsat-etm-toa", FAILED - timedelta(seconds=1)),
        ("landsat-oli-sr", FAILED + timedelta(days=4000)),
    ],
)
def test_before_that_day_and_on_other_satellites_nothing_is_lost(
    product: str, when: datetime
) -> None:
    off, gap = lost(replace(scene(product), when=when))
    assert not gap[np.isfinite(off)].any()


def test_the_middle_is_whole_and_more_is_lost_towards_both_edges() -> None:
    off, gap = lost(replace(scene(), when=FAILED))
    assert share(off, gap, -0.19, 0.19) == 0
    for side in (-1, 1):
        shares = [share(side * off, gap, at, at + 0.1) for at in np.arange(0.2, 0.95, 0.1)]
        assert shares == sorted(shares)
        assert 0.4 < shares[-1] < 450 / 960
    assert 0.17 < gap[np.isfinite(off)].mean() < 0.22, "the USGS's estimate is 22 %"


def test_gaps_at_both_edges_are_as_wide_as_a_scan_one_for_two_scans() -> None:
    off, gap = lost(replace(scene(), when=FAILED))
    runs = {side: starts(off, gap, side * 0.97) for side in (-1, 1)}
    for at, lengths in runs.values():
        assert set(np.round(np.diff(at) * 30 / 960)) == {1}, "one for two scans"
        assert all(390 <= length * 30 <= 510 for length in lengths)


def starts(off: Any, gap: Any, where: float) -> tuple[Any, Any]:
    """Return the first lines and the lengths of the gaps in one column that lies in the swath."""
    column = int(np.nanargmin(np.abs(off[len(off) // 2] - where)))
    inside = np.abs(off[:, column]) < 1
    edges = np.diff(gap[inside, column].astype(int))
    first, last = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    last = last[last > first[0]]
    return first[: len(last)], last - first[: len(last)]


def test_gaps_lie_elsewhere_in_another_pass_and_meet_in_the_next_frame() -> None:
    first, again = (replace(scene(), when=FAILED + timedelta(days=days)) for days in (0, 16))
    assert (lost(first)[1] != lost(again)[1]).any()
    length = first.along[1] - first.along[0] if first.along else 0
    step = round(160_000 / 180_000 * length)
    along = (first.along[0] + step, first.along[1] + step) if first.along else None
    following = replace(first, along=along)
    columns = np.arange(first.x_min_m, first.x_min_m + first.width_m, 300)
    place = Place(first.zone, columns, first.n_max_m - 300 * np.arange(700), seed=0)
    both = first.seen(place) & following.seen(place)
    assert both.any()
    np.testing.assert_array_equal(seen_by(first, place)[both], seen_by(following, place)[both])

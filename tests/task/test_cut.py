"""Where the pixels of a patch lie in files of any pixel size: laws against plain arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import RecipeError
from pipeline.records import PlannedPatch, Scene
from pipeline.task.cut import Placement, cut, place, resampled

MakePatch = Callable[..., PlannedPatch]
MakeScene = Callable[..., Scene]


def placement(col: int, row: int, size: int, pixel_m: float) -> Placement:
    return Placement(col, row, size, pixel_m, 0.0, 0.0, (slice(0, size), slice(0, size)))


@given(
    col=st.integers(-50, 500),
    row=st.integers(-50, 500),
    size=st.integers(1, 40),
    stored_m=st.sampled_from([10, 20, 30, 60]),
    file_m=st.sampled_from([5, 10, 15, 20, 25, 30, 60]),
)
def test_each_stored_pixel_takes_the_file_pixel_under_its_centre(
    col: int, row: int, size: int, stored_m: int, file_m: int
) -> None:
    how = cut(placement(col, row, size, stored_m), file_m)
    window = how.window
    # A file whose pixels hold their own position.
    rows, cols = np.mgrid[0 : window.height, 0 : window.width]
    read = np.stack([rows + window.row, cols + window.col])
    stored = how.apply(read, None)
    assert stored.shape == (2, size, size)
    for axis, start in ((0, row), (1, col)):
        centres_m = (start + np.arange(size) + 0.5) * stored_m
        expected = np.floor(centres_m / file_m).astype(int)
        line = stored[0][:, 0] if axis == 0 else stored[1][0, :]
        np.testing.assert_array_equal(line, expected)


@given(col=st.integers(-9, 9), size=st.integers(1, 12), factor=st.integers(2, 6))
def test_average_is_the_mean_of_the_seen_pixels(col: int, size: int, factor: int) -> None:
    how = cut(placement(col, 0, size, 10.0 * factor), 10.0, average=True)
    rng = np.random.default_rng(size)
    read = rng.integers(-5, 5, (1, how.window.height, how.window.width), dtype="int16")
    stored = how.apply(read, -5)
    assert stored.dtype == read.dtype
    for y in range(size):
        for x in range(size):
            square = read[0, y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
            seen = square[square != -5]
            assert stored[0, y, x] == (np.rint(seen.mean()) if seen.size else -5)


def test_average_needs_a_whole_factor() -> None:
    with pytest.raises(RecipeError, match="nearest"):
        cut(placement(0, 0, 4, 25.0), 10.0, average=True)


@pytest.mark.parametrize(
    ("stored_m", "file_m", "average", "word"),
    [
        (10, 10, False, "none"),
        (10, 60, False, "repeat"),
        (20, 10, False, "nearest"),
        (20, 10, True, "average"),
        (10, 25, True, "nearest"),
    ],
)
def test_the_ledger_names_what_was_done(
    stored_m: float, file_m: float, average: bool, word: str
) -> None:
    assert resampled(stored_m, file_m, average=average) == word


def test_bands_of_10_and_20_m_stay_registered_off_the_coarser_lattice(
    planned_patch: MakePatch, scene_row: MakeScene
) -> None:
    """The cell starts at 15 m modulo 30, as EnMAP's do; the scene is a Sentinel-2 tile."""
    patch = planned_patch(x_min_m=600_045, y_max_m=5_799_975, size_m=1920)
    scene = scene_row(x_min_m=600_000, y_max_m=5_800_020, width_m=109_800)
    spot = place(patch, scene, size_px=192, pixel_m=10)
    assert (spot.col, spot.row) == (5, 5)
    assert (spot.shift_x_px, spot.shift_y_px) == (0.5, 0.5)
    fine, coarse = cut(spot, 10), cut(spot, 20)
    # The first stored pixel starts 50 m east of the corner: 10 m into the third 20 m pixel.
    assert (fine.window.col, coarse.window.col) == (5, 2)
    assert coarse.cols is not None
    assert coarse.cols[:4].tolist() == [0, 1, 1, 2]


def test_what_overhangs_the_raster_is_outside(
    planned_patch: MakePatch, scene_row: MakeScene
) -> None:
    patch = planned_patch(x_min_m=599_985, y_max_m=5_800_020, size_m=300)
    scene = scene_row(x_min_m=600_015, y_max_m=5_799_900, width_m=240, height_m=90)
    spot = place(patch, scene, size_px=10, pixel_m=30)
    assert spot.inside == (slice(4, 7), slice(1, 9))
    assert not spot.covers


def test_southern_scenes_in_northern_numbering_are_found(
    planned_patch: MakePatch, scene_row: MakeScene
) -> None:
    """Landsat counts southern northings negative in 326xx; cells use 327xx."""
    patch = planned_patch(epsg=32733, x_min_m=300_015, y_max_m=9_000_005, size_m=300)
    scene = scene_row(epsg=32633, x_min_m=300_015, y_max_m=-999_995 + 300, width_m=900)
    spot = place(patch, scene, size_px=10, pixel_m=30)
    assert (spot.col, spot.row, spot.shift_y_px) == (0, 10, 0.0)

"""Tiling: every touched block in exactly one run, and nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.raster.tiling import Grid, overlap, runs
from pipeline.raster.windows import Window

GRIDS = st.builds(
    Grid, st.integers(1, 60), st.integers(1, 60), st.integers(1, 20), st.integers(1, 20)
)
WINDOWS = st.builds(
    Window, st.integers(-30, 70), st.integers(-30, 70), st.integers(1, 40), st.integers(1, 40)
)


@given(GRIDS, st.lists(WINDOWS, max_size=4))
def test_a_block_is_touched_by_the_windows_that_share_a_pixel_with_it(
    grid: Grid, windows: list[Window]
) -> None:
    expected: dict[tuple[int, int], list[int]] = {}
    for row in range(-(-grid.height // grid.block_height)):
        for col in range(-(-grid.width // grid.block_width)):
            for number, window in enumerate(windows):
                if any(
                    (x // grid.block_width, y // grid.block_height) == (col, row)
                    for x in _inside(window.col, window.width, grid.width)
                    for y in _inside(window.row, window.height, grid.height)
                ):
                    expected.setdefault((col, row), []).append(number)
    found = grid.touched(windows)
    assert found == expected
    assert list(found) == list(expected)


def _inside(start: int, length: int, limit: int) -> range:
    return range(max(start, 0), min(start + length, limit))


@given(st.sets(st.tuples(st.integers(0, 8), st.integers(0, 8))), st.integers(1, 20))
def test_every_block_is_in_one_run_of_a_bounded_size(
    blocks: set[tuple[int, int]], most: int
) -> None:
    ordered = sorted(blocks, key=lambda block: (block[1], block[0]))
    found = runs(ordered, most=most)
    assert all(run.cols * run.rows <= most for run in found)
    assert sorted(block for run in found for block in run.blocks()) == sorted(blocks)


def test_strips_are_joined_and_a_full_grid_becomes_few_runs() -> None:
    strips = [(0, row) for row in range(100)]
    assert [run.rows for run in runs(strips, most=40)] == [40, 40, 20]
    tiles = [(col, row) for row in range(4) for col in range(4)]
    assert len(runs(tiles, most=16)) == 1


@given(GRIDS, st.integers(0, 3), st.integers(0, 3))
def test_the_window_of_a_run_stays_in_the_raster(grid: Grid, cols: int, rows: int) -> None:
    everything = grid.touched([Window(0, 0, grid.width, grid.height)])
    for run in runs(list(everything), most=(cols + 1) * (rows + 1)):
        window = run.window(grid)
        assert overlap(window, Window(0, 0, grid.width, grid.height)) == window


@given(WINDOWS, WINDOWS)
def test_overlap_is_what_both_hold(a: Window, b: Window) -> None:
    shared = overlap(a, b)
    columns = set(range(a.col, a.col + a.width)) & set(range(b.col, b.col + b.width))
    rows = set(range(a.row, a.row + a.height)) & set(range(b.row, b.row + b.height))
    if shared is None:
        assert not columns or not rows
    else:
        assert set(range(shared.col, shared.col + shared.width)) == columns
        assert set(range(shared.row, shared.row + shared.height)) == rows
    assert overlap(b, a) == shared

"""Which compressed blocks do windows touch, and in what pieces are they read: pure integers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.raster.windows import Window


@dataclass(frozen=True, slots=True)
class Grid:
    """A raster and its division into blocks, all in pixels. The last ones may overhang it."""

    width: int
    height: int
    block_width: int
    block_height: int

    def touched(self, windows: Sequence[Window]) -> dict[tuple[int, int], list[int]]:
        """Return the touched blocks, row by row, each with the windows (by number) it serves.

        Keys are (column, row) of the block. What a window overhangs touches nothing.
        """
        found: dict[tuple[int, int], list[int]] = {}
        for number, window in enumerate(windows):
            for row in _span(window.row, window.height, self.height, self.block_height):
                for col in _span(window.col, window.width, self.width, self.block_width):
                    found.setdefault((col, row), []).append(number)
        return {key: found[key] for key in sorted(found, key=lambda key: (key[1], key[0]))}


@dataclass(frozen=True, slots=True)
class Run:
    """A rectangle of blocks that is decoded in one call."""

    col: int
    """Column of its first block; likewise `row`."""
    row: int
    cols: int
    """Blocks in a row; likewise `rows`."""
    rows: int

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yield (column, row) of its blocks, row by row."""
        for row in range(self.row, self.row + self.rows):
            for col in range(self.col, self.col + self.cols):
                yield col, row

    def window(self, grid: Grid) -> Window:
        """Return its pixels, cut at the raster's edge."""
        col, row = self.col * grid.block_width, self.row * grid.block_height
        return Window(
            col=col,
            row=row,
            width=min(self.cols * grid.block_width, grid.width - col),
            height=min(self.rows * grid.block_height, grid.height - row),
        )


def runs(blocks: Sequence[tuple[int, int]], *, most: int) -> list[Run]:
    """Join touching blocks into rectangles of at most `most` blocks; every block is in one.

    A file of thousands of one-row strips is then read in a few calls instead of thousands.

    Parameters
    ----------
    blocks : sequence of (column, row)
        Sorted by row, then column, each once.
    """
    rows: list[Run] = []
    for col, row in blocks:
        last = rows[-1] if rows else None
        if last and last.row == row and last.col + last.cols == col and last.cols < most:
            rows[-1] = Run(last.col, row, last.cols + 1, 1)
        else:
            rows.append(Run(col, row, 1, 1))
    joined: dict[tuple[int, int], Run] = {}
    done: list[Run] = []
    for run in rows:
        above = joined.get((run.col, run.cols))
        if above and above.row + above.rows == run.row and above.cols * (above.rows + 1) <= most:
            joined[run.col, run.cols] = Run(above.col, above.row, above.cols, above.rows + 1)
            continue
        if above:
            done.append(above)
        joined[run.col, run.cols] = run
    return sorted((*done, *joined.values()), key=lambda run: (run.row, run.col))


def overlap(a: Window, b: Window) -> Window | None:
    """Return the pixels that both windows hold, or None."""
    col, row = max(a.col, b.col), max(a.row, b.row)
    width = min(a.col + a.width, b.col + b.width) - col
    height = min(a.row + a.height, b.row + b.height) - row
    return Window(col, row, width, height) if width > 0 and height > 0 else None


def _span(start: int, length: int, limit: int, step: int) -> range:
    """Return the numbers of the steps that [start, start + length) meets inside [0, limit)."""
    first, stop = max(start, 0), min(start + length, limit)
    return range(first // step, -(-stop // step)) if first < stop else range(0)

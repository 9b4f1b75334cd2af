"""Where the pixels of a patch lie in a scene's files, whatever their pixel sizes.

A patch is anchored once, on the product's own lattice at the stored pixel size. Every file is then
asked for the pixels under the centres of the stored ones. So bands of 10 and 20 m stay registered
to each other even where the cell is not aligned to the coarser ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RecipeError
from pipeline.ports import PixelGrid
from pipeline.raster.lattice import Window, window_of
from pipeline.records import PlannedPatch, Scene

#: Pixel sizes that differ by less than this share are equal.
_SAME = 1e-9


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a patch lies in a scene, in stored pixels from the scene's north-western corner."""

    col: int
    row: int
    size_px: int
    pixel_m: float
    shift_x_px: float
    shift_y_px: float
    inside: tuple[slice, slice]
    """The part of the patch (y, x) that the scene's raster covers; empty slices if none."""

    @property
    def covers(self) -> bool:
        """Whether the raster covers the whole patch."""
        whole = slice(0, self.size_px)
        return self.inside == (whole, whole)


def place(
    patch: PlannedPatch, scene: Scene, *, size_px: int, pixel_m: float, warped: bool = False
) -> Placement:
    """Return where a patch lies in a scene of its zone.

    What is `warped` comes on the patch's own pixels, wherever the scene has them.
    """
    if warped:
        whole = slice(0, size_px)
        return Placement(0, 0, size_px, pixel_m, 0.0, 0.0, (whole, whole))
    window, east_px, south_px = window_of(
        epsg=patch.epsg,
        x_min_m=patch.x_min_m,
        y_max_m=patch.y_max_m,
        size_m=patch.size_m,
        raster_epsg=scene.epsg,
        raster_x_min_m=scene.x_min_m,
        raster_y_max_m=scene.y_max_m,
        pixel_m=pixel_m,
    )
    width = math.floor((scene.x_max_m - scene.x_min_m) / pixel_m + 0.5)
    height = math.floor((scene.y_max_m - scene.y_min_m) / pixel_m + 0.5)
    return Placement(
        window.col,
        window.row,
        size_px,
        pixel_m,
        east_px,
        south_px,
        (_overlap(window.row, size_px, height), _overlap(window.col, size_px, width)),
    )


def grid_of(patch: PlannedPatch, size_px: int, pixel_m: float) -> PixelGrid:
    """Return a patch's own pixels, onto which what is warped comes."""
    return PixelGrid(
        epsg=patch.epsg,
        x_min_m=patch.x_min_m,
        y_max_m=patch.y_max_m,
        pixel_m=pixel_m,
        width_px=size_px,
        height_px=size_px,
    )


@dataclass(frozen=True, slots=True)
class Cut:
    """What to read of one file for one patch, and how its pixels become stored ones."""

    window: Window
    rows: NDArray[np.intp] | None
    """For each stored row the row of the window that it takes; None: they are the same."""
    cols: NDArray[np.intp] | None
    average: int = 1
    """Edge of the square of file pixels that are averaged into a stored one; 1: none are."""

    def apply(self, read: NDArray[Any], nodata: float | None) -> NDArray[Any]:
        """Return the stored pixels of what was read, shape (band, y, x)."""
        if self.average > 1:
            return _averaged(read, self.average, nodata)
        if self.rows is None or self.cols is None:
            return read
        # Columns first: the array is still small then.
        return np.take(np.take(read, self.cols, axis=2), self.rows, axis=1)


def cut(place: Placement, file_m: float, *, average: bool = False, inset_m: float = 0) -> Cut:
    """Return what to read of a file with pixels of `file_m` metres.

    Its north-western corner lies `inset_m` inside the scene's, east and south.

    Raises
    ------
    RecipeError
        `average` was asked for, and the stored pixel is no whole number of the file's.
    """
    step = place.pixel_m / file_m
    if abs(step - 1) < _SAME:
        window = Window(place.col, place.row, place.size_px, place.size_px)
        return Cut(window, None, None)
    if average and step > 1:
        factor = round(step)
        if abs(step - factor) > _SAME:
            raise RecipeError(
                f'`resampling = "average"` needs stored pixels that are a whole number of the '
                f"file's; {place.pixel_m:g} m is not one of {file_m:g} m. Use `nearest`."
            )
        edge = place.size_px * factor
        return Cut(Window(place.col * factor, place.row * factor, edge, edge), None, None, factor)
    inset_px = inset_m / file_m
    left, cols = _under_centres(place.col, place.size_px, step, inset_px)
    top, rows = _under_centres(place.row, place.size_px, step, inset_px)
    return Cut(Window(left, top, int(cols[-1]) + 1, int(rows[-1]) + 1), rows, cols)


def resampled(place_m: float, file_m: float, *, average: bool) -> str:
    """Return the ledger's word for how a file's pixels become stored ones."""
    if abs(place_m / file_m - 1) < _SAME:
        return "none"
    if place_m < file_m and abs(file_m / place_m - round(file_m / place_m)) < _SAME:
        return "repeat"
    return "average" if average and place_m > file_m else "nearest"


def _under_centres(
    start: int, count: int, step: float, inset_px: float
) -> tuple[int, NDArray[np.intp]]:
    """Return the first file pixel under the centres of stored pixels, and each one's from there.

    Where a centre falls on an edge of the file's pixels, the one after it is taken.
    """
    centres = (start + np.arange(count) + 0.5) * step - inset_px
    pixels = np.floor(centres + _SAME).astype(np.intp)
    return int(pixels[0]), pixels - pixels[0]


def _overlap(start: int, size: int, length: int) -> slice:
    first = min(max(0, -start), size)
    return slice(first, max(first, min(size, length - start)))


def _averaged(read: NDArray[Any], factor: int, nodata: float | None) -> NDArray[Any]:
    """Return the mean of the seen pixels of each square; nodata where none was seen.

    Integers stay integers, rounded half to even, so that every machine gets the same.
    """
    bands, height, width = read.shape
    squares = read.reshape(bands, height // factor, factor, width // factor, factor)
    seen = np.ones(squares.shape, dtype=bool) if nodata is None else squares != nodata
    if read.dtype.kind == "f":
        seen &= np.isfinite(squares)
    count = seen.sum(axis=(2, 4))
    total = np.where(seen, squares, 0).sum(axis=(2, 4), dtype=np.float64)
    mean = total / np.maximum(count, 1)
    if read.dtype.kind != "f":
        mean = np.rint(mean)
    empty = np.nan if nodata is None else nodata
    return np.where(count > 0, mean, empty).astype(read.dtype)

"""The pixels of a raster that stand for a cell."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.raster.zones import northing_from_equator, same_zone

#: Fractions of a pixel below this are noise of a file's transform, not a position.
_NOISE_PX = 1e-6


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of a raster's pixels; it may overhang the raster."""

    col: int
    row: int
    width: int
    height: int


def window_of(
    *,
    epsg: int,
    x_min_m: float,
    y_max_m: float,
    size_m: float,
    raster_epsg: int,
    raster_x_min_m: float,
    raster_y_max_m: float,
    pixel_m: float,
) -> tuple[Window, float, float]:
    """Return the pixels of a raster that stand for a cell: the nearest of its own lattice.

    Nothing is resampled. Edges are rounded by floor(x + ½) in both axes, so cells side by side
    get windows side by side.

    Parameters
    ----------
    epsg, x_min_m, y_max_m, size_m
        The cell: north-western corner and edge.
    raster_epsg, raster_x_min_m, raster_y_max_m, pixel_m
        The raster: north-western corner of its first pixel, and pixel size.

    Returns
    -------
    window : Window
        Square; where `size_m` is no whole number of pixels, rounded up, for a resampling.
    shift_x_px, shift_y_px : float
        How far east and south of the cell the window lies, in the raster's pixels, (-½, ½].

    Raises
    ------
    ValueError
        The raster is not in the cell's zone. EPSG 326xx and 327xx of a number are one zone.
    """
    if not same_zone(epsg, raster_epsg):
        raise ValueError(f"raster in EPSG:{raster_epsg}, cell in the UTM zone of EPSG:{epsg}")
    east = (x_min_m - raster_x_min_m) / pixel_m
    south = (
        northing_from_equator(raster_epsg, raster_y_max_m) - northing_from_equator(epsg, y_max_m)
    ) / pixel_m
    col, row = _nearest(east), _nearest(south)
    edge = math.ceil(size_m / pixel_m - _NOISE_PX)
    return Window(col, row, edge, edge), _clean(col - east), _clean(row - south)


def _nearest(position_px: float) -> int:
    return math.floor(position_px + 0.5 + _NOISE_PX)


def _clean(shift_px: float) -> float:
    return 0.0 if abs(shift_px) < _NOISE_PX else shift_px

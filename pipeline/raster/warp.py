"""Bring the pixels of a file onto the pixels of cells, where the two share no lattice.

Label maps and terrain come in degrees or in map projections of their own, radar images with ground
control points and no grid. For each cell the part of the file under it is read, and its pixels are
taken by the exact position of the cell's pixel centres: the nearest, or a mean of the nearest four.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.control import GroundControlPoint
from rasterio.errors import RasterioError
from rasterio.transform import GCPTransformer
from rasterio.warp import Resampling, reproject, transform
from rasterio.windows import Window as GdalWindow

from pipeline.errors import GiveUp
from pipeline.ports import ByteSource, PixelGrid, Stat
from pipeline.raster.opening import (
    MAGIC_BYTES,
    environment,
    open_handle,
    recognise,
    translated,
)
from pipeline.raster.rangefile import RangeFile

Pixels = NDArray[Any]
#: What is done to delivered pixels before they are moved: values (band, y, x), and the line and
#: sample of the first of them in the file.
Prepare = Callable[[Pixels, int, int], Pixels]

#: Read at once, from where a decoder asks: a part of a file is a few compressed blocks of it.
_PAGE_BYTES = 2**18
#: Positions along each side of a cell by which the part of a file under it is found.
_PROBES = 21
#: Pixels read beyond it: of the interpolation, and of what probes may miss.
_MARGIN_PX = 4
#: A cell has some 264 pixels of 10 m; a file of finer pixels than these gives more.
_MOST_PIXELS = 2**26
#: Radar images have ground control points every few hundred lines, exact ones: the spline goes
#: through all of them.
_SPLINE = {"SRC_METHOD": "GCP_TPS"}
_METHODS = {"nearest": Resampling.nearest, "bilinear": Resampling.bilinear}


class WarpedRaster:
    """An open image file on whatever grid; one thread uses it at a time.

    Attributes
    ----------
    stat : Stat
        Length and entity tag.
    """

    def __init__(self, name: str, stat: Stat, file: RangeFile, handle: Any) -> None:
        self.stat = stat
        self._name = name
        self._file = file
        self._handle = handle
        points, crs = handle.gcps
        self._points = list(points) if points and handle.transform.is_identity else []
        self._crs = crs if self._points else handle.crs
        if self._crs is None:
            raise GiveUp(f"{name} says neither grid nor control points.", failure="wrong-grid")
        with _placed(name):
            self._spline = GCPTransformer(self._points, tps=True) if self._points else None

    def read(
        self,
        indexes: Sequence[int],
        grid: PixelGrid,
        *,
        method: str,
        nodata: float | None,
        prepare: Prepare | None = None,
    ) -> Pixels:
        """Return the bands on the pixels of a cell, shape (band, y, x).

        Parameters
        ----------
        indexes : sequence of int
            1-based bands.
        grid : PixelGrid
            The cell's pixels.
        method : str
            `nearest` or `bilinear`.
        nodata : float or None
            Delivered value that means nothing was seen, as does the one that the file itself names.
            None: NaN.
        prepare : callable or None
            What is done to delivered pixels first; NaN is nothing seen in what it returns.

        Returns
        -------
        array
            Of the file's type, `nodata` where it shows nothing; of what `prepare` returns, NaN.

        Raises
        ------
        GiveUp
            `wrong-size` (no such band, or a huge part), `not-an-image` (integers without a value
            for nothing), `truncated`, `corrupt`, or what the source raised.
        TryAgain
            What the source raised.
        """
        if max(indexes) > self._handle.count:
            raise GiveUp(
                f"{self._name} has {self._handle.count} bands; there is no band {max(indexes)}.",
                failure="wrong-size",
            )
        nothing = math.nan if nodata is None or prepare is not None else nodata
        kind = np.dtype(np.float32) if prepare is not None else np.dtype(self._handle.dtypes[0])
        if kind.kind not in "iuf" or (math.isnan(nothing) and kind.kind != "f"):
            raise GiveUp(f"{self._name} has {kind} pixels and no nodata.", failure="not-an-image")
        target = np.full((len(indexes), grid.height_px, grid.width_px), nothing, kind)
        with _placed(self._name):
            window = self._window(grid)
        if window is None:
            return target
        with translated(self._file, self._name), environment():
            pixels = self._handle.read(list(indexes), window=window)
        own = self._handle.nodata
        if prepare is None and own is not None:
            pixels[pixels == own] = nothing  # an edition may call nothing by another number
        if prepare is not None:
            pixels = prepare(pixels, window.row_off, window.col_off)
        with _placed(self._name), environment():
            reproject(
                pixels,
                target,
                src_crs=self._crs,
                src_nodata=nothing,
                dst_crs=f"EPSG:{grid.epsg}",
                dst_nodata=nothing,
                dst_transform=rasterio.Affine(
                    grid.pixel_m, 0, grid.x_min_m, 0, -grid.pixel_m, grid.y_max_m
                ),
                resampling=_METHODS[method],
                tolerance=0,
                **self._position(window),
            )
        return target

    def _position(self, window: GdalWindow) -> dict[str, Any]:
        """Return where the pixels of a window lie, in the words of the warper."""
        if not self._points:
            a, b, c, d, e, f = tuple(self._handle.transform)[:6]
            col, row = window.col_off, window.row_off
            moved_c, moved_f = c + a * col + b * row, f + d * col + e * row
            return {"src_transform": rasterio.Affine(a, b, moved_c, d, e, moved_f)}
        points = [
            GroundControlPoint(
                point.row - window.row_off, point.col - window.col_off, point.x, point.y, point.z
            )
            for point in self._points
        ]
        return {"gcps": points, **_SPLINE}

    def _place(self, x: Pixels, y: Pixels) -> tuple[Pixels, Pixels]:
        """Return row and column, with fractions, of positions in the file's own coordinates."""
        if self._spline is not None:
            rows, cols = self._spline.rowcol(x.tolist(), y.tolist(), op=float)
            return np.array(rows), np.array(cols)
        a, b, c, d, e, f = tuple(~self._handle.transform)[:6]
        return d * x + e * y + f, a * x + b * y + c

    def _window(self, grid: PixelGrid) -> GdalWindow | None:
        """Return the part of the file under a cell and a little more; None if there is none."""
        edge = np.linspace(0, 1, _PROBES)
        x, y = (part.ravel() for part in np.meshgrid(edge, edge))
        x = grid.x_min_m + x * grid.width_px * grid.pixel_m
        y = grid.y_max_m - y * grid.height_px * grid.pixel_m
        there_x, there_y = transform(f"EPSG:{grid.epsg}", self._crs, x.tolist(), y.tolist())
        rows, cols = self._place(np.array(there_x), np.array(there_y))
        if not np.isfinite(rows).all() or not np.isfinite(cols).all():
            return None
        top, bottom = math.floor(min(rows)) - _MARGIN_PX, math.ceil(max(rows)) + _MARGIN_PX
        left, right = math.floor(min(cols)) - _MARGIN_PX, math.ceil(max(cols)) + _MARGIN_PX
        top, left = max(top, 0), max(left, 0)
        height = min(bottom, self._handle.height) - top
        width = min(right, self._handle.width) - left
        if height <= 0 or width <= 0:
            return None
        if height * width > _MOST_PIXELS:
            raise GiveUp(
                f"{self._name}: {height} x {width} pixels lie under one cell; allowed are "
                f"{_MOST_PIXELS}.",
                failure="wrong-size",
            )
        return GdalWindow(left, top, width, height)


@contextmanager
def _placed(name: str) -> Iterator[None]:
    """Name a file whose CRS or control points GDAL and PROJ cannot make sense of."""
    try:
        yield
    except (RasterioError, CPLE_BaseError, ValueError, ArithmeticError) as error:
        raise GiveUp(f"{name} cannot be placed: {error}", failure="wrong-grid") from error


@contextmanager
def open_warped(
    source: ByteSource, href: str, *, driver: tuple[str, ...] = ("GTiff",)
) -> Iterator[WarpedRaster]:
    """Open an image file of a scene, whatever its grid; raises as `blocks.open_asset`."""
    stat = source.stat(href)
    size = min(MAGIC_BYTES, stat.size_bytes)
    head = source.ranges(href, [(0, size)])[0] if size else b""
    name = href.split("?")[0]
    kind = recognise(head, driver, name)
    file = RangeFile(source, href, stat.size_bytes, page_bytes=_PAGE_BYTES)
    with ExitStack() as stack, environment():
        with translated(file, name):
            handle = stack.enter_context(open_handle(file, kind))
        yield WarpedRaster(name, stat, file, handle)

"""Bring the pixels of a file onto the pixels of cells, where the two share no lattice.

Label maps and terrain come in degrees or in map projections of their own, radar images with ground
control points and no grid, raw images in the geometry of their sensor. For each cell the part of
the file under it is read, and its pixels are taken by the exact position of the cell's pixel
centres: the nearest, or a mean of the nearest four.
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
from pipeline.raster.camera import Camera
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
#: Cameras see places by longitude and latitude.
_LONLAT = "EPSG:4326"
#: Positions along each side of a cell by which the part of a file under it is found.
_PROBES = 21
#: File pixels that lie along the edge of one of the cell, from which on they are averaged.
_FINER = 1.1
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
        with _placed(name):
            self._spline = GCPTransformer(self._points, tps=True) if self._points else None

    def read(
        self,
        indexes: Sequence[int],
        grid: PixelGrid,
        *,
        method: str,
        nodata: float | None,
        prepare: Sequence[Prepare] = (),
        cameras: Sequence[Camera] = (),
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
        prepare : sequence of callable
            For each band what is done to delivered pixels first, if anything; NaN is nothing seen
            in what it returns.
        cameras : sequence of Camera
            For each band where it saw a place; none: the file's own grid or control points hold.

        Returns
        -------
        array
            Of the file's type, `nodata` where it shows nothing; of what `prepare` returns, NaN.

        Raises
        ------
        GiveUp
            `wrong-size` (no such band, or a huge part), `not-an-image` (integers without a value
            for nothing), `wrong-grid` (nothing says where its pixels lie), `truncated`, `corrupt`,
            or what the source raised.
        TryAgain
            What the source raised.
        """
        if max(indexes) > self._handle.count:
            raise GiveUp(
                f"{self._name} has {self._handle.count} bands; there is no band {max(indexes)}.",
                failure="wrong-size",
            )
        if self._crs is None and not cameras:
            raise GiveUp(
                f"{self._name} says neither grid nor control points.", failure="wrong-grid"
            )
        nothing = math.nan if nodata is None or prepare else nodata
        kind = np.dtype(np.float32) if prepare else np.dtype(self._handle.dtypes[0])
        if kind.kind not in "iuf" or (math.isnan(nothing) and kind.kind != "f"):
            raise GiveUp(f"{self._name} has {kind} pixels and no nodata.", failure="not-an-image")
        target = np.full((len(indexes), grid.height_px, grid.width_px), nothing, kind)
        for camera in dict.fromkeys(cameras) or (None,):
            places = [n for n in range(len(indexes)) if not cameras or cameras[n] == camera]
            own = [prepare[n] for n in places] if prepare else []
            target[places] = self._moved(
                [indexes[n] for n in places], target[places], grid, method, nothing, own, camera
            )
        return target

    def _moved(
        self,
        indexes: list[int],
        target: Pixels,
        grid: PixelGrid,
        method: str,
        nothing: float,
        prepare: Sequence[Prepare],
        camera: Camera | None,
    ) -> Pixels:
        """Return bands that lie alike on the pixels of a cell: what is seen of them in `target`."""
        with _placed(self._name):
            found = self._window(grid, camera)
        if found is None:
            return target
        window, scales = found
        with translated(self._file, self._name), environment():
            pixels = self._handle.read(indexes, window=window)
        if prepare:
            at = window.row_off, window.col_off
            bands = [one(pixels[n : n + 1], *at) for n, one in enumerate(prepare)]
            pixels = np.concatenate(bands)
        elif (own := self._handle.nodata) is not None:
            pixels[pixels == own] = nothing  # an edition may call nothing by another number
        with _placed(self._name), environment():
            reproject(
                pixels,
                target,
                src_nodata=nothing,
                dst_crs=f"EPSG:{grid.epsg}",
                dst_nodata=nothing,
                dst_transform=rasterio.Affine(
                    grid.pixel_m, 0, grid.x_min_m, 0, -grid.pixel_m, grid.y_max_m
                ),
                resampling=_METHODS[method],
                tolerance=0,
                **scales,
                **self._position(window, camera),
            )
        return target

    def _position(self, window: GdalWindow, camera: Camera | None) -> dict[str, Any]:
        """Return where the pixels of a window lie, in the words of the warper."""
        col, row = window.col_off, window.row_off
        if camera is not None:
            return {
                "src_crs": _LONLAT,
                "rpcs": camera.coefficients(row, col),
                "RPC_HEIGHT": camera.height_m,
            }
        if not self._points:
            a, b, c, d, e, f = tuple(self._handle.transform)[:6]
            moved_c, moved_f = c + a * col + b * row, f + d * col + e * row
            moved = rasterio.Affine(a, b, moved_c, d, e, moved_f)
            return {"src_crs": self._crs, "src_transform": moved}
        points = [
            GroundControlPoint(point.row - row, point.col - col, point.x, point.y, point.z)
            for point in self._points
        ]
        return {"src_crs": self._crs, "gcps": points, **_SPLINE}

    def _place(self, x: Pixels, y: Pixels, camera: Camera | None) -> tuple[Pixels, Pixels]:
        """Return row and column, with fractions, of positions in the file's own coordinates."""
        if camera is not None:
            return camera.rowcol(x, y)
        if self._spline is not None:
            rows, cols = self._spline.rowcol(x.tolist(), y.tolist(), op=float)
            return np.array(rows), np.array(cols)
        a, b, c, d, e, f = tuple(~self._handle.transform)[:6]
        return d * x + e * y + f, a * x + b * y + c

    def _window(
        self, grid: PixelGrid, camera: Camera | None
    ) -> tuple[GdalWindow, dict[str, float]] | None:
        """Return the part of the file under a cell and a little more, and how much finer its pixels
        are than the cell's, in the words of the warper; None if there is no such part."""
        edge = np.linspace(0, 1, _PROBES)
        x, y = (part.ravel() for part in np.meshgrid(edge, edge))
        x = grid.x_min_m + x * grid.width_px * grid.pixel_m
        y = grid.y_max_m - y * grid.height_px * grid.pixel_m
        crs = self._crs if camera is None else _LONLAT
        there_x, there_y = transform(f"EPSG:{grid.epsg}", crs, x.tolist(), y.tolist())
        rows, cols = self._place(np.array(there_x), np.array(there_y), camera)
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
        at = np.stack([rows, cols]).reshape(2, _PROBES, _PROBES)
        return GdalWindow(left, top, width, height), _scales(at, grid)


def _scales(at: Pixels, grid: PixelGrid) -> dict[str, float]:
    """Return pixels of the cell per pixel of the file, along the cell's axes; at most 1.

    GDAL takes it from the outlines of the two, and so takes an image that lies turned under the
    cell for a finer one, whose pixels it averages: what should be interpolated is blurred.

    Parameters
    ----------
    at : array, shape (2, probe, probe)
        Row and column of the probes, those from north to south in the second axis.
    grid : PixelGrid
    """
    found = {}
    for key, axis, size_px in (("XSCALE", 2, grid.width_px), ("YSCALE", 1, grid.height_px)):
        steps = np.hypot(*np.diff(at, axis=axis)) * (_PROBES - 1) / size_px
        step = float(np.median(steps))
        found[key] = 1.0 if step < _FINER else 1 / step
    return found


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

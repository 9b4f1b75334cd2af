"""Read windows of a scene's files for one task: all of a file together, checked and counted."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from pipeline.errors import GiveUp, TryAgain
from pipeline.ports import ByteSource, PixelGrid, PixelSource, Stat
from pipeline.raster.blocks import AssetRaster, open_asset
from pipeline.raster.camera import Camera
from pipeline.raster.lattice import Window
from pipeline.raster.radiometry import recoded
from pipeline.raster.warp import Prepare, WarpedRaster, open_warped
from pipeline.records import Asset, Scene, Source
from pipeline.sources.bytes.checksum import check_bytes
from pipeline.stages.extract import Failure

Pixels = NDArray[Any]

#: Calibration tables of Sentinel-1 have 1 to 2 MB, an MTL.json has 20 kB.
_LARGEST_DOCUMENT_BYTES = 2**24
#: Names of JPEG 2000 files; everything else that is read is GeoTIFF.
_JPEG2000 = (".jp2", ".j2k")


@dataclass(frozen=True, slots=True)
class Warp:
    """How pixels that lie on no lattice come onto those of cells."""

    grids: tuple[PixelGrid, ...]
    """The cells' pixels, for each window one."""
    method: str
    """`nearest` or `bilinear`."""
    nodata: float | None
    prepare: tuple[Prepare, ...] = ()
    """For each band what is done to delivered pixels before they are moved, if anything."""
    cameras: tuple[Camera, ...] = ()
    """For each band of an image in sensor geometry where it saw a place."""
    codes: Mapping[str, int] = field(default_factory=dict)
    """Delivered class codes (as text) and the product's own; empty: they are the same."""


@dataclass(frozen=True, slots=True)
class Request:
    """Some bands of one file of a scene, for some windows."""

    scene: Scene
    assets: tuple[str, ...]
    """For each wanted band the asset that holds it; all have one address."""
    file_m: float
    """Pixel size that the file must have."""
    indexes: tuple[int, ...]
    """1-based bands of the file."""
    windows: tuple[Window, ...]
    fill: float
    """Value of pixels beyond the raster."""
    inset_m: float = 0
    """How far the file's edges lie inside the scene's (`Band.inset_m`)."""
    warp: Warp | None = None
    """For files on no lattice: what is read in place of the windows."""


class Reader:
    """Reads files, and keeps account of what was read.

    Parameters
    ----------
    source_of : callable
        Returns the door through which a scene is read: files, or pixels where its provider has no
        files.
    known : mapping of str to Source
        Files as an earlier revision of the shard read them, by href: they must be the same.
    final : bool
        Whether a passing failure is an answer (`Failure`); otherwise it is raised, because then
        nothing of the shard is committed and the rest of the work would be lost.
    threads : int
        Blocks of one file decoded at the same time.

    Safe to use from several threads.
    """

    def __init__(
        self,
        source_of: Callable[[Scene], ByteSource | PixelSource],
        known: Mapping[str, Source],
        *,
        final: bool,
        threads: int = 1,
    ) -> None:
        self._source_of = source_of
        self._known = known
        self._final = final
        self._threads = threads
        self._lock = threading.Lock()
        self._used: dict[str, Source] = {}
        self.blocks_touched = 0
        self.blocks_decoded = 0

    def read(self, request: Request) -> list[Pixels | Failure]:
        """Return the pixels (band, y, x) of each window, or why there are none.

        Where one window cannot be decoded, the others are read without it: whether a patch fails
        must not depend on what else lies in its shard.

        Raises
        ------
        TryAgain
            A passing failure, unless this is the final round; `circuit-open` always.
        """
        try:
            asset = _asset(request.scene, request.assets)
            source = self._source_of(request.scene)
            if isinstance(source, PixelSource):
                return self._computed(source, asset, request)
            driver = "JP2OpenJPEG" if asset.href.lower().endswith(_JPEG2000) else "GTiff"
            if request.warp is not None:
                return self._warped(source, asset, request, request.warp)
            with open_asset(source, asset.href, driver=(driver,), threads=self._threads) as raster:
                self._compare(asset, raster.stat)
                _expected(raster, request)
                try:
                    return self._windows(raster, request)
                finally:
                    with self._lock:
                        self.blocks_touched += raster.blocks_touched
                        self.blocks_decoded += raster.blocks_decoded
        except GiveUp as error:
            return [Failure(error.failure, str(error))] * len(request.windows)
        except TryAgain as error:
            if not self._final or error.failure == "circuit-open":
                raise
            return [Failure(error.failure, str(error))] * len(request.windows)

    def document(self, scene: Scene, asset: str) -> bytes | Failure:
        """Return a file of a scene's metadata, whole, as its catalogue's checksum has it if stated.

        Raises
        ------
        TryAgain
            As `read`.
        """
        try:
            there = _asset(scene, (asset,))
            source = self._source_of(scene)
            if isinstance(source, PixelSource):
                self._keep(Source(href=there.href, etag=None, size_bytes=None))
                return source.document(there.href)
            stat = source.stat(there.href)
            if stat.size_bytes > _LARGEST_DOCUMENT_BYTES:
                raise GiveUp(
                    f"{there.href} has {stat.size_bytes} bytes; metadata have at most "
                    f"{_LARGEST_DOCUMENT_BYTES}.",
                    failure="wrong-size",
                )
            self._compare(there, stat)
            data = source.ranges(there.href, [(0, stat.size_bytes)])[0]
            check_bytes(there.href, data, there.checksum)
            return data
        except GiveUp as error:
            return Failure(error.failure, str(error))
        except TryAgain as error:
            if not self._final or error.failure == "circuit-open":
                raise
            return Failure(error.failure, str(error))

    def overview(self, request: Request, *, most_px: int) -> Pixels | Failure | None:
        """Return the first band of a request for the whole scene, thinned out, shape (y, x).

        None: the file has no overview so small, or it is no file.

        Raises
        ------
        TryAgain
            As `read`.
        """
        try:
            asset = _asset(request.scene, request.assets)
            source = self._source_of(request.scene)
            if isinstance(source, PixelSource):
                return None
            driver = "JP2OpenJPEG" if asset.href.lower().endswith(_JPEG2000) else "GTiff"
            with open_asset(source, asset.href, driver=(driver,), threads=1) as raster:
                self._compare(asset, raster.stat)
                _expected(raster, request)
                return raster.overview(request.indexes[0], most_px=most_px)
        except GiveUp as error:
            return Failure(error.failure, str(error))
        except TryAgain as error:
            if not self._final or error.failure == "circuit-open":
                raise
            return Failure(error.failure, str(error))

    def source(self, scene: Scene, asset: str) -> Source | None:
        """Return what was read of a file of a scene: its address, tag and length."""
        return next((self._used.get(a.href) for a in scene.assets if a.name == asset), None)

    def _computed(
        self, source: PixelSource, asset: Asset, request: Request
    ) -> list[Pixels | Failure]:
        """Return the windows of an image that is no file, each by a request of its own.

        Its address names one version of it, so there is nothing to compare.
        """

        def one(grid: PixelGrid) -> Pixels | Failure:
            try:
                if how is None:
                    return source.pixels(asset.href, request.assets, grid, fill=request.fill)
                fill = math.nan if how.nodata is None else how.nodata
                pixels = source.pixels(
                    asset.href, request.assets, grid, fill=fill, method=how.method
                )
                return recoded(pixels, how.codes, how.nodata, asset.href)
            except GiveUp as error:
                return Failure(error.failure, str(error))
            except TryAgain as error:
                if not self._final or error.failure == "circuit-open":
                    raise
                return Failure(error.failure, str(error))

        how = request.warp
        if how is None:
            grids = [_grid(window, request) for window in request.windows]
        else:
            grids = list(how.grids)
        with ThreadPoolExecutor(source.concurrency, "windows") as pool:
            found = list(pool.map(one, grids))
        self._keep(Source(href=asset.href, etag=None, size_bytes=None))
        return found

    def _windows(self, raster: AssetRaster, request: Request) -> list[Pixels | Failure]:
        try:
            return list(raster.read(request.indexes, request.windows, fill=request.fill))
        except GiveUp:
            if len(request.windows) == 1:
                raise
        return [self._alone(raster, request, window) for window in request.windows]

    def _alone(self, raster: AssetRaster, request: Request, window: Window) -> Pixels | Failure:
        try:
            return raster.read(request.indexes, [window], fill=request.fill)[0]
        except GiveUp as error:
            return Failure(error.failure, str(error))

    def _warped(
        self, source: ByteSource, asset: Asset, request: Request, how: Warp
    ) -> list[Pixels | Failure]:
        """Return a file's pixels on those of cells; one that fails spoils no other."""

        def one(raster: WarpedRaster, grid: PixelGrid) -> Pixels | Failure:
            try:
                pixels = raster.read(
                    request.indexes,
                    grid,
                    method=how.method,
                    nodata=how.nodata,
                    prepare=how.prepare,
                    cameras=how.cameras,
                )
                return recoded(pixels, how.codes, how.nodata, asset.href)
            except GiveUp as error:
                return Failure(error.failure, str(error))

        with open_warped(source, asset.href) as raster:
            self._compare(asset, raster.stat)
            return [one(raster, grid) for grid in how.grids]

    def _compare(self, asset: Asset, stat: Stat) -> None:
        """Keep tag and length of a file, and refuse one that is not what was read before."""
        found = Source(href=asset.href, etag=stat.etag, size_bytes=stat.size_bytes)
        before = self._known.get(asset.href)
        if before is not None and before != found:
            raise GiveUp(
                f"{asset.href} is not the file that was read before: it had "
                f"{before.size_bytes} bytes and tag {before.etag}, and has {found.size_bytes} "
                f"and {found.etag}.",
                failure="changed",
            )
        self._keep(found)

    def _keep(self, found: Source) -> None:
        with self._lock:
            self._used[found.href] = found


def _asset(scene: Scene, names: tuple[str, ...]) -> Asset:
    """Return the first of the wanted assets, whose address is that of all."""
    there = {asset.name: asset for asset in scene.assets}
    for name in names:
        if name not in there:
            raise GiveUp(f"{scene.scene} has no file {name!r}.", failure="gone")
    return there[names[0]]


def _grid(window: Window, request: Request) -> PixelGrid:
    """Return where a window's pixels lie: on the image's own, so that none is resampled."""
    scene, pixel_m = request.scene, request.file_m
    return PixelGrid(
        epsg=scene.epsg,
        x_min_m=scene.x_min_m + request.inset_m + window.col * pixel_m,
        y_max_m=scene.y_max_m - request.inset_m - window.row * pixel_m,
        pixel_m=pixel_m,
        width_px=window.width,
        height_px=window.height,
    )


def _expected(raster: AssetRaster, request: Request) -> None:
    """Make sure that a file is the raster that its scene's metadata promised."""
    scene, name = request.scene, f"{request.scene.scene}, file {request.assets[0]}"
    if raster.epsg != scene.epsg or abs(raster.pixel_m - request.file_m) > 1e-6:
        raise GiveUp(
            f"{name} has EPSG:{raster.epsg} and pixels of {raster.pixel_m:g} m; "
            f"EPSG:{scene.epsg} and {request.file_m:g} m were promised.",
            failure="wrong-grid",
        )
    inset_m = request.inset_m
    x_min_m, y_max_m = scene.x_min_m + inset_m, scene.y_max_m - inset_m
    raster.check(
        epsg=scene.epsg,
        x_min_m=x_min_m,
        y_min_m=scene.y_min_m + inset_m,
        x_max_m=scene.x_max_m - inset_m,
        y_max_m=y_max_m,
    )
    # Windows are counted from the promised corner, so half a pixel would be half a pixel.
    off_m = max(abs(raster.x_min_m - x_min_m), abs(raster.y_max_m - y_max_m))
    if off_m > 0.01 * raster.pixel_m:
        raise GiveUp(
            f"{name} starts at {raster.x_min_m:.3f}, {raster.y_max_m:.3f}; "
            f"{x_min_m:.3f}, {y_max_m:.3f} was promised.",
            failure="wrong-grid",
        )

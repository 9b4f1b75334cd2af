"""Read windows of a scene's files for one task: all of a file together, checked and counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from pipeline.errors import GiveUp, TryAgain
from pipeline.ports import ByteSource, Stat
from pipeline.raster.blocks import AssetRaster, open_asset
from pipeline.raster.lattice import Window
from pipeline.records import Asset, Scene, Source
from pipeline.stages.extract import Failure

Pixels = NDArray[Any]

#: Names of JPEG 2000 files; everything else that is read is GeoTIFF.
_JPEG2000 = (".jp2", ".j2k")


@dataclass(frozen=True, slots=True)
class Request:
    """Some bands of one file of a scene, for some windows."""

    scene: Scene
    asset: str
    file_m: float
    """Pixel size that the file must have."""
    indexes: tuple[int, ...]
    """1-based bands of the file."""
    windows: tuple[Window, ...]
    fill: float
    """Value of pixels beyond the raster."""


class Reader:
    """Reads files, and keeps account of what was read.

    Parameters
    ----------
    source_of : callable
        Returns the door through which a product's scenes are read, by product id.
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
        source_of: Callable[[str], ByteSource],
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
            asset = _asset(request)
            source = self._source_of(request.scene.product)
            driver = "JP2OpenJPEG" if asset.href.lower().endswith(_JPEG2000) else "GTiff"
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

    def source(self, scene: Scene, asset: str) -> Source | None:
        """Return what was read of a file of a scene: its address, tag and length."""
        return next((self._used.get(a.href) for a in scene.assets if a.name == asset), None)

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
        with self._lock:
            self._used[asset.href] = found


def _asset(request: Request) -> Asset:
    for asset in request.scene.assets:
        if asset.name == request.asset:
            return asset
    raise GiveUp(f"{request.scene.scene} has no file {request.asset!r}.", failure="gone")


def _expected(raster: AssetRaster, request: Request) -> None:
    """Make sure that a file is the raster that its scene's metadata promised."""
    scene, name = request.scene, f"{request.scene.scene}, file {request.asset}"
    if raster.epsg != scene.epsg or abs(raster.pixel_m - request.file_m) > 1e-6:
        raise GiveUp(
            f"{name} has EPSG:{raster.epsg} and pixels of {raster.pixel_m:g} m; "
            f"EPSG:{scene.epsg} and {request.file_m:g} m were promised.",
            failure="wrong-grid",
        )
    raster.check(
        epsg=scene.epsg,
        x_min_m=scene.x_min_m,
        y_min_m=scene.y_min_m,
        x_max_m=scene.x_max_m,
        y_max_m=scene.y_max_m,
    )
    # Windows are counted from the promised corner, so half a pixel would be half a pixel.
    off_m = max(abs(raster.x_min_m - scene.x_min_m), abs(raster.y_max_m - scene.y_max_m))
    if off_m > 0.01 * raster.pixel_m:
        raise GiveUp(
            f"{name} starts at {raster.x_min_m:.3f}, {raster.y_max_m:.3f}; "
            f"{scene.x_min_m:.3f}, {scene.y_max_m:.3f} was promised.",
            failure="wrong-grid",
        )

"""Pixels of Earth Engine images, in as few requests as its limits allow."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import GiveUp, RecipeError, TryAgain
from pipeline.ports import PixelGrid
from pipeline.sources.earthengine.mtl import mtl_of
from pipeline.sources.limits import Limits
from pipeline.sources.providers import Provider, check_href

if TYPE_CHECKING:
    from pipeline.sources.earthengine.session import EarthEngine

#: Limits of one request. Source: developers.google.com/earth-engine/guides/usage (48 MB, 1,024
#: bands, 32,768 pixels on a side).
MOST_BYTES = 48 * 2**20
MOST_BANDS = 1024
MOST_PX = 32_768
#: A value counts with its mask, which is a byte (Xee issue 209). What type a band has the plan does
#: not say, so the widest is assumed.
_VALUE_BYTES = 8 + 1

#: Asked for where NaN is wanted, which JSON does not have; below any value.
_NO_NUMBER = -1e30

_NPY = b"\x93NUMPY"
#: Longest header: 1,024 bands of long names.
_HEADER_BYTES = 2**17
_ADDRESS = re.compile(r"ee://([A-Za-z0-9_./-]+)\?version=([0-9]{1,19})")

Pixels = NDArray[Any]


def address(image: str, version: int) -> str:
    """Return the address of one version of an image: what a plan holds of it."""
    return f"ee://{image}?version={version}"


def parse_address(href: str) -> tuple[str, int]:
    """Return image id and version of an address; `GiveUp` (`refused`) if it is none."""
    found = _ADDRESS.fullmatch(href)
    if found is None:
        raise GiveUp(f"{href[:120]!r} is no address of an Earth Engine image.", failure="refused")
    return found.group(1), int(found.group(2))


def connect(provider: Provider) -> EarthEngine:
    """Return Google's client for a provider; it is loaded only here, where it is needed."""
    try:
        from pipeline.sources.earthengine.session import EarthEngine
    except ImportError as error:
        raise RecipeError(
            f"provider {provider.name!r} needs the extra `earthengine` "
            "(the package earthengine-api), which is not installed."
        ) from error
    return EarthEngine(provider)


class EarthEnginePixels:
    """Reads windows of images: `pipeline.ports.PixelSource`.

    Parameters
    ----------
    provider : Provider
    share : float
        This worker's part of the project's limits, 0 to 1.
    attempts : int
        How often a request is made before its failure counts.
    run : str
        Of all workers of a run the same: those on one machine keep the limits together.
    """

    def __init__(
        self, provider: Provider, *, share: float = 1.0, attempts: int = 5, run: str = ""
    ) -> None:
        self._provider = provider
        self._limits = limits_of(provider, share=share, attempts=attempts, run=run)
        self._lock = Lock()
        self.bytes_read = 0

    @cached_property
    def _engine(self) -> EarthEngine:
        return connect(self._provider)

    @property
    def concurrency(self) -> int:
        """Windows that are worth asking for at the same time."""
        return self._limits.concurrency

    @property
    def requests(self) -> int:
        """Requests for pixels made so far, repeated ones included."""
        return self._limits.requests

    def pixels(
        self,
        href: str,
        bands: Sequence[str],
        grid: PixelGrid,
        *,
        fill: float,
        method: str = "nearest",
    ) -> Pixels:
        """Return the pixels (band, y, x) of some bands of an image; `fill` where it has none.

        What does not fit one request is cut into several; a piece that Earth Engine has not the
        memory for is halved until it has. Where the image has another grid Earth Engine warps it,
        by `method` (`nearest` or `bilinear`), exactly onto the grid that is asked for.
        """
        check_href(self._provider, href)
        if fill != fill:
            pixels = self.pixels(href, bands, grid, fill=_NO_NUMBER, method=method)
            return np.where(pixels <= _NO_NUMBER, np.nan, pixels)
        image, version = parse_address(href)
        parts = [
            (part, self._part(image, version, bands[part.bands], part.grid(grid), fill, method))
            for part in parts_of(grid.width_px, grid.height_px, len(bands))
        ]
        if len(parts) == 1:
            return parts[0][1]
        dtype = np.result_type(*(pixels.dtype for _, pixels in parts))
        whole = np.empty((len(bands), grid.height_px, grid.width_px), dtype)
        for part, pixels in parts:
            whole[part.bands, part.rows, part.cols] = pixels
        return whole

    def document(self, href: str) -> bytes:
        """Return a Landsat scene's MTL.json, as far as the image's properties repeat it."""
        check_href(self._provider, href)
        image, version = parse_address(href)
        return mtl_of(self._limits.call(lambda: self._engine.properties(image, version)))

    def _part(
        self,
        image: str,
        version: int,
        bands: Sequence[str],
        grid: PixelGrid,
        fill: float,
        method: str,
    ) -> Pixels:
        def ask() -> Pixels:
            data = self._engine.npy(image, version, bands, grid, fill=fill, method=method)
            pixels = _parse(data, bands, grid, image)
            with self._lock:
                self.bytes_read += len(data)
            return pixels

        try:
            return self._limits.call(ask)
        except GiveUp as error:
            halves = _halves(grid) if error.failure == "too-large" else ()
            if not halves:
                raise
        again = partial(self._part, image, version, bands, fill=fill, method=method)
        return np.concatenate([again(half) for half in halves], axis=1)


def limits_of(
    provider: Provider, *, share: float = 1.0, attempts: int = 5, run: str = ""
) -> Limits:
    """Return what a project may ask, as one worker of a run keeps it."""
    return Limits(
        provider.name,
        requests_per_s=provider.requests_per_s,
        concurrency=provider.concurrency,
        share=share,
        attempts=attempts,
        run=run,
    )


@dataclass(frozen=True, slots=True)
class Part:
    """Some bands of a piece of a window: what one request asks for."""

    bands: slice
    rows: slice
    cols: slice

    def grid(self, whole: PixelGrid) -> PixelGrid:
        """Return where its pixels lie."""
        return replace(
            whole,
            x_min_m=whole.x_min_m + self.cols.start * whole.pixel_m,
            y_max_m=whole.y_max_m - self.rows.start * whole.pixel_m,
            width_px=self.cols.stop - self.cols.start,
            height_px=self.rows.stop - self.rows.start,
        )


def parts_of(width_px: int, height_px: int, bands: int) -> Iterator[Part]:
    """Cut a window into few parts that each fit one request.

    Rows are cut before bands are, and columns only where a side is too long or one row too much.
    """
    band_step = min(bands, MOST_BANDS)
    col_step = min(width_px, MOST_PX, MOST_BYTES // (band_step * _VALUE_BYTES))
    row_step = min(height_px, MOST_PX, MOST_BYTES // (band_step * col_step * _VALUE_BYTES))
    for band in range(0, bands, band_step):
        for row in range(0, height_px, row_step):
            for col in range(0, width_px, col_step):
                yield Part(
                    slice(band, min(bands, band + band_step)),
                    slice(row, min(height_px, row + row_step)),
                    slice(col, min(width_px, col + col_step)),
                )


def _halves(grid: PixelGrid) -> tuple[PixelGrid, ...]:
    """Return the northern and the southern half of a window; none of one that is a row."""
    rows = grid.height_px // 2
    if not rows:
        return ()
    south = replace(
        grid, y_max_m=grid.y_max_m - rows * grid.pixel_m, height_px=grid.height_px - rows
    )
    return replace(grid, height_px=rows), south


def _parse(data: bytes, bands: Sequence[str], grid: PixelGrid, image: str) -> Pixels:
    """Return the pixels (band, y, x) of an NPY answer, which must be what was asked for."""
    if not data.startswith(_NPY):
        raise GiveUp(f"{image}: what came is no NPY.", failure="not-an-image")
    try:
        table = np.load(io.BytesIO(data), allow_pickle=False, max_header_size=_HEADER_BYTES)
    except (ValueError, EOFError, SyntaxError) as error:
        raise TryAgain(f"{image}: the answer was cut off.", failure="short-read") from error
    names = table.dtype.names or ()
    if table.shape != (grid.height_px, grid.width_px) or names != tuple(bands):
        raise GiveUp(
            f"{image}: {table.shape} pixels of {len(names)} bands came, "
            f"{(grid.height_px, grid.width_px)} of {len(bands)} were due.",
            failure="wrong-size",
        )
    layers = [table[name] for name in names]
    if any(layer.dtype.kind not in "iuf" for layer in layers):
        raise GiveUp(f"{image}: bands that are no numbers came.", failure="corrupt")
    return np.stack(layers)

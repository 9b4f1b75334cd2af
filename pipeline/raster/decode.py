"""Turn the fetched bytes of blocks into pixels: by GDAL, or here where they are deflate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window as GdalWindow

from pipeline.raster.inflate import Packing, band_runs
from pipeline.raster.opening import Facts, environment
from pipeline.raster.tiling import Grid, Run
from pipeline.raster.windows import Window

Pixels = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of blocks, and where the bytes of each lie.

    Attributes
    ----------
    run : Run
    spans : mapping
        Byte range [start, stop) by (column, row, band) of a block, where a block of all bands has
        band 1; None for one that the file leaves out. Empty where the format hides them.
    """

    run: Run
    spans: Mapping[tuple[int, int, int], tuple[int, int] | None]

    def ranges(self) -> list[tuple[int, int]]:
        """Return the byte ranges to fetch."""
        return [span for span in self.spans.values() if span]

    @property
    def size_bytes(self) -> int:
        """Of all ranges together."""
        return sum(stop - start for start, stop in self.ranges())


@dataclass(frozen=True, slots=True)
class Part:
    """Decoded pixels: of an area, and of some of the wanted bands."""

    area: Window
    places: slice
    """Which of the wanted bands."""
    pixels: Pixels
    """(band, y, x)"""


class Decoder(Protocol):
    """What one thread decodes with."""

    def parts(self, piece: Piece, chunks: Mapping[int, bytes]) -> Iterator[Part]:
        """Yield the pixels of a piece, each valid until the next one is asked for.

        Parameters
        ----------
        chunks : mapping
            The bytes of its ranges, by their start.
        """
        ...


class GdalDecoder:
    """One GDAL handle, and memory that it decodes into again and again.

    GDAL fetches nothing: the chunks are pinned in the file below it.
    """

    def __init__(self, handle: Any, facts: Facts, grid: Grid, indexes: Sequence[int]) -> None:
        self._handle = handle
        self._dtype = facts.dtype
        self._grid = grid
        self._indexes = list(indexes)
        self._memory = np.empty(0, np.uint8)

    def parts(self, piece: Piece, _chunks: Mapping[int, bytes]) -> Iterator[Part]:
        """Yield the whole piece at once."""
        area = piece.run.window(self._grid)
        shape = (len(self._indexes), area.height, area.width)
        size = int(np.prod(shape)) * self._dtype.itemsize
        if self._memory.size < size:
            self._memory = np.empty(size, np.uint8)
        pixels = self._memory[:size].view(self._dtype).reshape(shape)
        window = GdalWindow(area.col, area.row, area.width, area.height)
        with environment():
            self._handle.read(self._indexes, window=window, out=pixels)
        yield Part(area, slice(None), pixels)


class Inflater:
    """Unpacks deflate blocks; any number of threads may share it.

    Attributes
    ----------
    decoded : int
        How many blocks it unpacked.
    """

    def __init__(self, packing: Packing, facts: Facts, grid: Grid, indexes: Sequence[int]) -> None:
        self.decoded = 0
        self._packing = packing
        self._grid = grid
        self._absent = _absent(facts.nodata, facts.dtype)
        self._lock = Lock()
        self._wanted: dict[int, list[tuple[slice, slice]]] = {}
        if facts.shared:
            self._wanted[1] = list(band_runs(indexes))
        else:
            for place, index in enumerate(indexes):
                own = (slice(place, place + 1), slice(0, 1))
                self._wanted.setdefault(index, []).append(own)

    def parts(self, piece: Piece, chunks: Mapping[int, bytes]) -> Iterator[Part]:
        """Yield block by block.

        Raises
        ------
        Damaged
            A block that is not what its file says.
        """
        for (col, row, band), span in piece.spans.items():
            area = Run(col, row, 1, 1).window(self._grid)
            if span is None:
                shape = (area.height, area.width, self._packing.shape[2])
                block = np.broadcast_to(self._absent, shape)
            else:
                block = self._packing.unpack(chunks[span[0]], area.height)
                with self._lock:
                    self.decoded += 1
            pixels = block[: area.height, : area.width].transpose(2, 0, 1)
            for places, bands in self._wanted[band]:
                yield Part(area, places, pixels[bands])


def copy_pixels(target: Pixels, pixels: Pixels) -> None:
    """Copy (band, y, x) pixels, in whichever order they lie in memory."""
    if abs(pixels.strides[0]) < abs(pixels.strides[2]):
        # By pixel: a row of all its bands fits a cache, which halves the time.
        for row in range(pixels.shape[1]):
            target[:, row] = pixels[:, row]
    else:
        target[...] = pixels


def _absent(nodata: float | None, dtype: np.dtype[Any]) -> Any:
    """Return what a block that the file leaves out holds, as GDAL has it."""
    if nodata is None:
        return dtype.type(0)
    if dtype.kind == "f":
        return dtype.type(nodata)
    if np.isnan(nodata):
        return dtype.type(0)
    limits = np.iinfo(dtype)
    return dtype.type(int(min(max(nodata, limits.min), limits.max)))

"""Unpack the deflate blocks of a TIFF here rather than in GDAL: in less time, and checked.

A zlib stream ends with the Adler-32 of what was packed (RFC 1950), the only checksum that a TIFF
block ever has. GDAL decodes a damaged block without a word where the stream still makes sense; here
it does not pass. What is laid out in another way (other compressions, odd bit depths) stays with
GDAL: `packing` says which.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import deflate
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[Any]

#: TIFF 6.0 section 14: a row holds differences of neighbours. Adobe Photoshop TIFF Technical Note
#: 3: the same over the bytes of floats, whose planes lie one after the other, highest first.
_PLAIN, _DIFFERENCES, _FLOAT_DIFFERENCES = 1, 2, 3


class Damaged(ValueError):
    """A block that is not what its file says."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How the blocks of a file are packed.

    Attributes
    ----------
    dtype : numpy dtype
        Of a pixel's value, in this machine's byte order.
    shape : tuple of int
        (y, x, band) of a whole block; one band where bands have blocks of their own.
    predictor : int
        1, 2 or 3, as the TIFF tag has it.
    swapped : bool
        Whether values lie in the other byte order.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, int, int]
    predictor: int
    swapped: bool

    def unpack(self, packed: bytes, rows: int) -> Pixels:
        """Return the pixels of a block, shape (y, x, band).

        Parameters
        ----------
        packed : bytes
            Its zlib stream.
        rows : int
            How many of its rows the raster has; a last strip may hold no more.

        Raises
        ------
        Damaged
            The stream breaks off, contradicts its checksum, or has another length.
        """
        whole, width, bands = self.shape
        row_bytes = width * bands * self.dtype.itemsize
        try:
            data = deflate.zlib_decompress(packed, whole * row_bytes)
        except deflate.DeflateError as error:
            raise Damaged("a block is no sound zlib stream") from error
        if len(data) not in (whole * row_bytes, rows * row_bytes):
            raise Damaged(f"a block holds {len(data)} bytes, not {whole * row_bytes}")
        shape = (len(data) // row_bytes, width, bands)
        if self.predictor == _FLOAT_DIFFERENCES:
            return self._floats(np.frombuffer(data, np.uint8), shape)
        pixels = np.frombuffer(data, self.dtype).reshape(shape)
        if self.swapped:
            pixels.byteswap(inplace=True)
        if self.predictor == _DIFFERENCES:
            # Differences are of the values' bits, and wrap around.
            bits = pixels.view(f"u{self.dtype.itemsize}")
            np.add.accumulate(bits, axis=1, out=bits)
        return pixels

    def _floats(self, data: NDArray[np.uint8], shape: tuple[int, int, int]) -> Pixels:
        rows, width, bands = shape
        steps = data.reshape(rows, -1, bands)
        np.add.accumulate(steps, axis=1, out=steps)
        planes = data.reshape(rows, self.dtype.itemsize, width * bands)
        values = np.ascontiguousarray(planes.transpose(0, 2, 1)).view(self.dtype.newbyteorder(">"))
        return values.astype(self.dtype).reshape(shape)


def packing(
    structure: dict[str, str], *, dtype: np.dtype[Any], shape: tuple[int, int, int], head: bytes
) -> Packing | None:
    """Return how a file's blocks are packed, or None where they are left to GDAL.

    Parameters
    ----------
    structure : dict
        What GDAL says in `IMAGE_STRUCTURE`, of the file and of its first band.
    dtype : numpy dtype
        Of its values.
    shape : tuple of int
        (y, x, band) of a block.
    head : bytes
        The first bytes of the file, which give the byte order.
    """
    predictor = int(structure.get("PREDICTOR", "1"))
    floats = dtype.kind == "f"
    if (
        structure.get("COMPRESSION") != "DEFLATE"
        or "NBITS" in structure
        or predictor not in (_PLAIN, _DIFFERENCES, _FLOAT_DIFFERENCES)
        or (predictor == _FLOAT_DIFFERENCES and not floats)
    ):
        return None
    little = head.startswith(b"II")
    return Packing(dtype, shape, predictor, swapped=little != _native_little())


def band_runs(indexes: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Yield slices of `indexes` whose numbers follow one another, and the bands that they are.

    Indexes are 1-based; the slices of bands are 0-based.
    """
    start = 0
    for place in range(1, len(indexes) + 1):
        if place == len(indexes) or indexes[place] != indexes[place - 1] + 1:
            first = indexes[start] - 1
            yield slice(start, place), slice(first, first + place - start)
            start = place


def _native_little() -> bool:
    return np.dtype(np.uint16).newbyteorder("<").isnative

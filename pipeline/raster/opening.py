"""Open an image file that nobody vouches for: what GDAL may do, and what a file may say.

Its first bytes are checked before GDAL sees it, the driver is named, side-cars and other files are
unreachable, sizes are bounded, and a grid that is not north-up with square pixels is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from pipeline.errors import GiveUp
from pipeline.raster.inflate import Packing, packing
from pipeline.raster.rangefile import NAME, Container, RangeFile

# A file without a grid is refused below by an error that names it; GDAL's own word comes too often.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

#: First bytes of the formats that may be opened, and GDAL's driver for each: TIFF 6.0 section 2,
#: BigTIFF (magic 43), JPEG 2000 (ISO/IEC 15444-1 annex I.5.1).
_MAGIC = {
    b"II*\x00": "GTiff",
    b"MM\x00*": "GTiff",
    b"II+\x00": "GTiff",
    b"MM\x00+": "GTiff",
    b"\x00\x00\x00\x0cjP  \r\n\x87\n": "JP2OpenJPEG",
}
MAGIC_BYTES = max(len(magic) for magic in _MAGIC)

#: Nothing beside the asset is looked for. GDAL keeps little of what it decoded, because one call
#: reads all that is wanted of a block.
_ENVIRONMENT: dict[str, Any] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": False,
    "GDAL_NUM_THREADS": 1,
    "GDAL_CACHEMAX": 64 * 2**20,
}

#: What a file may ask of this process. A Sentinel-2 band has 1.2e8 pixels; a block of
#: 1024 x 1024 x 224 int16 has 0.44 GiB.
_MOST_PIXELS = 2**31
_MOST_BLOCK_BYTES = 2**30


def recognise(head: bytes, allowed: tuple[str, ...], name: str) -> str:
    """Return the GDAL driver for a file by its first bytes; `GiveUp`: `not-an-image`."""
    kind = next((driver for magic, driver in _MAGIC.items() if head.startswith(magic)), None)
    if kind is None or kind not in allowed:
        raise GiveUp(
            f"{name} starts with {head[:8]!r}, which is no {' or '.join(allowed)}.",
            failure="not-an-image",
        )
    return kind


def environment() -> rasterio.Env:
    """Return GDAL's settings for opening and decoding; they hold for the thread that enters."""
    return rasterio.Env(**_ENVIRONMENT)


def open_handle(file: RangeFile, driver: str) -> Any:
    """Return a GDAL data set that reads from `file`; each thread needs one of its own."""
    # INTERNAL: no world file, no side-car; the georeference is the file's own.
    return rasterio.open(NAME, driver=driver, opener=Container(file), GEOREF_SOURCES="INTERNAL")


@contextmanager
def translated(file: RangeFile, name: str) -> Iterator[None]:
    """Raise what went wrong below GDAL, or name what GDAL could not make sense of."""
    file.forget_failures()
    try:
        yield
    except (RasterioError, OSError) as error:
        if file.failure is not None:
            raise file.failure from error
        cause = error.__cause__ or error
        failure = "truncated" if file.ran_out else "corrupt"
        raise GiveUp(f"{name}: {cause}", failure=failure) from error
    if file.failure is not None:
        # GDAL made do without those bytes; we do not.
        raise file.failure


@dataclass(frozen=True, slots=True)
class Facts:
    """What an image file says of itself, checked; see `pipeline.raster.blocks.AssetRaster`."""

    epsg: int
    x_min_m: float
    y_max_m: float
    pixel_m: float
    width: int
    height: int
    count: int
    dtype: np.dtype[Any]
    nodata: float | None
    block_px: tuple[int, int]
    hides_ranges: bool
    """Whether the format keeps to itself where a block's bytes lie (JPEG 2000)."""
    shared: bool
    """Whether all bands lie in the same blocks; otherwise each has blocks of its own."""
    packing: Packing | None
    """How to unpack a block without GDAL; None: GDAL decodes."""

    def block_bytes(self, bands: int) -> int:
        """Return the decoded size of a block of so many bands."""
        return self.block_px[0] * self.block_px[1] * self.dtype.itemsize * bands


def describe(handle: Any, head: bytes, name: str) -> Facts:
    """Return what a data set says of itself; `head`: the first bytes of its file.

    Raises
    ------
    GiveUp
        `not-an-image`: bands of different or complex type. `wrong-size`: beyond the bounds.
        `wrong-grid`: no EPSG code, not north-up, or pixels that are not square.
    """
    kinds = sorted(set(handle.dtypes))
    if len(kinds) != 1 or np.dtype(kinds[0]).kind not in "iuf":
        raise GiveUp(
            f"{name} has bands of {', '.join(kinds) or 'no'} type.", failure="not-an-image"
        )
    turn = handle.transform
    square = abs(turn.a + turn.e) <= 1e-9 * abs(turn.a)
    if turn.a <= 0 or turn.b or turn.d or not square:
        raise GiveUp(
            f"{name} is not north-up with square pixels: {tuple(turn)[:6]}.", failure="wrong-grid"
        )
    code = handle.crs.to_epsg() if handle.crs else None
    if code is None:
        raise GiveUp(f"{name} has no CRS with an EPSG code.", failure="wrong-grid")
    structure = handle.tags(ns="IMAGE_STRUCTURE") | handle.tags(1, ns="IMAGE_STRUCTURE")
    hides_ranges = handle.driver != "GTiff"
    by_pixel = structure.get("INTERLEAVE") == "PIXEL"
    dtype = np.dtype(kinds[0])
    block_px = handle.block_shapes[0]
    block_shape = (*block_px, handle.count if by_pixel else 1)
    facts = Facts(
        epsg=int(code),
        x_min_m=turn.c,
        y_max_m=turn.f,
        pixel_m=turn.a,
        width=handle.width,
        height=handle.height,
        count=handle.count,
        dtype=dtype,
        nodata=handle.nodata,
        block_px=block_px,
        hides_ranges=hides_ranges,
        shared=handle.count > 1 and (hides_ranges or by_pixel),
        packing=None
        if hides_ranges
        else packing(structure, dtype=dtype, shape=block_shape, head=head),
    )
    _bound(facts, name)
    return facts


def _bound(facts: Facts, name: str) -> None:
    pixels = facts.width * facts.height
    block_bytes = facts.block_bytes(facts.count if facts.shared else 1)
    if pixels > _MOST_PIXELS or block_bytes > _MOST_BLOCK_BYTES:
        raise GiveUp(
            f"{name} has {facts.width} x {facts.height} pixels in blocks of {block_bytes} bytes; "
            f"allowed are {_MOST_PIXELS} pixels and {_MOST_BLOCK_BYTES} bytes.",
            failure="wrong-size",
        )

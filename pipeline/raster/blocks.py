"""Read many windows of one asset, decoding each of its compressed blocks once.

Cutting 81 patches from a pixel-interleaved cube one by one decodes every block 16 times. Here all
windows of an asset are read together: the blocks they touch are listed, their bytes fetched in
merged ranges while earlier ones are decoded, and what a block holds is dealt to every window.

Nothing that the file says is trusted: its first bytes are checked before GDAL sees it, the driver
is named, side-cars and other files are unreachable, sizes are bounded, and a grid that is not
north-up with square pixels is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window as GdalWindow

from pipeline.errors import GiveUp
from pipeline.ports import ByteSource, Stat
from pipeline.raster.rangefile import NAME, Container, RangeFile
from pipeline.raster.tiling import Grid, Run, overlap, runs
from pipeline.raster.windows import Window

#: First bytes of the formats that may be opened, and GDAL's driver for each: TIFF 6.0 section 2,
#: BigTIFF (magic 43), JPEG 2000 (ISO/IEC 15444-1 annex I.5.1).
_MAGIC = {
    b"II*\x00": "GTiff",
    b"MM\x00*": "GTiff",
    b"II+\x00": "GTiff",
    b"MM\x00+": "GTiff",
    b"\x00\x00\x00\x0cjP  \r\n\x87\n": "JP2OpenJPEG",
}

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

#: Compressed bytes fetched at once, and decoded bytes of one call: at least one block, at most so
#: much.
_BATCH_BYTES = 64 * 2**20
_CALL_BYTES = 4 * 2**20
#: Decoded bytes that all threads together may hold; each holds a block twice (GDAL's and ours).
_DECODED_BYTES = 512 * 2**20

#: Read at once where no block is known: TIFF directories, and JPEG 2000 from anywhere in it.
_PAGE_BYTES = {"GTiff": 2**16, "JP2OpenJPEG": 2**18}


@dataclass(frozen=True, slots=True)
class _Piece:
    """A run of blocks, and the byte ranges that hold it."""

    run: Run
    ranges: tuple[tuple[int, int], ...]

    @property
    def size_bytes(self) -> int:
        return sum(stop - start for start, stop in self.ranges)


class AssetRaster:
    """An open image file of a scene; one thread uses it at a time.

    Attributes
    ----------
    href : str
    stat : Stat
        Length and entity tag.
    epsg : int
    x_min_m, y_max_m : float
        Outer corner of the first pixel, in metres of `epsg`.
    pixel_m : float
    width, height : int
        In pixels.
    count : int
        Bands.
    dtype : numpy dtype
        Of every band.
    nodata : float or None
        As the file states it; the product file's word counts.
    block_px : tuple of int
        Height and width of a compressed block.
    blocks_touched : int
        Compressed blocks that calls of `read` wanted, each once a call.
    blocks_decoded : int
        Compressed blocks that GDAL took the bytes of, to decode them. Of a format that hides its
        ranges (JPEG 2000), the blocks it was asked for.
    """

    def __init__(
        self,
        href: str,
        stat: Stat,
        file: RangeFile,
        open_handle: Callable[[], Any],
        *,
        threads: int,
    ) -> None:
        self.href = href
        self.stat = stat
        self.blocks_touched = 0
        self.blocks_decoded = 0
        self._file = file
        self._open_handle = open_handle
        self._threads = threads
        with _translated(file, self.name):
            self._first = open_handle()
        self._handles = [self._first]
        self._describe()

    def _describe(self) -> None:
        """Take over what the file says of itself, as far as it can be used."""
        first = self._first
        self.width, self.height, self.count = first.width, first.height, first.count
        self.nodata: float | None = first.nodata
        self.block_px: tuple[int, int] = first.block_shapes[0]
        kinds = set(first.dtypes)
        if len(kinds) > 1 or np.dtype(first.dtypes[0]).kind not in "iuf":
            raise GiveUp(f"{self.name} has bands of {', '.join(kinds)}.", failure="not-an-image")
        self.dtype = np.dtype(first.dtypes[0])
        self._hides_ranges = first.driver != "GTiff"
        layout = first.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE", "BAND")
        # Bands that share a block: all of them, or each has blocks of its own.
        self._shared = self.count > 1 and (self._hides_ranges or layout == "PIXEL")
        block_bytes = self._block_bytes(self.count if self._shared else 1)
        if self.width * self.height > _MOST_PIXELS or block_bytes > _MOST_BLOCK_BYTES:
            raise GiveUp(
                f"{self.name} has {self.width} x {self.height} pixels in blocks of {block_bytes} "
                f"bytes; allowed are {_MOST_PIXELS} pixels and {_MOST_BLOCK_BYTES} bytes.",
                failure="wrong-size",
            )
        self.epsg = self._code_of_crs()
        turn = first.transform
        square = abs(turn.a + turn.e) <= 1e-9 * abs(turn.a)
        if turn.a <= 0 or turn.b or turn.d or not square:
            raise GiveUp(
                f"{self.name} is not north-up with square pixels: {tuple(turn)[:6]}.",
                failure="wrong-grid",
            )
        self.x_min_m, self.y_max_m, self.pixel_m = turn.c, turn.f, turn.a

    def _code_of_crs(self) -> int:
        with _translated(self._file, self.name):
            code = self._first.crs.to_epsg() if self._first.crs else None
        if code is None:
            raise GiveUp(f"{self.name} has no CRS with an EPSG code.", failure="wrong-grid")
        return int(code)

    @property
    def name(self) -> str:
        """Its address without a query, for messages."""
        return self.href.split("?")[0]

    def check(
        self, *, epsg: int, x_min_m: float, y_min_m: float, x_max_m: float, y_max_m: float
    ) -> None:
        """Refuse a file that does not lie where its scene does, as the catalogue stated it.

        Raises
        ------
        GiveUp
            `wrong-size`: it covers more or less ground than the scene, by more than a pixel.
            `wrong-grid`: another CRS, or a corner more than a pixel away.
        """
        extent = (self.width * self.pixel_m, self.height * self.pixel_m)
        expected = (x_max_m - x_min_m, y_max_m - y_min_m)
        if any(abs(a - b) > self.pixel_m for a, b in zip(extent, expected, strict=True)):
            raise GiveUp(
                f"{self.name} covers {extent[0]:g} x {extent[1]:g} m, its scene "
                f"{expected[0]:g} x {expected[1]:g} m.",
                failure="wrong-size",
            )
        apart = max(abs(self.x_min_m - x_min_m), abs(self.y_max_m - y_max_m))
        if self.epsg != epsg or apart > self.pixel_m:
            raise GiveUp(
                f"{self.name} starts at ({self.x_min_m:g}, {self.y_max_m:g}) in EPSG:{self.epsg}, "
                f"its scene at ({x_min_m:g}, {y_max_m:g}) in EPSG:{epsg}.",
                failure="wrong-grid",
            )

    def read(
        self, indexes: Sequence[int], windows: Sequence[Window], *, fill: float
    ) -> list[NDArray[Any]]:
        """Return the pixels of all windows, decoding each touched block once.

        Parameters
        ----------
        indexes : sequence of int
            1-based bands, in the wanted order.
        windows : sequence of Window
            May overlap one another and overhang the raster.
        fill : float
            What overhanging pixels hold; must fit `dtype`.

        Returns
        -------
        list of array, shape (band, y, x)
            One a window, of `dtype`, as delivered.

        Raises
        ------
        GiveUp
            `truncated`, `corrupt`, `wrong-size` (no such band), or what the source raised.
        TryAgain
            What the source raised.
        """
        self._has(indexes)
        results = [
            np.full((len(indexes), window.height, window.width), fill, self.dtype)
            for window in windows
        ]
        grid = Grid(self.width, self.height, self.block_px[1], self.block_px[0])
        touched = grid.touched(windows)
        at_once = max(1, _CALL_BYTES // self._block_bytes(len(indexes)))
        pieces = [
            _Piece(run, self._ranges(run, indexes)) for run in runs(list(touched), most=at_once)
        ]

        def deal(handle: Any, piece: _Piece) -> None:
            """Decode a piece and copy to each window what it wants of it; pieces are disjoint."""
            area = piece.run.window(grid)
            pixels = self._decode(handle, indexes, area)
            for number in {n for block in piece.run.blocks() for n in touched[block]}:
                shared = overlap(area, windows[number])
                if shared:
                    target = results[number][_within(shared, windows[number])]
                    target[...] = pixels[_within(shared, area)]

        before = self._file.pinned_reads
        self._work(pieces, deal, bands=len(indexes))
        layers = 1 if self._shared else len(set(indexes))
        self.blocks_touched += len(touched) * layers
        if self._hides_ranges:
            self.blocks_decoded += len(touched) * layers
        else:
            self.blocks_decoded += self._file.pinned_reads - before
        return results

    def _work(
        self, pieces: list[_Piece], deal: Callable[[Any, _Piece], None], *, bands: int
    ) -> None:
        """Deal all pieces; the bytes of the next ones are fetched while some are decoded."""
        threads = self._affordable_threads(len(pieces), bands)
        with _translated(self._file, self.name):
            while len(self._handles) < threads:
                self._handles.append(self._open_handle())
        free: SimpleQueue[Any] = SimpleQueue()
        for handle in self._handles[:threads]:
            free.put(handle)

        def task(piece: _Piece) -> None:
            handle = free.get()
            try:
                deal(handle, piece)
            finally:
                free.put(handle)

        with ThreadPoolExecutor(1, "fetch") as fetcher, ThreadPoolExecutor(threads) as decoders:
            coming: Future[dict[int, bytes]] | None = None
            batches = list(_batches(pieces))
            for number, batch in enumerate(batches):
                chunks = coming.result() if coming else self._fetch(batch)
                if number + 1 < len(batches):
                    coming = fetcher.submit(self._fetch, batches[number + 1])
                self._file.pin(chunks)
                for _ in decoders.map(task, batch):
                    pass
        self._file.pin({})

    def _affordable_threads(self, pieces: int, bands: int) -> int:
        held = 2 * self._block_bytes(self.count if self._shared else bands)
        return max(1, min(self._threads, pieces, _DECODED_BYTES // held))

    def _fetch(self, batch: list[_Piece]) -> dict[int, bytes]:
        return self._file.fetch(span for piece in batch for span in piece.ranges)

    def _decode(self, handle: Any, indexes: Sequence[int], area: Window) -> NDArray[Any]:
        window = GdalWindow(area.col, area.row, area.width, area.height)
        with rasterio.Env(**_ENVIRONMENT), _translated(self._file, self.name):
            pixels: NDArray[Any] = handle.read(list(indexes), window=window)
        return pixels

    def _ranges(self, run: Run, indexes: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Return the byte ranges of a run's blocks; none where the format hides them."""
        if self._hides_ranges:
            return ()
        bands = (1,) if self._shared else sorted(set(indexes))
        spans = (self._range(col, row, band) for col, row in run.blocks() for band in bands)
        return tuple(span for span in spans if span)

    def _range(self, col: int, row: int, band: int) -> tuple[int, int] | None:
        """Return where a block's bytes lie, or None for a block that the file leaves out."""
        start = self._first.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=band)
        size = self._first.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=band)
        if start is None or size is None:
            return None
        stop = int(start) + int(size)
        if stop > self.stat.size_bytes:
            raise GiveUp(
                f"{self.name} has {self.stat.size_bytes} bytes, but a block of it ends at {stop}.",
                failure="truncated",
            )
        return int(start), stop

    def _has(self, indexes: Sequence[int]) -> None:
        absent = [index for index in indexes if not 1 <= index <= self.count]
        if absent:
            raise GiveUp(
                f"{self.name} has {self.count} bands; there is no band {absent[0]}.",
                failure="wrong-size",
            )

    def _block_bytes(self, bands: int) -> int:
        return self.block_px[0] * self.block_px[1] * self.dtype.itemsize * bands


@contextmanager
def open_asset(
    source: ByteSource, href: str, *, driver: tuple[str, ...] = ("GTiff",), threads: int = 2
) -> Iterator[AssetRaster]:
    """Open an image file of a scene, whatever it is read from.

    Parameters
    ----------
    source : ByteSource
        Makes every request.
    href : str
        Unsigned address.
    driver : tuple of str
        GDAL drivers it may be: `GTiff`, `JP2OpenJPEG`. Its first bytes decide.
    threads : int
        Blocks decoded at the same time, at most.

    Raises
    ------
    GiveUp
        `not-an-image`, `corrupt`, `truncated`, `wrong-size`, `wrong-grid`, or from the source.
    TryAgain
        From the source.
    """
    stat = source.stat(href)
    head = source.ranges(href, [(0, min(16, stat.size_bytes))])[0]
    kind = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    if kind not in driver:
        raise GiveUp(
            f"{href.split('?')[0]} starts with {head[:8]!r}, which is no {' or '.join(driver)}.",
            failure="not-an-image",
        )
    file = RangeFile(source, href, stat.size_bytes, page_bytes=_PAGE_BYTES[kind])
    with ExitStack() as stack, rasterio.Env(**_ENVIRONMENT):

        def open_handle() -> Any:
            # INTERNAL: no world file, no side-car; georeference from the file itself.
            return stack.enter_context(
                rasterio.open(NAME, driver=kind, opener=Container(file), GEOREF_SOURCES="INTERNAL")
            )

        yield AssetRaster(href, stat, file, open_handle, threads=threads)


@contextmanager
def _translated(file: RangeFile, name: str) -> Iterator[None]:
    """Raise what went wrong below GDAL, or name what GDAL could not make sense of."""
    try:
        yield
    except (RasterioError, OSError) as error:
        if file.failure is not None:
            raise file.failure from error
        cause = error.__cause__ or error
        raise GiveUp(
            f"{name}: {cause}", failure="truncated" if file.ran_out else "corrupt"
        ) from error


def _batches(pieces: list[_Piece]) -> Iterator[list[_Piece]]:
    """Yield consecutive pieces of at most `_BATCH_BYTES` together, at least one each."""
    batch: list[_Piece] = []
    held = 0
    for piece in pieces:
        if batch and held + piece.size_bytes > _BATCH_BYTES:
            yield batch
            batch, held = [], 0
        batch.append(piece)
        held += piece.size_bytes
    if batch:
        yield batch


def _within(part: Window, whole: Window) -> tuple[slice, slice, slice]:
    """Return the index of a window's pixels in the array (band, y, x) of one that holds it."""
    row, col = part.row - whole.row, part.col - whole.col
    return slice(None), slice(row, row + part.height), slice(col, col + part.width)

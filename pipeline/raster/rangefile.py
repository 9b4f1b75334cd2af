"""A file that GDAL can read, made of byte ranges that our own client fetches.

GDAL decodes; it makes no request. What it is about to decode is *pinned*: fetched beforehand in
merged ranges. The rest (headers, and formats that hide their ranges) comes in pages.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from threading import Lock

from rasterio.abc import FileContainer

from pipeline.errors import TerrashardError
from pipeline.ports import ByteSource

#: The only file of the container; says nothing about where the bytes come from.
NAME = "/asset"
_PAGES_KEPT = 256


class RangeFile:
    """The bytes of one asset, shared by every handle that GDAL opens on it.

    Attributes
    ----------
    size_bytes : int
    failure : TerrashardError or None
        The source's own error, if that is why GDAL failed: GDAL cannot carry it.
    ran_out : bool
        Whether a read went past the end: with a failure of GDAL, the file is cut short.
    pinned_reads : int
        How often GDAL read a pinned range from its start, which is how often it decoded one.
    """

    def __init__(self, source: ByteSource, href: str, size_bytes: int, *, page_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.failure: TerrashardError | None = None
        self.ran_out = False
        self.pinned_reads = 0
        self._source = source
        self._href = href
        self._page_bytes = page_bytes
        self._pages: OrderedDict[int, bytes] = OrderedDict()
        self._pins: dict[int, bytes] = {}
        self._starts: list[int] = []
        self._lock = Lock()

    def forget_failures(self) -> None:
        """Start afresh: what failed before does not explain what fails now."""
        self.failure = None
        self.ran_out = False

    def fetch(self, ranges: Iterable[tuple[int, int]]) -> dict[int, bytes]:
        """Return the bytes of ranges [start, stop) by their start, asking for each once."""
        wanted = sorted(set(ranges))
        chunks = self._source.ranges(self._href, wanted)
        return {start: chunk for (start, _), chunk in zip(wanted, chunks, strict=True)}

    def pin(self, chunks: dict[int, bytes]) -> None:
        """Keep these chunks, by their start, and let the earlier ones go."""
        with self._lock:
            self._pins = chunks
            self._starts = sorted(chunks)

    def read(self, start: int, length: int) -> bytes:
        """Return up to `length` bytes from `start`; fewer at the end of the file only."""
        stop = min(start + length, self.size_bytes)
        if start and start + length > self.size_bytes:
            self.ran_out = True
        if start >= stop:
            return b""
        pinned = self._pinned(start, stop)
        return self._paged(start, stop) if pinned is None else pinned

    def _pinned(self, start: int, stop: int) -> bytes | None:
        with self._lock:
            place = bisect_right(self._starts, start) - 1
            if place < 0:
                return None
            first = self._starts[place]
            chunk = self._pins[first]
            if stop > first + len(chunk):
                return None
            if start == first:
                self.pinned_reads += 1
            if stop - start == len(chunk):
                return chunk
            return chunk[start - first : stop - first]

    def _paged(self, start: int, stop: int) -> bytes:
        first, last = start // self._page_bytes, (stop - 1) // self._page_bytes
        pages = self._load(range(first, last + 1))
        offset = start - first * self._page_bytes
        return b"".join(pages)[offset : offset + stop - start]

    def _load(self, numbers: Sequence[int]) -> list[bytes]:
        """Return pages, fetching all that are missing at once."""
        with self._lock:
            pages = {number: self._pages.get(number) for number in numbers}
        missing = [number for number, page in pages.items() if page is None]
        if missing:
            spans = [
                (n * self._page_bytes, min((n + 1) * self._page_bytes, self.size_bytes))
                for n in missing
            ]
            fetched = dict(zip(missing, self._source.ranges(self._href, spans), strict=True))
            pages.update(fetched)
            with self._lock:
                self._pages.update(fetched)
                while len(self._pages) > _PAGES_KEPT:
                    self._pages.popitem(last=False)
        return [page for page in pages.values() if page is not None]


class Container(FileContainer):  # type: ignore[misc]  # rasterio has no types
    """A folder, as GDAL sees it, that holds one file and no side-cars."""

    def __init__(self, file: RangeFile) -> None:
        self._file = file

    def open(self, path: str, mode: str = "r", **_: object) -> _Handle:
        if path != NAME or mode not in ("r", "rb"):
            raise FileNotFoundError(path)
        return _Handle(self._file)

    def isfile(self, path: str) -> bool:
        return path == NAME

    def isdir(self, _path: str) -> bool:
        return False

    def ls(self, _path: str) -> list[str]:
        return []

    def mtime(self, _path: str) -> int:
        return 0

    def rm(self, path: str) -> None:
        raise PermissionError(path)

    def size(self, _path: str) -> int:
        return self._file.size_bytes


class _Handle(io.RawIOBase):
    """One position in a `RangeFile`."""

    def __init__(self, file: RangeFile) -> None:
        super().__init__()
        self._file = file
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._file.size_bytes}
        self._place = base[whence] + offset
        return self._place

    def read(self, length: int | None = -1) -> bytes:
        wanted = self._file.size_bytes if length is None or length < 0 else length
        try:
            data = self._file.read(self._place, wanted)
        except TerrashardError as error:
            # GDAL is C and cannot pass it on; it sees a short read, and whoever called GDAL
            # raises this instead of GDAL's complaint.
            self._file.failure = error
            data = b""
        self._place += len(data)
        return data

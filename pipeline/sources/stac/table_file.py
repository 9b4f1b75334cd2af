"""A remote table as a file that Arrow can read: our own client makes the requests."""

from __future__ import annotations

import io

from pipeline.ports import ByteSource


class RemoteFile(io.RawIOBase):
    """A position in a file of a `ByteSource`; its failures are raised as they are."""

    def __init__(self, source: ByteSource, href: str) -> None:
        super().__init__()
        self._source = source
        self._href = href
        self._size = source.stat(href).size_bytes
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}
        self._place = base[whence] + offset
        return self._place

    def size(self) -> int:
        """Return the length in bytes."""
        return self._size

    def read(self, length: int | None = -1) -> bytes:
        stop = self._size if length is None or length < 0 else self._place + length
        start, stop = self._place, min(stop, self._size)
        if start >= stop:
            return b""
        (data,) = self._source.ranges(self._href, [(start, stop)])
        self._place = stop
        return data

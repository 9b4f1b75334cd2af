"""Files of scenes on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from threading import Lock

from pipeline.errors import GiveUp
from pipeline.ports import Stat
from pipeline.sources.providers import Provider, check_href


class DiskSource:
    """Reads files by absolute path: `pipeline.ports.ByteSource`.

    The tag of a file is its length and modification time; a file that changes while it is read
    is `changed`, as on a server.
    """

    def __init__(self, provider: Provider) -> None:
        self.requests = 0
        self.bytes_read = 0
        self._provider = provider
        self._known: dict[str, Stat] = {}
        self._lock = Lock()

    def stat(self, href: str) -> Stat:
        """Return length and tag; `GiveUp`: `refused`, `gone`, `forbidden`, or `changed`."""
        handle = self._open(href)
        try:
            return self._stat(href, handle)
        finally:
            os.close(handle)

    def ranges(self, href: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes [start, stop) of each range; `GiveUp` also `truncated`."""
        handle = self._open(href)
        try:
            self._stat(href, handle)
            found = [_pread(handle, start, stop, href) for start, stop in ranges]
            with self._lock:
                self.bytes_read += sum(map(len, found))
            return found
        finally:
            os.close(handle)

    def _open(self, href: str) -> int:
        check_href(self._provider, href)
        with self._lock:
            self.requests += 1
        try:
            return os.open(href, os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError as error:
            raise GiveUp(f"{href} may not be read.", failure="forbidden") from error
        except OSError as error:
            raise GiveUp(f"{href}: {error.strerror}.", failure="gone") from error

    def _stat(self, href: str, handle: int) -> Stat:
        found = os.fstat(handle)
        now = Stat(found.st_size, f"{found.st_size:x}-{found.st_mtime_ns:x}")
        with self._lock:
            before = self._known.setdefault(href, now)
        if before != now:
            raise GiveUp(f"{href} changed while it was read.", failure="changed")
        return now


def _pread(handle: int, start: int, stop: int, href: str) -> bytes:
    parts = []
    while start < stop:
        try:
            part = os.pread(handle, stop - start, start)
        except OSError as error:
            raise GiveUp(f"{href}: {error.strerror}.", failure="corrupt") from error
        if not part:
            raise GiveUp(f"{href} ends before byte {stop}.", failure="truncated")
        parts.append(part)
        start += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)

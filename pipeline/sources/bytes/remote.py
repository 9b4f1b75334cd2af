"""Files of scenes somewhere else: what HTTP servers and buckets have in common."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Protocol

from pipeline.errors import GiveUp, TryAgain
from pipeline.ports import Stat
from pipeline.sources.bytes.spans import Span, cut, spans_for
from pipeline.sources.limits import Limits
from pipeline.sources.providers import Provider, check_href

#: First bytes of a file, fetched with its length: TIFF directories of tiled bands are in them.
HEAD_BYTES = 2**16
_HEADS_KEPT = 64
#: At 50 ms a request and 5 MB/s this many bytes take as long as one more request.
_GAP_BYTES = 2**18
#: A longer span comes in parallel parts.
_SPAN_BYTES = 2**24


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request brought."""

    data: bytes
    """The bytes that were asked for; fewer at the end of the file."""
    stat: Stat
    """The file as it was when it answered."""


class Door(Protocol):
    """One way to read remote files; failures are `TryAgain` or `GiveUp`."""

    def fetch(self, href: str, start: int, stop: int) -> Answer:
        """Make one request for the bytes [start, stop)."""
        ...

    def kept(self, href: str, start: int, stop: int) -> Answer | None:
        """Return those bytes without a request, if the whole file had to be taken before."""
        ...


class RemoteSource:
    """Reads files over a network: `pipeline.ports.ByteSource`.

    Parameters
    ----------
    provider : Provider
        Every address is checked against its entry before anything is asked.
    doors : dict of str to Door
        By scheme.
    limits : Limits
    """

    def __init__(self, provider: Provider, doors: Mapping[str, Door], limits: Limits) -> None:
        self._provider = provider
        self._doors = doors
        self._limits = limits
        self._pool = ThreadPoolExecutor(limits.concurrency, f"read-{provider.name}")
        self._known: dict[str, Stat] = {}
        self._heads: OrderedDict[str, bytes] = OrderedDict()
        self._lock = Lock()
        self.bytes_read = 0

    @property
    def requests(self) -> int:
        """Requests made so far, repeated ones included."""
        return self._limits.requests

    def stat(self, href: str) -> Stat:
        """Return length and entity tag; the same request brings the head of the file."""
        with self._lock:
            known = self._known.get(href)
        if known is not None:
            return known
        data = self._fetch(href, (0, HEAD_BYTES))
        with self._lock:
            self._heads[href] = data
            if len(self._heads) > _HEADS_KEPT:
                self._heads.popitem(last=False)
            return self._known[href]

    def ranges(self, href: str, ranges: Sequence[Span]) -> list[bytes]:
        """Return the bytes [start, stop) of each range; near ones come in one request.

        Raises
        ------
        TryAgain, GiveUp
            See `pipeline.sources.limits.Limits.call`; also `refused` by the provider's entry, and
            `changed` if the file is not the one that was read first.
        """
        with self._lock:
            head = self._heads.get(href, b"")
        if all(stop <= len(head) for _, stop in ranges):
            return [head[start:stop] for start, stop in ranges]
        spans = spans_for(ranges, gap_bytes=_GAP_BYTES, most_bytes=_SPAN_BYTES)
        fetch = partial(self._fetch, href, whole=True)
        chunks = [fetch(spans[0])] if len(spans) == 1 else list(self._pool.map(fetch, spans))
        return cut(ranges, spans, chunks)

    def _fetch(self, href: str, span: Span, *, whole: bool = False) -> bytes:
        """Return a span's bytes; `whole`: less than all of it is a failure."""
        check_href(self._provider, href)
        door = self._doors[href.partition("://")[0].lower()]

        def request() -> Answer:
            answer = door.fetch(href, *span)
            expected = max(0, min(span[1], answer.stat.size_bytes) - span[0])
            if len(answer.data) != expected:
                raise TryAgain(
                    f"{named(href)}: {len(answer.data)} bytes came, {expected} were due.",
                    failure="short-read",
                )
            # Only now: what an attempt says that fails is not remembered.
            self._same(href, answer.stat)
            with self._lock:
                self.bytes_read += len(answer.data)
            return answer

        try:
            answer = door.kept(href, *span) or self._limits.call(request)
        except (TryAgain, GiveUp) as error:
            raise self._named(error) from error
        if whole and span[1] > answer.stat.size_bytes:
            raise GiveUp(f"{named(href)} ends before byte {span[1]}.", failure="truncated")
        return answer.data

    def _named(self, error: TryAgain | GiveUp) -> TryAgain | GiveUp:
        """Return an error that says whose file it is about."""
        text = str(error)
        if text.startswith("provider "):
            return error
        text = f"provider {self._provider.name}: {text}"
        if isinstance(error, TryAgain):
            return TryAgain(text, failure=error.failure, retry_after_s=error.retry_after_s)
        return GiveUp(text, failure=error.failure)

    def _same(self, href: str, now: Stat) -> None:
        with self._lock:
            before = self._known.setdefault(href, now)
        if before != now:
            raise GiveUp(f"{named(href)} changed while it was read.", failure="changed")


def named(href: str) -> str:
    """Return an address as messages may show it: without query, which may be a signature."""
    return href.split("?")[0].split("#")[0]

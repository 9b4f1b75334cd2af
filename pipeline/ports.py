"""What the rooms expect of one another: protocols, and the small values they exchange."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from numpy.typing import NDArray


class ObjectStore(Protocol):
    """A folder or bucket prefix that holds a data set. Keys are relative, with `/`, never `..`.

    An object is written whole and never changed: `put` of other bytes under an existing key is
    not used by this project, `create` refuses it.
    """

    url: str

    def get(self, key: str) -> bytes:
        """Return the object; `KeyError` if there is none."""
        ...

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes [start, stop) of each range; `KeyError` if there is no such object."""
        ...

    def size(self, key: str) -> int:
        """Return the object's length in bytes; `KeyError` if there is none."""
        ...

    def put(self, key: str, data: bytes | Iterable[bytes], *, durable: bool = True) -> None:
        """Write an object atomically, replacing any; `durable` also flushes it to the disk."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Write an object only if there is none; return whether this call wrote it."""
        ...

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys below a prefix, sorted."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens if there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Stat:
    """What a server or file system says of a file."""

    size_bytes: int
    etag: str | None


class ByteSource(Protocol):
    """Reads files of scenes, wherever they are: `pipeline.sources.bytes.http.open_source`.

    Every failure is `TryAgain` or `GiveUp` with its class; retries, limits and signing happen
    inside. Hrefs are unsigned. Safe to use from several threads.
    """

    def stat(self, href: str) -> Stat:
        """Return length and entity tag."""
        ...

    def ranges(self, href: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes [start, stop) of each range; near ones are fetched in one request."""
        ...

    @property
    def requests(self) -> int:
        """Requests made so far."""
        ...

    @property
    def bytes_read(self) -> int:
        """Bytes that came in whole answers so far."""
        ...


@dataclass(frozen=True, slots=True)
class PixelGrid:
    """A north-up raster of square pixels, from its north-western corner."""

    epsg: int
    x_min_m: float
    y_max_m: float
    pixel_m: float
    width_px: int
    height_px: int


@runtime_checkable
class PixelSource(Protocol):
    """Reads pixels of scenes that are no files: `pipeline.sources.earthengine.pixels`.

    Failures as for `ByteSource`; safe to use from several threads.
    """

    @property
    def concurrency(self) -> int:
        """Windows that are worth asking for at the same time."""
        ...

    def pixels(
        self,
        href: str,
        bands: Sequence[str],
        grid: PixelGrid,
        *,
        fill: float,
        method: str = "nearest",
    ) -> NDArray[Any]:
        """Return the pixels (band, y, x) of some bands of an image; `fill` where it has none.

        Where the grid is not the image's own, pixels come by `method`: `nearest` or `bilinear`.
        """
        ...

    def document(self, href: str) -> bytes:
        """Return what is said of an image, as the MTL.json of a Landsat scene would say it."""
        ...

    @property
    def requests(self) -> int:
        """Requests made so far."""
        ...

    @property
    def bytes_read(self) -> int:
        """Bytes that came in whole answers so far."""
        ...


@dataclass(frozen=True, slots=True)
class Query:
    """One question to a catalogue: which items of a collection, seen where and when?"""

    product: str
    collection: str
    bbox: tuple[float, float, float, float] | None = None
    """west, south, east, north in degrees, west < east; None: everywhere."""
    start: datetime | None = None
    """First moment (UTC); None: since ever."""
    end: datetime | None = None
    """First moment that is too late; None: for ever."""
    only: tuple[tuple[str, tuple[int | float | str, ...]], ...] = ()
    """Item properties, each with the values that it may have."""
    at_most: tuple[tuple[str, float], ...] = ()
    """Item properties, each with its largest value. Both are for catalogues that can filter, so
    that fewer items come: what comes is checked all the same, by the product's rules."""

    def wants(
        self,
        collection: object,
        bounds: tuple[float, float, float, float],
        moments: Iterable[datetime],
    ) -> bool:
        """Whether an item with these facts answers it: touches the box, has one moment in time."""
        if collection != self.collection:
            return False
        if self.bbox is not None:
            west, south, east, north = self.bbox
            if bounds[0] > east or bounds[2] < west or bounds[1] > north or bounds[3] < south:
                return False
        return any(
            (self.start is None or self.start <= moment) and (self.end is None or moment < self.end)
            for moment in moments
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one task: its result, or the error that ended it."""

    item: Any
    result: Any = None
    error: BaseException | None = None


class Engine(Protocol):
    """Runs one function over many items on some machines; knows nothing of what it runs."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def run(
        self, function: Callable[[Any], Any], items: Iterable[Any], *, in_flight: int | None = None
    ) -> Iterator[Outcome]:
        """Yield outcomes as they come; `items` is consumed lazily, so it may grow meanwhile."""
        ...

    @property
    def workers(self) -> int:
        """How many tasks can run at once."""
        ...

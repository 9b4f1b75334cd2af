"""What goes wrong on demand: the failures real archives show, seeded and bounded.

Whether a request fails depends on the seed, what is asked for and how often it was asked for
before, never on the order in which workers happen to come: so a run that meets faults can be
repeated exactly. Passing faults stop after `at_most` in a row for one file and range (or one page
of a search), which is less than a client's attempts; permanent ones never stop.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal, get_args

import rasterio

from pipeline.errors import RecipeError
from pipeline.simulate.truth.noise import below

Fault = Literal[
    "latency",
    "throttled",
    "throttled-bare",
    "server-error",
    "internal-error",
    "reset",
    "stalled",
    "truncated",
    "wrong-length",
    "duplicated-page",
    "reordered-page",
    "truncated-page",
    "no-json",
    "html",
    "missing",
    "forbidden",
    "expired",
    "corrupt",
]
"""`latency`: the right answer, late; `throttled`: 429 with Retry-After, `throttled-bare`: without;
`server-error`: 503; `internal-error`: 500; `reset`: the connection closes without an answer,
`stalled`: after a long silence; `truncated`: fewer bytes than announced; `wrong-length`: a shorter
range than was asked for, and so announced; `duplicated-page`: the page before comes once more;
`reordered-page`: its items come in another order; `truncated-page`: half of it, as announced for
all of it; `no-json`: half of it, announced as such; `html`: a login page with status 200 (as DLR
answers without credentials); `missing`: 404; `forbidden`: 403; `expired`: 403 as Azure answers to
an old signature; `corrupt`: a changed byte at the head of a compressed block, always the same one
of a file (GDAL overlooks some changes further inside: `pipeline.raster.blocks`)."""

_BOTH: tuple[Fault, ...] = (
    *("latency", "throttled", "throttled-bare", "server-error", "internal-error"),
    *("reset", "stalled"),
)
#: Passing faults of files and of pages: a client gets over them by asking again.
OF_FILES: tuple[Fault, ...] = (*_BOTH, "truncated", "wrong-length")
BROKEN_PAGES: tuple[Fault, ...] = ("duplicated-page", "reordered-page", "truncated-page", "no-json")
OF_PAGES: tuple[Fault, ...] = (*_BOTH, *BROKEN_PAGES)
#: The same of signed addresses: who signs gets over it. A fresh signature is good, so it is not met
#: twice running.
OF_SIGNED: tuple[Fault, ...] = ("expired",)
PASSING: tuple[Fault, ...] = (*OF_FILES, *BROKEN_PAGES, *OF_SIGNED)

ItemFault = Literal["footprint", "missing-asset"]
"""`footprint`: the item claims ground half its width to the east of what was seen;
`missing-asset`: its first asset is not listed."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Which requests fail, and how.

    Attributes
    ----------
    rate : float
        Share of requests, for files and for searches, that meet a passing fault, 0 to 1.
    seed : int
    kinds : tuple of Fault
        Passing faults to choose from.
    at_most : int
        Passing faults in a row for one file and range or one page; `pipeline.sources` makes 5
        attempts.
    permanent : dict of str to Fault
        Pattern of a path below `files/` (`*_image.tif`) to what always happens to it.
    items : dict of str to ItemFault
        Pattern of an item's id to what is wrong with the item.
    retry_after_s : int
        What a throttled client is told to wait, in seconds.
    latency_s, stall_s : float
        How late a late answer is, and how long a stalled connection stays silent, in seconds.
    """

    rate: float = 0.0
    seed: int = 0
    kinds: tuple[Fault, ...] = PASSING
    at_most: int = 4
    permanent: Mapping[str, Fault] = field(default_factory=dict)
    items: Mapping[str, ItemFault] = field(default_factory=dict)
    retry_after_s: int = 0
    latency_s: float = 0.05
    stall_s: float = 0.5

    def __post_init__(self) -> None:
        _known({*self.kinds, *self.permanent.values()}, get_args(Fault))
        _known(set(self.items.values()), get_args(ItemFault))
        if not 0 <= self.rate <= 1:
            raise RecipeError(f"fault rate {self.rate} is not between 0 and 1.")
        if self.rate and not self.kinds:
            raise RecipeError("a fault rate needs at least one kind of fault.")

    def of_item(self, item: str) -> ItemFault | None:
        """Return what is wrong with an item, if anything."""
        return next((f for pattern, f in self.items.items() if fnmatch(item, pattern)), None)


def _known(found: set[str], known: tuple[str, ...]) -> None:
    if unknown := found - set(known):
        raise RecipeError(
            f"unknown faults: {', '.join(sorted(unknown))}; known are: {', '.join(known)}."
        )


class FaultDice:
    """Decides for each request of one server; safe to use from several threads."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._of_files = tuple(kind for kind in faults.kinds if kind in OF_FILES)
        self._of_signed = tuple(kind for kind in faults.kinds if kind in OF_SIGNED)
        self._of_pages = tuple(kind for kind in faults.kinds if kind in OF_PAGES)
        self._asked: Counter[tuple[str, str]] = Counter()
        self._in_a_row: Counter[tuple[str, str]] = Counter()
        self._expired: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self.thrown: Counter[str] = Counter()
        """Faults so far, by kind."""

    def throw(self, path: str, byte_range: str, *, signed: bool = False) -> Fault | None:
        """Return what goes wrong with this request for a file, if anything.

        `signed`: its address has a signature, which may be taken for an old one.
        """
        kinds = (*self._of_files, *self._of_signed) if signed else self._of_files
        return self._counted(self._permanent(path) or self._passing(kinds, path, byte_range))

    def throw_page(self, path: str, body: str) -> Fault | None:
        """Return what goes wrong with this search, if anything."""
        return self._counted(self._passing(self._of_pages, path, body))

    def _counted(self, fault: Fault | None) -> Fault | None:
        if fault is not None:
            with self._lock:
                self.thrown[fault] += 1
        return fault

    def _permanent(self, path: str) -> Fault | None:
        patterns = self._faults.permanent.items()
        return next((fault for pattern, fault in patterns if fnmatch(path, pattern)), None)

    def _passing(self, kinds: tuple[Fault, ...], path: str, detail: str) -> Fault | None:
        faults, key = self._faults, (path, detail)
        with self._lock:
            attempt = self._asked[key]
            self._asked[key] += 1
            text = f"{path}\n{detail}".encode()
            draw = below(1_000_000, faults.seed, attempt, *text)
            lucky = draw >= faults.rate * 1_000_000 or self._in_a_row[key] >= faults.at_most
            if lucky or not kinds:
                self._in_a_row[key] = 0
                return None
            fault = kinds[int(below(len(kinds), faults.seed, attempt + 1, *text))]
            if fault in OF_SIGNED and key in self._expired:
                self._expired.remove(key)
                self._in_a_row[key] = 0
                return None
            (self._expired.add if fault in OF_SIGNED else self._expired.discard)(key)
            self._in_a_row[key] += 1
            return fault


def corrupt_place(path: Path) -> int:
    """Return which byte of a file is the changed one: the first of some block of an image."""
    if path.suffix not in (".tif", ".tiff"):
        return path.stat().st_size // 2
    with rasterio.open(path) as raster:
        blocks = [at for at, _ in raster.block_windows(1)]
        row, column = blocks[int(below(len(blocks), 95, *path.name.encode()))]
        return int(raster.get_tag_item(f"BLOCK_OFFSET_{column}_{row}", "TIFF", bidx=1))

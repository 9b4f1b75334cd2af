"""What goes wrong on demand: the failures real archives show, seeded and bounded.

Whether a request fails depends on the seed, the file, the bytes asked for and how often they were
asked for before, never on the order in which workers happen to come: so a run that meets
faults can be repeated exactly. Passing faults stop after `at_most` in a row per file and range,
which is less than a client's attempts; permanent ones never stop.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Literal, get_args

from pipeline.errors import RecipeError
from pipeline.simulate.noise import below

Fault = Literal["throttled", "server-error", "truncated", "reset", "html", "missing", "forbidden"]
"""`throttled`: 429 with Retry-After; `server-error`: 503; `truncated`: fewer bytes than announced;
`reset`: the connection closes without an answer; `html`: a login page with status 200 (as DLR
answers without credentials); `missing`: 404; `forbidden`: 403."""

#: Faults a client gets over by asking again.
PASSING: tuple[Fault, ...] = ("throttled", "server-error", "truncated", "reset")


@dataclass(frozen=True, slots=True)
class Faults:
    """Which requests for files fail, and how.

    Attributes
    ----------
    rate : float
        Share of requests that meet a passing fault, 0 to 1.
    seed : int
    kinds : tuple of Fault
        Passing faults to choose from.
    at_most : int
        Passing faults in a row for one file and range.
    permanent : dict of str to Fault
        Pattern of a path below `files/` (`*SPECTRAL_IMAGE*`) to what always happens to it.
    retry_after_s : int
        What a throttled client is told to wait, in seconds.
    """

    rate: float = 0.0
    seed: int = 0
    kinds: tuple[Fault, ...] = PASSING
    at_most: int = 2
    permanent: Mapping[str, Fault] = field(default_factory=dict)
    retry_after_s: int = 0

    def __post_init__(self) -> None:
        unknown = {*self.kinds, *self.permanent.values()} - set(get_args(Fault))
        if unknown:
            raise RecipeError(
                f"unknown faults: {', '.join(sorted(unknown))}; known are: "
                f"{', '.join(get_args(Fault))}."
            )
        if not 0 <= self.rate <= 1:
            raise RecipeError(f"fault rate {self.rate} is not between 0 and 1.")
        if self.rate and not self.kinds:
            raise RecipeError("a fault rate needs at least one kind of fault.")


class FaultDice:
    """Decides for each request of one server; safe to use from several threads."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._asked: Counter[tuple[str, str]] = Counter()
        self._in_a_row: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self.thrown: Counter[str] = Counter()
        """Faults so far, by kind."""

    def throw(self, path: str, byte_range: str) -> Fault | None:
        """Return what goes wrong with this request, if anything."""
        fault = self._permanent(path) or self._passing(path, byte_range)
        if fault is not None:
            with self._lock:
                self.thrown[fault] += 1
        return fault

    def _permanent(self, path: str) -> Fault | None:
        patterns = self._faults.permanent.items()
        return next((fault for pattern, fault in patterns if fnmatch(path, pattern)), None)

    def _passing(self, path: str, byte_range: str) -> Fault | None:
        faults, key = self._faults, (path, byte_range)
        with self._lock:
            attempt = self._asked[key]
            self._asked[key] += 1
            text = f"{path}\n{byte_range}".encode()
            draw = below(1_000_000, faults.seed, attempt, *text)
            if draw >= faults.rate * 1_000_000 or self._in_a_row[key] >= faults.at_most:
                self._in_a_row[key] = 0
                return None
            self._in_a_row[key] += 1
            return faults.kinds[int(below(len(faults.kinds), faults.seed, attempt + 1, *text))]

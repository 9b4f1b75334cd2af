"""Politeness and patience: how fast requests may be made, and what happens when one fails."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from threading import Lock
from typing import TypeVar

from pipeline.errors import GiveUp, TryAgain
from pipeline.sources.lease import lease

Result = TypeVar("Result")

#: Pause before the second attempt; it doubles with each further one, plus up to as much at random,
#: so that workers that failed together do not come back together.
FIRST_PAUSE_S = 0.5
#: No pause is longer: a server that asks for more is left to a later round of its shard.
LONGEST_PAUSE_S = 60.0
#: Failed requests in a row after which a provider counts as down, and for how long.
FAILURES_IN_A_ROW = 20
DOWN_S = 30.0

#: Failures that say something about the provider as a whole. Being throttled is no sign of it
#: being down, and a short read belongs to one file.
_OF_THE_PROVIDER = frozenset({"server-error", "connection", "timeout"})


class Limits:
    """A provider's limits as one worker keeps them; safe to use from several threads.

    Parameters
    ----------
    name : str
        The provider.
    requests_per_s, concurrency : float, int
        For the whole run.
    share : float
        This worker's part of them, 0 to 1.
    attempts : int
        How often a request is made before its failure counts.
    run : str
        Of all workers of a run the same: those on one machine keep the limits together, and a
        pause that a server asks one of them for holds for all. Empty: this worker has its share.
    """

    def __init__(
        self,
        name: str,
        *,
        requests_per_s: float,
        concurrency: int,
        share: float,
        attempts: int,
        run: str = "",
    ) -> None:
        self.requests = 0
        self._name = name
        self._rate = requests_per_s
        self._attempts = attempts
        self._lease = lease(run, name, share=share, concurrency=concurrency)
        self._lock = Lock()
        # Not for anything stored: only so that no two workers pause for the same time.
        self._random = random.Random(f"{name}/{os.getpid()}")

    @property
    def concurrency(self) -> int:
        """Requests that this worker may have in flight, at most."""
        return self._lease.places

    def call(self, request: Callable[[], Result]) -> Result:
        """Make a request, again if it fails in passing, at the pace that is allowed.

        Raises
        ------
        TryAgain
            What the last attempt raised; `circuit-open` if the provider counts as down; at once if
            the server asks for a pause that is too long to sit out.
        GiveUp
            What the request raised; `truncated` after short reads in every attempt.
        """
        for attempt in range(1, self._attempts + 1):
            self._stop_if_down()
            self._take_turn()
            try:
                with self._lease.place():
                    result = request()
            except TryAgain as error:
                self._failed(error)
                asked = error.retry_after_s or 0.0
                if attempt == self._attempts or asked > LONGEST_PAUSE_S:
                    raise _final(error, attempt) from error
                time.sleep(max(asked, self._pause(attempt)))
            else:
                with self._lease.pace() as pace:
                    pace.failures = 0
                return result
        raise ValueError(f"attempts must be at least 1, not {self._attempts}.")

    def _pause(self, attempt: int) -> float:
        doubled: float = FIRST_PAUSE_S * 2.0 ** (attempt - 1)
        return min(LONGEST_PAUSE_S, doubled * (1 + self._random.random()))

    def _take_turn(self) -> None:
        """Wait until a request may be made: a bucket that holds one second's requests."""
        while True:
            rate = self._rate * self._lease.part
            with self._lease.pace() as pace:
                now = time.monotonic()
                full = max(1.0, rate)
                pace.tokens = min(full, pace.tokens + (now - pace.filled_at) * rate)
                pace.filled_at = now
                wait = pace.quiet_until - now
                if wait <= 0 and pace.tokens >= 1:
                    pace.tokens -= 1
                    break
                wait = max(wait, (1 - pace.tokens) / rate)
            time.sleep(wait)
        with self._lock:
            self.requests += 1

    def _failed(self, error: TryAgain) -> None:
        with self._lease.pace() as pace:
            now = time.monotonic()
            if error.retry_after_s and error.retry_after_s <= LONGEST_PAUSE_S:
                # The server asked for quiet: that is meant for all threads.
                pace.quiet_until = max(pace.quiet_until, now + error.retry_after_s)
            if error.failure in _OF_THE_PROVIDER:
                pace.failures += 1
                if pace.failures >= FAILURES_IN_A_ROW:
                    pace.down_until = now + DOWN_S

    def _stop_if_down(self) -> None:
        with self._lease.pace() as pace:
            left, failures = pace.down_until - time.monotonic(), int(pace.failures)
        if left > 0:
            raise TryAgain(
                f"provider {self._name} counts as down after {failures} failed requests in a row; "
                "nothing is asked of it for a while.",
                failure="circuit-open",
                retry_after_s=left,
            )


def _final(error: TryAgain, attempts: int) -> TryAgain | GiveUp:
    """Return what a failure is after the last attempt."""
    if error.failure == "short-read":
        return GiveUp(f"{error} ({attempts} times)", failure="truncated")
    return error

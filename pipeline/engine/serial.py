"""One task after the other, in this process: for debugging, and the specification of an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self

from pipeline.ports import Outcome


class SerialEngine:
    """Runs every item here and now; what another engine yields is what this one yields."""

    workers = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def run(
        self, function: Callable[[Any], Any], items: Iterable[Any], *, in_flight: int | None = None
    ) -> Iterator[Outcome]:
        """Yield the outcome of each item, in order; the next item is asked for after that."""
        del in_flight  # one at a time, whatever is allowed
        for item in items:
            try:
                result = function(item)
            except Exception as error:  # whatever ends a task is its outcome, and the caller's
                yield Outcome(item, error=error)
            else:
                yield Outcome(item, result=result)

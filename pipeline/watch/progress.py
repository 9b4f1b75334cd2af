"""Say how far a stage is: a live bar with rate and time left on a terminal, log lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as LiveProgress
    from rich.progress import TaskID

#: Seconds between two log lines of one step, where no live bar can be shown.
LINE_EVERY_S = 10.0


class Progress:
    """Progress of one command, step after step.

    Counts given to `advance` (written, rejected, ...) are added up and shown beside the bar.

    Parameters
    ----------
    stream : text stream
        Where to write; standard error by default, so that results can be piped.
    live : bool or None
        Force a live bar or plain lines; None: live if `stream` is a terminal.

    Examples
    --------
    >>> import io
    >>> out = io.StringIO()
    >>> with Progress(out) as progress:
    ...     progress.start("extract", total=2)
    ...     progress.advance(2, written=2)
    >>> "extract 2/2" in out.getvalue()
    True
    """

    def __init__(self, stream: TextIO | None = None, *, live: bool | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        plain = "TERRASHARD_PLAIN" in os.environ or "AIRFLOW_CTX_DAG_ID" in os.environ
        self._wants_live = (self._stream.isatty() and not plain) if live is None else live
        self._live: LiveProgress | None = None
        self._task: TaskID | None = None
        self._label = ""
        self._total: int | None = None
        self._done = 0
        self._counts: dict[str, int] = {}
        self._shown = ""
        self._began_s = self._said_s = time.monotonic()

    def __enter__(self) -> Self:
        if self._wants_live:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )
            from rich.progress import Progress as LiveProgress

            self._live = LiveProgress(
                TextColumn("[bold]{task.description:<10}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("[dim]{task.fields[counts]}"),
                console=Console(file=self._stream),
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.finish()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def start(self, label: str, total: int | None = None) -> None:
        """Begin a step of `total` items (None: unknown); ends the step before it."""
        self.finish()
        self._label, self._total, self._done, self._counts = label, total, 0, {}
        self._shown = ""
        self._began_s = self._said_s = time.monotonic()
        if self._live is not None:
            self._task = self._live.add_task(label, total=total, rate="", counts="")

    def advance(self, items: int = 1, **counts: int) -> None:
        """Count finished items, and what became of them."""
        self._done += items
        for name, number in counts.items():
            self._counts[name] = self._counts.get(name, 0) + number
        if self._live is not None and self._task is not None:
            self._live.update(
                self._task, completed=self._done, rate=self._rate(), counts=self._tally()
            )
        elif time.monotonic() - self._said_s >= LINE_EVERY_S:
            self._line()

    def show(self, text: str) -> None:
        """Say something beside the bar from now on, for example how fast the work is."""
        self._shown = text

    def note(self, text: str) -> None:
        """Say something once, above the bar."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def finish(self) -> None:
        """End the step under way, if there is one: its last line comes before what is said next."""
        if self._label and self._live is None:
            self._line()
        self._label = ""

    def _line(self) -> None:
        self._said_s = time.monotonic()
        of = f"/{self._total}" if self._total is not None else ""
        parts = [f"{self._label} {self._done}{of}", self._rate(), self._left(), self._tally()]
        print("  ".join(part for part in parts if part), file=self._stream, flush=True)

    def _rate(self) -> str:
        seconds = time.monotonic() - self._began_s
        if seconds <= 0 or not self._done:
            return ""
        if self._done >= seconds:
            return f"{self._done / seconds:.1f}/s"
        each = seconds / self._done
        return f"1 in {each:.1f} s" if each < 120 else f"1 in {each / 60:.1f} min"

    def _left(self) -> str:
        if not self._total or not self._done or self._done >= self._total:
            return ""
        seconds = (time.monotonic() - self._began_s) / self._done * (self._total - self._done)
        return f"{seconds:.0f} s left" if seconds < 120 else f"{seconds / 60:.0f} min left"

    def _tally(self) -> str:
        counts = " ".join(f"{name} {number}" for name, number in self._counts.items() if number)
        return "  ".join(part for part in (counts, self._shown) if part)

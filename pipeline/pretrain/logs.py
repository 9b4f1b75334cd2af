"""Tell how a run goes while it goes: TensorBoard, CSV, Weights & Biases, and a line beside the bar.

What a checkpoint keeps as `log.csv` is part of the run and the same every time it is run. Here is
what is not: how fast it went, and rows as soon as they are measured.
"""

from __future__ import annotations

import csv
import importlib
import io
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch

from pipeline.errors import RecipeError
from pipeline.pretrain import ranks

if TYPE_CHECKING:
    from pipeline.pretrain.data.batches import Batch
    from pipeline.watch.progress import Progress

#: A step and what was measured at it; what is not a number was not measured.
Row = Mapping[str, float]

#: Seconds between two updates of the line beside the bar.
SHOW_EVERY_S = 1.0


class Sink(Protocol):
    """Somewhere rows go."""

    def write(self, row: Row) -> None:
        """Add a row; its `step` is above that of every row before."""
        ...

    def close(self) -> None:
        """Flush and end."""
        ...


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast a stretch of a run was, all of its processes together."""

    samples_per_s: float
    """Items, each with all of its views."""
    decoded_gb_per_s: float
    """Stored pixels that were decoded for it, in 10^9 bytes."""
    busy_fraction: float
    """Share of this process's time that was not spent waiting for a batch: below 1 the loader is
    too slow."""
    device_gb: float
    """Most memory of the device ever in use, in 10^9 bytes; 0 on the CPU."""

    def __str__(self) -> str:
        text = (
            f"{self.samples_per_s:.3g} samples/s  {self.decoded_gb_per_s:.2g} GB/s decoded  "
            f"{self.busy_fraction:.0%} busy"
        )
        return text + (f"  {self.device_gb:.3g} GB" if self.device_gb else "")


class Meter:
    """Measures a stream of batches by what passes and how long it was waited for.

    It sees this process's share, which is as large as that of every other.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_s = clock()
        self._items = self._bytes = 0
        self._waited_s = 0.0

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the same batches."""
        waiting = iter(batches)
        while True:
            asked_s = self._clock()
            batch = next(waiting, None)
            self._waited_s += self._clock() - asked_s
            if batch is None:
                return
            # Views of the same patches are one object, decoded once.
            for stored in {id(view): view for view in batch}.values():
                self._bytes += stored.bands.nbytes + stored.mask.nbytes
            self._items += len(batch[0].bands)
            yield batch

    def rates(self) -> Rates:
        """Return the rates since the last call, and begin anew."""
        now_s = self._clock()
        span_s = max(now_s - self._began_s, 1e-9)
        memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        found = Rates(
            ranks.size() * self._items / span_s,
            ranks.size() * self._bytes / span_s / 1e9,
            1 - self._waited_s / span_s,
            memory / 1e9,
        )
        self._began_s, self._items, self._bytes, self._waited_s = now_s, 0, 0, 0.0
        return found


class Journal:
    """Follows one run: shows its rates, and sends each row of its log to every sink.

    Parameters
    ----------
    sinks : sequence of Sink
        Closed when the journal is.
    progress : Progress or None
    """

    def __init__(self, sinks: Sequence[Sink] = (), progress: Progress | None = None) -> None:
        self._sinks, self._progress = sinks, progress
        self._shown, self._logged = Meter(), Meter()
        self._shown_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for sink in self._sinks:
            sink.close()

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the same batches, measured."""
        return self._logged.watch(self._shown.watch(batches))

    def after_step(self, step: int, log: Sequence[Row]) -> None:
        """Take note of a step that was done, and of the log's newest row if it is of this step."""
        if self._progress is not None:
            if time.monotonic() - self._shown_s >= SHOW_EVERY_S:
                self._shown_s = time.monotonic()
                self._progress.show(str(self._shown.rates()))
            self._progress.advance()
        if self._sinks and log and log[-1]["step"] == step:
            row = {**log[-1], **asdict(self._logged.rates())}
            for sink in self._sinks:
                sink.write(row)


def open_sinks(
    names: Sequence[str],
    folder: Path,
    *,
    run: str,
    start: int,
    settings: Mapping[str, Any],
) -> list[Sink]:
    """Open what was asked for.

    Parameters
    ----------
    names : sequence of str
        Keys of `SINKS`.
    folder : Path
        On this machine; each sink keeps its files in it.
    run : str
        Name of the run.
    start : int
        Steps done; rows after it are dropped, since they are about to come again.
    settings : mapping
        Shown beside the run, where a sink can.

    Raises
    ------
    RecipeError
        A name is unknown, or what it needs is not installed.
    """
    unknown = [name for name in names if name not in SINKS]
    if unknown:
        raise RecipeError(f"there is no log {unknown[0]!r}; allowed are: {', '.join(SINKS)}.")
    if names:
        folder.mkdir(parents=True, exist_ok=True)
    return [SINKS[name](folder, run, start, settings) for name in dict.fromkeys(names)]


class CsvSink:
    """`<run>.csv`: one line for each row, there as soon as it is measured."""

    def __init__(self, folder: Path, run: str, start: int, settings: Mapping[str, Any]) -> None:  # noqa: ARG002
        path = folder / f"{run}.csv"
        kept = _rows_until(path, start)
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer: csv.DictWriter[str] | None = None
        for row in kept:
            self._put(row)

    def write(self, row: Row) -> None:
        self._put({name: _text(name, value) for name, value in row.items()})
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _put(self, row: Mapping[str, str]) -> None:
        if self._writer is None:
            self._writer = csv.DictWriter(self._file, [*row], lineterminator="\n", restval="")
            self._writer.writeheader()
        self._writer.writerow(row)


class TensorBoardSink:
    """Event files of TensorBoard in `<folder>/<run>`."""

    def __init__(self, folder: Path, run: str, start: int, settings: Mapping[str, Any]) -> None:
        _need("tensorboard", "terrashard[logs]")
        from torch.utils.tensorboard import SummaryWriter

        make: Any = SummaryWriter
        self._writer = make(str(folder / run), purge_step=start + 1)
        lines = (f"    {key} = {value!r}" for key, value in settings.items())
        self._writer.add_text("settings", "\n".join(lines))

    def write(self, row: Row) -> None:
        for name, value in _measured(row).items():
            self._writer.add_scalar(name, value, int(row["step"]))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """Weights & Biases, which sends rows to its service under the account of this machine."""

    def __init__(self, folder: Path, run: str, start: int, settings: Mapping[str, Any]) -> None:
        wandb: Any = _need("wandb", "wandb")
        self._run = wandb.init(
            project="terrashard",
            id=run,
            name=run,
            dir=str(folder),
            config=dict(settings),
            resume="allow" if start else None,
        )

    def write(self, row: Row) -> None:
        self._run.log(_measured(row), step=int(row["step"]))

    def close(self) -> None:
        self._run.finish()


#: What `--log` takes.
SINKS: dict[str, Callable[[Path, str, int, Mapping[str, Any]], Sink]] = {
    "csv": CsvSink,
    "tensorboard": TensorBoardSink,
    "wandb": WandbSink,
}


def _measured(row: Row) -> dict[str, float]:
    """Return what was measured, without the step."""
    return {name: v for name, v in row.items() if name != "step" and math.isfinite(v)}


def _text(name: str, value: float) -> str:
    if name == "step":
        return str(int(value))
    return repr(value) if math.isfinite(value) else ""


def _rows_until(path: Path, step: int) -> list[dict[str, str]]:
    """Return the lines of an earlier part of the same run."""
    if not step or not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    # A line that was being written when the run was killed has no end.
    whole = text[: text.rfind("\n") + 1]
    return [row for row in csv.DictReader(io.StringIO(whole)) if int(row["step"]) <= step]


def _need(package: str, install: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise RecipeError(
            f"the log {package!r} needs a package that is not installed: `pip install '{install}'`."
        ) from error

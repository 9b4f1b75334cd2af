"""Build the shards of every plan that are not there yet, in rounds."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from pipeline.errors import IntegrityError, RecipeError, TryAgain
from pipeline.ports import Engine, ObjectStore
from pipeline.recipe import LoadedRecipe
from pipeline.store import layout
from pipeline.store.commit import newest
from pipeline.store.ledger import plan_numbers
from pipeline.store.objects import LocalStore
from pipeline.task.order import ShardOrder, ShardReport, new_run
from pipeline.task.shard import build_shard
from pipeline.watch.progress import Progress

#: Rounds that a shard with passing failures gets; in the last one they are written to the ledger.
ROUNDS = 3
#: Rest before the second round, doubled before the third: what throttles needs time to forget.
PAUSE_S = 5.0
#: Bytes read at once where a whole table is hashed.
_PIECE_BYTES = 16 * 2**20


@dataclass(slots=True)
class ExtractReport:
    """What an extraction did; patches are counted over the shards of this run."""

    shards: int = 0
    """Committed now."""
    skipped: int = 0
    """Committed by earlier runs."""
    written: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """Patches by reason."""
    failed: Counter[str] = field(default_factory=Counter)
    """Patches by failure class."""
    bytes_written: int = 0
    requests: int = 0
    bytes_read: int = 0
    """Of source files."""
    blocks_touched: int = 0
    """Distinct compressed blocks, summed over tasks ..."""
    blocks_decoded: int = 0
    """... and how often one was decoded: once each, so the two are equal."""
    seconds: float = 0.0

    def add(self, report: ShardReport) -> None:
        """Count one shard's report, committed or not."""
        self.requests += report.requests
        self.bytes_read += report.bytes_read
        self.blocks_touched += report.blocks_touched
        self.blocks_decoded += report.blocks_decoded
        if report.committed:
            self.shards += 1
            self.written += report.written
            self.rejected += report.rejected
            self.failed += report.failed
            self.bytes_written += report.bytes


def run_extract(
    loaded: LoadedRecipe,
    store: ObjectStore,
    engine: Engine,
    *,
    progress: Progress,
    accept_failures: bool = False,
    pause_s: float = PAUSE_S,
) -> ExtractReport:
    """Build every planned shard that has no commit; running it again resumes.

    Parameters
    ----------
    engine : Engine
        Entered here, if there is anything to do, for as long as it is needed.
    accept_failures : bool
        Commit shards even if over half of their patches failed.
    pause_s : float
        Rest before a second round.

    Raises
    ------
    TryAgain
        Some shards could not be committed: a provider is down, or most of a shard failed. What
        was committed stays.
    RecipeError
        The root belongs to another recipe, or nothing is planned.
    IntegrityError
        A plan is not what its header says.
    """
    began_s = time.monotonic()
    layout.is_claimed(store, loaded)
    plans = plan_numbers(store)
    if not plans:
        raise RecipeError(f"{store.url} has no plan yet: run `terrashard plan` first.")
    report, todo = ExtractReport(), []
    for plan in plans:
        there = newest(store, plan)
        for shard in planned_shards(store, plan):
            if layout.shard_name(plan, shard) in there:
                report.skipped += 1
            else:
                todo.append(ShardOrder(store.url, plan, shard, accept_failures=accept_failures))
    if todo:
        with engine:
            progress.start("extract", len(todo))
            left = in_rounds(todo, engine, report.add, progress, pause_s=pause_s)
    else:
        left = {}
    report.seconds = time.monotonic() - began_s
    if left:
        raise TryAgain(unfinished(left), failure="unfinished")
    return report


def planned_shards(store: ObjectStore, plan: int) -> range:
    """Return the shard numbers of a plan, after making sure that its tables are what it locked.

    Raises
    ------
    IntegrityError
        A table's sha256 is not that of the plan's header.
    """
    header = layout.read_json(store, layout.plan_header(plan))
    for key, name in (
        (layout.plan(plan), "patches_sha256"),
        (layout.plan_scenes(plan), "scenes_sha256"),
    ):
        if _sha256(store, key) != header.get(name):
            raise IntegrityError(
                f"{key} in {store.url} is not the table that plan {plan} locked ({name})."
            )
    return range(int(header["shards"]))


def in_rounds(
    orders: Iterable[ShardOrder],
    engine: Engine,
    count: Callable[[ShardReport], None],
    progress: Progress,
    *,
    pause_s: float,
) -> dict[str, str]:
    """Build shards, giving those that met a passing failure two more rounds.

    Returns
    -------
    dict of str to str
        Shards that were left without a commit, and why.
    """
    run = new_run()
    todo, down = [replace(order, run=run) for order in orders], False
    left = {order.name: "it was not tried, because a provider is down" for order in todo}
    for number in range(1, ROUNDS + 1):
        if number > 1:
            progress.note(f"{len(todo)} shards met passing failures; round {number} of {ROUNDS}")
            time.sleep(pause_s * 2 ** (number - 2))
        again = []
        share, threads = 1 / engine.workers, max(1, (os.cpu_count() or 1) // engine.workers)
        last = number == ROUNDS
        # The list is consumed while it runs: a provider that is down ends it.
        queue = (replace(o, share=share, threads=threads, final=last) for o in todo if not down)
        for outcome in engine.run(build_shard, queue):
            order: ShardOrder = outcome.item
            if isinstance(outcome.error, TryAgain):
                left[order.name] = str(outcome.error)
                again.append(order)
                continue
            if outcome.error is not None:
                raise outcome.error
            report: ShardReport = outcome.result
            count(report)
            down = down or report.circuit_open
            if report.passing:
                left[order.name] = report.passing
                again.append(order)
            else:
                del left[order.name]
                progress.advance(
                    written=report.written,
                    rejected=report.rejected.total(),
                    failed=report.failed.total(),
                )
        if down or not again:
            break
        todo = again
    return left


def unfinished(left: dict[str, str]) -> str:
    """Say in one paragraph which shards were left, and why."""
    name, why = next(iter(left.items()))
    return (
        f"{len(left)} shards could not be built now; {name}: {why}. What was built stays; "
        "run the same command again later."
    )


def _sha256(store: ObjectStore, key: str) -> str:
    digest, size = hashlib.sha256(), store.size(key)
    if isinstance(store, LocalStore):
        with store.path(key).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    for start in range(0, size, _PIECE_BYTES):
        (piece,) = store.get_ranges(key, [(start, min(size, start + _PIECE_BYTES))])
        digest.update(piece)
    return digest.hexdigest()

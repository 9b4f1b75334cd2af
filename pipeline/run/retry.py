"""Try the failed patches again: a shard that heals gets a new revision."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow.compute as pc

from pipeline.errors import FINAL, PASSING, RecipeError, TryAgain
from pipeline.ports import Engine, ObjectStore
from pipeline.recipe import LoadedRecipe
from pipeline.run.extract import PAUSE_S, in_rounds, unfinished
from pipeline.store import layout
from pipeline.store.commit import newest, read_ledgers
from pipeline.task.order import ShardOrder, ShardReport
from pipeline.watch.progress import Progress
from pipeline.watch.tell import align, lines_of


@dataclass(slots=True)
class RetryReport:
    """What became of the patches that had failed."""

    shards: int = 0
    """With failed patches of the wanted classes."""
    revised: int = 0
    """Of these, the ones that got a new revision."""
    tried: int = 0
    """Failed patches tried again."""
    failed: Counter[str] = field(default_factory=Counter)
    """Patches of these shards that are failed now, by class."""
    healed: int = 0
    """Patches that were failed and are not any more."""
    requests: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return align(lines_of(self)) if self.shards else "nothing to try again: no patch failed"


def run_retry(
    loaded: LoadedRecipe,
    store: ObjectStore,
    engine: Engine,
    *,
    classes: Sequence[str] | None = None,
    progress: Progress,
    pause_s: float = PAUSE_S,
) -> RetryReport:
    """Try failed patches again; what was written is copied as it is, compressed.

    A healed shard equals one that was never disturbed. Nothing is written where nothing changed.

    Parameters
    ----------
    classes : sequence of str or None
        Failure classes to try again; None or empty: all.

    Raises
    ------
    RecipeError
        A class is not one of `pipeline.errors.PASSING` and `FINAL`, or no patch failed with it.
    TryAgain
        Some shards could not be finished now.
    """
    began_s = time.monotonic()
    wanted = tuple(classes or ())
    if unknown := [name for name in wanted if name not in (*PASSING, *FINAL)]:
        raise RecipeError(
            f"there is no failure class {unknown[0]!r}; there are: {', '.join((*PASSING, *FINAL))}."
        )
    layout.must_be_claimed(store, loaded)
    report, todo, failed_before = RetryReport(), [], {}
    revisions = newest(store)
    for shard, ledger in read_ledgers(store, revisions, ["state", "reason"]):
        reasons = Counter(ledger.filter(pc.equal(ledger["state"], "failed"))["reason"].to_pylist())
        chosen = sum(count for reason, count in reasons.items() if not wanted or reason in wanted)
        if not chosen:
            continue
        report.tried += chosen
        failed_before[shard] = reasons
        plan, number = layout.parse_shard(shard)
        revision = revisions[shard] + 1
        todo.append(ShardOrder(store.url, plan, number, revision=revision, classes=wanted))
    report.shards = len(todo)

    def count(done: ShardReport) -> None:
        report.requests += done.requests
        if done.passing:
            return
        report.revised += done.committed
        report.failed += done.failed
        report.healed += failed_before[done.shard].total() - done.failed.total()

    left: dict[str, str] = {}
    if todo:
        with engine:
            progress.start("retry", len(todo))
            left = in_rounds(todo, engine, count, progress, pause_s=pause_s)
    elif wanted:
        _known(wanted, store, revisions)
    report.seconds = time.monotonic() - began_s
    if left:
        raise TryAgain(unfinished(left), failure="unfinished")
    return report


def _known(wanted: Sequence[str], store: ObjectStore, revisions: dict[str, int]) -> None:
    """Refuse classes that no patch failed with, naming those that there are."""
    found: Counter[str] = Counter()
    for _, ledger in read_ledgers(store, revisions, ["state", "reason"]):
        found.update(ledger.filter(pc.equal(ledger["state"], "failed"))["reason"].to_pylist())
    if found:
        raise RecipeError(
            f"no patch failed with {', '.join(wanted)}; there are: {', '.join(sorted(found))}."
        )

"""Build one revision of one shard: the one function that a worker runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from pipeline.errors import IntegrityError, TryAgain
from pipeline.ports import ByteSource, ObjectStore, PixelSource
from pipeline.recipe import LoadedRecipe
from pipeline.records import LedgerRow, Scene
from pipeline.sources.bytes.http import open_source
from pipeline.sources.earthengine.pixels import EarthEnginePixels
from pipeline.sources.providers import Provider, provider_of
from pipeline.stages.extract import Trial, too_many_failures, trials_of
from pipeline.store.commit import Commit, claim_folder, clear_others, read_commit, write_commit
from pipeline.store.objects import open_store
from pipeline.store.shard import NO_TIME, ArraySpec, ShardWriter, digests, put_shard
from pipeline.store.tables import from_rows, to_rows
from pipeline.task.account import known_sources, not_written, written
from pipeline.task.copy import copy_patches
from pipeline.task.decide import Decided, decide
from pipeline.task.lock import Lock, array_specs, read_lock
from pipeline.task.memory import keep_memory
from pipeline.task.order import ShardOrder, ShardReport
from pipeline.task.read import Reader
from pipeline.task.residual import Comparison

#: A door through which scenes are read: files, or pixels where the provider has no files.
Source = ByteSource | PixelSource


def build_shard(order: ShardOrder) -> ShardReport:
    """Read, decide and write one shard; it exists when this has returned `committed`.

    Nothing is committed, and the report says why, if a file could not be read now and this is
    not the final round, if a provider's circuit is open, or if over half of the patches failed.
    A retry (revision 2 and later) commits, and says, nothing where nothing changed; it fails
    nothing anew, so there is no such bound for it. A revision that is there already, because a
    worker died between its commit and its answer, is reported as it is and never written again:
    the network may be in another mood now.

    Raises
    ------
    IntegrityError
        What is stored contradicts itself.
    RecipeError
        The recipe asks for pixels that the product does not have.
    """
    keep_memory()
    store = open_store(order.root)
    if done := _done(store, order):
        return done
    lock = read_lock(store, order.plan, order.shard)
    before = _before(store, order)
    trials = trials_of(lock.patches, list(lock.loaded.products))
    again, kept = _split(trials, before, order.classes)
    source_of = sources_of(lock.loaded, order.share, order.run)
    traffic = _Traffic(lock, source_of)
    reader = Reader(source_of, known_sources(kept), final=order.final, threads=order.threads)
    specs = array_specs(lock)
    report = ShardReport(order.name)
    try:
        decided = decide(again, lock, specs, reader, threads=order.threads)
    except TryAgain as error:
        report.passing = str(error)
        report.circuit_open = error.failure == "circuit-open"
        decided = []
    report.requests, report.bytes_read = traffic.since()
    report.blocks_touched, report.blocks_decoded = reader.blocks_touched, reader.blocks_decoded
    if report.passing:
        return report
    rows = _rows(decided, reader, Comparison(lock.loaded))
    _count(report, [*rows, *kept])
    if before is None and not order.accept_failures and too_many_failures(trials):
        classes = ", ".join(f"{name} {number}" for name, number in sorted(report.failed.items()))
        report.passing = (
            f"{report.failed.total()} of {len(lock.patches)} patches failed ({classes}); "
            "`--accept-failures` commits it all the same"
        )
        return report
    if before is not None and not _changed(before, rows):
        return report
    # A worker that was taken for dead may have been faster.
    if done := _done(store, order):
        return done
    report.committed = _write(store, order, lock, specs, decided, rows, kept, before, report)
    return report if report.committed else _done(store, order) or report


def _done(store: ObjectStore, order: ShardOrder) -> ShardReport | None:
    """Return what became of the revision if it is committed, else None."""
    try:
        commit = read_commit(store, order.name, order.revision)
    except KeyError:
        return None
    report = ShardReport(order.name, committed=True)
    _count(report, to_rows(commit.ledger, LedgerRow))
    report.bytes = sum(size for _, size in commit.objects.values())
    return report


def _split(
    trials: Sequence[Trial], before: Commit | None, classes: tuple[str, ...]
) -> tuple[list[Trial], list[LedgerRow]]:
    """Return the groups to try, and the rows of the earlier revision that stay."""
    if before is None:
        return list(trials), []
    rows = {(r.product, r.sample, r.time): r for r in to_rows(before.ledger, LedgerRow)}
    again, kept = [], []
    for trial in trials:
        own = [rows[m.product, m.sample, m.time] for m in trial.members]
        if any(r.state == "failed" and (not classes or r.reason in classes) for r in own):
            again.append(trial)
        else:
            kept += own
    return again, kept


def _rows(decided: Sequence[Decided], reader: Reader, comparison: Comparison) -> list[LedgerRow]:
    rows = []
    for group in decided:
        means = {pick.patch.product: finished.shared for pick, finished in group.patches}
        for pick, finished in group.patches:
            datatake = pick.scenes[0].datatake  # one for all scenes of a patch
            residual = comparison.residual(pick.patch.product, datatake, means)
            rows.append(written(pick, finished, reader, residual=residual))
        if not group.patches:
            rows += not_written(group.trial)
    return rows


def _changed(before: Commit, rows: Sequence[LedgerRow]) -> bool:
    """Return whether anything became of the patches other than in an earlier revision."""

    def gist(row: LedgerRow) -> tuple[str, ...]:
        return row.product, str(row.sample), str(row.time), row.state, row.reason, row.pixel_digest

    known = {gist(row) for row in to_rows(before.ledger, LedgerRow)}
    return any(gist(row) not in known for row in rows)


def _count(report: ShardReport, rows: Sequence[LedgerRow]) -> None:
    report.written = sum(row.state == "written" for row in rows)
    report.rejected = Counter(row.reason for row in rows if row.state == "rejected")
    report.failed = Counter(row.reason for row in rows if row.state == "failed")


def _write(
    store: ObjectStore,
    order: ShardOrder,
    lock: Lock,
    specs: dict[str, ArraySpec],
    decided: Sequence[Decided],
    rows: Sequence[LedgerRow],
    kept: Sequence[LedgerRow],
    before: Commit | None,
    report: ShardReport,
) -> bool:
    """Write the objects, then the commit that makes them a shard.

    Returns False if another worker, which came to another outcome, has committed meanwhile.
    """
    writer = ShardWriter(specs)
    for group in decided:
        for pick, finished in group.patches:
            patch = pick.patch
            writer.put(patch.product, patch.sample, patch.time, finished.encoded)
    if before is not None:
        copy_patches(store, before, kept, writer)
    ledger = sorted([*rows, *kept], key=lambda row: (row.product, row.sample, row.time))
    for product, spec in specs.items():
        _set_coordinates(writer, spec, lock, [row for row in ledger if row.product == product])
    commit = claim_folder(
        store,
        Commit(
            shard=order.name,
            revision=order.revision,
            plan=order.plan,
            identity=lock.loaded.identity,
            plan_digest=lock.plan_digest,
            objects=digests(writer),
            specs=specs,
            ledger=from_rows(ledger, LedgerRow),
        ),
    )
    # Nothing may stay there that this outcome does not have.
    mine = {f"{commit.folder}/{key}" for key in commit.objects}
    for key in [key for key in store.list(commit.folder) if key not in mine]:
        store.delete(key)
    put_shard(store, commit.folder, writer)
    try:
        write_commit(store, commit)
    except IntegrityError:
        clear_others(store, read_commit(store, order.name, order.revision))
        return False
    clear_others(store, commit)
    report.bytes = sum(size for _, size in commit.objects.values())
    return True


def _set_coordinates(
    writer: ShardWriter, spec: ArraySpec, lock: Lock, rows: Sequence[LedgerRow]
) -> None:
    """Say where and when the patches of a product are; samples that it does not have stay empty."""
    location = [""] * spec.samples
    epsg = np.zeros(spec.samples, "int32")
    x_m, y_m = np.full(spec.samples, np.nan), np.full(spec.samples, np.nan)
    for patch in lock.patches:
        if patch.product == spec.product:
            location[patch.sample], epsg[patch.sample] = patch.location, patch.epsg
            x_m[patch.sample], y_m[patch.sample] = patch.x_min_m, patch.y_max_m
    scene = np.full((spec.samples, spec.times), "", dtype=object)
    acquired = np.full((spec.samples, spec.times), NO_TIME, "int64")
    for row in rows:
        if row.acquired is not None:
            scene[row.sample, row.time] = " ".join(row.scenes)
            moment = np.datetime64(row.acquired.replace(tzinfo=None), "us")
            acquired[row.sample, row.time] = moment.astype("int64")
    writer.set_coordinates(
        spec.product,
        location=location,
        epsg=epsg,
        x_origin_m=x_m,
        y_origin_m=y_m,
        scene=scene,
        acquired=acquired,
    )


def _before(store: ObjectStore, order: ShardOrder) -> Commit | None:
    return read_commit(store, order.name, order.revision - 1) if order.revision > 1 else None


class _Traffic:
    """Counts what one task asks and gets through doors that live as long as the process."""

    def __init__(self, lock: Lock, source_of: Callable[[Scene], Source]) -> None:
        # Products of one provider share its door; it is counted once.
        kinds = {(scene.product, scene.provider): scene for scene in lock.scenes.values()}
        sources = [source_of(kinds[key]) for key in sorted(kinds)]
        self._sources = list({id(source): source for source in sources}.values())
        self._start = self._total()

    def since(self) -> tuple[int, int]:
        """Return requests and bytes since this was made."""
        requests, read = self._total()
        return requests - self._start[0], read - self._start[1]

    def _total(self) -> tuple[int, int]:
        read = sum(source.bytes_read for source in self._sources)
        return sum(source.requests for source in self._sources), read


def sources_of(loaded: LoadedRecipe, share: float, run: str) -> Callable[[Scene], Source]:
    """Return the doors through which the recipe's scenes are read."""

    def source_of(scene: Scene) -> Source:
        return _open(provider_of(loaded, scene.product, scene.provider), share, run)

    return source_of


@lru_cache(maxsize=32)
def _open(provider: Provider, share: float, run: str) -> Source:
    """Open a provider once for each run and process, so that limits and circuit breaker last."""
    if provider.kind == "earth-engine":
        return EarthEnginePixels(provider, share=share, run=run)
    return open_source(provider, share=share, run=run)

"""Read some written patches again, from the shard and from their source, and compare pixels."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from pipeline.errors import IntegrityError
from pipeline.ports import ObjectStore
from pipeline.records import LedgerRow
from pipeline.stages.extract import Trial
from pipeline.store import layout
from pipeline.store.codec import decode_into
from pipeline.store.commit import Commit, read_commit
from pipeline.store.shard import pixel_digest
from pipeline.store.tables import to_rows
from pipeline.task.account import known_sources
from pipeline.task.copy import read_chunks
from pipeline.task.decide import decide
from pipeline.task.lock import array_specs, read_lock
from pipeline.task.read import Reader
from pipeline.task.shard import sources_of


@dataclass(frozen=True, slots=True)
class Comparison:
    """One patch, compared."""

    row: LedgerRow
    stored: bool
    """Whether the shard's pixels have the digest of the ledger."""
    source: str
    """`equal`, `differs`, or why the source could not be read: a failure class."""


def compare(
    store: ObjectStore, shard: str, revision: int, numbers: Collection[int], *, run: str
) -> list[Comparison]:
    """Compare some written patches of a shard, numbered as in its ledger's written rows.

    A source whose length or tag is not that of the first read is `changed`, and not compared.
    `run` is that of `ShardOrder`.

    Raises
    ------
    TryAgain
        A provider's circuit is open.
    IntegrityError
        The shard's objects are not what its commit says, or its ledger not what its plan allows.
    """
    commit = read_commit(store, shard, revision)
    written = [row for row in to_rows(commit.ledger, LedgerRow) if row.state == "written"]
    rows = [written[number] for number in sorted(numbers)]
    lock = read_lock(store, *layout.parse_shard(shard))
    planned = {(p.product, p.sample, p.time): p for p in lock.patches}
    trials = []
    for row in rows:
        patch = planned[row.product, row.sample, row.time]
        if row.scenes not in patch.candidates:
            raise IntegrityError(
                f"{row.location} {row.product} {row.slot} in {shard} is written from "
                f"{' '.join(row.scenes)}, which is no candidate of its plan."
            )
        trials.append(Trial((replace(patch, candidates=[row.scenes]),)))
    reader = Reader(sources_of(lock.loaded, 1.0, run), known_sources(rows), final=True)
    found = []
    for row, decided in zip(rows, decide(trials, lock, array_specs(lock), reader), strict=True):
        failure = decided.trial.failure
        digests = [finished.encoded.digest for _, finished in decided.patches]
        source = "equal" if digests == [row.pixel_digest] else "differs"
        source = failure.failure if failure is not None else source
        stored = _stored_digest(store, commit, row) == row.pixel_digest
        found.append(Comparison(row, stored, source))
    return found


def _stored_digest(store: ObjectStore, commit: Commit, row: LedgerRow) -> str:
    """Return the digest of a patch as the shard holds it."""
    spec = commit.specs[row.product]
    place = [row.sample * spec.times + row.time]
    bands = np.full(spec.shape, spec.fill, spec.dtype)
    mask = np.zeros(spec.shape[1:], "uint8")
    for name, out in (("bands", bands), ("mask", mask)):
        (chunk,) = read_chunks(store, commit, row.product, name, place)
        if chunk is not None:
            decode_into(chunk, out)
    return pixel_digest(bands, mask)

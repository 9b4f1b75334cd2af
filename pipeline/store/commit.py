"""The commit record: one Parquet file, and the moment at which a shard revision exists.

Its rows are the ledger of the shard; everything else that must be true together (digests of the
objects, what the arrays look like, which plan it fulfils) is in the file's key-value metadata. It
is written last and create-only, so a shard is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import pyarrow as pa

from pipeline.errors import IntegrityError
from pipeline.ports import ObjectStore
from pipeline.records import LedgerRow
from pipeline.store import layout
from pipeline.store.shard import ArraySpec
from pipeline.store.tables import create_same, encode_table, fit, read_table

#: Key of the metadata entry that holds everything but the ledger, as JSON.
_HEADER = "terrashard"


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One revision of one shard."""

    shard: str
    """Name: `p000001-s00042`."""
    revision: int
    """From 1; a retry adds one."""
    attempt: int = 1
    """Which outcome of the revision it is (`layout.shard_folder`)."""
    plan: int
    """Number of the plan it belongs to."""
    identity: str
    """`LoadedRecipe.identity` of the root."""
    plan_digest: str
    """sha256 (hex) that the plan's header gives for its table."""
    objects: dict[str, tuple[str, int]]
    """Key below the shard revision's folder to sha256 (hex) and length in bytes."""
    specs: dict[str, ArraySpec]
    """By product."""
    ledger: pa.Table
    """Rows of `LedgerRow`, sorted by product, sample, time."""

    @property
    def folder(self) -> str:
        """Folder of the revision's objects."""
        return layout.shard_folder(self.shard, self.revision, self.attempt)


def claim_folder(store: ObjectStore, commit: Commit) -> Commit:
    """Return the commit with the folder that its objects are written into, and no others are.

    Two live workers may build one revision. Where they come to the same objects, they write the
    same bytes to the same keys; where not, each has a folder of its own, and the first commit
    counts.
    """
    objects = json.dumps(commit.objects, sort_keys=True)
    mine = hashlib.sha256(objects.encode()).hexdigest().encode()
    for attempt in count(1):
        key = layout.outcome(commit.shard, commit.revision, attempt)
        if store.create(key, mine) or store.get(key) == mine:
            return replace(commit, attempt=attempt)
    raise AssertionError("unreachable")


def clear_others(store: ObjectStore, commit: Commit) -> None:
    """Delete what other outcomes of a committed revision have left; whoever lost does so too."""
    for attempt in count(1):
        try:
            store.size(layout.outcome(commit.shard, commit.revision, attempt))
        except KeyError:
            return
        if attempt != commit.attempt:
            folder = layout.shard_folder(commit.shard, commit.revision, attempt)
            for key in list(store.list(folder)):
                store.delete(key)


def write_commit(store: ObjectStore, commit: Commit) -> None:
    """Make the shard revision exist; its objects must all have been written.

    Raises
    ------
    IntegrityError
        There is another commit of this revision already. An equal one was ours: an answer was
        lost on the way, and nothing is wrong.
    """
    key = layout.commit(commit.shard, commit.revision)
    create_same(store, key, encode_commit(commit))


def encode_commit(commit: Commit) -> bytes:
    """Return the record's bytes, which depend on its values alone."""
    header = {
        "shard": commit.shard,
        "revision": commit.revision,
        "attempt": commit.attempt,
        "plan": commit.plan,
        "identity": commit.identity,
        "plan_digest": commit.plan_digest,
        "objects": {key: list(value) for key, value in commit.objects.items()},
        "specs": {product: spec.to_json() for product, spec in commit.specs.items()},
    }
    ledger = fit(commit.ledger, LedgerRow, name=f"ledger of {commit.shard}")
    ledger = ledger.sort_by([(name, "ascending") for name in ("product", "sample", "time")])
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    return encode_table(ledger, metadata={_HEADER: text})


def read_commit(store: ObjectStore, shard: str, revision: int) -> Commit:
    """Read a commit record.

    Raises
    ------
    KeyError
        The revision does not exist.
    IntegrityError
        The file is no commit record, or that of another shard.
    """
    key = layout.commit(shard, revision)
    table = read_table(store, key)
    header = _header(table.schema.metadata or {}, store, key)
    try:
        commit = Commit(
            shard=header["shard"],
            revision=header["revision"],
            attempt=header["attempt"],
            plan=header["plan"],
            identity=header["identity"],
            plan_digest=header["plan_digest"],
            objects={name: (digest, size) for name, (digest, size) in header["objects"].items()},
            specs={p: ArraySpec.from_json(values) for p, values in header["specs"].items()},
            ledger=fit(table.replace_schema_metadata(None), LedgerRow, name=key),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{key} in {store.url} lacks a part: {error!r}.") from error
    if (commit.shard, commit.revision) != (shard, revision):
        raise IntegrityError(f"{key} in {store.url} is a record of {commit.shard}.")
    return commit


def commits(store: ObjectStore) -> Iterator[tuple[str, int]]:
    """Yield shard name and revision of every commit there is, sorted by name."""
    for key in store.list(layout.COMMITS):
        found = layout.parse_commit(key)
        if found is not None:
            yield found


def newest(store: ObjectStore, plan: int | None = None) -> dict[str, int]:
    """Return the newest revision of every committed shard, of one plan or of all."""
    found: dict[str, int] = {}
    for shard, revision in commits(store):
        if plan is None or layout.parse_shard(shard)[0] == plan:
            found[shard] = max(revision, found.get(shard, 0))
    return found


def read_ledgers(
    store: ObjectStore, revisions: dict[str, int], columns: list[str]
) -> Iterator[tuple[str, pa.Table]]:
    """Yield the name of each shard and the wanted columns of its ledger."""
    for shard, revision in revisions.items():
        yield shard, read_table(store, layout.commit(shard, revision), columns)


def _header(metadata: dict[bytes, bytes], store: ObjectStore, key: str) -> dict[str, Any]:
    try:
        value = json.loads(metadata[_HEADER.encode()])
    except (KeyError, ValueError) as error:
        raise IntegrityError(f"{key} in {store.url} is no commit record.") from error
    if not isinstance(value, dict):
        raise IntegrityError(f"{key} in {store.url} is no commit record.")
    return value

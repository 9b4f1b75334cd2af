"""Make sure that what is stored is what was promised: objects, ledger, pixels."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow.compute as pc

from pipeline.errors import GiveUp, IntegrityError, RecipeError, TryAgain
from pipeline.ports import ObjectStore
from pipeline.recipe import LoadedRecipe
from pipeline.run.extract import planned_shards
from pipeline.store import layout
from pipeline.store.commit import Commit, newest, read_commit, read_ledgers
from pipeline.store.ledger import dataset_digest, plan_numbers, tally
from pipeline.store.version import numbers, read_version
from pipeline.task.compare import Comparison, compare
from pipeline.task.ledger_check import contradictions
from pipeline.task.order import new_run
from pipeline.task.whole_files import WholeFile, whole_files

#: Bytes of an object that are read and hashed at once.
_PIECE_BYTES = 16 * 2**20
#: Contradictions that a message names.
_MOST_NAMED = 10
_LOST = (
    " What was committed is never written again: bring it back from a copy, or build the data set "
    "again in a new root."
)


@dataclass(slots=True)
class VerifyReport:
    """What was looked at, and found sound."""

    shards: int = 0
    objects: int = 0
    bytes: int = 0
    planned: int = 0
    """Patches in the ledger, which adds up."""
    compared: int = 0
    """Patches read again from their source and found equal."""
    unreadable: Counter[str] = field(default_factory=Counter)
    """Patches and files drawn whose source cannot be read any more, by failure class: the stored
    pixels are as they were written, but cannot be compared."""
    files: int = 0
    """Source files fetched whole and found to be what their catalogue's checksum says."""
    dataset_digest: str = ""


def run_verify(
    loaded: LoadedRecipe,
    store: ObjectStore,
    *,
    share: float = 0.01,
    seed: int = 0,
    files: int = 0,
) -> VerifyReport:
    """Hash what the newest revisions and all versions hold, and see that nothing contradicts it.

    That is: the ledger adds up, and says what plans and arrays say; and some patches, read again
    from their source, are equal.

    Parameters
    ----------
    share : float
        Of the written patches, drawn at random; 0: none, else at least one.
    seed : int
        Which ones are drawn.
    files : int
        So many of the source files whose catalogue states a checksum are drawn, fetched whole and
        held to it; fewer if there are fewer.

    Raises
    ------
    RecipeError
        The root is another recipe's, or nothing is committed yet.
    IntegrityError
        Something is not as it was committed; the message names objects and patches.
    """
    layout.must_be_claimed(store, loaded)
    report, wrong = VerifyReport(), []
    revisions = newest(store)
    if not revisions:
        raise RecipeError(f"{store.url} has no committed shard; `terrashard extract` makes them.")
    for shard, revision in sorted(revisions.items()):
        commit = read_commit(store, shard, revision)
        wrong += _hash_all(store, commit, report)
        if commit.identity != loaded.identity:
            wrong.append(f"{layout.commit(shard, revision)} belongs to another recipe")
        report.shards += 1
    wrong += _check_versions(store, revisions, report)
    _refuse(store, wrong, _LOST)
    for plan in plan_numbers(store):
        planned_shards(store, plan)
    for shard, revision in revisions.items():
        wrong += contradictions(store, read_commit(store, shard, revision))
    _refuse(store, wrong)
    report.planned = tally(store).planned
    report.dataset_digest = dataset_digest(store, revisions)
    run = new_run()
    for shard, drawn in _drawn(store, revisions, share, seed).items():
        for found in compare(store, shard, revisions[shard], drawn, run=run):
            wrong += _judge(found, shard, report)
    wrong += _check_files(store, revisions, files, seed, report)
    _refuse(store, wrong)
    return report


def _hash_all(store: ObjectStore, commit: Commit, report: VerifyReport) -> list[str]:
    """Compare every object of a shard revision with its commit; return what is wrong."""
    found: dict[str, list[str]] = {}
    for name, (digest, size) in commit.objects.items():
        key = f"{commit.folder}/{name}"
        report.objects += 1
        report.bytes += size
        try:
            there = store.size(key)
        except KeyError:
            found.setdefault("gone", []).append(name)
            continue
        if there != size:
            found.setdefault("of another length", []).append(name)
        elif _sha256(store, key, size) != digest:
            found.setdefault("changed since it was committed", []).append(name)
    known = {f"{commit.folder}/{name}" for name in commit.objects}
    strays = sorted(set(store.list(commit.folder)) - known)
    if strays:
        found["in no commit"] = [key.removeprefix(f"{commit.folder}/") for key in strays]
    return [
        f"{commit.folder}/{names[0]} is {what}{_and_more(names)}" for what, names in found.items()
    ]


def _and_more(names: list[str]) -> str:
    return f", as are {len(names) - 1} more of that shard" if len(names) > 1 else ""


def _refuse(store: ObjectStore, wrong: list[str], cure: str = "") -> None:
    """Raise `IntegrityError` if anything is wrong; of very much the first."""
    if not wrong:
        return
    more = f"; and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
    raise IntegrityError(f"{store.url}: {'; '.join(wrong[:_MOST_NAMED])}{more}.{cure}")


def _check_versions(
    store: ObjectStore, revisions: dict[str, int], report: VerifyReport
) -> list[str]:
    """Compare the files and commit records of every version with its manifest.

    Older versions name older revisions, whose objects are hashed here too.
    """
    wrong = []
    hashed = set(revisions.items())
    sound: set[tuple[str, int, str]] = set()
    for number in numbers(store):
        version = read_version(store, number)
        files = {layout.version_file(number, name): d for name, d in version.files.items()}
        wrong += _differing(store, files)
        for entry in version.shards:
            place = (entry.shard, entry.revision)
            if (*place, entry.commit_digest) in sound:
                continue
            sound.add((*place, entry.commit_digest))
            odd = _differing(store, {layout.commit(*place): entry.commit_digest})
            wrong += odd
            if not odd and place not in hashed:
                hashed.add(place)
                wrong += _hash_all(store, read_commit(store, *place), report)
    return wrong


def _differing(store: ObjectStore, digests: dict[str, str]) -> list[str]:
    wrong = []
    for key, digest in digests.items():
        try:
            if _sha256(store, key, store.size(key)) != digest:
                wrong.append(f"{key} has changed since it was published")
        except KeyError:
            wrong.append(f"{key} is gone, but a version names it")
    return wrong


def _sha256(store: ObjectStore, key: str, size: int) -> str:
    digest = hashlib.sha256()
    for start in range(0, size, _PIECE_BYTES):
        digest.update(store.get_ranges(key, [(start, min(size, start + _PIECE_BYTES))])[0])
    return digest.hexdigest()


def _drawn(
    store: ObjectStore, revisions: dict[str, int], share: float, seed: int
) -> dict[str, list[int]]:
    """Draw written patches: by shard, the numbers of its written ledger rows."""
    written = {
        shard: pc.sum(pc.equal(ledger["state"], "written")).as_py() or 0
        for shard, ledger in read_ledgers(store, dict(sorted(revisions.items())), ["state"])
    }
    total = sum(written.values())
    count = min(total, max(1, round(share * total))) if share > 0 else 0
    chosen = np.sort(np.random.default_rng(seed).choice(total, count, replace=False))
    drawn: dict[str, list[int]] = {}
    start = 0
    for shard, number in written.items():
        own = chosen[(chosen >= start) & (chosen < start + number)] - start
        if own.size:
            drawn[shard] = own.tolist()
        start += number
    return drawn


def _judge(found: Comparison, shard: str, report: VerifyReport) -> list[str]:
    row = found.row
    name = f"{row.location} {row.product} {row.slot} in {shard}"
    if not found.stored:
        return [f"{name}: the stored pixels do not have the digest of the ledger"]
    if found.source == "differs":
        return [f"{name}: its source is the same file, but gives other pixels"]
    if found.source == "equal":
        report.compared += 1
    else:
        report.unreadable[found.source] += 1
    return []


def _check_files(
    store: ObjectStore, revisions: dict[str, int], number: int, seed: int, report: VerifyReport
) -> list[str]:
    """Hold some source files to their checksums; return what is wrong."""
    draw, run, wrong = np.random.default_rng(seed), new_run(), []
    drawn: dict[str, WholeFile] = {}
    for shard in draw.permutation(sorted(revisions)).tolist() if number else ():
        found = whole_files(store, shard, revisions[shard], run=run)
        drawn |= {found[at].asset.href: found[at] for at in draw.permutation(len(found)).tolist()}
        if len(drawn) >= number:
            break
    for file in list(drawn.values())[:number]:
        try:
            damage = file.check()
        except (GiveUp, TryAgain) as error:
            report.unreadable[error.failure] += 1
            continue
        report.files += not damage
        wrong += [damage] if damage else []
    return wrong

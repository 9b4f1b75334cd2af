"""Walk the groups of a shard through their candidates: masks first, then bands."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field

from pipeline.raster.lattice import same_zone
from pipeline.raster.masks import fractions
from pipeline.records import PlannedPatch, Rejected, Scene
from pipeline.stages.extract import (
    Failure,
    Trial,
    judge,
    listed_by,
    needed_scenes,
    passes_unmasked,
    tried_by,
    unmasked,
    unsuitable,
    weakest,
)
from pipeline.store.shard import ArraySpec
from pipeline.task.audit import Audit
from pipeline.task.bands import Finished, Pick, Result, read_bands
from pipeline.task.coefficients import Calibrations
from pipeline.task.cut import place
from pipeline.task.lock import Lock
from pipeline.task.quality import Pair, Quality, SceneMask, first_seen, key_of
from pipeline.task.read import Reader

#: Files of quality layers read at once: they are small, so waiting for answers is what they cost.
MASK_READERS = 6
#: Image files read at once: one is decoded while the next is fetched.
BAND_READERS = 2


@dataclass(slots=True)
class Decided:
    """A group at its end, with what is to be stored of it."""

    trial: Trial
    patches: list[tuple[Pick, Finished]] = field(default_factory=list)
    """One for each member if the group was accepted, else empty."""


def decide(
    trials: Sequence[Trial],
    lock: Lock,
    specs: dict[str, ArraySpec],
    reader: Reader,
    *,
    threads: int = 1,
) -> list[Decided]:
    """Return what becomes of each group, in the order given.

    `threads` patches are painted and encoded at the same time, beside the reading.

    Raises
    ------
    TryAgain
        A file could not be read now, and this is not the final round (see `Reader`).
    """
    calibrations = Calibrations(lock.loaded, reader)
    quality = Quality(lock.loaded, lock.scenes, reader, calibrations)
    audit = Audit(lock.loaded, lock.scenes, reader)
    decided = {id(trial): Decided(trial) for trial in trials}
    with (
        ThreadPoolExecutor(MASK_READERS, "masks") as mask_readers,
        ThreadPoolExecutor(BAND_READERS, "bands") as band_readers,
        ThreadPoolExecutor(threads, "finish") as finishers,
    ):
        # A candidate that its bands refuse sends the group back to the masks of the next one.
        while undecided := [trial for trial in trials if trial.open]:
            _by_masks(undecided, lock, quality, audit, mask_readers)
            picks = [
                _pick(trial, member, lock, quality, audit)
                for trial in undecided
                if trial.accepted
                for member in trial.members
            ]
            results = read_bands(
                picks,
                lock,
                specs,
                reader,
                calibrations,
                readers=band_readers,
                finishers=finishers,
            )
            _by_bands(results, decided)
    return list(decided.values())


def _by_masks(
    trials: Sequence[Trial], lock: Lock, quality: Quality, audit: Audit, threads: Executor
) -> None:
    """Take every open group to a candidate that passes by its masks, or to its end.

    Leaders are asked before followers: where a leader is cloudy nothing of its followers is read.
    """
    while asked := [trial for trial in trials if trial.open]:
        for whom in (_leader, _followers):
            asked = [trial for trial in asked if _each(trial, whom, _suits(lock))]
            # An offset that was not removed looks like haze: before an image says what is cloudy,
            # it must be what its catalogue says.
            telling = {s for s in needed_scenes(asked, whom) if quality.from_image(s)}
            audit.load(sorted(telling), threads)
            asked = [trial for trial in asked if _each(trial, whom, _is_as_stated(audit, telling))]
            listed = listed_by(trial for trial in trials if trial.open)
            tried = tried_by(asked, whom)
            # Quality layers are small: read once for every patch that may come to the scene. Bands
            # are not: read for those alone that are at it now.
            wanted = {
                scene: _in_zone(
                    tried[scene] if quality.from_image(scene) else listed[scene],
                    lock.scenes[scene],
                    lock,
                )
                for scene in needed_scenes(asked, whom)
            }
            quality.load(wanted, threads)
            asked = [trial for trial in asked if _each(trial, whom, _looks_good(lock, quality))]
            quality.keep(_pairs(trials))
        needed = needed_scenes(asked, _members)
        audit.load(needed, threads)
        for trial in asked:
            trial.accepted = _each(trial, _members, _is_as_stated(audit, set(needed)))


def _in_zone(patches: Sequence[PlannedPatch], scene: Scene, lock: Lock) -> list[PlannedPatch]:
    """Return the patches that a scene can serve at all; of the others nothing is to be read."""
    if lock.loaded.products[scene.product].warp is not None:
        return list(patches)
    return [patch for patch in patches if same_zone(patch.epsg, scene.epsg)]


def _pairs(trials: Iterable[Trial]) -> set[Pair]:
    """Return the patches that are still in play, each with every scene it is at."""
    return {
        (key_of(member), scene)
        for trial in trials
        if trial.open or trial.accepted
        for member in trial.members
        for scene in trial.scenes(member)
    }


def _by_bands(results: Iterable[tuple[Pick, Result]], decided: dict[int, Decided]) -> None:
    """Keep the patches of groups whose every member was painted; let the others go on or end."""
    painted: dict[int, list[tuple[Pick, Finished]]] = {}
    fallen: dict[int, list[tuple[Pick, Rejected | Failure]]] = {}
    for pick, result in results:
        key = id(pick.trial)
        if isinstance(result, Finished):
            painted.setdefault(key, []).append((pick, result))
        else:
            fallen.setdefault(key, []).append((pick, result))
    for key in painted.keys() - fallen.keys():
        decided[key].patches = painted[key]
    for key, reasons in fallen.items():
        trial = decided[key].trial
        # The order of the members decides, not that in which their files came: and a failure ends
        # the group even if another member was unsuitable, because that one may be unsuitable only
        # in this candidate.
        place_of = {member.product: place for place, member in enumerate(trial.members)}
        reasons.sort(key=lambda pair: place_of[pair[0].patch.product])
        failures = [why for _, why in reasons if isinstance(why, Failure)]
        if failures:
            trial.fail(failures[0])
        else:
            pick, why = reasons[0]
            if isinstance(why, Rejected):
                trial.reject(pick.patch, why)


def _leader(trial: Trial) -> tuple[PlannedPatch, ...]:
    return trial.members[:1]


def _followers(trial: Trial) -> tuple[PlannedPatch, ...]:
    return trial.members[1:]


def _members(trial: Trial) -> tuple[PlannedPatch, ...]:
    return trial.members


Question = Callable[[Trial, PlannedPatch], Rejected | Failure | None]


def _each(trial: Trial, whom: Callable[[Trial], tuple[PlannedPatch, ...]], ask: Question) -> bool:
    """Return whether all of some members pass; the first that does not is noted."""
    for member in whom(trial):
        why = ask(trial, member)
        if isinstance(why, Failure):
            trial.fail(why)
            return False
        if why is not None:
            trial.reject(member, why)
            return False
    return True


def _suits(lock: Lock) -> Question:
    """Return the question whether a candidate can serve at all, before anything is read."""

    def ask(trial: Trial, member: PlannedPatch) -> Rejected | None:
        scenes = [lock.scenes[name] for name in trial.scenes(member)]
        return unsuitable(member, scenes, lock.loaded)

    return ask


def _looks_good(lock: Lock, quality: Quality) -> Question:
    """Return the question whether a candidate passes by its masks."""

    def ask(trial: Trial, member: PlannedPatch) -> Rejected | Failure | None:
        product, wish = lock.loaded.products[member.product], lock.loaded.wishes[member.product]
        masks: list[SceneMask] = []
        for name in trial.scenes(member):
            mask = quality.get(member, name)
            if isinstance(mask, Failure):
                return mask
            if mask.source == "none" and not passes_unmasked(product, wish):
                return unmasked(lock.scenes[name], product)
            masks.append(mask)
        source = weakest(mask.source for mask in masks)
        return judge(fractions(first_seen(masks), wish.cloudy), wish, source)

    return ask


def _is_as_stated(audit: Audit, audited: Collection[str]) -> Question:
    """Return the question whether a candidate's pixels are what its catalogue says."""

    def ask(trial: Trial, member: PlannedPatch) -> Rejected | Failure | None:
        names = [name for name in trial.scenes(member) if name in audited]
        verdicts = (audit.verdict(name) for name in names)
        return next((verdict for verdict in verdicts if verdict is not None), None)

    return ask


def _pick(trial: Trial, member: PlannedPatch, lock: Lock, quality: Quality, audit: Audit) -> Pick:
    """Return an accepted patch with what its bands need; its masks of other scenes are let go."""
    names = trial.scenes(member)
    scenes = tuple(lock.scenes[name] for name in names)
    masks = tuple(m for m in (quality.get(member, n) for n in names) if isinstance(m, SceneMask))
    size_px, pixel_m = lock.loaded.size_px(member.product), lock.loaded.pixel_m(member.product)
    warped = lock.loaded.products[member.product].warp is not None
    places = tuple(
        place(member, scene, size_px=size_px, pixel_m=pixel_m, warped=warped) for scene in scenes
    )
    kept = tuple(quality.take(member, name) for name in names)
    quality.forget(member)
    return Pick(trial, member, scenes, masks, places, kept, audit.said(names))

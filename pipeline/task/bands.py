"""Read the bands of accepted patches, all windows of a file together, and finish each patch.

Files are read one after another in a fixed order, two at a time. A patch is painted, measured and
encoded in a worker thread as soon as its last file is there, and its pixels are dropped at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

import numpy as np

from pipeline.errors import GiveUp
from pipeline.products.model import Product
from pipeline.raster.masks import FILL, Fractions, fractions
from pipeline.raster.statistics import Moments, moments
from pipeline.records import OffsetAudit, PlannedPatch, Rejected, Scene
from pipeline.stages.extract import Failure, Trial, judge, weakest
from pipeline.store.shard import ArraySpec, Encoded, encode_patch
from pipeline.task.coefficients import Calibrations, Coefficients
from pipeline.task.cut import Cut, Placement, grid_of, resampled
from pipeline.task.files import BandFile, cut_of, image_files, mark_files, request_of
from pipeline.task.lock import Lock
from pipeline.task.looks import Kept
from pipeline.task.paint import Exposure, paint
from pipeline.task.quality import SceneMask, first_seen
from pipeline.task.read import Pixels, Reader, Request, Warp
from pipeline.task.residual import SharedMeans, Where, clear_in_both, shared_means

#: The ledger's words for how pixels were brought onto a patch, those that say most first.
_WORDS = (
    *(f"{kind}-{method}" for kind in ("rpc", "gcp") for method in ("bilinear", "nearest")),
    "bilinear",
    "average",
    "nearest",
    "repeat",
    "none",
)


@dataclass(slots=True)
class Pick:
    """A patch whose candidate passed by its masks."""

    trial: Trial
    patch: PlannedPatch
    scenes: tuple[Scene, ...]
    masks: tuple[SceneMask, ...]
    places: tuple[Placement, ...]
    kept: tuple[tuple[Kept, ...], ...]
    """For each scene what of it was already read for its mask."""
    offset_audit: OffsetAudit
    """What the audit of its scenes said, for the ledger."""
    pieces: list[_Piece] = field(default_factory=list)
    awaited: int = 0
    """Files still to be read."""
    shared: dict[str, Where] = field(default_factory=dict)
    """By product of the group that it is compared with: its pixels on ground clear in both."""

    @property
    def needed(self) -> list[int]:
        """Which of the scenes must be read, from 0.

        A scene whose every pixel an earlier one saw, by quality layers, adds nothing.
        """
        needed, covered = [], np.zeros(self.masks[0].codes.shape, dtype=bool)
        for position, mask in enumerate(self.masks):
            seen = mask.codes != FILL
            if (seen & ~covered).any():
                needed.append(position)
            if mask.files:
                covered |= seen
        return needed or [0]


@dataclass(frozen=True, slots=True)
class Finished:
    """A patch ready to be stored, without its pixels."""

    encoded: Encoded
    seen: Fractions
    moments: Moments
    absent_bands: tuple[str, ...]
    defective_fraction: float | None
    saturated_count: int
    resampling: str
    files: tuple[tuple[Scene, str], ...]
    """Scenes and names of the assets that were read for it, quality layers included."""
    mask_source: str
    """What decided the mask, as the ledger says it."""
    shared: dict[str, SharedMeans]
    """By product of the group that it is compared with: means over ground clear in both."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """What was read of one file for one patch."""

    scene: int
    file: BandFile
    cut: Cut
    pixels: Pixels | Failure


@dataclass(frozen=True, slots=True)
class _Job:
    """One file to read, and for whom."""

    request: Request
    file: BandFile
    takers: tuple[tuple[Pick, int, Cut], ...]


Result = Finished | Rejected | Failure


def read_bands(
    picks: Sequence[Pick],
    lock: Lock,
    specs: dict[str, ArraySpec],
    reader: Reader,
    known: Calibrations,
    *,
    readers: Executor,
    finishers: Executor,
) -> Iterator[tuple[Pick, Result]]:
    """Yield what became of each pick; all of them are read before the first is yielded."""
    wanted = (pick.scenes[position] for pick in picks for position in pick.needed)
    known.load(wanted, readers)
    jobs = list(_jobs(picks, lock, known))
    for job in jobs:
        for pick, _, _ in job.takers:
            pick.awaited += 1
    _find_shared(picks, lock)
    done: list[tuple[Pick, Future[Result]]] = []

    def finish(pick: Pick) -> None:
        spec = specs[pick.patch.product]
        done.append((pick, finishers.submit(_finish, pick, lock, spec, known)))

    for pick in picks:
        kept, pick.kept = pick.kept, ()
        for scene in pick.needed:
            pick.pieces += [_Piece(scene, own.file, own.cut, own.pixels) for own in kept[scene]]
        if not pick.awaited:
            finish(pick)
    answers = readers.map(lambda job: reader.read(job.request), jobs)
    for job, answer in zip(jobs, answers, strict=True):
        for (pick, scene, how), pixels in zip(job.takers, answer, strict=True):
            pick.pieces.append(_Piece(scene, job.file, how, pixels))
            pick.awaited -= 1
            if not pick.awaited:
                finish(pick)
        answer.clear()
    for pick, future in done:
        yield pick, future.result()


def _find_shared(picks: Sequence[Pick], lock: Lock) -> None:
    """Tell the patches of a group that are compared which of their pixels both saw clear."""
    members = {(id(pick.trial), pick.patch.product): pick for pick in picks}
    for (trial, product), pick in members.items():
        reference = lock.loaded.compared.get(product)
        other = None if reference is None else members.get((trial, reference))
        if other is not None:
            pick.shared[other.patch.product], other.shared[product] = clear_in_both(
                first_seen(pick.masks), first_seen(other.masks)
            )


def _jobs(picks: Sequence[Pick], lock: Lock, known: Calibrations) -> Iterator[_Job]:
    """Yield the files to read, those of one scene together."""
    # Picks of one scene differ only in what of it was read before.
    wanted: dict[tuple[str, frozenset[str]], list[tuple[Pick, int]]] = defaultdict(list)
    scenes: dict[str, Scene] = {}
    for pick in picks:
        for position in pick.needed:
            scene = pick.scenes[position]
            scenes[scene.scene] = scene
            there = frozenset(band for kept in pick.kept[position] for band in kept.file.bands)
            wanted[scene.scene, there].append((pick, position))
    for name, there in sorted(wanted, key=lambda key: (key[0], sorted(key[1]))):
        scene, own = scenes[name], known[name]
        bands = [band for band in lock.loaded.bands(scene.product) if band not in there]
        for file in [*image_files(scene, lock.loaded, bands), *mark_files(scene, lock.loaded)]:
            taken = [
                (pick, position, cut_of(file, pick.places[position], scene, lock.loaded))
                for pick, position in wanted[name, there]
            ]
            warp = _warp(taken, file, scene, lock, own)
            windows = tuple(how.window for _, _, how in taken)
            request = request_of(file, windows, scene, lock.loaded, warp=warp)
            yield _Job(request, file, tuple(taken))


def _warp(
    taken: Sequence[tuple[Pick, int, Cut]],
    file: BandFile,
    scene: Scene,
    lock: Lock,
    known: Coefficients | Failure,
) -> Warp | None:
    """Return how the pixels of a product without a lattice come onto those of patches."""
    product, stored = lock.loaded.products[scene.product], lock.loaded.bands(scene.product)
    if product.warp is None:
        return None
    pixel_m = lock.loaded.pixel_m(product.id)
    grids = tuple(grid_of(pick.patch, pick.places[0].size_px, pixel_m) for pick, _, _ in taken)
    own = known if isinstance(known, Coefficients) else Coefficients()
    places = [stored.index(band) for band in file.bands]
    cameras = tuple(own.cameras[place] for place in places) if own.cameras else ()
    if file.marks:
        return Warp(grids, "nearest", 0, cameras=cameras)
    prepare = tuple(own.prepare[place] for place in places) if own.prepare else ()
    codes = product.providers[scene.provider].codes
    return Warp(grids, product.warp, product.nodata, prepare, cameras, codes)


def _finish(pick: Pick, lock: Lock, spec: ArraySpec, known: Calibrations) -> Result:
    """Paint, judge, measure and encode one patch; its pixels end here."""
    pieces, pick.pieces = pick.pieces, []
    masks, pick.masks = pick.masks, ()
    shared, pick.shared = pick.shared, {}
    for piece in pieces:
        if isinstance(piece.pixels, Failure):
            return piece.pixels
    product, wish = lock.loaded.products[spec.product], lock.loaded.wishes[spec.product]
    coefficients: dict[int, Coefficients] = {}
    for position in sorted({piece.scene for piece in pieces}):
        own = known[pick.scenes[position].scene]
        if isinstance(own, Failure):
            return own
        coefficients[position] = own
    try:
        exposures = [
            _exposure(pick.scenes[scene], masks[scene], scene, pieces, spec, product.nodata, own)
            for scene, own in coefficients.items()
        ]
        files = [(pick.scenes[p.scene], asset) for p in pieces for asset in p.file.assets]
        files += [
            (pick.scenes[scene], asset)
            for scene, own in coefficients.items()
            for asset in own.files
        ]
        average = wish.resampling == "average"
        words = {
            _moved(product) or resampled(spec.pixel_m, piece.file.file_m, average=average)
            for piece in pieces
            if not piece.file.marks
        }
        del pieces
        picture = paint(exposures, product)
        del exposures
    except GiveUp as error:
        return Failure(error.failure, str(error))
    seen = fractions(picture.codes, wish.cloudy)
    source = weakest(mask.source for mask in masks)
    refused = judge(seen, wish, source)
    if refused is not None:
        return refused
    return Finished(
        encoded=encode_patch(spec, picture.bands, picture.codes, picture.native),
        seen=seen,
        moments=moments(picture.bands, picture.fill),
        absent_bands=tuple(spec.bands[band] for band in picture.absent),
        defective_fraction=picture.defective_fraction,
        saturated_count=picture.saturated_count,
        resampling=_strongest(words),
        files=(*files, *_mask_files(pick.scenes, masks)),
        mask_source=source,
        shared={
            partner: shared_means(picture.bands, picture.fill, picture.codes, where)
            for partner, where in shared.items()
        },
    )


def _exposure(
    scene: Scene,
    mask: SceneMask,
    position: int,
    pieces: Iterable[_Piece],
    spec: ArraySpec,
    nodata: float | None,
    coefficients: Coefficients,
) -> Exposure:
    own = [piece for piece in pieces if piece.scene == position]
    image = [piece for piece in own if not piece.file.marks]
    marks = [piece for piece in own if piece.file.marks]
    return Exposure(
        delivered=_stack(image, spec, nodata),
        offset_add=scene.offset_add,
        codes=mask.codes,
        native=mask.native,
        marks=_stack(marks, spec, None) if marks else None,
        conversions=coefficients.conversions,
    )


def _stack(pieces: Sequence[_Piece], spec: ArraySpec, nodata: float | None) -> Pixels:
    """Return the bands of some files in storage order, shape (band, y, x)."""
    arrays = [piece.cut.apply(_pixels(piece), nodata) for piece in pieces]
    if len(pieces) == 1 and pieces[0].file.bands == spec.bands:
        return arrays[0]
    stacked = np.empty(spec.shape, np.result_type(*arrays))
    for piece, array in zip(pieces, arrays, strict=True):
        stacked[[spec.bands.index(band) for band in piece.file.bands]] = array
    return stacked


def _pixels(piece: _Piece) -> Pixels:
    if isinstance(piece.pixels, Failure):
        raise GiveUp(piece.pixels.detail, failure=piece.pixels.failure)
    return piece.pixels


def _mask_files(scenes: Sequence[Scene], masks: Sequence[SceneMask]) -> Iterator[tuple[Scene, str]]:
    for scene, mask in zip(scenes, masks, strict=True):
        yield from ((scene, asset) for asset in mask.files)


def _moved(product: Product) -> str | None:
    """Return the ledger's word for a warp, and what placed the pixels if no grid did."""
    if product.warp is None:
        return None
    return (
        product.warp if product.geolocation == "grid" else f"{product.geolocation}-{product.warp}"
    )


def _strongest(words: set[str]) -> str:
    """Return the word that says most about how bands of different pixels were brought together."""
    return next(word for word in _WORDS if word in words)

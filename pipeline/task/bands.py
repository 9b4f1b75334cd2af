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

from pipeline.errors import GiveUp, RecipeError
from pipeline.raster.masks import FILL, Fractions, fractions
from pipeline.raster.statistics import Moments, moments
from pipeline.records import PlannedPatch, Rejected, Scene
from pipeline.stages.extract import Failure, Trial, choose_file, files_of, judge
from pipeline.store.shard import ArraySpec, Encoded, encode_patch
from pipeline.task.cut import Cut, Placement, cut, resampled
from pipeline.task.lock import Lock
from pipeline.task.paint import Exposure, paint
from pipeline.task.quality import SceneMask
from pipeline.task.read import Pixels, Reader, Request


@dataclass(slots=True)
class Pick:
    """A patch whose candidate passed by its masks."""

    trial: Trial
    patch: PlannedPatch
    scenes: tuple[Scene, ...]
    masks: tuple[SceneMask, ...]
    places: tuple[Placement, ...]
    pieces: list[_Piece] = field(default_factory=list)
    awaited: int = 0
    """Files still to be read."""

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
    masked: bool
    """Whether every scene of it has quality layers."""


@dataclass(frozen=True, slots=True)
class _File:
    """What one file of a scene gives to a patch."""

    asset: str
    file_m: float
    indexes: tuple[int, ...]
    positions: tuple[int, ...]
    """Places of these bands among the stored ones."""
    marks: bool
    """Whether it is the per-band quality layer and not the image."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """What was read of one file for one patch."""

    scene: int
    file: _File
    cut: Cut
    pixels: Pixels | Failure


@dataclass(frozen=True, slots=True)
class _Job:
    """One file to read, and for whom."""

    request: Request
    file: _File
    takers: tuple[tuple[Pick, int, Cut], ...]


Result = Finished | Rejected | Failure


def read_bands(
    picks: Sequence[Pick],
    lock: Lock,
    specs: dict[str, ArraySpec],
    reader: Reader,
    *,
    readers: Executor,
    finishers: Executor,
) -> Iterator[tuple[Pick, Result]]:
    """Yield what became of each pick; all of them are read before the first is yielded."""
    jobs = list(_jobs(picks, lock))
    for job in jobs:
        for pick, _, _ in job.takers:
            pick.awaited += 1
    done: list[tuple[Pick, Future[Result]]] = []
    answers = readers.map(lambda job: reader.read(job.request), jobs)
    for job, answer in zip(jobs, answers, strict=True):
        for (pick, scene, how), pixels in zip(job.takers, answer, strict=True):
            pick.pieces.append(_Piece(scene, job.file, how, pixels))
            pick.awaited -= 1
            if not pick.awaited:
                spec = specs[pick.patch.product]
                done.append((pick, finishers.submit(_finish, pick, lock, spec)))
        answer.clear()
    for pick, future in done:
        yield pick, future.result()


def _jobs(picks: Sequence[Pick], lock: Lock) -> Iterator[_Job]:
    """Yield the files to read, those of one scene together."""
    takers: dict[tuple[str, _File], list[tuple[Pick, int]]] = defaultdict(list)
    scenes: dict[str, Scene] = {}
    for pick in picks:
        for position in pick.needed:
            scene = pick.scenes[position]
            scenes[scene.scene] = scene
            for file in _files(scene, lock):
                takers[scene.scene, file].append((pick, position))
    for name, file in sorted(takers, key=lambda t: (t[0], t[1].marks, t[1].asset, t[1].file_m)):
        scene = scenes[name]
        product, wish = lock.loaded.products[scene.product], lock.loaded.wishes[scene.product]
        average = wish.resampling == "average" and not file.marks
        taken = [
            (pick, position, cut(pick.places[position], file.file_m, average=average))
            for pick, position in takers[name, file]
        ]
        fill = 0.0 if product.nodata is None or file.marks else product.nodata
        windows = tuple(how.window for _, _, how in taken)
        request = Request(scene, file.asset, file.file_m, file.indexes, windows, fill)
        yield _Job(request, file, tuple(taken))


def _files(scene: Scene, lock: Lock) -> list[_File]:
    """Return which files of a scene hold the wanted bands, and the per-band quality layer.

    Raises
    ------
    RecipeError
        A band is only there in finer pixels than the stored ones, and no resampling is allowed.
    """
    product, wish = lock.loaded.products[scene.product], lock.loaded.wishes[scene.product]
    pixel_m = lock.loaded.pixel_m(product.id)
    bands = [product.band(name) for name in lock.loaded.bands(product.id)]
    found: dict[tuple[str, float, bool], list[tuple[int, int]]] = defaultdict(list)
    for position, band in enumerate(bands):
        there = files_of(band.name, scene, product)
        finer = wish.resampling is not None
        file = choose_file(there, native_m=band.pixel_m, stored_m=pixel_m, finer=finer)
        if file is None and there:
            raise RecipeError(
                f"{product.id}: band {band.name} of provider {scene.provider} has finer pixels "
                f"than the stored {pixel_m:g} m; name a `resampling` for the product, or leave "
                "the band out."
            )
        # Of a file that is not there the reader says `gone`, by the band's name.
        asset, file_m = (band.name, pixel_m) if file is None else (file.asset, file.pixel_m)
        found[asset, file_m or band.pixel_m, False].append((band.index, position))
    for layer in product.mask_layers:
        there = files_of(layer.name, scene, product) if layer.per_band else ()
        file = choose_file(there, native_m=layer.pixel_m, stored_m=pixel_m, finer=True)
        if file is not None:
            found[file.asset, file.pixel_m or layer.pixel_m, True] += [
                (band.index, position) for position, band in enumerate(bands)
            ]
    return [
        _File(asset, file_m, tuple(i for i, _ in pairs), tuple(p for _, p in pairs), marks)
        for (asset, file_m, marks), pairs in found.items()
    ]


def _finish(pick: Pick, lock: Lock, spec: ArraySpec) -> Result:
    """Paint, judge, measure and encode one patch; its pixels end here."""
    pieces, pick.pieces = pick.pieces, []
    masks, pick.masks = pick.masks, ()
    for piece in pieces:
        if isinstance(piece.pixels, Failure):
            return piece.pixels
    product, wish = lock.loaded.products[spec.product], lock.loaded.wishes[spec.product]
    try:
        exposures = [
            _exposure(pick.scenes[scene], masks[scene], scene, pieces, spec, product.nodata)
            for scene in sorted({piece.scene for piece in pieces})
        ]
        files = [(pick.scenes[piece.scene], piece.file.asset) for piece in pieces]
        average = wish.resampling == "average"
        words = {
            resampled(spec.pixel_m, piece.file.file_m, average=average)
            for piece in pieces
            if not piece.file.marks
        }
        del pieces
        picture = paint(exposures, product)
        del exposures
    except GiveUp as error:
        return Failure(error.failure, str(error))
    seen = fractions(picture.codes, wish.cloudy)
    refused = judge(seen, wish)
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
        masked=all(mask.files for mask in masks),
    )


def _exposure(
    scene: Scene,
    mask: SceneMask,
    position: int,
    pieces: Iterable[_Piece],
    spec: ArraySpec,
    nodata: float | None,
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
    )


def _stack(pieces: Sequence[_Piece], spec: ArraySpec, nodata: float | None) -> Pixels:
    """Return the bands of some files in storage order, shape (band, y, x)."""
    arrays = [piece.cut.apply(_pixels(piece), nodata) for piece in pieces]
    if len(pieces) == 1 and pieces[0].file.positions == tuple(range(len(spec.bands))):
        return arrays[0]
    stacked = np.empty(spec.shape, np.result_type(*arrays))
    for piece, array in zip(pieces, arrays, strict=True):
        stacked[list(piece.file.positions)] = array
    return stacked


def _pixels(piece: _Piece) -> Pixels:
    if isinstance(piece.pixels, Failure):
        raise GiveUp(piece.pixels.detail, failure=piece.pixels.failure)
    return piece.pixels


def _mask_files(scenes: Sequence[Scene], masks: Sequence[SceneMask]) -> Iterator[tuple[Scene, str]]:
    for scene, mask in zip(scenes, masks, strict=True):
        yield from ((scene, asset) for asset in mask.files)


def _strongest(words: set[str]) -> str:
    """Return the word that says most about how bands of different pixels were brought together."""
    return next(word for word in ("average", "nearest", "repeat", "none") if word in words)

"""Read the bands of accepted patches, all windows of a file together, and finish each patch.

Files are read one after another in a fixed order, two at a time. A patch is painted, measured and
encoded in a worker thread as soon as its last file is there, and its pixels are dropped at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

import numpy as np

from pipeline.errors import GiveUp, RecipeError
from pipeline.ports import PixelGrid
from pipeline.products.catalogue import Product
from pipeline.raster.masks import FILL, Fractions, fractions
from pipeline.raster.statistics import Moments, moments
from pipeline.raster.warp import Prepare
from pipeline.records import PlannedPatch, Rejected, Scene
from pipeline.stages.extract import Failure, Trial, address, choose_file, files_of, judge
from pipeline.store.shard import ArraySpec, Encoded, encode_patch
from pipeline.task.coefficients import Coefficients, read_coefficients
from pipeline.task.cut import Cut, Placement, cut, resampled
from pipeline.task.lock import Lock
from pipeline.task.paint import Exposure, paint
from pipeline.task.quality import SceneMask
from pipeline.task.read import Pixels, Reader, Request, Warp

#: The ledger's words for how pixels were brought onto a patch, those that say most first.
_WORDS = ("gcp-bilinear", "gcp-nearest", "bilinear", "average", "nearest", "repeat", "none")


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

    assets: tuple[str, ...]
    """For each band the asset that holds it; all have one address."""
    file_m: float
    indexes: tuple[int, ...]
    positions: tuple[int, ...]
    """Places of these bands among the stored ones."""
    marks: bool
    """Whether it is the per-band quality layer and not the image."""
    inset_m: float
    """How far its edges lie inside the scene's."""


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
    wanted = (pick.scenes[position] for pick in picks for position in pick.needed)
    known = read_coefficients(wanted, lock, reader, readers)
    jobs = list(_jobs(picks, lock, known))
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
                done.append((pick, finishers.submit(_finish, pick, lock, spec, known)))
        answer.clear()
    for pick, future in done:
        yield pick, future.result()


def _jobs(
    picks: Sequence[Pick], lock: Lock, known: Mapping[str, Coefficients | Failure]
) -> Iterator[_Job]:
    """Yield the files to read, those of one scene together."""
    wanted: dict[str, list[tuple[Pick, int]]] = defaultdict(list)
    scenes: dict[str, Scene] = {}
    for pick in picks:
        for position in pick.needed:
            scene = pick.scenes[position]
            scenes[scene.scene] = scene
            wanted[scene.scene].append((pick, position))
    files = [(name, file) for name in sorted(wanted) for file in _files(scenes[name], lock)]
    for name, file in files:
        scene = scenes[name]
        product, wish = lock.loaded.products[scene.product], lock.loaded.wishes[scene.product]
        average = wish.resampling == "average" and not file.marks
        taken = [
            (
                pick,
                position,
                cut(pick.places[position], file.file_m, average=average, inset_m=file.inset_m),
            )
            for pick, position in wanted[name]
        ]
        fill = 0.0 if product.nodata is None or file.marks else product.nodata
        windows = tuple(how.window for _, _, how in taken)
        own = known[name]
        if isinstance(own, Coefficients) and own.prepare:
            # Bands of one file have one table, or files of their own.
            prepare = own.prepare[file.positions[0]]
        else:
            prepare = None
        patches = [pick for pick, _, _ in taken]
        warp = _warp(patches, product, lock.loaded.pixel_m(product.id), prepare)
        request = Request(
            scene, file.assets, file.file_m, file.indexes, windows, fill, file.inset_m, warp
        )
        yield _Job(request, file, tuple(taken))


def _warp(
    picks: Sequence[Pick], product: Product, pixel_m: float, prepare: Prepare | None
) -> Warp | None:
    """Return how the pixels of a product without a lattice come onto those of patches."""
    if product.warp is None:
        return None
    grids = tuple(
        PixelGrid(
            epsg=pick.patch.epsg,
            x_min_m=pick.patch.x_min_m,
            y_max_m=pick.patch.y_max_m,
            pixel_m=pixel_m,
            width_px=pick.places[0].size_px,
            height_px=pick.places[0].size_px,
        )
        for pick in picks
    )
    return Warp(grids, product.warp, product.nodata, prepare)


def _files(scene: Scene, lock: Lock) -> list[_File]:
    """Return which files of a scene hold the wanted bands, then the per-band quality layer.

    Raises
    ------
    RecipeError
        A band is only there in finer pixels than the stored ones, and no resampling is allowed.
    """
    product, wish = lock.loaded.products[scene.product], lock.loaded.wishes[scene.product]
    pixel_m = lock.loaded.pixel_m(product.id)
    bands = [product.band(name) for name in lock.loaded.bands(product.id)]
    found: dict[tuple[str, float, bool], list[tuple[str, int, int]]] = defaultdict(list)
    for position, band in enumerate(bands):
        there = files_of(band.name, scene, product)
        finer = wish.resampling is not None or product.warp is not None
        native_m = band.pixel_m if product.warp is None else pixel_m
        file = choose_file(there, native_m=native_m, stored_m=pixel_m, finer=finer)
        if file is None and there:
            raise RecipeError(
                f"{product.id}: band {band.name} of provider {scene.provider} has finer pixels "
                f"than the stored {pixel_m:g} m; name a `resampling` for the product, or leave "
                "the band out."
            )
        # Of a file that is not there the reader says `gone`, by the band's name.
        asset, file_m = (band.name, pixel_m) if file is None else (file.asset, file.pixel_m)
        where = address(scene, asset), file_m or native_m, False
        found[where].append((asset, band.index, position))
    for layer in product.mask_layers:
        there = files_of(layer.name, scene, product) if layer.per_band else ()
        file = choose_file(there, native_m=layer.pixel_m, stored_m=pixel_m, finer=True)
        if file is not None:
            where = address(scene, file.asset), file.pixel_m or layer.pixel_m, True
            found[where] += [
                (file.asset, band.index, position) for position, band in enumerate(bands)
            ]
    files = []
    for (_, file_m, marks), entries in found.items():
        assets, indexes, positions = zip(*entries, strict=True)
        inset_m = 0.0 if marks else max(bands[position].inset_m for position in positions)
        files.append(_File(assets, file_m, indexes, positions, marks, inset_m))
    return sorted(files, key=lambda file: (file.marks, file.assets[0], file.file_m))


def _finish(
    pick: Pick, lock: Lock, spec: ArraySpec, known: Mapping[str, Coefficients | Failure]
) -> Result:
    """Paint, judge, measure and encode one patch; its pixels end here."""
    pieces, pick.pieces = pick.pieces, []
    masks, pick.masks = pick.masks, ()
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


def _moved(product: Product) -> str | None:
    """Return the ledger's word for a warp, and whether control points alone placed the pixels."""
    if product.warp is None:
        return None
    return f"gcp-{product.warp}" if product.geolocation == "gcp" else product.warp


def _strongest(words: set[str]) -> str:
    """Return the word that says most about how bands of different pixels were brought together."""
    return next(word for word in _WORDS if word in words)

"""Quality layers of a task's patches, read once for every patch that may need them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import GiveUp
from pipeline.products.model import LEGEND
from pipeline.raster.masks import FILL, decode, native_dtype, pack
from pipeline.raster.thresholds import derive
from pipeline.recipe import LoadedRecipe
from pipeline.records import PlannedPatch, Scene
from pipeline.stages.extract import Failure, mask_source
from pipeline.task.coefficients import Calibrations
from pipeline.task.cut import Placement, grid_of, place
from pipeline.task.looks import Kept, Look, looks_at_image, looks_at_layers
from pipeline.task.read import Pixels, Reader


@dataclass(frozen=True, slots=True)
class SceneMask:
    """What one scene's quality layers say of one patch."""

    codes: NDArray[np.uint8]
    """Common legend, shape (y, x); fill beyond the scene's raster."""
    native: NDArray[Any] | None
    """Packed as delivered; None if the product has no quality layers."""
    files: tuple[str, ...]
    """Names of the assets that were read; none where nothing decides."""
    source: str
    """What decided, in the ledger's word (`pipeline.stages.extract.mask_source`)."""


def first_seen(masks: Sequence[SceneMask]) -> NDArray[np.uint8]:
    """Return the mask of a patch of several scenes: the first that saw a pixel says what it is."""
    codes = masks[0].codes
    for mask in masks[1:]:
        codes = np.where(codes == FILL, mask.codes, codes)
    return codes


#: A patch and a scene that may serve it.
Pair = tuple[tuple[str, int, int], str]
_Answer = tuple[Look, list[Pixels | Failure]]


def key_of(patch: PlannedPatch) -> tuple[str, int, int]:
    """Return what tells a patch from the others of its shard."""
    return patch.product, patch.sample, patch.time


class Quality:
    """Masks by patch and scene. All windows of a file are read together, and kept until used.

    Where a mask is made from bands of the image, those that are stored too are kept beside it.
    """

    def __init__(
        self,
        loaded: LoadedRecipe,
        scenes: Mapping[str, Scene],
        reader: Reader,
        calibrations: Calibrations,
    ) -> None:
        self._loaded = loaded
        self._scenes = scenes
        self._reader = reader
        self._calibrations = calibrations
        self._masks: dict[Pair, SceneMask | Failure] = {}
        self._kept: dict[Pair, tuple[Kept, ...]] = {}

    def from_image(self, scene: str) -> bool:
        """Return whether a scene's masks are made from bands of its image."""
        return self._source(self._scenes[scene]) not in ("product", "none")

    def load(self, wanted: Mapping[str, Sequence[PlannedPatch]], threads: Executor) -> None:
        """Read the masks of some scenes, each for its patches, unless they are there already."""
        todo = {}
        for name, patches in wanted.items():
            absent = [p for p in patches if (key_of(p), name) not in self._masks]
            if absent:
                todo[name] = absent
        placed = [self._scenes[name] for name in todo if self._in_sensor_geometry(name)]
        self._calibrations.load(placed, threads)
        asked = [
            (name, ask)
            for name, patches in todo.items()
            for ask in self._ask(self._scenes[name], patches)
        ]
        answers = threads.map(lambda pair: self._reader.read(pair[1].request), asked)
        by_scene: dict[str, list[_Answer]] = defaultdict(list)
        for (name, ask), pixels in zip(asked, answers, strict=True):
            by_scene[name].append((ask, pixels))
        for name, patches in todo.items():
            for position, patch in enumerate(patches):
                made = self._decode(patch, self._scenes[name], position, by_scene[name])
                self._masks[key_of(patch), name] = made
            # The raw windows of all scenes need not lie in memory beside what is kept of them.
            by_scene.pop(name, None)

    def get(self, patch: PlannedPatch, scene: str) -> SceneMask | Failure:
        """Return what `load` read."""
        return self._masks[key_of(patch), scene]

    def take(self, patch: PlannedPatch, scene: str) -> tuple[Kept, ...]:
        """Hand over what was read of the image for a mask; it is kept no longer."""
        return self._kept.pop((key_of(patch), scene), ())

    def keep(self, tried: Collection[Pair]) -> None:
        """Let go of what was read of the image for other patches and scenes than these."""
        self._kept = {key: kept for key, kept in self._kept.items() if key in tried}

    def forget(self, patch: PlannedPatch) -> None:
        """Let go of a patch's masks: it is decided."""
        for candidate in patch.candidates:
            for scene in candidate:
                self._masks.pop((key_of(patch), scene), None)

    def _source(self, scene: Scene) -> str:
        return mask_source(scene, self._loaded.products[scene.product])

    def _ask(self, scene: Scene, patches: Sequence[PlannedPatch]) -> list[Look]:
        """Return one request for each file from which a scene's masks are made."""
        source = self._source(scene)
        if source == "none":
            return []
        places = [self._place(patch, scene) for patch in patches]
        if source != "product":
            return looks_at_image(scene, places, self._loaded)
        if not self._in_sensor_geometry(scene.scene):
            return looks_at_layers(scene, places, self._loaded)
        own = self._calibrations[scene.scene]
        if isinstance(own, Failure):
            return []
        pixel_m = self._loaded.pixel_m(scene.product)
        grids = [
            grid_of(patch, spot.size_px, pixel_m)
            for patch, spot in zip(patches, places, strict=True)
        ]
        return looks_at_layers(scene, places, self._loaded, grids=grids, camera=own.layers)

    def _in_sensor_geometry(self, scene: str) -> bool:
        return self._loaded.products[self._scenes[scene].product].geolocation == "rpc"

    def _place(self, patch: PlannedPatch, scene: Scene) -> Placement:
        return place(
            patch,
            scene,
            size_px=self._loaded.size_px(patch.product),
            pixel_m=self._loaded.pixel_m(patch.product),
            warped=self._loaded.products[patch.product].warp is not None,
        )

    def _decode(
        self, patch: PlannedPatch, scene: Scene, position: int, answers: Sequence[_Answer]
    ) -> SceneMask | Failure:
        product = self._loaded.products[patch.product]
        spot, source = self._place(patch, scene), self._source(scene)
        codes = np.full((spot.size_px, spot.size_px), FILL, np.uint8)
        native: NDArray[Any] | None = None
        if product.mask_layers:
            native = np.zeros(codes.shape, native_dtype(product))
        if source == "none":
            codes[spot.inside] = LEGEND["valid"]
            return SceneMask(codes, native, (), source)
        if self._in_sensor_geometry(scene.scene):
            own = self._calibrations[scene.scene]
            if isinstance(own, Failure):
                return own
        read: dict[str, Pixels] = {}
        kept: list[Kept] = []
        for look, windows in answers:
            pixels = windows[position]
            if isinstance(pixels, Failure):
                return pixels
            read |= look.stored(position, pixels)
            kept += look.kept(position, pixels, self._loaded.bands(product.id))
        try:
            if source == "product":
                stored = self._loaded.bands(product.id)
                seen, native = decode(read, product, stored), pack(read, product)
            else:
                seen = derive(read, product, offset_add=scene.offset_add)
        except GiveUp as error:
            return Failure(error.failure, f"{scene.scene}: {error}")
        if kept:
            self._kept[key_of(patch), scene.scene] = tuple(kept)
        codes[spot.inside] = seen[spot.inside]
        files = dict.fromkeys(name for look, _ in answers for name in look.request.assets)
        return SceneMask(codes, native, tuple(files), source)

"""Quality layers of a task's patches, read once for every patch that may need them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import GiveUp
from pipeline.products.catalogue import LEGEND, MaskLayer
from pipeline.raster.masks import FILL, decode, native_dtype, pack
from pipeline.recipe import LoadedRecipe
from pipeline.records import PlannedPatch, Scene
from pipeline.stages.extract import Failure, address, choose_file, files_of, masked
from pipeline.task.cut import Cut, Placement, cut, place
from pipeline.task.read import Pixels, Reader, Request


@dataclass(frozen=True, slots=True)
class SceneMask:
    """What one scene's quality layers say of one patch."""

    codes: NDArray[np.uint8]
    """Common legend, shape (y, x); fill beyond the scene's raster."""
    native: NDArray[Any] | None
    """Packed as delivered; None if the product has no quality layers."""
    files: tuple[str, ...]
    """Names of the assets that were read; none where the scene has no quality layers."""


def key_of(patch: PlannedPatch) -> tuple[str, int, int]:
    """Return what tells a patch from the others of its shard."""
    return patch.product, patch.sample, patch.time


class Quality:
    """Masks by patch and scene. All windows of a file are read together, and kept until used."""

    def __init__(self, loaded: LoadedRecipe, scenes: Mapping[str, Scene], reader: Reader) -> None:
        self._loaded = loaded
        self._scenes = scenes
        self._reader = reader
        self._masks: dict[tuple[tuple[str, int, int], str], SceneMask | Failure] = {}

    def load(self, wanted: Mapping[str, Sequence[PlannedPatch]], threads: Executor) -> None:
        """Read the masks of some scenes, each for its patches, unless they are there already."""
        todo = {}
        for name, patches in wanted.items():
            absent = [p for p in patches if (key_of(p), name) not in self._masks]
            if absent:
                todo[name] = absent
        asked = [layers for name, patches in todo.items() for layers in self._ask(name, patches)]
        answers = threads.map(lambda layers: self._reader.read(layers.request), asked)
        by_scene: dict[str, list[_Answer]] = defaultdict(list)
        for layers, answer in zip(asked, answers, strict=True):
            by_scene[layers.request.scene.scene].append(_Answer(layers, answer))
        for name, patches in todo.items():
            for position, patch in enumerate(patches):
                made = self._decode(patch, self._scenes[name], position, by_scene[name])
                self._masks[key_of(patch), name] = made

    def get(self, patch: PlannedPatch, scene: str) -> SceneMask | Failure:
        """Return what `load` read."""
        return self._masks[key_of(patch), scene]

    def forget(self, patch: PlannedPatch) -> None:
        """Let go of a patch's masks: it is decided."""
        for candidate in patch.candidates:
            for scene in candidate:
                self._masks.pop((key_of(patch), scene), None)

    def _ask(self, name: str, patches: Sequence[PlannedPatch]) -> list[_Layers]:
        """Return one request for each file that holds quality layers of a scene."""
        scene = self._scenes[name]
        product = self._loaded.products[scene.product]
        if not masked(scene, product):
            return []
        pixel_m = self._loaded.pixel_m(product.id)
        by_file: dict[tuple[str, float], list[tuple[str, MaskLayer]]] = defaultdict(list)
        for layer in product.mask_layers:
            file = choose_file(
                files_of(layer.name, scene, product),
                native_m=layer.pixel_m,
                stored_m=pixel_m,
                finer=True,
            )
            if file is not None and not layer.per_band:
                where = address(scene, file.asset), file.pixel_m or layer.pixel_m
                by_file[where].append((file.asset, layer))
        return [
            _Layers.of(scene, file_m, layers, [self._place(p, scene) for p in patches])
            for (_, file_m), layers in by_file.items()
        ]

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
        spot = self._place(patch, scene)
        codes = np.full((spot.size_px, spot.size_px), FILL, np.uint8)
        if not answers:
            codes[spot.inside] = LEGEND["valid"]
            blank = np.zeros(codes.shape, native_dtype(product)) if product.mask_layers else None
            return SceneMask(codes, blank, ())
        layers: dict[str, Pixels] = {}
        for answer in answers:
            pixels = answer.pixels[position]
            if isinstance(pixels, Failure):
                return pixels
            layers.update(answer.asked.stored(position, pixels))
        try:
            seen, native = decode(layers, product), pack(layers, product)
        except GiveUp as error:
            return Failure(error.failure, f"{scene.scene}: {error}")
        codes[spot.inside] = seen[spot.inside]
        files = dict.fromkeys(name for a in answers for name in a.asked.request.assets)
        return SceneMask(codes, native, tuple(files))


@dataclass(frozen=True, slots=True)
class _Layers:
    """A request for the quality layers in one file."""

    request: Request
    names: tuple[str, ...]
    cuts: tuple[Cut, ...]

    @classmethod
    def of(
        cls,
        scene: Scene,
        file_m: float,
        layers: Sequence[tuple[str, MaskLayer]],
        places: Sequence[Placement],
    ) -> _Layers:
        cuts = tuple(cut(spot, file_m) for spot in places)
        request = Request(
            scene,
            tuple(asset for asset, _ in layers),
            file_m,
            tuple(layer.index for _, layer in layers),
            tuple(c.window for c in cuts),
            fill=0,
        )
        return cls(request, tuple(layer.name for _, layer in layers), cuts)

    def stored(self, position: int, pixels: Pixels) -> dict[str, Pixels]:
        """Return the layers of one patch by name, brought to the stored pixels."""
        return dict(zip(self.names, self.cuts[position].apply(pixels, None), strict=True))


@dataclass(frozen=True, slots=True)
class _Answer:
    asked: _Layers
    pixels: list[Pixels | Failure]

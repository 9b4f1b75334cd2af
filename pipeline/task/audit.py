"""Check by a scene's own pixels what its catalogue says of the processing offset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass

from pipeline.errors import PASSING
from pipeline.products.model import Band, Product
from pipeline.raster.dark import contradiction, dark_object, has_offset
from pipeline.recipe import LoadedRecipe
from pipeline.records import OffsetAudit, Rejected, Scene
from pipeline.stages.extract import Failure, choose_file, files_of, indexes_of
from pipeline.task.read import Pixels, Reader, Request

#: Edge of the thinned-out scene that is looked at: a few hundred kilobytes of one file.
_MOST_PX = 512
#: What is said of a patch of several scenes: the first of these that one of them was told.
_WEAKEST_FIRST: tuple[OffsetAudit, ...] = ("none", "silent", "passed", "")


@dataclass(frozen=True, slots=True)
class _Finding:
    """What the pixels of one scene said: a word for the ledger, or why it cannot be used."""

    said: OffsetAudit = ""
    against: Rejected | Failure | None = None


class Audit:
    """Looks at each scene of a task once, whichever of its patches asks.

    The verdict is one of the scene: it depends neither on what else lies in the shard, nor on
    which bands the recipe stores.
    """

    def __init__(self, loaded: LoadedRecipe, scenes: Mapping[str, Scene], reader: Reader) -> None:
        self._loaded = loaded
        self._scenes = scenes
        self._reader = reader
        self._findings: dict[str, _Finding] = {}

    def load(self, names: Iterable[str], threads: Executor) -> None:
        """Look at some scenes, those of products without an offset excepted."""
        todo = [name for name in names if name not in self._findings]
        self._findings.update(zip(todo, threads.map(self._look, todo), strict=True))

    def verdict(self, name: str) -> Rejected | Failure | None:
        """Return why a scene cannot be used, from what `load` saw."""
        return self._findings[name].against

    def said(self, names: Iterable[str]) -> OffsetAudit:
        """Return what the ledger says of a patch that some scenes serve, from what `load` saw."""
        return min((self._findings[name].said for name in names), key=_WEAKEST_FIRST.index)

    def _look(self, name: str) -> _Finding:
        scene = self._scenes[name]
        product = self._loaded.products[scene.product]
        if not product.offsets:
            return _Finding()
        if not product.dark_objects:
            return _Finding("none")
        dark: dict[str, float] = {}
        for known in product.dark_objects:
            found = self._first(scene, product, known.bands)
            if isinstance(found, Failure):
                return _Finding(against=found)
            if found is None:
                return _Finding("none")
            band, pixels = found
            value = dark_object(pixels, product)
            if value is not None:
                dark[band] = value
        there = has_offset(dark, product)
        if there is None:
            return _Finding("silent")
        if there == bool(scene.offset_add):
            return _Finding("passed")
        why = contradiction(dark, there=there, product=product)
        return _Finding(against=Rejected(reason="offset-contradiction", detail=why))

    def _first(
        self, scene: Scene, product: Product, names: tuple[str, ...]
    ) -> tuple[str, Pixels] | Failure | None:
        """Return the first of some bands that can be looked at, with its thinned-out pixels.

        A file that nothing is stored of is no reason to fail if it is gone for good.
        """
        stored = self._loaded.bands(product.id)
        for name in names:
            request = _request(scene, product, product.band(name))
            pixels = None if request is None else self._reader.overview(request, most_px=_MOST_PX)
            if not isinstance(pixels, Failure):
                if pixels is not None:
                    return name, pixels
            elif name in stored or pixels.failure in PASSING:
                return pixels
        return None


def _request(scene: Scene, product: Product, band: Band) -> Request | None:
    """Return how the coarsest file of a band is asked for; None if the scene has none."""
    file = choose_file(
        files_of(band.name, scene, product), native_m=band.pixel_m, stored_m=1e9, finer=True
    )
    index = indexes_of(scene, product).get(band.name)
    if file is None or index is None:
        return None
    return Request(scene, (file.asset,), file.pixel_m or band.pixel_m, (index,), (), fill=0)

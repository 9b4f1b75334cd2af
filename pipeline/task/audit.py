"""Check by a scene's own pixels what its catalogue says of the processing offset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Executor

from pipeline.products.catalogue import Band, Product
from pipeline.raster.dark import contradicts, dark_object
from pipeline.recipe import LoadedRecipe
from pipeline.records import Rejected, Scene
from pipeline.stages.extract import Failure, choose_file, files_of
from pipeline.task.read import Reader, Request

#: Edge of the thinned-out scene that is looked at: a few hundred kilobytes of one file.
_MOST_PX = 512
#: Bands below it see the haze more than the ground.
_SHORTEST_NM = 470.0


class Audit:
    """Looks at each scene of a task once, whichever of its patches asks.

    The verdict is one of the scene: it does not depend on what else lies in the shard.
    """

    def __init__(self, loaded: LoadedRecipe, scenes: Mapping[str, Scene], reader: Reader) -> None:
        self._loaded = loaded
        self._scenes = scenes
        self._reader = reader
        self._verdicts: dict[str, Rejected | Failure | None] = {}

    def load(self, names: Iterable[str], threads: Executor) -> None:
        """Look at some scenes, those of products without an offset excepted."""
        todo = [name for name in names if name not in self._verdicts]
        self._verdicts.update(zip(todo, threads.map(self._look, todo), strict=True))

    def verdict(self, name: str) -> Rejected | Failure | None:
        """Return why a scene cannot be used, from what `load` saw."""
        return self._verdicts[name]

    def _look(self, name: str) -> Rejected | Failure | None:
        scene = self._scenes[name]
        product = self._loaded.products[scene.product]
        dark: list[float] = []
        for band in _two_bands(product, self._loaded.bands(product.id)) if product.offsets else ():
            request = _request(scene, product, band)
            pixels = None if request is None else self._reader.overview(request, most_px=_MOST_PX)
            if isinstance(pixels, Failure):
                return pixels
            value = None if pixels is None else dark_object(pixels, product)
            if value is not None:
                dark.append(value)
        why = contradicts(dark, offset_add=scene.offset_add, product=product)
        return None if why is None else Rejected(reason="offset-contradiction", detail=why)


def _two_bands(product: Product, stored: tuple[str, ...]) -> tuple[Band, ...]:
    """Return the stored bands of the shortest and of the longest wavelength."""
    bands = [product.band(name) for name in stored]
    seen = [b for b in bands if b.wavelength_nm is not None and b.wavelength_nm >= _SHORTEST_NM]
    seen.sort(key=lambda band: band.wavelength_nm or 0.0)
    return (seen[0], seen[-1]) if len(seen) > 1 else ()


def _request(scene: Scene, product: Product, band: Band) -> Request | None:
    """Return how the coarsest file of a band is asked for; None if the scene has none."""
    file = choose_file(
        files_of(band.name, scene, product), native_m=band.pixel_m, stored_m=1e9, finer=True
    )
    if file is None:
        return None
    return Request(scene, (file.asset,), file.pixel_m or band.pixel_m, (band.index,), (), fill=0)

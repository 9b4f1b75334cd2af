"""What is read of a scene to make masks: its quality layers, or bands of the image.

Bands that are stored as well are kept until their patch is decided, so that no window is read
twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pipeline.ports import PixelGrid
from pipeline.products.model import MaskLayer
from pipeline.raster.camera import Camera
from pipeline.recipe import LoadedRecipe
from pipeline.records import Scene
from pipeline.stages.extract import address, choose_file, files_of
from pipeline.task.cut import Cut, Placement, cut
from pipeline.task.files import BandFile, cut_of, image_files, request_of
from pipeline.task.read import Pixels, Request, Warp


@dataclass(frozen=True, slots=True)
class Kept:
    """Bands of one file that were read for one patch's mask and will be stored."""

    file: BandFile
    cut: Cut
    pixels: Pixels
    """As read: the cut is not yet applied."""


@dataclass(frozen=True, slots=True)
class Look:
    """A request for what one file of a scene gives to the masks of some patches."""

    request: Request
    names: tuple[str, ...]
    """Quality layers, or bands of the product."""
    cuts: tuple[Cut, ...]
    """One for each patch."""
    nodata: float | None = None
    file: BandFile | None = None
    """Which bands of the image they are; None: quality layers."""

    def stored(self, position: int, pixels: Pixels) -> dict[str, Pixels]:
        """Return what was read for one patch by name, brought to the stored pixels."""
        return dict(zip(self.names, self.cuts[position].apply(pixels, self.nodata), strict=True))

    def kept(self, position: int, pixels: Pixels, bands: Collection[str]) -> list[Kept]:
        """Return what of it are stored bands: one entry, or none."""
        if self.file is None:
            return []
        part, rows = self.file.only(bands)
        if not rows:
            return []
        own = pixels if len(rows) == len(pixels) else pixels[rows]
        return [Kept(part, self.cuts[position], own)]


def looks_at_layers(
    scene: Scene,
    places: Sequence[Placement],
    loaded: LoadedRecipe,
    *,
    grids: Sequence[PixelGrid] = (),
    camera: Camera | None = None,
) -> list[Look]:
    """Return one request for each file that holds quality layers of a scene.

    Layers in sensor geometry lie as a `camera` saw them, and come onto `grids` by the nearest.
    """
    product, pixel_m = loaded.products[scene.product], loaded.pixel_m(scene.product)
    by_file: dict[tuple[str, float], list[tuple[str, MaskLayer]]] = defaultdict(list)
    for layer in product.mask_layers:
        file = choose_file(
            files_of(layer.name, scene, product),
            native_m=layer.pixel_m if camera is None else pixel_m,
            stored_m=pixel_m,
            finer=True,
        )
        if file is not None and not layer.per_band:
            file_m = file.pixel_m or (layer.pixel_m if camera is None else pixel_m)
            by_file[address(scene, file.asset), file_m].append((file.asset, layer))
    found = []
    for (_, file_m), layers in by_file.items():
        cuts = tuple(cut(place, file_m) for place in places)
        request = Request(
            scene,
            tuple(asset for asset, _ in layers),
            file_m,
            tuple(layer.index for _, layer in layers),
            tuple(how.window for how in cuts),
            fill=0,
            warp=Warp(tuple(grids), "nearest", 0, cameras=(camera,) * len(layers))
            if camera
            else None,
        )
        found.append(Look(request, tuple(layer.name for _, layer in layers), cuts))
    return found


def looks_at_image(scene: Scene, places: Sequence[Placement], loaded: LoadedRecipe) -> list[Look]:
    """Return one request for each file that holds bands which the product's mask method needs."""
    product = loaded.products[scene.product]
    found = []
    for file in image_files(scene, loaded, product.mask.names if product.mask else ()):
        cuts = tuple(cut_of(file, place, scene, loaded) for place in places)
        request = request_of(file, tuple(how.window for how in cuts), scene, loaded)
        found.append(Look(request, file.bands, cuts, product.nodata, file))
    return found

"""Which files of a scene hold the wanted bands, and how each is asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from pipeline.errors import RecipeError
from pipeline.raster.lattice import Window
from pipeline.recipe import LoadedRecipe
from pipeline.records import Scene
from pipeline.stages.extract import address, choose_file, files_of, indexes_of, marks_of
from pipeline.task.cut import Cut, Placement, cut
from pipeline.task.read import Request, Warp


@dataclass(frozen=True, slots=True)
class BandFile:
    """What one file of a scene gives to a patch."""

    assets: tuple[str, ...]
    """For each band the asset that holds it; all have one address."""
    file_m: float
    indexes: tuple[int, ...]
    """1-based bands of the file."""
    bands: tuple[str, ...]
    """Their names in the product, of the same length."""
    marks: bool
    """Whether it is the per-band quality layer and not the image."""
    inset_m: float
    """How far its edges lie inside the scene's."""

    def only(self, bands: Collection[str]) -> tuple[BandFile, list[int]]:
        """Return the part of it that gives some bands, and which of its bands those are."""
        kept = [place for place, name in enumerate(self.bands) if name in bands]
        part = replace(
            self,
            assets=tuple(self.assets[place] for place in kept),
            indexes=tuple(self.indexes[place] for place in kept),
            bands=tuple(self.bands[place] for place in kept),
        )
        return part, kept


def image_files(scene: Scene, loaded: LoadedRecipe, bands: Sequence[str]) -> list[BandFile]:
    """Return which files of a scene hold some bands of its product, sorted.

    Raises
    ------
    RecipeError
        A stored band is only there in finer pixels than the stored ones, and no resampling is
        allowed. (Bands that only a mask is made from are thinned out, as quality layers are.)
    """
    product, wish = loaded.products[scene.product], loaded.wishes[scene.product]
    pixel_m, stored = loaded.pixel_m(product.id), loaded.bands(product.id)
    free = wish.resampling is not None or product.warp is not None
    indexes = indexes_of(scene, product)
    found: dict[tuple[str, float], list[tuple[str, int, str]]] = defaultdict(list)
    for name in bands:
        band = product.band(name)
        there = files_of(name, scene, product) if name in indexes else ()
        native_m = band.pixel_m if product.warp is None else pixel_m
        finer = free or name not in stored
        file = choose_file(there, native_m=native_m, stored_m=pixel_m, finer=finer)
        if file is None and there:
            raise RecipeError(
                f"{product.id}: band {name} of provider {scene.provider} has finer pixels "
                f"than the stored {pixel_m:g} m; name a `resampling` for the product, or leave "
                "the band out."
            )
        # Of a file that is not there the reader says `gone`, by the band's name.
        asset, file_m = (name, pixel_m) if file is None else (file.asset, file.pixel_m)
        found[address(scene, asset), file_m or native_m].append((asset, indexes.get(name, 0), name))
    files = []
    for (_, file_m), entries in found.items():
        assets, places, names = zip(*entries, strict=True)
        inset_m = max(product.band(name).inset_m for name in names)
        files.append(BandFile(assets, file_m, places, names, marks=False, inset_m=inset_m))
    return sorted(files, key=lambda file: (file.assets[0], file.file_m))


def mark_files(scene: Scene, loaded: LoadedRecipe) -> list[BandFile]:
    """Return which files hold the per-band quality layer of a scene's stored bands, sorted."""
    product = loaded.products[scene.product]
    pixel_m, indexes = loaded.pixel_m(product.id), indexes_of(scene, product)
    names = [name for name in loaded.bands(product.id) if name in indexes]
    found: dict[tuple[str, float], list[tuple[str, int, str]]] = defaultdict(list)
    for layer in product.mask_layers:
        native_m = layer.pixel_m if product.warp is None else pixel_m
        parts = dict.fromkeys(product.band(name).part for name in names) if layer.per_band else ()
        for part in parts:
            there = marks_of(layer.name, part, scene, product)
            file = choose_file(there, native_m=native_m, stored_m=pixel_m, finer=True)
            if file is not None:
                where = address(scene, file.asset), file.pixel_m or native_m
                own = [name for name in names if product.band(name).part == part]
                found[where] += [(file.asset, indexes[name], name) for name in own]
    files = []
    for (_, file_m), entries in found.items():
        assets, places, bands = zip(*entries, strict=True)
        files.append(BandFile(assets, file_m, places, bands, marks=True, inset_m=0.0))
    return sorted(files, key=lambda file: (file.assets[0], file.file_m))


def cut_of(file: BandFile, place: Placement, scene: Scene, loaded: LoadedRecipe) -> Cut:
    """Return what to read of a file for a patch."""
    average = loaded.wishes[scene.product].resampling == "average" and not file.marks
    return cut(place, file.file_m, average=average, inset_m=file.inset_m)


def request_of(
    file: BandFile,
    windows: tuple[Window, ...],
    scene: Scene,
    loaded: LoadedRecipe,
    *,
    warp: Warp | None = None,
) -> Request:
    """Return how some windows of a file are asked for."""
    nodata = loaded.products[scene.product].nodata
    fill = 0.0 if nodata is None or file.marks else nodata
    return Request(scene, file.assets, file.file_m, file.indexes, windows, fill, file.inset_m, warp)

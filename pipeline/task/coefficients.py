"""What turns a scene's numbers into physical ones, and places its pixels, where scenes say it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass

from pipeline.errors import GiveUp
from pipeline.products.model import Product
from pipeline.raster.camera import Camera
from pipeline.raster.enmap import parse_level1
from pipeline.raster.landsat import conversion, parse_mtl
from pipeline.raster.radiometry import Convert
from pipeline.raster.sentinel1 import (
    Calibration,
    decibels,
    may_have_border_noise,
    parse_calibration,
    parse_noise,
)
from pipeline.raster.warp import Prepare
from pipeline.recipe import LoadedRecipe
from pipeline.records import Scene
from pipeline.stages.extract import Failure, files_of, indexes_of
from pipeline.task.read import Reader


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Conversions of one scene's wanted bands, and the files that they came from."""

    conversions: tuple[Convert, ...] = ()
    """One for each band; none where the product needs none."""
    prepare: tuple[Prepare, ...] = ()
    """One for each band, for what must be done before pixels are warped; else none."""
    cameras: tuple[Camera, ...] = ()
    """One for each band, for images in sensor geometry; else none."""
    layers: Camera | None = None
    """The same for the quality layers."""
    files: tuple[str, ...] = ()
    """Names of the assets that were read."""


class Calibrations:
    """The coefficients of a task's scenes; each file is read once. One thread calls `load`."""

    def __init__(self, loaded: LoadedRecipe, reader: Reader) -> None:
        self._loaded = loaded
        self._reader = reader
        self._known: dict[str, Coefficients | Failure] = {}

    def load(self, scenes: Iterable[Scene], threads: Executor) -> None:
        """Read the coefficients of some scenes, unless they are there already."""
        absent = {s.scene: s for s in scenes if s.scene not in self._known}
        answers = threads.map(self._read, absent.values())
        self._known |= dict(zip(absent, answers, strict=True))

    def __getitem__(self, scene: str) -> Coefficients | Failure:
        """Return what `load` read of a scene."""
        return self._known[scene]

    def _read(self, scene: Scene) -> Coefficients | Failure:
        product = self._loaded.products[scene.product]
        if product.calibration is None:
            return Coefficients()
        texts: dict[str, bytes] = {}
        bands = self._loaded.bands(product.id)
        needed = _needed(scene, bands, product)
        for asset in dict.fromkeys(asset for assets in needed.values() for asset in assets):
            text = self._reader.document(scene, asset)
            if isinstance(text, Failure):
                return text
            texts[asset] = text
        try:
            return _METHODS[product.calibration.method](scene, product, needed, texts)
        except GiveUp as error:
            return Failure(error.failure, str(error))


#: By band: the names of the assets with its coefficients.
_Needed = Mapping[str, tuple[str, ...]]
#: By asset: what it holds.
_Texts = Mapping[str, bytes]


def _needed(scene: Scene, bands: tuple[str, ...], product: Product) -> _Needed:
    """Return which assets the bands need, whether they are there or not."""

    def asset(word: str) -> str:
        return next((file.asset for file in files_of(word, scene, product)), word)

    needed = {band: tuple(asset(word) for word in product.coefficients(band)) for band in bands}
    if product.calibration is None or product.calibration.noise is None:
        return needed
    # The second is the noise, which says of old scenes alone what it is needed for.
    if may_have_border_noise(scene.acquired):
        return needed
    return {band: assets[:1] for band, assets in needed.items()}


def _landsat_toa(scene: Scene, product: Product, needed: _Needed, texts: _Texts) -> Coefficients:
    del product
    metadata = {
        asset: parse_mtl(text, f"{asset} of {scene.scene}") for asset, text in texts.items()
    }
    return Coefficients(
        tuple(conversion(metadata[asset], band) for band, (asset,) in needed.items()),
        files=tuple(texts),
    )


def _sentinel1_sigma0(
    scene: Scene, product: Product, needed: _Needed, texts: _Texts
) -> Coefficients:
    del product

    def calibration(asset: str, noise: str | None = None) -> Calibration:
        name = f"{asset} of {scene.scene}"
        table = None if noise is None else parse_noise(texts[noise], f"{noise} of {scene.scene}")
        return Calibration(parse_calibration(texts[asset], name), table)

    return Coefficients(
        conversions=(decibels,) * len(needed),
        prepare=tuple(calibration(*assets).power for assets in needed.values()),
        files=tuple(texts),
    )


def _enmap_radiance(scene: Scene, product: Product, needed: _Needed, texts: _Texts) -> Coefficients:
    (asset,) = texts
    name = f"{asset} of {scene.scene}"
    table, indexes = parse_level1(texts[asset], name), indexes_of(scene, product)
    # Of a band that its image lacks the reader says so.
    rows = [
        table.row(product.band(band).part, indexes.get(band, product.band(band).index), name)
        for band in needed
    ]
    radiances = [table.radiance(row) for row in rows]
    if product.geolocation != "rpc":
        return Coefficients(tuple(radiances), files=(asset,))
    return Coefficients(
        prepare=tuple(radiance.before for radiance in radiances),
        cameras=tuple(table.camera(row, name) for row in rows),
        layers=table.camera(0, name),  # of VNIR, in whose geometry the layers lie
        files=(asset,),
    )


_METHODS = {
    "landsat-toa": _landsat_toa,
    "sentinel-1-sigma0": _sentinel1_sigma0,
    "enmap-radiance": _enmap_radiance,
}

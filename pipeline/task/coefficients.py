"""What turns a scene's numbers into physical ones, for products whose scenes bring coefficients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass

from pipeline.errors import GiveUp
from pipeline.products.catalogue import Product
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
from pipeline.records import Scene
from pipeline.stages.extract import Failure, files_of
from pipeline.task.lock import Lock
from pipeline.task.read import Reader


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Conversions of one scene's wanted bands, and the files that they came from."""

    conversions: tuple[Convert, ...] = ()
    """One for each band; none where the product needs none."""
    prepare: tuple[Prepare, ...] = ()
    """One for each band, for what must be done before pixels are warped; else none."""
    files: tuple[str, ...] = ()
    """Names of the assets that were read."""


def read_coefficients(
    scenes: Iterable[Scene], lock: Lock, reader: Reader, readers: Executor
) -> dict[str, Coefficients | Failure]:
    """Return the coefficients of some scenes, by id; each file is read once."""
    distinct = {scene.scene: scene for scene in scenes}
    answers = readers.map(lambda scene: _of(scene, lock, reader), distinct.values())
    return dict(zip(distinct, answers, strict=True))


def _of(scene: Scene, lock: Lock, reader: Reader) -> Coefficients | Failure:
    product = lock.loaded.products[scene.product]
    if product.calibration is None:
        return Coefficients()
    texts: dict[str, bytes] = {}
    needed = _needed(scene, lock.loaded.bands(product.id), product)
    for asset in dict.fromkeys(asset for assets in needed.values() for asset in assets):
        text = reader.document(scene, asset)
        if isinstance(text, Failure):
            return text
        texts[asset] = text
    try:
        return _METHODS[product.calibration.method](scene, needed, texts)
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


def _landsat_toa(scene: Scene, needed: _Needed, texts: _Texts) -> Coefficients:
    metadata = {
        asset: parse_mtl(text, f"{asset} of {scene.scene}") for asset, text in texts.items()
    }
    return Coefficients(
        tuple(conversion(metadata[asset], band) for band, (asset,) in needed.items()),
        files=tuple(texts),
    )


def _sentinel1_sigma0(scene: Scene, needed: _Needed, texts: _Texts) -> Coefficients:
    def calibration(asset: str, noise: str | None = None) -> Calibration:
        name = f"{asset} of {scene.scene}"
        table = None if noise is None else parse_noise(texts[noise], f"{noise} of {scene.scene}")
        return Calibration(parse_calibration(texts[asset], name), table)

    return Coefficients(
        conversions=(decibels,) * len(needed),
        prepare=tuple(calibration(*assets).power for assets in needed.values()),
        files=tuple(texts),
    )


_METHODS = {"landsat-toa": _landsat_toa, "sentinel-1-sigma0": _sentinel1_sigma0}

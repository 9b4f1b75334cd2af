"""What a provider's files hold for a scene: digital numbers and quality layers as delivered.

Pure functions from a scene and some of its pixel centres to arrays; `pipeline.simulate.archive`
writes them. Differences to the truth are those of real products: an offset, values that a format
cannot hold, bands that a processor leaves out, nothing beyond the swath.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.products.catalogue import FILL_INT16, LEGEND, Band, Product
from pipeline.simulate.ground import View, band_values, codes
from pipeline.simulate.landscape import WHOLE, Landscape
from pipeline.simulate.noise import Place, below

if TYPE_CHECKING:  # orbits need pyproj and shapely; what is here needs numpy only
    from pipeline.simulate.orbits import Scene

#: EnMAP bands (1-based) without data, by processor version: 127-141 and 161-167 in a product of
#: 01.01.10, 130-135 in one of 01.03.02 (both real); the versions here stand for before and after.
ABSENT_BANDS = {
    "01.01.02": frozenset([*range(127, 142), *range(161, 168)]),
    "01.04.02": frozenset(range(130, 136)),
}

#: EnMAP quality layers written as one band each, in the words of the product file.
ENMAP_LAYERS = ("classes", "cloud", "cloudshadow", "haze", "cirrus", "snow", "testflags")

_BACKGROUND = 3
_DEAD_DETECTORS = 24
#: Width of an EnMAP detector element in units of `across`: 30 m times the root of 85.
_DETECTOR = 277
_NDVI_BANDS = ("B04", "B8A")


# --- EnMAP ----------------------------------------------------------------------------------------


def enmap_values(scene: Scene, product: Product, view: View) -> npt.NDArray[np.int16]:
    """Return all bands as delivered, shape (band, y, x); -32768 where nothing is known."""
    absent = ABSENT_BANDS[scene.baseline]
    values = np.full((len(product.bands), *view.place.shape), FILL_INT16, np.int16)
    seen = scene.seen(view.place)
    if seen.any():
        present = [i for i, band in enumerate(product.bands) if band.index not in absent]
        truth = band_values(view, product, [product.bands[i] for i in present])
        for position, layer in zip(present, truth, strict=True):
            np.copyto(values[position], layer, where=seen, casting="unsafe")
    return values


def enmap_layers(scene: Scene, view: View) -> dict[str, npt.NDArray[np.uint8]]:
    """Return the quality layers as delivered, each of shape (y, x).

    Classes are 3 outside the scene; where that is, the others are 0, which there does not mean
    clear.
    """
    seen = scene.seen(view.place)
    outside = {"classes": _BACKGROUND}
    return {
        name: np.where(seen, layer, outside.get(name, 0)).astype(np.uint8)
        for name, layer in enmap_quality(view).items()
    }


def enmap_quality(view: View) -> dict[str, npt.NDArray[np.uint8]]:
    """Return the quality layers of a view, each of shape (y, x); classes 1 land, 2 water."""
    sky = view.sky
    layers = {
        "classes": np.where(view.land.water, 2, 1),
        "cloud": sky.covered,
        "cloudshadow": sky.shadow,
        "haze": sky.haze,
        "cirrus": sky.cirrus_class,
        "snow": view.snowy & ~sky.covered,
        "testflags": np.zeros(view.place.shape),
    }
    return {name: layer.astype(np.uint8) for name, layer in layers.items()}


def defective(scene: Scene, product: Product, place: Place) -> npt.NDArray[np.uint8]:
    """Return the mask of defective values, shape (band, y, x): 1 along dead detector elements."""
    mask = np.zeros((len(product.bands), *place.shape), np.uint8)
    across = 9 * place.x_m - 2 * place.n_m[:, None] - scene.across[0]
    elements = (scene.across[1] - scene.across[0]) // _DETECTOR
    element, seen = across // _DETECTOR, scene.seen(place)
    for dead in range(_DEAD_DETECTORS):
        band = int(below(len(product.bands), 90, dead))
        where = int(below(elements, 91, dead))
        mask[band][(element == where) & seen] = 1
    return mask


# --- Sentinel-2 -----------------------------------------------------------------------------------


def sentinel_values(
    scene: Scene, product: Product, bands: Sequence[Band], view: View
) -> npt.NDArray[np.uint16]:
    """Return bands of one pixel size as delivered, shape (band, y, x); 0 where nothing was seen.

    From baseline 04.00 on 1000 is added; what would be 0 or less is delivered as 1.
    """
    truth = band_values(view, product, bands) - delivered_offset(scene, product)
    return np.where(scene.seen(view.place), np.clip(truth, 1, 65_534), 0).astype(np.uint16)


def delivered_offset(scene: Scene, product: Product) -> int:
    """Return what must be added to a delivered value to get the truth (0 or -1000)."""
    having = [
        o.add for o in product.offsets if _numbers(scene.baseline) >= _numbers(o.from_baseline)
    ]
    return having[-1] if having else 0


def scene_classes(scene: Scene, product: Product, view: View) -> npt.NDArray[np.uint8]:
    """Return the scene classification as delivered, shape (y, x); 0 outside the swath."""
    return np.where(scene.seen(view.place), classified(product, view), 0).astype(np.uint8)


def classified(product: Product, view: View) -> npt.NDArray[np.uint8]:
    """Return Sentinel-2's classes of a view, shape (y, x), in agreement with the truth."""
    code = codes(view)
    red, infrared = band_values(view, product, [product.band(name) for name in _NDVI_BANDS])
    classes = np.where(2 * infrared > 3 * red, 4, 5)  # NDVI above 0.2: vegetation
    classes[code == LEGEND["water"]] = 6
    classes[code == LEGEND["snow"]] = 11
    classes[code == LEGEND["thin-cloud"]] = 10
    classes[code == LEGEND["cloud-shadow"]] = 3
    classes[code == LEGEND["cloud"]] = 8
    classes[view.sky.cloud >= WHOLE * 7 // 8] = 9
    return classes.astype(np.uint8)


def quality_layers(product: Product, view: View) -> dict[str, npt.NDArray[np.uint8]]:
    """Return the quality layers of a view by the names of the product file; none: no layers."""
    if product.id == "enmap-l2a":
        return enmap_quality(view)
    if product.id == "sentinel-2-l2a":
        return {"scl": classified(product, view)}
    return {}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


# --- labels ---------------------------------------------------------------------------------------


def label_values(land: Landscape) -> npt.NDArray[np.uint8]:
    """Return the arrangement of the fields, shape (y, x); 0 where there are none."""
    return land.arrangement

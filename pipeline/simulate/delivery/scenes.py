"""What a provider's files hold for a scene: digital numbers and quality layers as delivered.

Pure functions from a scene and some of its pixel centres to arrays;
`pipeline.simulate.delivery.files` writes them. Differences to the truth are those of real products:
an offset, values that a format cannot hold, bands that a processor leaves out, nothing beyond the
swath or in the gaps within it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from math import radians, sin, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.products.model import FILL_INT16, LEGEND, Band, Product
from pipeline.simulate.truth.clouds import sun
from pipeline.simulate.truth.ground import STEP, View, band_values, codes, kind_of
from pipeline.simulate.truth.landscape import WHOLE
from pipeline.simulate.truth.noise import Place, below

if TYPE_CHECKING:  # orbits need pyproj and shapely; what is here needs numpy only
    from pipeline.simulate.delivery.orbits import Scene

#: EnMAP bands (1-based) without data, by processor version: 127-141 and 161-167 in a product of
#: 01.01.10, 130-135 in one of 01.03.02 (both real); the versions here stand for before and after.
ABSENT_BANDS = {
    "01.01.02": frozenset([*range(127, 142), *range(161, 168)]),
    "01.04.02": frozenset(range(130, 136)),
}

_BACKGROUND = 3
_DEAD_DETECTORS = 24
#: Width of an EnMAP detector element in units of `across`: 30 m times the root of 85.
_DETECTOR = 277
_NDVI_BANDS = ("B04", "B8A")


# --- bands ----------------------------------------------------------------------------------------


def delivered_dtype(product: Product) -> str:
    """Return the type of a product's image files."""
    if product.kind == "labels":
        return "int8" if (product.nodata or 0) < 0 else "uint8"
    if product.calibration is None and product.stored_dtype == "float32":
        return "float32"
    if is_eight_bit(product):
        return "uint8"
    return "int16" if product.nodata == FILL_INT16 else "uint16"


def is_eight_bit(product: Product) -> bool:
    """Whether a sensor counts to 255: the older Landsats."""
    return product.id in ("landsat-tm-toa", "landsat-etm-toa")


def image(
    scene: Scene, product: Product, bands: Sequence[Band], view: View, *, offset: int = 0
) -> npt.NDArray[Any]:
    """Return bands of one grid as delivered, shape (band, y, x); nodata where nothing was seen.

    Parameters
    ----------
    offset : int
        What must be added to the delivered value to get the truth (0 or -1000).
    """
    dtype = np.dtype(delivered_dtype(product))
    numbers = _numbers_of(scene, product, bands, view) - offset
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        least = 0 if product.kind == "labels" else 1 if limits.min == 0 else limits.min + 1
        most = 65_534 if dtype == np.uint16 else limits.max
        numbers = np.clip(np.rint(numbers), least, most)
    empty = 0 if product.nodata is None else product.nodata
    values = np.where(seen_by(scene, view.place), numbers, empty).astype(dtype)
    absent = ABSENT_BANDS.get(scene.baseline, frozenset()) if product.id == "enmap-l2a" else ()
    for layer, band in zip(values, bands, strict=True):
        if band.index in absent:
            layer[:] = FILL_INT16
    return values


def _numbers_of(
    scene: Scene, product: Product, bands: Sequence[Band], view: View
) -> npt.NDArray[np.float64]:
    """Return the truth in the product's own numbers, before they are rounded to its type."""
    numbers = band_values(view, product, bands).astype(np.float64)
    for layer, band in zip(numbers, bands, strict=True):
        layer *= STEP[kind_of(product, band)]
        if product.calibration is not None:
            layer[:] = uncalibrated(scene, product, band, layer)
        else:
            layer[:] = (layer - product.offset) / product.scale
    return numbers


def offset_of(scene: Scene, product: Product) -> int:
    """Return what must be added to a processor's value to get the truth (0 or -1000)."""
    having = [
        o.add for o in product.offsets if _version(scene.baseline) >= _version(o.from_baseline)
    ]
    return having[-1] if having else 0


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


# --- the gaps of Landsat 7 ------------------------------------------------------------------------

#: On that day its scan line corrector failed. Since then scans diverge: of two scans of 16 lines
#: of 30 m, forth and back, each edge of the swath sees one twice and of the other a gap of 390 to
#: 450 m, which narrows to nothing where about a fifth of the swath, in its middle, is whole. By the
#: USGS's estimate 22 % of a scene are lost; these numbers come to 19 %. USGS, "How do Landsat 7
#: ETM+ SLC-off data products compare to previous data?"; Geoscience Australia, "Landsat 7 ETM
#: SLC-off".
_SLC_FAILED = datetime(2003, 5, 31, tzinfo=UTC)
_WHOLE_TENTHS = 2
_TWO_SCANS = round(960 * sqrt(85))  # in units of `along`, which are metres times the root of 85
_WIDEST_GAP = round(450 * sqrt(85))


def seen_by(scene: Scene, place: Place) -> npt.NDArray[np.bool_]:
    """Return of which pixel centres a scene has values, shape (y, x): in the swath, in no gap."""
    seen = scene.seen(place)
    if not scene.product.startswith("landsat-etm") or scene.when < _SLC_FAILED:
        return seen
    west, east = scene.across
    n_m = place.n_m[:, None]
    off = 2 * (9 * place.x_m - 2 * n_m) - (west + east)  # from the middle, both ways
    reach, whole = 10 * np.abs(off), _WHOLE_TENTHS * (east - west)
    width = _WIDEST_GAP * np.maximum(reach - whole, 0) // (10 * (east - west) - whole)
    # A scan that ends east begins the next one there: gaps of the two sides alternate. Where the
    # first one lies is another matter in each pass.
    first = int(below(_TWO_SCANS, 96, scene.track, scene.when.date().toordinal()))
    turn = np.where(off < 0, _TWO_SCANS // 2, 0)
    gap = (2 * place.x_m + 9 * n_m + first + turn) % _TWO_SCANS < width
    return np.asarray(seen & ~gap)


# --- Landsat's calibration ------------------------------------------------------------------------


def sun_of(scene: Scene) -> tuple[float, float]:
    """Return the sun's elevation and azimuth over the middle of a scene, in degrees."""
    return sun(scene.zone, scene.n_max_m - scene.height_m / 2, scene.when)


def uncalibrated(
    scene: Scene, product: Product, band: Band, physical: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the delivered numbers that a scene's coefficients turn into physical ones."""
    facts = coefficients(product, band)
    if kind_of(product, band) == "temperature":
        radiance = facts["K1_CONSTANT"] / (np.exp(facts["K2_CONSTANT"] / physical) - 1)
        return (radiance - facts["RADIANCE_ADD"]) / facts["RADIANCE_MULT"]
    light = sin(radians(round(sun_of(scene)[0], 8)))
    return (physical * light - facts["REFLECTANCE_ADD"]) / facts["REFLECTANCE_MULT"]


def coefficients(product: Product, band: Band) -> dict[str, float]:
    """Return a Landsat band's coefficients by the beginning of their name in MTL.json.

    Those of Landsat 8 are a real scene's; the 8-bit ones are round numbers of the right size.
    """
    eight = is_eight_bit(product)
    if kind_of(product, band) == "temperature":
        constants = (
            {"K1_CONSTANT": 607.76, "K2_CONSTANT": 1260.56}
            if eight
            else {"K1_CONSTANT": 774.8853, "K2_CONSTANT": 1321.0789}
        )
        scale = {"RADIANCE_MULT": 5.5375e-2, "RADIANCE_ADD": 1.18243}
        if not eight:
            scale = {"RADIANCE_MULT": 3.3420e-4, "RADIANCE_ADD": 0.1}
        return constants | scale
    if eight:
        return {"REFLECTANCE_MULT": 3.0e-3, "REFLECTANCE_ADD": -0.01}
    return {"REFLECTANCE_MULT": 2.0e-5, "REFLECTANCE_ADD": -0.1}


def mtl(scene: Scene, product: Product) -> dict[str, Any]:
    """Return what a Landsat scene's MTL.json says of its numbers: all values are text."""
    elevation, azimuth = sun_of(scene)
    groups: dict[str, dict[str, str]] = {
        "IMAGE_ATTRIBUTES": {
            "SPACECRAFT_ID": f"LANDSAT_{int(scene.item[2:4])}",
            "SUN_AZIMUTH": f"{azimuth:.8f}",
            "SUN_ELEVATION": f"{elevation:.8f}",
        },
        "LEVEL1_RADIOMETRIC_RESCALING": {},
        "LEVEL1_THERMAL_CONSTANTS": {},
    }
    for band in product.bands:
        for name, value in coefficients(product, band).items():
            constant = name.endswith("CONSTANT")
            group = groups[
                "LEVEL1_THERMAL_CONSTANTS" if constant else "LEVEL1_RADIOMETRIC_RESCALING"
            ]
            group[f"{name}_BAND_{band.name.removeprefix('B')}"] = f"{value:.10g}"
    return {"LANDSAT_METADATA_FILE": groups}


# --- quality --------------------------------------------------------------------------------------


def _qa_pixel(product: Product, view: View) -> npt.NDArray[np.uint16]:
    """Return QA_PIXEL of Collection 2: bits and the confidences above them.

    Cirrus is found by a band that only Landsat 8 and 9 have; before, veils are dilated cloud.
    """
    code = codes(view)
    is_a = {name: code == value for name, value in LEGEND.items()}
    cirrus = "oli" in product.id
    bits = np.zeros(code.shape, np.uint16)
    set_if = [
        (is_a["cloud"], 1 << 3),
        (is_a["thin-cloud"], 1 << 2 if cirrus else 1 << 1),
        (is_a["cloud-shadow"], 1 << 4),
        (is_a["snow"], 1 << 5),
        (~is_a["cloud"] & ~is_a["thin-cloud"], 1 << 6),
        (view.land.water, 1 << 7),
        (is_a["cloud"], 3 << 8),
        (~is_a["cloud"], 1 << 8),
        (is_a["cloud-shadow"], 3 << 10),
        (~is_a["cloud-shadow"], 1 << 10),
        (is_a["snow"], 3 << 12),
        (~is_a["snow"], 1 << 12),
        (is_a["thin-cloud"] & cirrus, 3 << 14),
        (~is_a["thin-cloud"] & cirrus, 1 << 14),
    ]
    for where, value in set_if:
        bits[where] |= value
    return bits


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


#: Quality layers by the names that product files give them; two sensors call theirs alike.
_LAYERS: Mapping[str, Callable[[Product, View], npt.NDArray[Any]]] = {
    "classes": lambda _, view: np.where(view.land.water, 2, 1),
    "cloud": lambda _, view: view.sky.covered,
    "cloudshadow": lambda _, view: view.sky.shadow,
    "haze": lambda _, view: view.sky.haze,
    "testflags": lambda _, view: np.zeros(view.place.shape),
    "scl": classified,
    "qa_pixel": _qa_pixel,
    "qa_radsat": lambda _, view: np.zeros(view.place.shape),
    "opaque": lambda _, view: view.sky.covered,
}
_LAYERS_OF: Mapping[str, Mapping[str, Callable[[Product, View], npt.NDArray[Any]]]] = {
    "enmap-l2a": {
        "cirrus": lambda _, view: view.sky.cirrus_class,
        "snow": lambda _, view: view.snowy & ~view.sky.covered,
    },
    "sentinel-2-l1c": {
        "cirrus": lambda _, view: codes(view) == LEGEND["thin-cloud"],
        "snow": lambda _, view: codes(view) == LEGEND["snow"],
    },
}
#: Values where nothing was seen, of layers in which that is not 0.
_OUTSIDE = {"classes": _BACKGROUND, "qa_pixel": 1}


def quality_layers(product: Product, view: View) -> dict[str, npt.NDArray[Any]]:
    """Return the quality layers of a view by the names of the product file; none: no layers."""
    makers = {**_LAYERS, **_LAYERS_OF.get(product.id, {})}
    return {
        layer.name: makers[layer.name](product, view).astype(layer_dtype(layer.name))
        for layer in product.mask_layers
        if not layer.per_band
    }


def layer_dtype(name: str) -> str:
    """Return the type of a quality layer's file."""
    return "uint16" if name.startswith("qa_") else "uint8"


def quality(scene: Scene, product: Product, view: View) -> dict[str, npt.NDArray[Any]]:
    """Return the quality layers as delivered, each of shape (y, x).

    Most are 0 outside the swath, which there does not mean clear.
    """
    seen = seen_by(scene, view.place)
    return {
        name: np.where(seen, layer, _OUTSIDE.get(name, 0)).astype(layer.dtype)
        for name, layer in quality_layers(product, view).items()
    }


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

"""A mask from the image itself: reflectance at the top of the atmosphere against thresholds.

For scenes that come without quality layers. Each pixel is decided by itself, so a patch needs
nothing of the scene around it; therefore no cloud shadow is found, which takes the cloud that casts
it.

The tests for ground, snow, water and cloud are those of Luo, Trishchenko and Khlopenkov (2008,
Remote Sensing of Environment 112, 4167-4185) for MODIS, as Oreopoulos, Wilson and Varnai (2011, doi
10.1109/LGRS.2010.2095409) brought them to Landsat's bands: two numbers of the last test lowered,
and compared with drawn masks of 156 scenes of the whole Earth. The numbers here were read in two
independent implementations of it, which differ in those two alone; these are the lowered ones. Its
filling of holes in clouds is left out. By the paper it is weak in thin clouds and near the poles.

Thin cirrus is what band 1.38 µm sees, above 0.01 as in Zhu, Wang and Woodcock (2015, doi
10.1016/j.rse.2014.12.014). High, dry mountains show there too.

Nothing was tuned here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.products.model import LEGEND, Product
from pipeline.raster.radiometry import harmonise

Reflectance = NDArray[np.float32]
Where = NDArray[np.bool_]


def derive(
    delivered: Mapping[str, NDArray[Any]], product: Product, *, offset_add: int
) -> NDArray[np.uint8]:
    """Return the common mask of a patch by the method of its product.

    Parameters
    ----------
    delivered : dict of str to array, shape (y, x)
        Digital numbers as read, by name of the band: all those of `product.mask`.
    offset_add : int
        `Scene.offset_add`.

    Returns
    -------
    uint8 array, shape (y, x)
        Codes of the common legend; fill where none of the bands has a value, `defective` where one
        lacks it that a cloud cannot be told without.

    Raises
    ------
    GiveUp
        `corrupt`: the values are not those of the product.
    ValueError
        The product has no method.
    """
    if product.mask is None:
        raise ValueError(f"{product.id} has no `mask` method.")
    names = product.mask.names
    made = harmonise(
        np.stack([delivered[name] for name in names]), product=product, offset_add=offset_add
    )
    value = made.stored.astype(np.float32) * np.float32(product.scale) + np.float32(product.offset)
    value[made.fill] = np.nan
    # Comparisons with NaN are false: such pixels pass no test, and are set apart below.
    band = {word: value[names.index(name)] for word, name in product.mask.bands if name is not None}
    codes = classify(**band)
    needed = [names.index(name) for word, name in product.mask.bands if name and word != "cirrus"]
    codes[made.fill[needed].any(axis=0)] = LEGEND["defective"]
    codes[made.fill.all(axis=0)] = LEGEND["fill"]
    return codes


def classify(
    blue: Reflectance,
    red: Reflectance,
    nir: Reflectance,
    swir16: Reflectance,
    cirrus: Reflectance | None = None,
) -> NDArray[np.uint8]:
    """Return what each pixel is: land, water, snow, cloud or thin cloud, in the common legend.

    Parameters
    ----------
    blue, red, nir, swir16, cirrus : float array, all of one shape
        Reflectance at the top of the atmosphere (1: a white surface) near 0.49, 0.66, 0.83, 1.61
        and 1.38 µm.
    """
    codes = np.full(blue.shape, LEGEND["land"], np.uint8)
    # From the last test to the first, so that an earlier one overwrites a later one.
    codes[_cloud(blue, red, swir16)] = LEGEND["cloud"]
    codes[_water(blue, red, nir, swir16)] = LEGEND["water"]
    codes[_snow(red, nir, swir16)] = LEGEND["snow"]
    codes[_bare(blue, red, nir, swir16)] = LEGEND["land"]
    if cirrus is not None:
        codes[(cirrus > 0.01) & (codes != LEGEND["cloud"])] = LEGEND["thin-cloud"]
    return codes


def _bare(blue: Reflectance, red: Reflectance, nir: Reflectance, swir16: Reflectance) -> Where:
    """Soil, rock and sand brighten towards longer waves."""
    rising = (blue < red) & (red < nir) & (nir < 1.07 * swir16) & (swir16 < 0.65)
    dark = (0.8 * blue < red) & (red < 0.8 * nir) & (nir < swir16) & (red < 0.22)
    return rising | dark


def _snow(red: Reflectance, nir: Reflectance, swir16: Reflectance) -> Where:
    """Snow is bright, and nearly black at 1.6 µm."""
    bright = (red > 0.24) & (swir16 < 0.16)
    patchy = (red > 0.18) & (red < 0.24) & (swir16 < red - 0.08)
    return (bright | patchy) & (red > nir)


def _water(blue: Reflectance, red: Reflectance, nir: Reflectance, swir16: Reflectance) -> Where:
    """Water is dark, and darker towards longer waves."""
    turbid = (red > nir) & (blue < 0.30) & (red < 0.20)
    clear = (red > 0.8 * nir) & (red < 0.06)
    return (turbid | clear) & (red > 0.67 * swir16)


def _cloud(blue: Reflectance, red: Reflectance, swir16: Reflectance) -> Where:
    """What is left is plants, unless it is bright, and about as bright at 1.6 µm."""
    bright = (blue > 0.15) | (red > 0.18)
    return bright & (swir16 > 0.12) & (np.maximum(blue, red) > 0.67 * swir16)

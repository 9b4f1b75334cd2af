"""Dark objects: whether a processing offset is in the delivered numbers or not.

Nearly every scene has water, shadow or dense forest somewhere, whose reflectance is known within
some hundredths: close to 0 in the short-wave infrared, and in blue light close to 0 at the surface
and close to what clear air scatters at the top of the atmosphere. An offset of 0.1 in the numbers
is a step that no other property of a scene hides. A scene of bright desert or closed cloud has no
dark object, and then nothing is said. Where dark objects lie is a fact of each product
(`pipeline.products.model.DarkObject`).

Chavez 1988, doi 10.1016/0034-4257(88)90019-3, has the method, for the haze of a scene.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.products.model import Product

#: Share of the pixels that are darker than what counts as the dark object.
_DARKEST_PERCENT = 0.1
#: Fewer pixels tell nothing.
_LEAST_PIXELS = 1000


def dark_object(band: NDArray[Any], product: Product) -> float | None:
    """Return the delivered number that the darkest pixels of a scene lie below.

    Parameters
    ----------
    band : array, shape (y, x)
        One band of a whole scene, thinned out; pixels beside unseen ones are left out, because
        thinning may have mixed them.

    Returns
    -------
    float or None
        None: too few pixels were seen.
    """
    seen = np.ones(band.shape, dtype=bool) if product.nodata is None else band != product.nodata
    if product.saturated is not None:
        seen &= band != product.saturated
    inner = seen.copy()
    inner[1:] &= seen[:-1]
    inner[:-1] &= seen[1:]
    inner[:, 1:] &= seen[:, :-1]
    inner[:, :-1] &= seen[:, 1:]
    if np.count_nonzero(inner) < _LEAST_PIXELS:
        return None
    return float(np.percentile(band[inner], _DARKEST_PERCENT))


def has_offset(dark: Mapping[str, float], product: Product) -> bool | None:
    """Return whether the product's offset is in the delivered numbers of a scene.

    Parameters
    ----------
    dark : mapping of str to float
        Dark object of a band by its name, as delivered; one for each of `product.dark_objects`.

    Returns
    -------
    bool or None
        None: they do not tell, because one is absent, or because the scene is bright.
    """
    if not product.dark_objects or not product.offsets:
        return None
    add = _offset(product)
    told = []
    for known in product.dark_objects:
        value = next((dark[name] for name in known.bands if name in dark), None)
        if value is None:
            return None
        told.append((known, (value + add) * product.scale + product.offset))
    # Not even black would be so dark if the offset was there to be removed.
    if all(without < known.never_below for known, without in told):
        return False
    return all(known.least <= without < known.most for known, without in told) or None


def contradiction(dark: Mapping[str, float], *, there: bool, product: Product) -> str:
    """Return in words that the offset is in a file whose catalogue says otherwise, or is not."""
    told = " and ".join(f"{value:g} in {name}" for name, value in dark.items())
    state = "still in" if there else "not in"
    return f"dark objects are at {told}, so the offset of {-_offset(product)} is {state} the file"


def _offset(product: Product) -> int:
    """Return what would have to be added to numbers that hold the product's offset."""
    return max((offset.add for offset in product.offsets), key=abs)

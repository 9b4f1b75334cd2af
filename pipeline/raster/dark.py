"""Dark objects: whether a processing offset is in the delivered numbers or not.

Nearly every scene has water, shadow or dense forest somewhere, whose surface reflectance is close
to 0 in blue light and in the short-wave infrared. With an offset of 1000 in the numbers these lie
near 1000, without it near 0: a step that no other property of a scene hides. In the real tile
29UNU (baseline 04.00) 0.1 % of the pixels are below 857 in B02 and below 1011 in B12. A scene of
bright desert or closed cloud has no dark object, and then nothing is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.products.catalogue import Product

#: Share of the pixels that are darker than what counts as the dark object.
_DARKEST_PERCENT = 0.1
#: Fewer pixels tell nothing.
_LEAST_PIXELS = 1000
#: Where the dark objects of both bands lie if the offset is in the numbers, as shares of the
#: offset: reflectances of -0.02 (atmospheric correction overshoots in blue) to 0.035. Dry sand is
#: far brighter in the infrared.
_WITH_OFFSET = (0.8, 1.35)
#: And below what they lie if an offset is removed that was not there: a reflectance of -0.03.
_TOO_DARK = -0.3


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


def contradicts(dark: Sequence[float], *, offset_add: int, product: Product) -> str | None:
    """Return why the dark objects of a scene contradict what is to be added to it, or None.

    Parameters
    ----------
    dark : sequence of float
        Dark objects of two bands far apart in wavelength; of fewer, nothing is said.
    offset_add : int
        What the catalogue's words came to (`Scene.offset_add`).
    """
    step = max((abs(offset.add) for offset in product.offsets), default=0)
    if len(dark) < 2 or not step:
        return None
    told = " and ".join(f"{value:g}" for value in dark)
    least, most = (share * step for share in _WITH_OFFSET)
    if offset_add == 0 and all(least <= value < most for value in dark):
        return f"dark objects are at {told}, so the offset of {step} is still in the file"
    if offset_add and all(value + offset_add < _TOO_DARK * step for value in dark):
        return f"dark objects are at {told}, so the offset of {step} is not in the file"
    return None

"""Delivered numbers to stored numbers: exact, with what was not seen set aside first.

Nothing is scaled here but what has no one scale: products whose every scene brings coefficients of
its own. A processing offset is a whole number and is removed as one; scale and unit travel as
attributes, and physical units are made where the data are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import GiveUp
from pipeline.products.model import FILL_INT16, Product

#: Smallest and largest value that each stored type may hold as data. int16 keeps its least value
#: for fill; the unsigned types have no value to spare, so their fill is told from the mask.
_LEGAL = {
    "int16": (FILL_INT16 + 1, 32767),
    "uint16": (0, 65535),
    "uint8": (0, 255),
}


@dataclass(frozen=True, slots=True)
class Harmonised:
    """What is stored of one delivered array; all three have the shape (band, y, x)."""

    stored: NDArray[Any]
    """The product's `stored_dtype`; `Product.fill` where nothing was seen."""
    fill: NDArray[np.bool_]
    """Where nothing was delivered."""
    saturated: NDArray[np.bool_]
    """Where the product says saturated, or where the value was cut to the stored type's range."""


#: What turns the delivered numbers of one band into physical ones.
Convert = Callable[[NDArray[Any]], NDArray[np.float64]]


def harmonise(
    delivered: NDArray[Any],
    *,
    product: Product,
    offset_add: int,
    conversions: Sequence[Convert] = (),
) -> Harmonised:
    """Return the delivered values as they are stored.

    Nodata is set aside before the offset is added, otherwise Sentinel-2's nodata 0 would become
    a reflectance of -0.1. Negative results are kept: dark water is legally negative after
    atmospheric correction.

    Parameters
    ----------
    delivered : array, shape (band, y, x)
        Digital numbers as read, of any integer type, or float.
    product : Product
        Says nodata, saturation value, and stored type.
    offset_add : int
        Added to every value that is not nodata (`Scene.offset_add`); 0 for labels.
    conversions : sequence of callable, one for each band
        What the scene's own coefficients make of it, for products with a `calibration`: stored as
        float32. None: values are stored as delivered.

    Raises
    ------
    GiveUp
        `corrupt`: the stored type is an integer, and a value is not; or a class code does not
        fit, or is none of the product's `classes` (where it names any). All mean that the file does
        not hold what its product file says.
    """
    fill = _not_seen(delivered, product.nodata)
    saturated = _equal(delivered, product.saturated)
    np.copyto(saturated, False, where=fill)
    if conversions:
        stored = _converted(delivered, conversions)
        fill |= np.isnan(stored)
        np.copyto(stored, product.fill, where=fill)
        return Harmonised(stored, fill, saturated)
    if product.stored_dtype == "float32":
        stored = delivered.astype(np.float32)
        if offset_add:
            stored += np.float32(offset_add)
        np.copyto(stored, product.fill, where=fill)
        return Harmonised(stored, fill, saturated)
    whole = _whole(delivered, fill, product)
    if product.classes:
        _expect_classes(whole, fill, product)
    if offset_add:
        whole = _narrowed(whole) + np.int32(offset_add)
    least, most = _LEGAL[product.stored_dtype]
    whole, cut = _cut_to(whole, least, most)
    if cut is not None:
        cut &= ~fill
        if product.kind == "labels" and cut.any():
            raise GiveUp(
                f"{product.id}: a class code does not fit {product.stored_dtype} "
                f"({least} to {most}).",
                failure="corrupt",
            )
        saturated |= cut
    stored = whole.astype(product.stored_dtype)
    np.copyto(stored, int(product.fill), where=fill)
    return Harmonised(stored, fill, saturated)


def _expect_classes(codes: NDArray[Any], fill: NDArray[np.bool_], product: Product) -> None:
    """Raise `GiveUp` if there are class codes that the product does not name."""
    known = {int(code) for code in product.classes} | {product.ignore_class}
    strange = ~np.isin(codes, [code for code in known if code is not None])
    strange &= ~fill
    if strange.any():
        named = ", ".join(str(code) for code in np.unique(codes[strange])[:5].tolist())
        raise GiveUp(
            f"{product.id}: class codes that its `classes` do not name: {named}.",
            failure="corrupt",
        )


def recoded(
    delivered: NDArray[Any], codes: Mapping[str, int], nodata: float | None, name: str
) -> NDArray[Any]:
    """Return a provider's class codes as the product has them; `nodata` stays what it is.

    Parameters
    ----------
    delivered : array of any shape
        Codes as read.
    codes : mapping of str to int
        Delivered code (as text) to the product's; empty: they are the same.
    name : str
        What was read, for the message.

    Raises
    ------
    GiveUp
        `corrupt`: a code is not in the table.
    """
    if not codes:
        return delivered
    known, place = np.unique(delivered, return_inverse=True)
    table = {float(code): own for code, own in codes.items()}
    if nodata is not None:
        table[float(nodata)] = int(nodata)
    if strange := [value for value in known.tolist() if value not in table]:
        raise GiveUp(f"{name}: class codes {strange[:5]} are not in its table.", failure="corrupt")
    own_codes = np.array([table[value] for value in known.tolist()], dtype=np.int32)
    return own_codes[place.reshape(delivered.shape)]


def _converted(delivered: NDArray[Any], conversions: Sequence[Convert]) -> NDArray[np.float32]:
    stored = np.empty(delivered.shape, np.float32)
    for band, convert in enumerate(conversions):
        stored[band] = convert(delivered[band])
    return stored


def _not_seen(delivered: NDArray[Any], nodata: float | None) -> NDArray[np.bool_]:
    """Return where nothing was delivered; in float data NaN and infinity mean that too."""
    fill = _equal(delivered, nodata)
    if delivered.dtype.kind == "f":
        fill |= ~np.isfinite(delivered)
    return fill


def _equal(delivered: NDArray[Any], value: float | None) -> NDArray[np.bool_]:
    """Return where the delivered number is the special one (None: nowhere)."""
    if value is None or not np.isfinite(value):
        return np.zeros(delivered.shape, dtype=bool)
    # Integers are compared as integers: the same answer, without a float copy of the array.
    exact = int(value) if delivered.dtype.kind in "iu" and value == int(value) else value
    equal: NDArray[np.bool_] = delivered == exact
    return equal


def _whole(delivered: NDArray[Any], fill: NDArray[np.bool_], product: Product) -> NDArray[Any]:
    """Return the values as integers, or raise if one is not whole; fill becomes 0."""
    if delivered.dtype.kind in "iu":
        return delivered
    seen = np.where(fill, 0, delivered)
    whole = np.rint(seen)
    if not np.array_equal(whole, seen):
        raise GiveUp(
            f"{product.id}: the file holds {delivered.dtype} values that are not whole numbers, "
            f"but the product is stored as {product.stored_dtype}; a product file for it needs "
            '`stored_dtype = "float32"`.',
            failure="corrupt",
        )
    # Beyond 2^53 a float no longer tells neighbouring integers apart; such values are cut anyway.
    bounded: NDArray[Any] = np.clip(whole, -(2.0**53), 2.0**53)
    return bounded.astype(np.int64)


def _narrowed(whole: NDArray[Any]) -> NDArray[np.int32]:
    """Return integers as int32; what does not fit stays far out of every stored type's range."""
    kind = np.iinfo(whole.dtype)
    if kind.bits >= 32:
        whole = np.clip(whole, max(int(kind.min), -(2**30)), 2**30)
    return whole.astype(np.int32)


def _cut_to(
    whole: NDArray[Any], least: int, most: int
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Return the values cut to a range, and where that changed them (None: nowhere)."""
    kind = np.iinfo(whole.dtype)
    if kind.min >= least and kind.max <= most:
        return whole, None
    cut = np.zeros(whole.shape, dtype=bool)
    if kind.min < least:
        cut |= whole < least
    if kind.max > most:
        cut |= whole > most
    if not cut.any():
        return whole, None
    low, high = max(least, int(kind.min)), min(most, int(kind.max))
    return np.clip(whole, low, high), cut

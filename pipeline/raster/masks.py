"""Quality layers as delivered, in the words of the common legend.

The legend is `pipeline.products.model.LEGEND`; which delivered value means what, and which
wins where several apply, is said by each product's file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import GiveUp
from pipeline.products.model import LEGEND, MaskLayer, MaskRule, Product

#: Fill in the common legend.
FILL = LEGEND["fill"]
#: Codes of ground that was seen and is hidden by nothing.
CLEAR = [LEGEND[name] for name in ("land", "water", "snow", "valid")]


def decode(
    layers: Mapping[str, NDArray[Any]], product: Product, bands: Collection[str] | None = None
) -> NDArray[np.uint8]:
    """Return the common mask of a patch: the first of the product's rules that matches decides.

    Parameters
    ----------
    layers : dict of str to integer array, shape (y, x)
        Quality layers by name, as delivered, brought to the patch's pixels. An optional layer may
        be absent; the rules that name it then match nothing.
    bands : names of the stored bands or None
        Whose saturation counts; None: that of all bands of the product.

    Returns
    -------
    uint8 array, shape (y, x)
        Codes of the common legend; `product.mask_default` where no rule matched.
    """
    _complete(layers, product)
    shape = next(iter(layers.values())).shape
    mask = np.full(shape, LEGEND[product.mask_default], np.uint8)
    # From the last rule to the first, so that an earlier one overwrites a later one.
    for rule in reversed(product.mask_rules):
        if rule.layer in layers:
            bits = product.saturated_bits(bands) if rule.saturated else rule.bits
            mask[_matches(layers[rule.layer], rule, bits)] = LEGEND[rule.code]
    return mask


def native_dtype(product: Product) -> np.dtype[Any]:
    """Return the smallest unsigned type that holds the product's packed quality layers."""
    bits = max((layer.shift_bits + layer.width_bits for layer in _packed(product)), default=8)
    for kind in (np.uint8, np.uint16, np.uint32):
        if bits <= np.dtype(kind).itemsize * 8:
            return np.dtype(kind)
    return np.dtype(np.uint64)


def pack(layers: Mapping[str, NDArray[Any]], product: Product) -> NDArray[Any]:
    """Return the quality layers as delivered, packed into one integer a pixel.

    Each layer lies at its `shift_bits`; a single layer at 0 is therefore stored unchanged.
    Layers that mark every band on its own are not packed. An absent optional layer reads as 0.

    Returns
    -------
    unsigned integer array, shape (y, x)
        Of `native_dtype(product)`.

    Raises
    ------
    GiveUp
        `corrupt`: a delivered value does not fit the bits its layer has; packing it would
        change a neighbour.
    """
    _complete(layers, product)
    shape = next(iter(layers.values())).shape
    native = np.zeros(shape, native_dtype(product))
    for layer in _packed(product):
        if layer.name not in layers:
            continue
        values = layers[layer.name]
        if values.size and not 0 <= int(values.min()) <= int(values.max()) < 1 << layer.width_bits:
            raise GiveUp(
                f"{product.id}: quality layer {layer.name} holds {int(values.min())} to "
                f"{int(values.max())}, but its values have {layer.width_bits} bits.",
                failure="corrupt",
            )
        native |= values.astype(native.dtype) << native.dtype.type(layer.shift_bits)
    return native


@dataclass(frozen=True, slots=True)
class Fractions:
    """How much of a patch was seen, and how much of that is usable; each 0 to 1."""

    valid: float
    """Share of all pixels that were seen."""
    clear: float | None
    """Share of the seen pixels that are not cloudy; None: nothing was seen."""
    cloudy: float | None
    """Share of the seen pixels that are cloudy; None: nothing was seen."""


def fractions(mask: NDArray[np.uint8], cloudy: Collection[str]) -> Fractions:
    """Return how much of a patch was seen and how much of that is cloudy.

    Fill pixels were never seen, so they count neither for nor against: a patch cut by the swath
    edge can be perfectly clear. Sentinel-2's own metadata counts in the same way.

    Parameters
    ----------
    mask : uint8 array, shape (y, x)
        Codes of the common legend.
    cloudy : names of the legend
        What counts as cloudy.

    Examples
    --------
    >>> fractions(np.array([[0, 1], [5, 2]], dtype="uint8"), ["cloud"]).cloudy
    0.3333333333333333
    """
    counts = np.bincount(mask.ravel(), minlength=max(LEGEND.values()) + 1)
    seen = mask.size - int(counts[FILL])
    if not seen:
        return Fractions(valid=0.0, clear=None, cloudy=None)
    bad = sum(int(counts[LEGEND[name]]) for name in set(cloudy))
    return Fractions(valid=seen / mask.size, clear=(seen - bad) / seen, cloudy=bad / seen)


def _matches(values: NDArray[Any], rule: MaskRule, bits: int | None) -> NDArray[np.bool_]:
    if values.dtype.kind not in "iu":
        raise GiveUp(
            f"quality layer {rule.layer} holds {values.dtype}; codes and bits are integers.",
            failure="corrupt",
        )
    matched: NDArray[np.bool_]
    if bits is not None:
        matched = (values.astype(np.int64, copy=False) & bits) != 0
    else:
        # One comparison after the other: the few codes of a rule cost less than sorting them.
        matched = np.logical_or.reduce([values == code for code in rule.values or ()])
    return matched


def _packed(product: Product) -> list[MaskLayer]:
    """Return the layers that have one value a pixel."""
    return [layer for layer in product.mask_layers if not layer.per_band]


def _complete(layers: Mapping[str, NDArray[Any]], product: Product) -> None:
    """Refuse to decide without a layer that the product always delivers."""
    absent = [
        layer.name for layer in _packed(product) if not layer.optional and layer.name not in layers
    ]
    if absent or not layers:
        named = ", ".join(absent) or "any"
        raise ValueError(f"{product.id}: no quality layer {named} was given to decode.")

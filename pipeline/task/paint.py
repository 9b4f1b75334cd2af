"""One patch from the scenes of one acquisition: exact values, one mask, nothing resampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.products.model import LEGEND, Product
from pipeline.raster.masks import CLEAR, FILL
from pipeline.raster.radiometry import Convert, Harmonised, harmonise

_DEFECTIVE = LEGEND["defective"]


@dataclass(frozen=True, slots=True)
class Exposure:
    """What one scene shows of a patch, in stored pixels."""

    delivered: NDArray[Any]
    """Digital numbers, shape (band, y, x)."""
    offset_add: int
    codes: NDArray[np.uint8]
    """Common mask, shape (y, x); fill where the scene saw nothing."""
    native: NDArray[Any] | None
    """Quality layers as delivered, packed, shape (y, x)."""
    marks: NDArray[Any] | None
    """The product's per-band quality layer, shape (band, y, x); not 0 where a value is marked."""
    conversions: tuple[Convert, ...] = ()
    """What the scene's coefficients make of each band; none where the product needs none."""


@dataclass(slots=True)
class Picture:
    """A patch as it is stored, and what is said of it."""

    bands: NDArray[Any]
    """Stored type, shape (band, y, x); the product's fill where nothing was seen."""
    fill: NDArray[np.bool_]
    """Where `bands` holds fill, same shape."""
    codes: NDArray[np.uint8]
    native: NDArray[Any] | None
    absent: tuple[int, ...]
    """Bands (from 0) that hold only nodata though the patch was seen."""
    defective_fraction: float | None
    saturated_count: int


def paint(exposures: Sequence[Exposure], product: Product) -> Picture:
    """Return one patch of several scenes of a datatake: the first that saw a pixel gives it.

    A pixel is seen where the scene's mask is not fill and at least one band has a value; it comes
    from one scene in all bands. Bands without any value in the patch are absent, and no defect.
    Where only some of the others lack a value, or one is saturated, a clear pixel becomes
    `defective`.

    Raises
    ------
    GiveUp
        The file does not hold what its product file says (`corrupt`).
    """
    canvas = _Canvas(exposures[0], product)
    for exposure in exposures[1:]:
        canvas.add(exposure)
    return canvas.picture()


class _Canvas:
    """Scenes painted so far; the arrays of the first are taken over, not copied."""

    def __init__(self, exposure: Exposure, product: Product) -> None:
        self._product = product
        made = _harmonised(exposure, product)
        self._stored, self._fill, self._saturated = made.stored, made.fill, made.saturated
        self._seen = _seen(exposure.codes, made.fill)
        self._codes = np.where(self._seen, exposure.codes, np.uint8(FILL))
        self._native = exposure.native
        self._marks = exposure.marks

    def add(self, exposure: Exposure) -> None:
        """Take from one more scene the pixels that none before it saw."""
        made = _harmonised(exposure, self._product)
        take = _seen(exposure.codes, made.fill) & ~self._seen
        if not take.any():
            return
        np.copyto(self._stored, made.stored, where=take)
        np.copyto(self._fill, made.fill, where=take)
        np.copyto(self._saturated, made.saturated, where=take)
        self._codes[take] = exposure.codes[take]
        if self._native is not None and exposure.native is not None:
            self._native = np.where(take, exposure.native, self._native)
        if self._marks is not None and exposure.marks is not None:
            self._marks = np.where(take, exposure.marks, self._marks)
        self._seen |= take

    def picture(self) -> Picture:
        """Return the finished patch."""
        seen = self._seen
        if not seen.all():
            self._stored[:, ~seen] = self._product.fill
            self._fill[:, ~seen] = True
            self._saturated[:, ~seen] = False
        present: NDArray[np.bool_] = ~np.asarray(self._fill.all(axis=(1, 2)))
        saturated = int(np.count_nonzero(self._saturated))
        spoilt = self._holes(present)
        if saturated:
            spoilt |= self._saturated.any(axis=0)
        # A cloud stays a cloud: bright ones saturate, and whoever drops clouds must find them.
        self._codes[spoilt & np.isin(self._codes, CLEAR)] = _DEFECTIVE
        return Picture(
            bands=self._stored,
            fill=self._fill,
            codes=self._codes,
            native=self._native,
            absent=tuple(int(band) for band in np.flatnonzero(~present)) if seen.any() else (),
            defective_fraction=self._marked(present),
            saturated_count=saturated,
        )

    def _holes(self, present: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the seen pixels that lack a value in a band which has some elsewhere."""
        holes = np.zeros(self._seen.shape, dtype=bool)
        if self._fill.any():
            for band in np.flatnonzero(present):
                holes |= self._fill[band]
        holes &= self._seen
        return holes

    def _marked(self, present: NDArray[np.bool_]) -> float | None:
        """Return the share of the values that the per-band quality layer marks."""
        if self._marks is None:
            return None
        values = int(np.count_nonzero(present)) * int(np.count_nonzero(self._seen))
        if not values:
            return None
        marked = sum(
            int(np.count_nonzero(self._marks[band][self._seen])) for band in np.flatnonzero(present)
        )
        return marked / values


def _harmonised(exposure: Exposure, product: Product) -> Harmonised:
    return harmonise(
        exposure.delivered,
        product=product,
        offset_add=exposure.offset_add,
        conversions=exposure.conversions,
    )


def _seen(codes: NDArray[np.uint8], fill: NDArray[np.bool_]) -> NDArray[np.bool_]:
    seen: NDArray[np.bool_] = codes != FILL
    if fill.any():
        seen &= ~fill.all(axis=0)
    return seen

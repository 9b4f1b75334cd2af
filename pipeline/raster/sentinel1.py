"""Sentinel-1 GRD: from amplitudes in radar geometry to sigma nought.

Sigma nought is DN² / A² with A from the `sigmaNought` table of the polarisation's calibration
annotation, which stands at some lines and samples and is linear between them. Amplitude 0 means
nothing was seen: since processor 2.90 (March 2018) the noise along the borders of the swath is set
to it. Older scenes keep that noise.

Source: MPC, Radiometric Calibration of S-1 Level-1 Products; Sentinel-1 Product Specification.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import GiveUp

#: Decibels are rounded to thousandths: the last bits of a logarithm differ from processor to
#: processor, and stored pixels must not. Speckle is a thousand times as large.
_DECIMALS_DB = 3
#: When processor 2.90 came into use.
_MARKED_SINCE = datetime(2018, 3, 13, tzinfo=UTC)
#: Of the border noise: how far it reaches into an image, and the amplitude, without the noise, that
#: something seen has at least.
_BORDER_PX = 500
_LEAST_AMPLITUDE = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A number for every line and sample of an image, linear between those that are listed."""

    lines: NDArray[np.float64]
    """Of the table's rows, ascending."""
    samples: tuple[NDArray[np.float64], ...]
    """Of each row's entries, ascending."""
    values: tuple[NDArray[np.float64], ...]
    """Of each row's entries."""

    def part(self, line: int, sample: int, height: int, width: int) -> NDArray[np.float64]:
        """Return the numbers of a part of the image, from a line and a sample."""
        where = sample + np.arange(width, dtype=np.float64)
        rows = np.stack(
            [np.interp(where, x, v) for x, v in zip(self.samples, self.values, strict=True)]
        )
        at = np.interp(line + np.arange(height), self.lines, np.arange(len(self.lines)))
        low = np.minimum(at.astype(np.intp), max(len(self.lines) - 2, 0))
        high = np.minimum(low + 1, len(self.lines) - 1)
        share = (at - low)[:, None]
        found: NDArray[np.float64] = rows[low] * (1 - share) + rows[high] * share
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What makes sigma nought of the amplitudes of one polarisation of a scene."""

    amplitudes: Table
    """A, by which amplitudes are divided."""
    noise: Table | None = None
    """Power of the noise, for scenes whose border noise is still in them; else None."""

    def power(self, delivered: NDArray[Any], line: int, sample: int) -> NDArray[np.float32]:
        """Return sigma nought, linear.

        Parameters
        ----------
        delivered : array, shape (band, y, x)
            Amplitudes (DN), all of this polarisation.
        line, sample : int
            Of the first of them in the image.

        Returns
        -------
        float32 array of the same shape; NaN where nothing was seen.
        """
        _, height, width = delivered.shape
        seen = np.where(delivered == 0, np.nan, delivered.astype(np.float64))
        if self.noise is not None:
            margin = _margin(self.noise, line, sample, height, width)
            without = seen**2 - self.noise.part(line, sample, height, width)
            seen[margin & (without < _LEAST_AMPLITUDE**2)] = np.nan
        amplitude = self.amplitudes.part(line, sample, height, width)
        power: NDArray[np.float32] = ((seen / amplitude) ** 2).astype(np.float32)
        return power


def _margin(table: Table, line: int, sample: int, height: int, width: int) -> NDArray[np.bool_]:
    """Return which pixels of a part lie near a border of the image, shape (1, y, x)."""
    last_line, last_sample = table.lines[-1], max(float(x[-1]) for x in table.samples)
    lines, samples = line + np.arange(height), sample + np.arange(width)
    far_lines = np.minimum(lines, last_line - lines) < _BORDER_PX
    far_samples = np.minimum(samples, last_sample - samples) < _BORDER_PX
    near: NDArray[np.bool_] = (far_lines[:, None] | far_samples[None, :])[None]
    return near


def decibels(power: NDArray[Any]) -> NDArray[np.float64]:
    """Return 10 log10 of a linear power; NaN where there is none."""
    seen = np.where(power > 0, power, np.nan).astype(np.float64)
    rounded: NDArray[np.float64] = np.round(10 * np.log10(seen), _DECIMALS_DB)
    return rounded


def has_border_noise(acquired: datetime) -> bool:
    """Return whether a scene is from before the processor marked the noise along its borders."""
    return acquired < _MARKED_SINCE


def parse_calibration(text: bytes, name: str) -> Table:
    """Read the amplitudes of a calibration annotation.

    Raises
    ------
    GiveUp
        `corrupt`: it is no such XML, or its table is not in order.
    """
    return _parse(text, name, "calibrationVectorList/calibrationVector", "sigmaNought", least=1e-9)


def parse_noise(text: bytes, name: str) -> Table:
    """Read the power of the noise; raises as `parse_calibration`."""
    return _parse(text, name, "noiseVectorList/noiseVector", "noiseLut", least=0.0)


def _parse(text: bytes, name: str, path: str, tag: str, *, least: float) -> Table:
    try:
        vectors = ET.fromstring(text).findall(path)
        lines = np.array([float(vector.findtext("line", "")) for vector in vectors])
        samples = tuple(_numbers(vector, "pixel") for vector in vectors)
        values = tuple(_numbers(vector, tag) for vector in vectors)
    except (ET.ParseError, ValueError) as error:
        raise GiveUp(f"{name} has no table {tag}: {error}", failure="corrupt") from None
    orderly = len(lines) > 0 and bool((np.diff(lines) > 0).all())
    for x, v in zip(samples, values, strict=True):
        orderly &= (
            len(x) == len(v) > 0 and bool((np.diff(x) > 0).all()) and bool((v >= least).all())
        )
    if not orderly or not all(np.isfinite(part).all() for part in (lines, *samples, *values)):
        raise GiveUp(f"the table {tag} of {name} is not in order", failure="corrupt")
    return Table(lines, samples, values)


def _numbers(vector: ET.Element, tag: str) -> NDArray[np.float64]:
    return np.array([float(word) for word in vector.findtext(tag, "").split()])

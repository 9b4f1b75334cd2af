"""EnMAP levels 1B and 1C: a scene's own gains, offsets and camera, from its METADATA.XML.

Numbers become radiance at the sensor by the gain and offset of their band. Level 1B lies in the
geometry of two detectors, whose images and cameras differ: the lines of one are some 20 behind.

Source: METADATA.XML of a DLR product (schema 00.02.00) for names, order of the coefficients and the
origin of rows and columns (the corners of its tile fall on rows and columns 0 and 999 of the VNIR
detector); GFZ's EnPT (metadata_sensorgeo.py, images_sensorgeo.py) for what only level 1B has:
radiance = number x gain + offset in W/(m2 sr nm), bands of the VNIR detector listed before those of
SWIR, quality layers in the geometry of VNIR.
"""

from __future__ import annotations

import io
import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import GiveUp
from pipeline.raster.camera import TERMS, Camera

#: The detectors, as the parts of level 1B's product file are named, in the order of its table.
DETECTORS = ("vnir", "swir")
_BAND = "specific/bandCharacterisation/bandID"
_BACKGROUND = "specific/backgroundValue"
_HEIGHT = "specific/meanGroundElevation"
_CAMERA = "product/navigation/RPC/bandID"
_CHANNELS = {detector: f"product/image/{detector}/channels" for detector in DETECTORS}
#: Beyond it nothing is needed: orbit and the time of every frame.
_LAST = "product/navigation/RPC"


@dataclass(frozen=True, slots=True)
class Radiance:
    """From the numbers of one band of one scene to radiance in W/(m2 sr nm)."""

    gain: float
    add: float
    background: float | None
    """Number that means nothing was seen; None: the scene states none."""

    def __call__(self, delivered: NDArray[Any]) -> NDArray[np.float64]:
        """Return the radiance of numbers of any shape; NaN where nothing was seen."""
        linear = delivered.astype(np.float64) * self.gain + self.add
        return linear if self.background is None else _without(linear, delivered, self.background)

    def before(self, values: NDArray[Any], line: int, sample: int) -> NDArray[np.float32]:
        """Return the same of a part of the image, before it is warped (`raster.warp.Prepare`)."""
        del line, sample  # one gain for all of them
        return self(values).astype(np.float32)


@dataclass(slots=True)
class Level1:
    """What a METADATA.XML says of each band, in the order of its tables."""

    gains: list[tuple[float, float]] = field(default_factory=list)
    cameras: list[Camera] = field(default_factory=list)
    """Empty for level 1C, which is on a grid."""
    channels: dict[str, int] = field(default_factory=dict)
    """Bands of each detector's image; empty where one image holds all."""
    background: float | None = None

    def row(self, part: str | None, index: int, name: str) -> int:
        """Return the row of the tables for a band, by its 1-based position in its image.

        Raises
        ------
        GiveUp
            `corrupt`: the tables do not reach so far.
        """
        first = self.channels.get("vnir", 0) if part == "swir" else 0
        end = len(self.gains) if part is None else first + self.channels.get(part, 0)
        row = first + index - 1
        if not first <= row < min(end, len(self.gains)):
            of = "" if part is None else f" of detector {part}"
            raise GiveUp(f"{name} does not describe band {index}{of}", failure="corrupt")
        return row

    def radiance(self, row: int) -> Radiance:
        """Return how the numbers of a band become radiance."""
        return Radiance(*self.gains[row], self.background)

    def camera(self, row: int, name: str) -> Camera:
        """Return where a band saw a place; `GiveUp` (`corrupt`) if nothing says it."""
        if row >= len(self.cameras):
            raise GiveUp(f"{name} has no camera (RPC) for band {row + 1}", failure="corrupt")
        return self.cameras[row]


def parse_level1(text: bytes, name: str) -> Level1:
    """Return what the METADATA.XML of a scene says of its bands.

    Raises
    ------
    GiveUp
        `corrupt`: it is no METADATA.XML of EnMAP, or a number is missing or none.
    """
    found, height_m = Level1(), math.nan
    try:
        for where, element in _elements(text):
            if where == _BAND:
                gain = _number(element, "GainOfBand", name), _number(element, "OffsetOfBand", name)
                found.gains.append(gain)
            elif where == _BACKGROUND:
                found.background = _finite(element.text, where, name)
            elif where == _HEIGHT:
                height_m = _finite(element.text, where, name)
            elif where == _CAMERA:
                found.cameras.append(_camera(element, height_m, name))
                element.clear()
            elif where in _CHANNELS.values():
                detector = next(key for key, path in _CHANNELS.items() if path == where)
                found.channels[detector] = int(_finite(element.text, where, name))
            elif where == _LAST:
                break
    except ET.ParseError as error:
        raise GiveUp(
            f"{name} is not the METADATA.XML of a scene: {error}", failure="corrupt"
        ) from None
    if not found.gains:
        raise GiveUp(f"{name} has no {_BAND}: not the METADATA.XML of a scene", failure="corrupt")
    return found


def _elements(text: bytes) -> Iterator[tuple[str, ET.Element]]:
    """Yield every element as it ends, with its path below the root."""
    trail: list[str] = []
    for event, element in ET.iterparse(io.BytesIO(text), events=("start", "end")):
        if event == "start":
            trail.append(element.tag)
            continue
        yield "/".join(trail[1:]), element
        trail.pop()


def _camera(element: ET.Element, height_m: float, name: str) -> Camera:
    def number(key: str) -> float:
        return _number(element, key, name)

    def polynomial(key: str) -> tuple[float, ...]:
        return tuple(number(f"{key}_{term:02d}") for term in range(1, TERMS + 1))

    height_off = number("HEIGHT_OFF")
    return Camera(
        line_off=number("ROW_OFF"),
        line_scale=number("ROW_SCALE"),
        sample_off=number("COL_OFF"),
        sample_scale=number("COL_SCALE"),
        lat_off=number("LAT_OFF"),
        lat_scale=number("LAT_SCALE"),
        lon_off=number("LONG_OFF"),
        lon_scale=number("LONG_SCALE"),
        height_off=height_off,
        height_scale=number("HEIGHT_SCALE"),
        line_num=polynomial("ROW_NUM"),
        line_den=polynomial("ROW_DEN"),
        sample_num=polynomial("COL_NUM"),
        sample_den=polynomial("COL_DEN"),
        height_m=height_off if math.isnan(height_m) else height_m,
    )


def _number(element: ET.Element, key: str, name: str) -> float:
    where = f"{element.tag} {element.get('number')}, {key}"
    return _finite(element.findtext(key), where, name)


def _finite(text: str | None, where: str, name: str) -> float:
    try:
        number = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise GiveUp(f"{name} says {where} is {str(text)[:40]!r}", failure="corrupt")
    return number


def _without(
    values: NDArray[np.float64], delivered: NDArray[Any], background: float
) -> NDArray[np.float64]:
    return np.where(delivered == background, np.nan, values)

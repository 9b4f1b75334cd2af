"""Read single facts out of a catalogue item, which is hostile until checked.

Each function returns a checked value or raises `Unfit` with a named reason. What the providers
really write is the guide: numbers as text, whole numbers as int, CRS on the assets and not on the
item, null where a value should be, keys missing after a `fields` search.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import Transformer

from pipeline.products.catalogue import fact_value
from pipeline.products.model import Band, ProviderFacts
from pipeline.records import Asset

#: A value that becomes part of an id: no slash, no dot at the start, nothing a file name dislikes.
_IDENTIFIER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_LONGEST_HREF = 4096
#: Largest edge of a raster, in pixels; real scenes have at most some 20,000.
_LARGEST_EDGE_PX = 200_000
_YEAR = re.compile(r"[0-9]{4}")
#: What parsing of JSON that is not what it should be may raise.
_MALFORMED = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError)
#: What a property was called before: the older Copernicus catalogue writes `cloudCover`.
_FORMER = {"eo:cloud_cover": "cloudCover"}
#: How far the centre of a band may lie from where it is looked for, in full widths at half maximum.
#: EnMAP's tables (`enmap-l2a.csv`, `enmap-l2a-older.csv`) put one channel at centres that differ by
#: up to 0.033 widths, and neighbours of one detector at least 0.79 apart: 0.2 is far from both.
CENTRE_TOLERANCE = 0.2
#: Less than any table can tell apart.
_TIE_NM = 1e-6
#: Rows of a band table; imaging spectrometers have some hundreds of bands.
_MOST_BANDS = 4096
#: Longitudes are right up to so many degrees.
_TURNS = (-360, 0, 360)


class Unfit(Exception):
    """An item cannot be used; its reason is a class of `pipeline.records.Unusable`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail[:200]


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the pixels of a file lie."""

    epsg: int | None
    x_min_m: float
    y_min_m: float
    x_max_m: float
    y_max_m: float
    pixel_m: float | None
    """None where only the outer bounds are stated."""


@dataclass(frozen=True, slots=True)
class Table:
    """Which bands a file holds: arrays of shape (row,)."""

    indexes: NDArray[np.integer[Any]]
    """1-based positions in the file."""
    centres_nm: NDArray[np.float64]
    """NaN where none is stated."""
    widths_nm: NDArray[np.float64]
    """Full widths at half maximum; NaN where none is stated."""


class Facts:
    """The properties of one item, in our words.

    Parameters
    ----------
    item : dict
        Raw STAC item.
    facts : ProviderFacts
        Which property holds what, and what to cut out of it.
    """

    def __init__(self, item: Mapping[str, Any], facts: ProviderFacts) -> None:
        self._item = item
        self._facts = facts
        properties = item.get("properties")
        if not isinstance(properties, Mapping):
            raise Unfit("bad-value", "`properties` is missing")
        self.properties: Mapping[str, Any] = properties

    def raw(self, word: str) -> Any:
        """Return what the item says, uncut; None if it says nothing."""
        source = self._facts.properties.get(word) or self._facts.facts.get(word)
        if source is None:
            return None
        if source.startswith("="):
            return source[1:]
        return self.stated(source)

    def stated(self, source: str) -> Any:
        """Return a property by the catalogue's own word, or the item's `id`."""
        if source == "id":
            return self._item.get("id")
        value = self.properties.get(source)
        return self.properties.get(_FORMER.get(source, "")) if value is None else value

    def text(self, word: str) -> str:
        """Return a fact as text, cut by the provider's pattern; empty if the item says nothing."""
        value = self.raw(word)
        if value is None or isinstance(value, bool | list | dict):
            return ""
        pattern = self._facts.patterns.get(word)
        if pattern is None:
            return str(value)
        found = re.search(pattern, str(value)[:500])
        if found is None:
            raise Unfit("bad-value", f"{word} {str(value)[:80]!r} does not fit {pattern!r}")
        return "_".join(found.groups())

    def identifier(self, word: str) -> str:
        """Return a fact that names something, fit to be part of an id."""
        value = self.text(word)
        if not _IDENTIFIER.fullmatch(value):
            raise Unfit("bad-value", f"{word} {value[:80]!r} cannot be part of an id")
        return value

    def number(self, word: str) -> float | None:
        """Return a fact as a number; None if the item says nothing."""
        value = self.raw(word)
        if value is None or value == "":
            return None
        return as_number(value, word)

    def further(self) -> dict[str, int | float | str]:
        """Return the further facts that the item states, by the product file's words."""
        found = {}
        for word in sorted(self._facts.facts):
            raw = self.raw(word)
            cut = raw if word not in self._facts.patterns else self.text(word)
            if (value := fact_value(cut)) is not None:
                found[word] = value
        return found

    def moments(self) -> list[datetime]:
        """Return the time of acquisition (the start of a span first), then the nominal time."""
        words = ("start_datetime", "datetime")
        values = [self.text("acquired"), *(self.properties.get(word) for word in words)]
        found = [as_moment(value) for value in values if value]
        if not found:
            raise Unfit("no-datetime", "neither `datetime` nor `start_datetime` is given")
        return found


def as_number(value: object, what: str) -> float:
    """Return a finite number, whether it came as one or as text."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Unfit("bad-value", f"{what} is {str(value)[:80]!r}, not a number")
    return number


def as_moment(value: object) -> datetime:
    """Return a moment in UTC from ISO 8601 text, or the start of a year.

    Without a zone it is taken as UTC.
    """
    text = str(value)
    try:
        moment = datetime.fromisoformat(f"{text}-01-01" if _YEAR.fullmatch(text) else text)
    except ValueError:
        raise Unfit("no-datetime", f"{str(value)[:80]!r} is no time") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def footprint(item: Mapping[str, Any]) -> shapely.Geometry:
    """Return what was seen, as polygons in longitude and latitude, cut at the antimeridian.

    A ring that jumps from 179 to -179 is read as crossing the antimeridian, not as going round
    the world; the part beyond 180 comes back on the other side.
    """
    value = item.get("geometry")
    if not isinstance(value, Mapping) or value.get("type") not in ("Polygon", "MultiPolygon"):
        raise Unfit("no-geometry", f"geometry is {str(value)[:80]!r}")
    try:
        with np.errstate(invalid="ignore"):  # what is no number is looked for below
            shape = shapely.force_2d(shapely.geometry.shape(value))
        corners = shapely.get_coordinates(shape)
    except (shapely.errors.ShapelyError, *_MALFORMED) as error:
        raise Unfit("no-geometry", f"geometry cannot be read: {error}") from None
    if not len(corners) or not np.isfinite(corners).all() or (np.abs(corners) > (360, 90)).any():
        raise Unfit("no-geometry", "geometry is empty or leaves the globe")
    if np.abs(np.diff(corners[:, 0])).max() > 180:
        shape = shapely.transform(shape, _unwrapped)
    shape = _polygons(shape if shape.is_valid else shapely.make_valid(shape))
    if shape.bounds[0] < -180 or shape.bounds[2] > 180:
        turns = [
            shape.intersection(shapely.box(turn - 180, -90, turn + 180, 90)) for turn in _TURNS
        ]
        back = [
            shapely.transform(part, partial(_turned, -turn))
            for part, turn in zip(turns, _TURNS, strict=True)
        ]
        shape = _polygons(shapely.union_all(back))
    if shape.is_empty:
        raise Unfit("no-geometry", "geometry has no area")
    return shape


def _unwrapped(lonlat: Any) -> Any:
    return np.where(lonlat[:, :1] < 0, lonlat + np.array([360, 0]), lonlat)


def _turned(turn_deg: float, lonlat: Any) -> Any:
    return lonlat + np.array([turn_deg, 0])


def _polygons(shape: shapely.Geometry) -> shapely.Geometry:
    """Drop the points and lines that making a geometry valid or cutting it may leave."""
    parts = [part for part in shapely.get_parts(shape) if part.geom_type == "Polygon"]
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def assets(
    item: Mapping[str, Any], names: Iterator[str] | tuple[str, ...]
) -> dict[str, tuple[Asset, Mapping[str, Any]]]:
    """Return the wanted assets that are there, by name, each with its raw entry."""
    entries = item.get("assets")
    if not isinstance(entries, Mapping):
        raise Unfit("no-assets", "`assets` is missing")
    found = {}
    for name in names:
        entry = entries.get(name)
        if not isinstance(entry, Mapping):
            continue
        href = entry.get("href")
        if not isinstance(href, str) or not 0 < len(href) <= _LONGEST_HREF:
            raise Unfit("refused-href", f"the address of {name} is {str(href)[:80]!r}")
        size, checksum = entry.get("file:size"), entry.get("file:checksum")
        found[name] = (
            Asset(
                name=name,
                href=href,
                size_bytes=size if isinstance(size, int) and size >= 0 else None,
                checksum=checksum if isinstance(checksum, str) else None,
            ),
            entry,
        )
    return found


def grid(entry: Mapping[str, Any], properties: Mapping[str, Any]) -> Grid | None:
    """Return where the pixels of an asset lie, from the asset or else from the item.

    None if neither says so. `Unfit` if they are rotated, upside down, not square, or absurd.
    """

    def stated(key: str) -> Any:
        value = entry.get(key)
        return properties.get(key) if value is None else value

    epsg = _epsg(stated("proj:epsg"), stated("proj:code"))
    transform, shape, box = stated("proj:transform"), stated("proj:shape"), stated("proj:bbox")
    if isinstance(transform, list) and isinstance(shape, list) and len(shape) == 2:
        return _from_transform(epsg, transform, shape)
    if isinstance(box, list) and len(box) == 4:
        x_min, y_min, x_max, y_max = (as_number(edge, "proj:bbox") for edge in box)
        if x_min >= x_max or y_min >= y_max:
            raise Unfit("bad-grid", f"proj:bbox is {box}")
        return Grid(epsg, x_min, y_min, x_max, y_max, None)
    return None


def _from_transform(epsg: int | None, transform: list[Any], shape: list[Any]) -> Grid:
    numbers = [as_number(value, "proj:transform") for value in transform[:6]]
    rows, columns = (as_number(value, "proj:shape") for value in shape)
    if len(numbers) < 6 or not all(1 <= edge <= _LARGEST_EDGE_PX for edge in (rows, columns)):
        raise Unfit("bad-grid", f"proj:transform {transform[:9]}, proj:shape {shape}")
    pixel, turn_x, x_min, turn_y, minus_pixel, y_max = numbers
    if turn_x or turn_y or pixel <= 0 or minus_pixel != -pixel:
        raise Unfit("bad-grid", f"pixels are not square and north up: {transform[:6]}")
    return Grid(epsg, x_min, y_max - rows * pixel, x_min + columns * pixel, y_max, pixel_m=pixel)


def _epsg(number: object, code: object) -> int | None:
    text = str(code if number is None else number).upper().removeprefix("EPSG:")
    return int(text) if re.fullmatch(r"\d{4,6}", text) else None


@cache
def _from_lonlat(epsg: int) -> Transformer:
    return Transformer.from_crs("OGC:CRS84", epsg, always_xy=True)


def utm_of(shape: shapely.Geometry, pixels: Grid) -> int:
    """Find the UTM zone in which a footprint lies where the pixels are.

    For items that state the grid and leave out the CRS (20 of 106 recorded EnMAP items). The
    neighbours of the footprint's zone are tried too, in both conventions for the south; a zone is
    6 degrees wide and a scene is not, so at most one of them fits.
    """
    seen = max(shapely.get_parts(shape), key=shapely.area)  # one side of the antimeridian
    lon, lat = seen.centroid.x, seen.centroid.y
    own = int((lon + 180) // 6)
    width, height = pixels.x_max_m - pixels.x_min_m, pixels.y_max_m - pixels.y_min_m
    fits: list[int] = []
    for zone in ((own + step) % 60 + 1 for step in (-1, 0, 1)):
        for epsg in (32600 + zone, *((32700 + zone,) if lat < 0 else ())):
            x, y = _from_lonlat(epsg).transform(lon, lat)
            off_x = abs(x - (pixels.x_min_m + pixels.x_max_m) / 2)
            off_y = abs(y - (pixels.y_min_m + pixels.y_max_m) / 2)
            if off_x < width / 2 and off_y < height / 2:
                fits.append(epsg)
    if len(fits) != 1:
        raise Unfit("no-crs", f"no CRS is stated, and {len(fits)} UTM zones would fit")
    return fits[0]


def stated_table(entry: Mapping[str, Any]) -> Table | None:
    """Return the band table that an asset states; None if it states none, or no wavelengths.

    Centres below 100 are micrometres, as STAC has it (DLR writes nm). STAC 1.1 says `bands` and
    `eo:center_wavelength` for the `eo:bands` and `center_wavelength` of 1.0.
    """
    table = entry.get("eo:bands", entry.get("bands"))
    if not isinstance(table, list):
        return None
    if len(table) > _MOST_BANDS:
        raise Unfit("other-bands", f"the file has {len(table)} bands")
    rows = [row if isinstance(row, Mapping) else {} for row in table]
    centres = (row.get("center_wavelength", row.get("eo:center_wavelength")) for row in rows)
    widths = (row.get("full_width_half_max", row.get("eo:full_width_half_max")) for row in rows)
    return _table(tuple(map(_number_or_text, centres)), tuple(map(_number_or_text, widths)))


def _number_or_text(value: object) -> float | str | None:
    """Return what can be a number as it is, else say that it is none."""
    if value is None or type(value) in (float, int, str):
        return value  # type: ignore[return-value]
    return as_number(value, "a band's wavelength or width")


@lru_cache(maxsize=16)
def _table(
    centres: tuple[float | str | None, ...], widths: tuple[float | str | None, ...]
) -> Table | None:
    """Read a band table once: all files of a processor have the same."""
    if all(value is None for value in centres):
        return None
    found = np.array(
        [
            [np.nan if value is None else as_number(value, word) for value in values]
            for values, word in ((centres, "center_wavelength"), (widths, "full_width_half_max"))
        ]
    )
    found *= np.where(found[0] < 100, 1000, 1)
    return Table(np.arange(1, len(centres) + 1), found[0], found[1])


def file_indexes(bands: Sequence[Band], table: Table) -> list[int]:
    """Return for each band its position in a file with that table, 0 where it has none.

    A band is at the row whose centre and width together differ least from its own, if the centres
    are within `CENTRE_TOLERANCE` of its width; where the table states no widths, centres decide.
    Where detectors overlap, two channels may lie 0.2 nm apart and change places between processors:
    their widths tell them apart. Of rows that are alike the one at the band's own position counts.
    A row serves one band only, the one that is nearer.
    """
    at = np.array([band.index for band in bands])
    centres = np.array([band.wavelength_nm or np.nan for band in bands])
    widths = np.array([band.fwhm_nm or np.nan for band in bands])
    if np.array_equal(centres, table.centres_nm) and np.array_equal(widths, table.widths_nm):
        return table.indexes.tolist()  # type: ignore[no-any-return]
    apart = np.abs(centres[:, None] - table.centres_nm)
    near = apart <= CENTRE_TOLERANCE * widths[:, None]
    unlike = apart + np.nan_to_num(np.abs(widths[:, None] - table.widths_nm))
    unlike += _TIE_NM * (table.indexes != at[:, None])
    unlike = np.where(near, unlike, np.inf)
    row = unlike.argmin(axis=1)
    least = unlike[np.arange(len(bands)), row]
    nearest = np.full(len(table.indexes), np.inf)
    np.minimum.at(nearest, row, least)
    found = np.where(np.isfinite(least) & (least == nearest[row]), table.indexes[row], 0)
    # What has no wavelength or width cannot be looked for.
    return np.where(np.isfinite(centres * widths), found, at).tolist()  # type: ignore[no-any-return]

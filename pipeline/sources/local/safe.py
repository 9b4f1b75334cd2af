"""Sentinel-2 products of level 1C and 2A as users have them on disk: SAFE folders.

The two metadata files tell everything but one thing: which images are there. Manifest and
metadata list files that a cut-down copy does not have, so the folders are looked at.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from pipeline.sources.local.grid import RasterGrid, Unreadable, asset_of, make_item, problem_item


@dataclass(frozen=True, slots=True)
class _Level:
    """What tells the levels apart."""

    metadata: str
    """Name of the product's metadata."""
    offset: str
    """Tag of the offset of each band."""
    files: tuple[tuple[str, re.Pattern[str]], ...]
    """Where images and masks lie in a granule, and what their names tell: `key`, maybe `pixel`."""


_LEVELS = {
    # T29UNU_20221005T115411_B02_60m.jp2; images in a folder IMG_DATA/R60m
    "safe": _Level(
        "MTD_MSIL2A.xml",
        "BOA_ADD_OFFSET",
        (
            (
                "IMG_DATA/R*m/*.jp2",
                re.compile(r".+_(?P<key>(B\d\d|B8A|SCL)_(?P<pixel>10|20|60)m)\.jp2"),
            ),
        ),
    ),
    # T29UNU_20221005T115411_B02.jp2; the cloud mask is an image from baseline 04.00 on
    "safe-l1c": _Level(
        "MTD_MSIL1C.xml",
        "RADIO_ADD_OFFSET",
        (
            ("IMG_DATA/*.jp2", re.compile(r".+_(?P<key>B\d\d|B8A)\.jp2")),
            ("QI_DATA/*.jp2", re.compile(r"(?P<key>MSK_CLASSI_B00)\.jp2")),
        ),
    ),
}
#: Pixels of level 1C, whose file names do not tell; all other bands and the mask have 60 m.
_PIXEL_M = dict.fromkeys(("B02", "B03", "B04", "B08"), 10) | dict.fromkeys(
    ("B05", "B06", "B07", "B8A", "B11", "B12"), 20
)
#: S2A_OPER_MSI_L2A_TL_ATOS_20221005T164454_A038058_T29UNU_N04.00
_TILE = re.compile(r"_T(\d{2}[A-Z]{3})_")
#: Metadata files are some 60 kB and 500 kB.
_LARGEST_BYTES = 50_000_000
_PIXELS_M = (10, 20, 60)


def safe_items(path: Path, collection: str) -> Iterator[dict[str, Any]]:
    """Yield an item for each granule of each SAFE folder at or below a path, by name.

    The kind of folder tells the level: `safe` is 2A, `safe-l1c` is 1C.
    """
    level = _LEVELS[collection]
    for metadata in sorted(path.rglob(level.metadata)):
        folder = metadata.parent
        try:
            product = _parse(metadata)
            granules = sorted(folder.glob("GRANULE/*/MTD_TL.xml"))
            if not granules:
                raise Unreadable(f"{folder.name} has no GRANULE/*/MTD_TL.xml")
            for granule in granules:
                yield _item(folder, product, granule, collection, alone=len(granules) == 1)
        except Unreadable as problem:
            yield problem_item(folder.name, collection, problem)


def _item(
    folder: Path, product: ET.Element, granule: Path, collection: str, *, alone: bool
) -> dict[str, Any]:
    tile, level = _parse(granule), _LEVELS[collection]
    grids = _grids(tile)
    files = {
        match["key"]: (file, int(match.groupdict().get("pixel") or _PIXEL_M.get(match["key"], 60)))
        for where, named in level.files
        for file in sorted(granule.parent.glob(where))
        if (match := named.fullmatch(file.name))
    }
    if not files:
        raise Unreadable(f"{folder.name} has no images below IMG_DATA")
    assets = {
        key: asset_of(file, "image/jp2", grids[pixel_m])
        for key, (file, pixel_m) in files.items()
        if pixel_m in grids
    }
    identity = _TILE.search(_text(tile, "TILE_ID"))
    if identity is None:
        raise Unreadable(f"TILE_ID of {granule.parent.name} names no tile")
    datatake = product.find(".//Datatake")
    properties = {
        "datetime": _text(product, "DATATAKE_SENSING_START"),
        "s2:datatake_id": "" if datatake is None else datatake.get("datatakeIdentifier", ""),
        "s2:mgrs_tile": identity[1],
        "s2:processing_baseline": _text(product, "PROCESSING_BASELINE"),
        "eo:cloud_cover": product.findtext(".//Cloud_Coverage_Assessment"),
        "view:sun_elevation": 90 - _number(tile, "Mean_Sun_Angle/ZENITH_ANGLE"),
        "terrashard:offset_add": _offset(product, level.offset),
    }
    stem = folder.name.removesuffix(".SAFE")
    name = stem if alone else f"{stem}-{identity[1]}"
    outline = _footprint(product, max(grids.values(), key=lambda grid: grid.pixel_m))
    return make_item(name, collection, outline, properties, assets)


def _parse(path: Path) -> ET.Element:
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise Unreadable(f"{path.name} is larger than {_LARGEST_BYTES} bytes")
        return ET.parse(path).getroot()
    except (ET.ParseError, OSError) as error:
        raise Unreadable(f"{path.name} cannot be read: {error}") from error


def _text(root: ET.Element, tag: str) -> str:
    found = root.findtext(f".//{tag}")
    if not found:
        raise Unreadable(f"the metadata have no {tag}")
    return found.strip()


def _number(root: ET.Element, tag: str) -> float:
    text = _text(root, tag)
    try:
        return float(text)
    except ValueError:
        raise Unreadable(f"{tag} is {text[:40]!r}, not a number") from None


def _grids(tile: ET.Element) -> dict[int, RasterGrid]:
    """Return the grid of each pixel size, in metres."""
    crs = _text(tile, "HORIZONTAL_CS_CODE")
    match = re.fullmatch(r"EPSG:(\d{5})", crs)
    if match is None:
        raise Unreadable(f"HORIZONTAL_CS_CODE is {crs[:40]!r}")
    grids = {}
    for pixel_m in _PIXELS_M:
        size, corner = (
            tile.find(f".//Tile_Geocoding/{tag}[@resolution='{pixel_m}']")
            for tag in ("Size", "Geoposition")
        )
        if size is None or corner is None:
            continue
        rows, columns = (round(_number(size, key)) for key in ("NROWS", "NCOLS"))
        x, y = (_number(corner, key) for key in ("ULX", "ULY"))
        grids[pixel_m] = RasterGrid(int(match[1]), x, y, pixel_m, rows, columns)
    if not grids:
        raise Unreadable("the metadata have no Tile_Geocoding")
    return grids


def _offset(product: ET.Element, tag: str) -> int:
    """Return the offset, the same for all bands; 0 for products from before it existed."""
    found = {element.text for element in product.iter(tag)}
    if not found:
        return 0
    if len(found) > 1:
        raise Unreadable(f"{tag} differs between bands: {sorted(map(str, found))}")
    return round(_number(product, tag))


def _footprint(product: ET.Element, grid: RasterGrid) -> shapely.Geometry:
    """Return what was seen of the tile: EXT_POS_LIST (latitude first), or the tile's outline."""
    listed = product.findtext(".//Global_Footprint/EXT_POS_LIST")
    if not listed:
        return grid.outline()
    try:
        numbers = np.array([float(word) for word in listed.split()])
        return shapely.Polygon(numbers.reshape(-1, 2)[:, ::-1])
    except (ValueError, shapely.errors.ShapelyError) as error:
        raise Unreadable(f"EXT_POS_LIST cannot be read: {error}") from error

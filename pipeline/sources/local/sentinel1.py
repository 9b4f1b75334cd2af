"""Sentinel-1 GRD products as users have them on disk: SAFE folders.

The manifest tells what was seen, where and when; which polarisations are there, the folders. Items
have the keys and property names of the catalogues.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from pipeline.sources.local.grid import Unreadable, asset_of, make_item, problem_item

#: s1a-iw-grd-vv-20240903t064655-20240903t064720-055497-06c567-001.tiff
_POLARISATION = re.compile(r".*-(?P<key>vv|vh|hh|hv)-.*")
_LARGEST_BYTES = 5_000_000
#: Element of the manifest, whatever its namespace, to the property it becomes.
_FACTS = {
    "startTime": "start_datetime",
    "stopTime": "end_datetime",
    "mode": "sar:instrument_mode",
    "productType": "sar:product_type",
    "missionDataTakeID": "s1:datatake_id",
    "sliceNumber": "s1:slice_number",
    "productTimelinessCategory": "s1:product_timeliness",
    "pass": "sat:orbit_state",
    "relativeOrbitNumber": "sat:relative_orbit",
}
_FOOTPRINT = "coordinates"


def sentinel1_items(path: Path, collection: str) -> Iterator[dict[str, Any]]:
    """Yield an item for each SAFE folder of Sentinel-1 at or below a path, by name."""
    for manifest in sorted(path.rglob("manifest.safe")):
        folder = manifest.parent
        if not folder.name.startswith("S1"):
            continue
        try:
            yield _item(folder, manifest, collection)
        except Unreadable as problem:
            yield problem_item(folder.name.removesuffix(".SAFE"), collection, problem)


def _item(folder: Path, manifest: Path, collection: str) -> dict[str, Any]:
    told = _manifest(manifest)
    images = _by_polarisation(folder, "measurement", "*.tiff")
    if not images:
        raise Unreadable(f"{folder.name} has no images below measurement")
    assets = {key: asset_of(file, "image/tiff") for key, file in images.items()}
    for kind in ("calibration", "noise"):
        tables = _by_polarisation(folder, "annotation/calibration", f"{kind}-*.xml")
        assets |= {
            f"schema-{kind}-{key}": asset_of(file, "application/xml")
            for key, file in tables.items()
        }
    properties = {ours: told[name] for name, ours in _FACTS.items() if name in told}
    name = folder.name.removesuffix(".SAFE")
    return make_item(name, collection, _footprint(told), properties, assets)


def _by_polarisation(folder: Path, below: str, pattern: str) -> dict[str, Path]:
    return {
        match["key"]: file
        for file in sorted((folder / below).glob(pattern))
        if (match := _POLARISATION.fullmatch(file.name))
    }


def _manifest(path: Path) -> dict[str, str]:
    """Return the texts of the wanted elements, by name without namespace."""
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise Unreadable(f"{path.name} is larger than {_LARGEST_BYTES} bytes")
        root = ET.parse(path).getroot()
    except (ET.ParseError, OSError) as error:
        raise Unreadable(f"{path.name} cannot be read: {error}") from error
    found: dict[str, str] = {}
    for element in root.iter():
        name = element.tag.rpartition("}")[2]
        if name in _FACTS or name == _FOOTPRINT:
            found.setdefault(name, (element.text or "").strip())
    return found


def _footprint(told: dict[str, str]) -> shapely.Geometry:
    """Return what was seen: pairs of latitude and longitude, first to last corner."""
    try:
        pairs = [[float(number) for number in pair.split(",")] for pair in told[_FOOTPRINT].split()]
        return shapely.Polygon(np.array(pairs)[:, ::-1])
    except (LookupError, ValueError, shapely.errors.ShapelyError) as error:
        raise Unreadable(f"the footprint cannot be read: {error}") from error

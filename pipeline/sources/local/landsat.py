"""Landsat Collection 2 product folders as users have them on disk, level 1 and level 2.

A scene is an `*_MTL.json` with the files of its product beside it, named alike: keys of the assets
are the ends of those names (`SR_B4`, `B4`, `QA_PIXEL`). Only files that are there count. Where the
pixels lie is read from an image: copies that were thinned out carry the metadata of the whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import shapely

from pipeline.errors import GiveUp
from pipeline.raster.landsat import Metadata, parse_mtl
from pipeline.sources.local.grid import Unreadable, asset_of, grid_of, make_item, problem_item

_METADATA = "_MTL.json"
#: LC08_L2SP_202033_20220327_20220330_02_T1: sensor, level, path and row, seen, processed, tier.
_NAME = re.compile(r"(?P<short>L[COTEM]0\d_L[12]\w\w_\d{6}_\d{8})_\d{8}_(?P<tier>02_[RT][T12])")
#: Metadata are some 20 kB.
_LARGEST_BYTES = 5_000_000
#: The panchromatic image, whose grid of 15 m is not that of the others.
_PANCHROMATIC = "B8"


def landsat_items(path: Path, collection: str) -> Iterator[dict[str, Any]]:
    """Yield an item for each scene in a folder and the folders below it, by name."""
    for metadata in sorted(path.rglob(f"*{_METADATA}")):
        stem = metadata.name.removesuffix(_METADATA)
        try:
            yield _item(metadata, stem, collection)
        except Unreadable as problem:
            yield problem_item(stem, collection, problem)


def _item(path: Path, stem: str, collection: str) -> dict[str, Any]:
    name = _NAME.fullmatch(stem)
    if name is None:
        raise Unreadable(f"{path.name} is not named like a Collection 2 product")
    metadata = _parse(path)
    files = {
        file.stem.removeprefix(f"{stem}_"): file
        for file in sorted(path.parent.glob(f"{stem}_*.TIF"))
    }
    images = [key for key in files if re.match(r"(SR_|ST_)?B\d", key) and key != _PANCHROMATIC]
    if not images:
        raise Unreadable(f"{path.parent.name} has no images beside {path.name}")
    grid = grid_of(files[images[0]])
    kind = "image/tiff; application=geotiff"
    assets = {
        key: asset_of(file, kind, None if key == _PANCHROMATIC else grid)
        for key, file in files.items()
    }
    assets["MTL.json"] = asset_of(path, "application/json")
    day, time = (_text(metadata, "IMAGE_ATTRIBUTES", key) for key in _WHEN)
    properties = {
        "datetime": f"{day}T{time}",
        "platform": _text(metadata, "IMAGE_ATTRIBUTES", "SPACECRAFT_ID"),
        "eo:cloud_cover": _text(metadata, "IMAGE_ATTRIBUTES", "CLOUD_COVER"),
        "view:sun_elevation": _text(metadata, "IMAGE_ATTRIBUTES", "SUN_ELEVATION"),
        "landsat:correction": stem.split("_")[1],
        "landsat:collection_category": name["tier"][-2:],
    }
    # As catalogues name it: without the day of processing.
    item = f"{name['short']}_{name['tier']}"
    return make_item(item, collection, _seen(path.parent, stem, grid.outline()), properties, assets)


_WHEN = ("DATE_ACQUIRED", "SCENE_CENTER_TIME")


def _parse(path: Path) -> Metadata:
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise Unreadable(f"{path.name} is larger than {_LARGEST_BYTES} bytes")
        return parse_mtl(path.read_bytes(), path.name)
    except (GiveUp, OSError) as error:
        raise Unreadable(str(error)) from error


def _text(metadata: Metadata, group: str, key: str) -> str:
    found = metadata.get(group, {}).get(key)
    if not isinstance(found, str) or not found:
        raise Unreadable(f"the metadata have no {group}.{key}")
    return found


def _seen(folder: Path, stem: str, outline: shapely.Geometry) -> shapely.Geometry:
    """Return what was seen: the owner's STAC item beside the scene knows, else all of the raster.

    A raster is larger by the corners that north-up pixels leave beside a slanting swath.
    """
    for path in sorted(folder.glob(f"{stem}_*stac.json")):
        try:
            seen = shapely.geometry.shape(json.loads(path.read_bytes())["geometry"])
        except (ValueError, LookupError, TypeError, OSError, RecursionError):
            continue
        if seen.is_valid and seen.intersects(outline):
            return seen.intersection(outline)
    return outline

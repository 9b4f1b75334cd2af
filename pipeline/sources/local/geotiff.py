"""Plain GeoTIFF tiles: each file an item, with what the product file says of all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.sources.local.grid import (
    Unreadable,
    asset_of,
    grid_of,
    make_item,
    outline_of,
    problem_item,
)

#: Kind of folder whose files are warped onto cells: their grid need not be one of ours.
ON_ANY_GRID = "geotiff-on-any-grid"

_SUFFIXES = (".tif", ".tiff")


def geotiff_items(path: Path, collection: str) -> Iterator[dict[str, Any]]:
    """Yield an item for each GeoTIFF at or below a path, by name.

    Its one asset is `image`. Time, datatake and the like are not in such files: the product file
    gives them as constants (`"=2022-07-24T10:45:26Z"`).
    """
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    for file in files:
        if file.suffix.lower() not in _SUFFIXES or not file.is_file():
            continue
        try:
            grid = None if collection == ON_ANY_GRID else grid_of(file)
            outline = outline_of(file) if grid is None else grid.outline()
        except Unreadable as problem:
            yield problem_item(file.stem, collection, problem)
            continue
        assets = {"image": asset_of(file, "image/tiff; application=geotiff", grid)}
        yield make_item(file.stem, collection, outline, {}, assets)

"""Plain GeoTIFF tiles: each file an item, with what the product file says of all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.sources.local_grid import Unreadable, asset_of, grid_of, make_item, problem_item

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
            grid = grid_of(file)
        except Unreadable as problem:
            yield problem_item(file.stem, collection, problem)
            continue
        assets = {"image": asset_of(file, "image/tiff; application=geotiff", grid)}
        yield make_item(file.stem, collection, grid.outline(), {}, assets)

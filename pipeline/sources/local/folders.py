"""Make STAC items from product folders, so that they are searched like any catalogue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import RecipeError
from pipeline.products.model import Product
from pipeline.sources.local.enmap import enmap_items
from pipeline.sources.local.geotiff import ON_ANY_GRID, geotiff_items
from pipeline.sources.local.landsat import landsat_items
from pipeline.sources.local.safe import safe_items
from pipeline.sources.local.sentinel1 import sentinel1_items

#: Kind of folder, as a product file names it, to what reads it.
_KINDS: dict[str, Callable[[Path, str], Iterator[dict[str, Any]]]] = {
    "enmap-folder": enmap_items,
    "enmap-l1c-folder": enmap_items,
    "enmap-l1b-folder": enmap_items,
    "safe": safe_items,
    "safe-l1c": safe_items,
    "safe-s1": sentinel1_items,
    "landsat-folder": landsat_items,
    "geotiff": geotiff_items,
    ON_ANY_GRID: geotiff_items,
}


def local_items(path: Path, product: Product) -> Iterator[dict[str, Any]]:
    """Yield an item for each scene of a product at or below a path, in order of names.

    A folder that cannot be read becomes an item with the property `terrashard:problem`, which the
    search lists as unusable; it does not stop the others.

    Parameters
    ----------
    path : Path
        One product folder or file, or a folder that holds some, however deep.
    product : Product
        Its `providers.local.collection` says what kind of folder it is.

    Raises
    ------
    RecipeError
        No such path, or the product is not one that can be read from disk.
    """
    facts = product.providers.get("local")
    if facts is None or facts.collection not in _KINDS:
        raise RecipeError(
            f"product {product.id} cannot be read from folders: its file needs "
            f"`providers.local.collection`, one of: {', '.join(_KINDS)}."
        )
    if not path.exists():
        raise RecipeError(f"`path` of product {product.id}: {path} does not exist.")
    return _KINDS[facts.collection](path.resolve(), facts.collection)

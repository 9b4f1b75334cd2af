"""Search Earth Engine, and make STAC items of its images, so that they are read like any other.

An image has bands where a scene of another provider has files: each band becomes an asset, and all
of one image have the same address, which names the version that was found.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipeline.ports import Query
from pipeline.products.catalogue import Product
from pipeline.sources.earthengine_pixels import address, connect, limits_of
from pipeline.sources.providers import Provider

if TYPE_CHECKING:
    from pipeline.sources.earthengine import EarthEngine

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Property that holds the outline; too long to be carried further.
_FOOTPRINT = "system:footprint"
#: Corners that differ by less than this share of a pixel are one corner.
_SAME_PX = 1e-6
_MALFORMED = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError)


class EarthEngineCatalogue:
    """One product's collection, asked like `pipeline.sources.stac.Catalogue`.

    Parameters
    ----------
    provider : Provider
    product : Product
        Its `providers.earth-engine` says which bands are wanted.
    """

    def __init__(self, provider: Provider, product: Product, *, attempts: int = 5) -> None:
        self._provider = provider
        self._product = product
        self._limits = limits_of(provider, attempts=attempts)

    @cached_property
    def _engine(self) -> EarthEngine:
        return connect(self._provider)

    @property
    def requests(self) -> int:
        """Searches made so far, repeated ones included."""
        return self._limits.requests

    def close(self) -> None:
        """Do nothing: the client's connections live as long as the process."""

    def search(self, query: Query) -> Iterator[dict[str, Any]]:
        """Yield the items of a query: one request for each `page_size` images.

        Where a product is in several collections (Landsat 8 and 9), each is asked.
        """
        for collection in query.collection.split():
            for image in self._images(replace(query, collection=collection)):
                yield item_of(image, self._product, self._provider.name, query.collection)

    def _images(self, query: Query) -> Iterator[Any]:
        size, start = self._provider.page_size, 0
        while True:
            page = self._page(query, size, start)
            yield from page
            if len(page) < size:
                return
            start += size

    def _page(self, query: Query, count: int, offset: int) -> list[Any]:
        return self._limits.call(lambda: self._engine.images(query, count=count, offset=offset))


def item_of(image: Any, product: Product, provider: str, collection: str) -> dict[str, Any]:
    """Return the STAC item of an image as the client describes it.

    A description that cannot be read becomes an item with the property `terrashard:problem`, which
    the search lists as unusable.
    """
    name = str(image.get("id") if isinstance(image, Mapping) else image).rpartition("/")[2][:500]
    item: dict[str, Any] = {"type": "Feature", "id": name, "collection": collection}
    try:
        properties = dict(image["properties"])
        outline = properties.pop(_FOOTPRINT, None)
        moment = _EPOCH + timedelta(milliseconds=float(properties["system:time_start"]))
        assets = _assets(image, product, provider)
    except _MALFORMED as error:
        problem = f"no image as Earth Engine describes one ({type(error).__name__})"
        return {**item, "properties": {"terrashard:problem": problem}}
    return {
        **item,
        "geometry": _polygon(outline),
        "properties": {**properties, "datetime": moment.isoformat()},
        "assets": assets,
    }


def _polygon(outline: Any) -> Any:
    """Return an outline as a polygon; Earth Engine gives its ring."""
    if isinstance(outline, Mapping) and outline.get("type") == "LinearRing":
        return {"type": "Polygon", "coordinates": [outline.get("coordinates")]}
    return outline


def _assets(image: Mapping[str, Any], product: Product, provider: str) -> dict[str, Any]:
    """Return the wanted bands of an image, as far as they can be read without resampling.

    Earth Engine would resample without a word: a band is left out if it has another pixel size than
    the product's, or if its pixels do not start in the corner of the finest band.
    """
    href = address(str(image["id"]), int(image["version"]))
    wanted = _pixel_sizes(product, provider)
    bands = {
        band["id"]: band
        for band in image["bands"]
        if band["id"] in wanted and _sized(band, wanted[band["id"]])
    }
    if not bands:
        return {}
    finest = min(bands.values(), key=lambda band: float(band["crs_transform"][0]))
    return {
        name: {
            "href": href,
            "proj:code": band["crs"],
            "proj:transform": list(band["crs_transform"]),
            "proj:shape": [int(edge) for edge in reversed(band["dimensions"])],
        }
        for name, band in bands.items()
        if _together(band, finest)
    }


def _pixel_sizes(product: Product, provider: str) -> dict[str, float]:
    """Return the pixel size of each wanted band, by Earth Engine's name for it."""
    native = {band.name: band.pixel_m for band in product.bands}
    native |= {layer.name: layer.pixel_m for layer in product.mask_layers}
    return {
        file.asset: file.pixel_m or native[name]
        for name, files in product.providers[provider].assets.items()
        for file in files
    }


def _sized(band: Mapping[str, Any], pixel_m: float) -> bool:
    return math.isclose(float(band["crs_transform"][0]), pixel_m, rel_tol=1e-9)


def _together(band: Mapping[str, Any], finest: Mapping[str, Any]) -> bool:
    """Whether two bands start in the same corner."""
    here, there = band["crs_transform"], finest["crs_transform"]
    apart = max(abs(float(here[2]) - float(there[2])), abs(float(here[5]) - float(there[5])))
    return bool(band["crs"] == finest["crs"]) and apart <= _SAME_PX * float(there[0])

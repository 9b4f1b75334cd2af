"""Search Earth Engine, and make STAC items of its images, so that they are read like any other.

An image has bands where a scene of another provider has files: each band becomes an asset, and all
of one image have the same address, which names the version that was found.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import GiveUp
from pipeline.ports import Query
from pipeline.products.model import Product, ProviderFacts
from pipeline.sources.earthengine.pixels import address, connect, limits_of
from pipeline.sources.providers import Provider

if TYPE_CHECKING:
    from pipeline.sources.earthengine.session import EarthEngine

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Property that holds the outline; too long to be carried further.
_FOOTPRINT = "system:footprint"
#: Corners that differ by less than this share of a pixel are one corner.
_SAME_PX = 1e-6
#: Longitudes of the corners of an image that goes round the globe.
_ROUND = (-180.0, -90.0, 0.0, 90.0, 180.0)
_MALFORMED = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError)


class EarthEngineCatalogue:
    """One product's collection, asked like `pipeline.sources.stac.catalogue.Catalogue`.

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

        Where a product is in several collections (Landsat 8 and 9), each is asked. Pages that are
        too much for Earth Engine are halved.
        """
        for collection in query.collection.split():
            for image in self._images(replace(query, collection=collection)):
                yield item_of(image, self._product, self._provider.name, query.collection)

    def _images(self, query: Query) -> Iterator[Any]:
        size, start = self._provider.page_size, 0
        while True:
            try:
                page = self._page(query, size, start)
            except GiveUp as error:
                if error.failure != "too-large" or size == 1:
                    raise
                size //= 2
                continue
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
        problem = _other_classes(properties, product, provider)
    except _MALFORMED as error:
        problem = f"no image as Earth Engine describes one ({type(error).__name__})"
    if problem:
        return {**item, "properties": {"terrashard:problem": problem}}
    return {
        **item,
        "geometry": _polygon(outline),
        "properties": {**properties, "datetime": moment.isoformat()},
        "assets": assets,
    }


def _polygon(outline: Any) -> Any:
    """Return an outline as a polygon; Earth Engine gives its ring.

    That of an image of the whole globe may be infinite, and its long edges would be taken for a
    step across the antimeridian.
    """
    if not isinstance(outline, Mapping) or outline.get("type") != "LinearRing":
        return outline
    ring = outline.get("coordinates")
    try:
        corners = np.array(ring, dtype=np.float64)
        if np.isinf(corners).any() or np.ptp(corners[:, 0]) >= 360:
            low, high = (float(edge) for edge in np.clip(_span(corners[:, 1]), -90, 90))
            ring = [[lon, low] for lon in _ROUND] + [[lon, high] for lon in reversed(_ROUND)]
            ring.append(ring[0])
    except _MALFORMED:
        pass  # whoever reads the footprint says what is wrong with it
    return {"type": "Polygon", "coordinates": [ring]}


def _span(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([values.min(), values.max()])


def _other_classes(properties: Mapping[str, Any], product: Product, provider: str) -> str:
    """Return which codes of an image have the meaning of others in the product; empty if none.

    Earth Engine repeats the class table of a band of codes in `<band>_class_values` and `_names`.
    A class that the product does not know may be one that never occurs (tundra outside Alaska):
    its pixels, if there are any, are refused where they are read (`raster.radiometry.harmonise`).
    Wordings differ, so a code contradicts only if it has the very name of another of ours.
    """
    facts = product.providers[provider]
    own = facts.codes or {code: int(code) for code in product.classes}
    meanings = {code: _meaning(product.classes[str(ours)]) for code, ours in own.items()}
    for band in product.bands if product.kind == "labels" else ():
        asset = facts.assets[band.name][0].asset
        values, names = (properties.get(f"{asset}_class_{key}", ()) for key in ("values", "names"))
        stated = {str(int(code)): str(name) for code, name in zip(values, names, strict=False)}
        for code, name in stated.items():
            meaning = _meaning(name)
            if meanings.get(code, meaning) != meaning and meaning in meanings.values():
                return (
                    f"{asset} calls class {code} {name[:40]!r}, which {product.id} calls "
                    f"{product.classes[str(own[code])]!r}"
                )
    return ""


def _meaning(name: str) -> str:
    """Return a class name without its description and its punctuation: what two of one class
    have in common."""
    return "".join(filter(str.isalnum, name.partition(":")[0].casefold()))


def _assets(image: Mapping[str, Any], product: Product, provider: str) -> dict[str, Any]:
    """Return the wanted bands of an image, and what coefficients are read from.

    Earth Engine would resample without a word. Of a product that has a lattice, a band is left out
    if it has another pixel size than the product's, or if its pixels do not start where those of
    the finest band do. A product without one is warped anyway, and its images need not say how
    their pixels lie.
    """
    href = address(str(image["id"]), int(image["version"]))
    facts = product.providers[provider]
    wanted = _places(product, facts)
    words = (word for band in product.bands for word in product.coefficients(band.name))
    documents = {
        file.asset: {"href": href} for word in words for file in facts.assets.get(word, ())
    }
    if product.warp is not None:
        there = {band["id"] for band in image["bands"]}
        return {name: {"href": href} for name in wanted if name in there}
    bands = {
        band["id"]: band
        for band in image["bands"]
        if band["id"] in wanted and _sized(band, wanted[band["id"]])
    }
    if not bands:
        return {}
    finest = min(bands.values(), key=lambda band: float(band["crs_transform"][0]))
    corner = _corner(finest, wanted)
    aligned = {
        name: {
            "href": href,
            "proj:code": band["crs"],
            "proj:transform": list(band["crs_transform"]),
            "proj:shape": [int(edge) for edge in reversed(band["dimensions"])],
        }
        for name, band in bands.items()
        if band["crs"] == finest["crs"]
        and math.dist(_corner(band, wanted), corner) <= _SAME_PX * float(finest["crs_transform"][0])
    }
    return {**aligned, **documents}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the pixels of a band must lie."""

    pixel_m: float
    inset_m: float
    """How far its corner lies inside that of the image."""


def _places(product: Product, facts: ProviderFacts) -> dict[str, _Place]:
    """Return where each wanted band must lie, by Earth Engine's name for it."""
    native = {layer.name: _Place(layer.pixel_m, 0.0) for layer in product.mask_layers}
    native |= {band.name: _Place(band.pixel_m, band.inset_m) for band in product.bands}
    return {
        file.asset: replace(native[name], pixel_m=file.pixel_m or native[name].pixel_m)
        for name, files in facts.assets.items()
        if name in native
        for file in files
    }


def _sized(band: Mapping[str, Any], place: _Place) -> bool:
    return math.isclose(float(band["crs_transform"][0]), place.pixel_m, rel_tol=1e-9)


def _corner(band: Mapping[str, Any], wanted: Mapping[str, _Place]) -> tuple[float, float]:
    """Return the image's corner (x, y), as a band has it."""
    inset_m = wanted[band["id"]].inset_m
    return float(band["crs_transform"][2]) - inset_m, float(band["crs_transform"][5]) + inset_m

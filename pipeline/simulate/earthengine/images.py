"""A simulated archive as Earth Engine shows it: image collections, and pixels on any grid.

Names, types and habits follow Earth Engine's catalogue: Sentinel-2 has its processing offset
removed and nothing below 0, Sentinel-1 is in dB, Landsat as delivered; what was not seen is masked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import Transformer

from pipeline.simulate.earthengine.graph import Functions, invalid

#: A query that gathers more elements is aborted.
MOST_ELEMENTS = 5000

Pixels = NDArray[Any]
Predicate = Callable[["Image"], bool]
#: From a grid to values and mask, each of shape (y, x).
Read = Callable[["Grid"], tuple[Pixels, Pixels]]


@dataclass(frozen=True, slots=True)
class Grid:
    """Where pixels lie: any north-up raster of square pixels."""

    epsg: int
    pixel_m: float
    x_min_m: float
    y_max_m: float
    width_px: int
    height_px: int

    def centres(self, epsg: int) -> tuple[Pixels, Pixels]:
        """Return x and y of the pixel centres in a CRS, each of shape (y, x)."""
        x_m = self.x_min_m + self.pixel_m * (np.arange(self.width_px) + 0.5)
        y_m = self.y_max_m - self.pixel_m * (np.arange(self.height_px) + 0.5)
        xs, ys = np.meshgrid(x_m, y_m)
        if epsg == self.epsg:
            return xs, ys
        return Transformer.from_crs(self.epsg, epsg, always_xy=True).transform(xs, ys)


@dataclass(frozen=True, slots=True)
class Band:
    """One band of an image: values and where they are valid, on any grid."""

    name: str
    dtype: str
    grid: Grid
    read: Read
    """The nearest pixels."""
    smooth: Read
    """Bilinear means of the nearest four, masked where one of them is."""

    def info(self) -> dict[str, Any]:
        """Return what `getInfo` says of the band."""
        grid = self.grid
        kind: dict[str, Any] = {"type": "PixelType", "precision": "double"}
        if np.dtype(self.dtype).kind != "f":
            limits = np.iinfo(self.dtype)
            kind |= {"precision": "int", "min": int(limits.min), "max": int(limits.max)}
        return {
            "id": self.name,
            "data_type": kind,
            "dimensions": [grid.width_px, grid.height_px],
            "crs": f"EPSG:{grid.epsg}",
            "crs_transform": [grid.pixel_m, 0, grid.x_min_m, 0, -grid.pixel_m, grid.y_max_m],
        }


@dataclass(frozen=True, slots=True)
class Image:
    """An image of a collection, or what was made of one."""

    id: str
    version: int
    properties: dict[str, Any]
    bands: tuple[Band, ...]

    @property
    def footprint(self) -> shapely.Geometry:
        """Outline in longitude and latitude."""
        return shapely.Polygon(self.properties["system:footprint"]["coordinates"])

    def info(self) -> dict[str, Any]:
        """Return what `getInfo` says of the image."""
        return {
            "type": "Image",
            "bands": [band.info() for band in self.bands],
            "id": self.id,
            "version": self.version,
            "properties": self.properties,
        }

    def select(self, names: Sequence[str]) -> Image:
        """Return the image with these bands in this order."""
        there = {band.name: band for band in self.bands}
        for name in names:
            if name not in there:
                raise invalid(
                    f"Image.select: Band pattern '{name}' did not match any bands. "
                    f"Available bands: [{', '.join(there)}]"
                )
        return replace(self, bands=tuple(there[name] for name in names))

    def unmask(self, value: float | Image) -> Image:
        """Return the image with a value, or another image, wherever it is masked."""
        if isinstance(value, Image):
            pairs = zip(self.bands, value.bands, strict=True)
            return replace(self, bands=tuple(_over(band, other) for band, other in pairs))
        return replace(self, bands=tuple(_unmasked(band, value) for band in self.bands))

    def resample(self, mode: str) -> Image:
        """Return the image as it is interpolated on other grids than its own."""
        if mode != "bilinear":
            raise invalid(f"Image.resample: only 'bilinear' is simulated, not {mode!r}.")
        bands = (replace(band, dtype="float64", read=band.smooth) for band in self.bands)
        return replace(self, bands=tuple(bands))


class World:
    """Image collections, and the functions that work on them.

    Parameters
    ----------
    names : iterable of str
        The collections that there are, empty ones included.
    images : iterable of (str, Image)
        Collection and image.
    """

    def __init__(self, names: Iterable[str], images: Iterable[tuple[str, Image]]) -> None:
        found: dict[str, list[Image]] = {name: [] for name in names}
        for collection, image in images:
            found[collection].append(image)
        self.collections = {
            name: sorted(members, key=lambda image: image.properties["system:time_start"])
            for name, members in found.items()
        }
        self._images = {i.id: i for members in self.collections.values() for i in members}

    def add(self, image: Image) -> None:
        """Put in an image that is in no collection."""
        self._images[image.id] = image

    @property
    def functions(self) -> Functions:
        """What expressions can call."""
        return {
            "ImageCollection.load": self._load_collection,
            "Collection.filter": lambda collection, filter: [i for i in collection if filter(i)],
            "Collection.toList": _to_list,
            "Filter.and": lambda filters: lambda image: all(keep(image) for keep in filters),
            "Filter.dateRangeContains": _in_range,
            "Filter.greaterThan": _greater,
            "Filter.intersects": _intersects,
            "Filter.listContains": _listed,
            "Filter.not": lambda filter: lambda image: not filter(image),
            "DateRange": lambda start, end: (start, end),
            "Feature": lambda geometry: geometry,
            "GeometryConstructors.Rectangle": _rectangle,
            "Projection": lambda crs: crs,
            "Image.load": self._load_image,
            "Image.select": lambda input, bandSelectors: input.select(bandSelectors),
            "Image.constant": lambda value: value,
            "Image.resample": lambda image, mode="bilinear": image.resample(mode),
            "Element.toDictionary": _to_dictionary,
            "Image.unmask": _unmask,
        }

    def _load_collection(self, id: str) -> list[Image]:
        if id not in self.collections:
            raise invalid(
                f"ImageCollection.load: ImageCollection asset '{id}' not found "
                "(does not exist or caller does not have access)."
            )
        return self.collections[id]

    def _load_image(self, id: str, version: int = -1) -> Image:
        image = self._images.get(id)
        if image is None or version not in (-1, image.version):
            raise invalid(
                f"Image.load: Image asset '{id}' not found "
                "(does not exist or caller does not have access)."
            )
        return image


# --- functions ------------------------------------------------------------------------------------


def _to_list(collection: list[Image], count: int, offset: int = 0) -> list[Image]:
    found = collection[offset : offset + count]
    if len(found) > MOST_ELEMENTS:
        raise invalid(f"Collection query aborted after accumulating over {MOST_ELEMENTS} elements.")
    return found


def _in_range(leftValue: tuple[float, float], rightField: str) -> Predicate:
    start, end = leftValue
    return lambda image: bool(start <= image.properties[rightField] < end)


def _greater(leftField: str, rightValue: float) -> Predicate:
    return lambda image: bool(image.properties.get(leftField, -math.inf) > rightValue)


def _listed(leftValue: list[Any], rightField: str) -> Predicate:
    return lambda image: image.properties.get(rightField) in leftValue


def _intersects(leftField: str, rightValue: shapely.Geometry) -> Predicate:
    if leftField != ".all":
        raise invalid(f"Filter.intersects: no geometry in {leftField!r}.")
    return lambda image: bool(image.footprint.intersects(rightValue))


def _rectangle(coordinates: list[float], crs: str, geodesic: bool) -> shapely.Geometry:
    if crs != "EPSG:4326" or geodesic:
        raise invalid("GeometryConstructors.Rectangle: only planar EPSG:4326 is simulated.")
    return shapely.box(*coordinates)


def _to_dictionary(element: Image) -> dict[str, Any]:
    """Return the properties that are not the system's."""
    return {key: v for key, v in element.properties.items() if not key.startswith("system:")}


def _unmask(input: Image, value: float | Image, sameFootprint: bool = True) -> Image:
    if sameFootprint:
        raise invalid("Image.unmask: only sameFootprint = false is simulated.")
    return input.unmask(value)


def _unmasked(band: Band, value: float) -> Band:
    kind = np.min_scalar_type(value) if isinstance(value, int) else np.dtype("float64")
    dtype = np.result_type(band.dtype, kind)

    def read(grid: Grid) -> tuple[Pixels, Pixels]:
        values, mask = band.read(grid)
        return np.where(mask, values, dtype.type(value)).astype(dtype), np.ones_like(mask)

    return replace(band, dtype=dtype.name, read=read, smooth=read)


def _over(band: Band, other: Band) -> Band:
    """Return a band with another one below its masked pixels."""
    dtype = np.result_type(band.dtype, other.dtype)

    def read(grid: Grid) -> tuple[Pixels, Pixels]:
        (values, mask), (below, seen) = band.read(grid), other.read(grid)
        return np.where(mask, values, below).astype(dtype), mask | seen

    return replace(band, dtype=dtype.name, read=read, smooth=read)

"""A simulated archive as Earth Engine shows it: image collections, and pixels on any grid.

Names, types and habits follow Earth Engine's catalogue: Sentinel-2 has its processing offset
removed and nothing below 0, Sentinel-1 is in dB, Landsat as delivered; what was not seen is masked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.windows import Window

from pipeline.simulate.catalogue import ITEMS
from pipeline.simulate.earthengine_graph import Functions, invalid

#: A query that gathers more elements is aborted.
MOST_ELEMENTS = 5000

Pixels = NDArray[Any]
Predicate = Callable[["Image"], bool]


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
    read: Callable[[Grid], tuple[Pixels, Pixels]]
    """From a grid to values and mask, each of shape (y, x)."""

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

    def unmask(self, value: float) -> Image:
        """Return the image with a value wherever it is masked."""
        return replace(self, bands=tuple(_unmasked(band, value) for band in self.bands))


class World:
    """The collections of an archive folder, and the functions that work on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        providers = json.loads((folder / ITEMS).read_text())["providers"]
        found: dict[str, list[Image]] = {name: [] for name in _COLLECTIONS}
        for collections in providers.values():
            for name, items in collections.items():
                for item in items["items"] if name in _SHELVES else ():
                    collection, image = _image(folder, item, _SHELVES[name])
                    found[collection].append(image)
        self.collections = {
            name: sorted(images, key=lambda image: image.properties["system:time_start"])
            for name, images in found.items()
        }
        self._images = {i.id: i for images in self.collections.values() for i in images}

    @property
    def functions(self) -> Functions:
        """What expressions can call."""
        return {
            "ImageCollection.load": self._load_collection,
            "Collection.filter": lambda collection, filter: [i for i in collection if filter(i)],
            "Collection.toList": _to_list,
            "Filter.and": lambda filters: lambda image: all(keep(image) for keep in filters),
            "Filter.dateRangeContains": _in_range,
            "Filter.intersects": _intersects,
            "DateRange": lambda start, end: (start, end),
            "Feature": lambda geometry: geometry,
            "GeometryConstructors.Rectangle": _rectangle,
            "Projection": lambda crs: crs,
            "Image.load": self._load_image,
            "Image.select": lambda input, bandSelectors: input.select(bandSelectors),
            "Image.constant": lambda value: value,
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


def _intersects(leftField: str, rightValue: shapely.Geometry) -> Predicate:
    if leftField != ".all":
        raise invalid(f"Filter.intersects: no geometry in {leftField!r}.")
    return lambda image: bool(image.footprint.intersects(rightValue))


def _rectangle(coordinates: list[float], crs: str, geodesic: bool) -> shapely.Geometry:
    if crs != "EPSG:4326" or geodesic:
        raise invalid("GeometryConstructors.Rectangle: only planar EPSG:4326 is simulated.")
    return shapely.box(*coordinates)


def _unmask(input: Image, value: float, sameFootprint: bool = True) -> Image:
    if sameFootprint:
        raise invalid("Image.unmask: only sameFootprint = false is simulated.")
    return input.unmask(value)


def _unmasked(band: Band, value: float) -> Band:
    kind = np.min_scalar_type(value) if isinstance(value, int) else np.dtype("float64")
    dtype = np.result_type(band.dtype, kind)

    def read(grid: Grid) -> tuple[Pixels, Pixels]:
        values, mask = band.read(grid)
        return np.where(mask, values, dtype.type(value)).astype(dtype), np.ones_like(mask)

    return replace(band, dtype=dtype.name, read=read)


# --- scenes as images -----------------------------------------------------------------------------

_S2_OFFSET = 1000
_S1_MASKED = -32768
#: STAC assets that are SR_B1, SR_B2, ... of Landsat, by the first letters of a scene's id.
_LANDSAT_BANDS = {
    "LC": ("coastal", "blue", "green", "red", "nir08", "swir16", "swir22"),
    "LE": ("blue", "green", "red", "nir08", "swir16", "", "swir22"),
}


@dataclass(frozen=True, slots=True)
class _Shelf:
    """How one STAC collection of the archive becomes image collections."""

    describe: Callable[[dict[str, Any]], tuple[str, str, dict[str, Any]]]
    """From an item to the image collection, the image's index there, and its properties."""
    bands: Callable[[dict[str, Any]], dict[str, str]]
    """From an item to Earth Engine's bands and the assets that hold them."""
    values: Callable[[Pixels, dict[str, Any]], Pixels] = lambda numbers, _: numbers
    """From an item's delivered numbers to Earth Engine's."""
    masked: float = 0
    """Delivered number where nothing was seen."""


def _sentinel2(item: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    facts = item["properties"]
    when, tile = _when(item), facts["s2:mgrs_tile"]
    level = "S2_HARMONIZED" if "_MSIL1C_" in item["id"] else "S2_SR_HARMONIZED"
    properties = {
        "DATATAKE_IDENTIFIER": facts["s2:datatake_id"],
        "MGRS_TILE": tile,
        "PROCESSING_BASELINE": facts["s2:processing_baseline"],
        "CLOUDY_PIXEL_PERCENTAGE": facts["eo:cloud_cover"],
        "MEAN_SOLAR_ZENITH_ANGLE": facts["s2:mean_solar_zenith"],
        "SPACECRAFT_NAME": facts["platform"],
    }
    index = f"{when:%Y%m%dT%H%M%S}_{when:%Y%m%d}T235959_T{tile}"
    return f"COPERNICUS/{level}", index, properties


def _sentinel2_bands(item: dict[str, Any]) -> dict[str, str]:
    keys = [key for key in item["assets"] if key[0] == "B" or key == "SCL"]
    return {key if key in ("B8A", "SCL") else f"B{int(key[1:])}": key for key in keys}


def _harmonised(numbers: Pixels, item: dict[str, Any]) -> Pixels:
    """Return numbers without the offset of baselines from 04.00 on; never below 0."""
    if numbers.dtype == "uint8" or float(item["properties"]["s2:processing_baseline"]) < 4:
        return numbers
    harmonised: Pixels = np.maximum(numbers.astype("int32") - _S2_OFFSET, 0).astype(numbers.dtype)
    return harmonised


def _landsat(item: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    sensor, level, place, day, collection, tier = item["id"].split("_")
    facts, processed = item["properties"], f"{_when(item) + timedelta(days=9):%Y%m%d}"
    properties = {
        "LANDSAT_PRODUCT_ID": f"{sensor}_{level}_{place}_{day}_{processed}_{collection}_{tier}",
        "CLOUD_COVER": facts["eo:cloud_cover"],
        "SUN_ELEVATION": facts["view:sun_elevation"],
        "WRS_PATH": int(place[:3]),
        "WRS_ROW": int(place[3:]),
    }
    return f"LANDSAT/{sensor}/C{collection}/{tier}_L2", f"{sensor}_{place}_{day}", properties


def _landsat_bands(item: dict[str, Any]) -> dict[str, str]:
    keys = {f"SR_B{n}": key for n, key in enumerate(_LANDSAT_BANDS[item["id"][:2]], start=1)}
    keys |= {"ST_B10": "lwir11", "QA_PIXEL": "qa_pixel", "QA_RADSAT": "qa_radsat"}
    return {name: key for name, key in keys.items() if key in item["assets"]}


def _sentinel1(item: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    facts = item["properties"]
    properties = {
        "instrumentMode": "IW",
        "resolution": "H",
        "sliceNumber": int(facts["s1:slice_number"]),
        "transmitterReceiverPolarisation": ["VV", "VH"],
    }
    # Mission, mode, product, times, orbit, datatake; the last part is a checksum.
    return "COPERNICUS/S1_GRD", "_".join([*item["id"].split("_")[:8], "0000"]), properties


def _decibels(numbers: Pixels, _: dict[str, Any]) -> Pixels:
    power: Pixels = np.maximum(numbers.astype("float64"), 1e-10)
    return 10 * np.log10(power)


#: What Earth Engine has, whether the archive has images of it or not.
_COLLECTIONS = (
    "COPERNICUS/S1_GRD",
    "COPERNICUS/S2_HARMONIZED",
    "COPERNICUS/S2_SR_HARMONIZED",
    "LANDSAT/LC08/C02/T1_L2",
    "LANDSAT/LC09/C02/T1_L2",
    "LANDSAT/LE07/C02/T1_L2",
    "LANDSAT/LT05/C02/T1_L2",
)
#: STAC collection of an archive to how Earth Engine has it.
_SHELVES = {
    "sentinel-2-l2a": _Shelf(_sentinel2, _sentinel2_bands, _harmonised),
    "sentinel-2-l1c": _Shelf(_sentinel2, _sentinel2_bands, _harmonised),
    "landsat-c2-l2": _Shelf(_landsat, _landsat_bands),
    "sentinel-1-rtc": _Shelf(
        _sentinel1, lambda _: {"VV": "vv", "VH": "vh"}, _decibels, masked=_S1_MASKED
    ),
}


def _image(folder: Path, item: dict[str, Any], shelf: _Shelf) -> tuple[str, Image]:
    """Return an item as an image, and the collection that it is in."""
    collection, index, properties = shelf.describe(item)
    milliseconds = round(_when(item).timestamp() * 1000)
    ring = item["geometry"]["coordinates"][0]
    image = Image(
        id=f"{collection}/{index}",
        version=milliseconds * 1000 + 77,
        properties={
            **properties,
            "system:footprint": {"type": "LinearRing", "coordinates": ring},
            "system:index": index,
            "system:time_start": milliseconds,
        },
        bands=tuple(
            _band(folder, item, shelf, name, key) for name, key in shelf.bands(item).items()
        ),
    )
    return collection, image


def _band(folder: Path, item: dict[str, Any], shelf: _Shelf, name: str, key: str) -> Band:
    asset, path = item["assets"][key], folder / item["assets"][key]["href"]
    pixel_m, _, x_min_m, _, _, y_max_m = asset["proj:transform"][:6]
    height, width = asset["proj:shape"]
    epsg = int(item["properties"]["proj:epsg"])
    grid = Grid(epsg, pixel_m, x_min_m, y_max_m, width, height)

    def read(wanted: Grid) -> tuple[Pixels, Pixels]:
        numbers, inside = _nearest(path, grid, wanted)
        return shelf.values(numbers, item), inside & (numbers != shelf.masked)

    with rasterio.open(path) as file:
        dtype = shelf.values(np.zeros((1, 1), file.dtypes[0]), item).dtype
    return Band(name, dtype.name, grid, read)


def _when(item: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(item["properties"]["datetime"]).astimezone(UTC)


def _nearest(path: Path, grid: Grid, wanted: Grid) -> tuple[Pixels, Pixels]:
    """Return the file's pixels under the centres of a grid, and which lie in the file at all."""
    xs, ys = wanted.centres(grid.epsg)
    cols = np.floor((xs - grid.x_min_m) / grid.pixel_m).astype(int)
    rows = np.floor((grid.y_max_m - ys) / grid.pixel_m).astype(int)
    inside = (cols >= 0) & (cols < grid.width_px) & (rows >= 0) & (rows < grid.height_px)
    values = np.zeros(inside.shape, "uint16")
    if inside.any():
        left, top = int(cols[inside].min()), int(rows[inside].min())
        width, height = int(cols[inside].max()) - left + 1, int(rows[inside].max()) - top + 1
        with rasterio.open(path) as file:
            block = file.read(1, window=Window(left, top, width, height))
        values = values.astype(block.dtype)
        values[inside] = block[rows[inside] - top, cols[inside] - left]
    return values, inside

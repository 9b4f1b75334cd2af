"""The scenes and maps of a simulated archive as Earth Engine has them: images of its collections.

Names, types and habits follow Earth Engine's catalogue: Sentinel-2 has its processing offset
removed and nothing below 0, Sentinel-1 is in dB, Landsat as delivered with its metadata file as
properties, a map of a year is one image whatever its tiles, with its class table as properties, and
CORINE has codes of three figures; what was not seen is masked.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from rasterio.windows import Window

from pipeline.products.catalogue import load_product
from pipeline.simulate.earthengine.images import Band, Grid, Image, Pixels, Read, World
from pipeline.simulate.service.catalogue import ITEMS

_S2_OFFSET = 1000
_S1_MASKED = -32768
#: STAC assets that are SR_B1, SR_B2, ... of Landsat, by the first letters of a scene's id.
_REFLECTANCE = {
    "LC": ("coastal", "blue", "green", "red", "nir08", "swir16", "swir22"),
    "LE": ("blue", "green", "red", "nir08", "swir16", "", "swir22"),
    "LT": ("blue", "green", "red", "nir08", "swir16", "", "swir22"),
}
#: Assets of level 1 beyond the reflective bands: Earth Engine's names, and those of the archive.
_LEVEL_1 = {
    "LC": {"B8": "pan", "B9": "cirrus", "B10": "lwir11", "B11": "lwir12"},
    "LE": {"B8": "pan", "B6_VCID_1": "lwir-low", "B6_VCID_2": "lwir-high"},
    "LT": {"B6": "lwir"},
}

Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Shelf:
    """How one STAC collection of the archive becomes image collections."""

    describe: Callable[[Item, Path], tuple[str, str, dict[str, Any]]]
    """From an item to the image collection, the image's index there, and its properties."""
    bands: Callable[[Item], dict[str, str]]
    """From an item to Earth Engine's bands and the assets that hold them."""
    values: Callable[[Pixels, Item], Pixels] = lambda numbers, _: numbers
    """From an item's delivered numbers to Earth Engine's."""
    masked: float | None = 0
    """Delivered number where nothing was seen; None: there is none."""


def load_world(folder: Path) -> World:
    """Return the collections of an archive folder that `simulate.archive.make_archive` wrote."""
    providers = json.loads((folder / ITEMS).read_text())["providers"]
    return World(_COLLECTIONS, _merged(_images(folder, providers)))


def _images(folder: Path, providers: dict[str, Any]) -> Iterator[tuple[str, Image]]:
    for collections in providers.values():
        for name, items in collections.items():
            for item in items["items"] if name in _SHELVES else ():
                yield _image(folder, item, _SHELVES[name])


def _merged(images: Iterable[tuple[str, Image]]) -> Iterator[tuple[str, Image]]:
    """Yield images; tiles of one map are one image."""
    found: dict[str, tuple[str, Image]] = {}
    for collection, image in images:
        _, first = found.get(image.id, (collection, None))
        found[image.id] = collection, image if first is None else _joined(first, image)
    yield from found.values()


def _joined(first: Image, second: Image) -> Image:
    outline = shapely.union(first.footprint, second.footprint).convex_hull
    ring = shapely.get_coordinates(outline).tolist()
    footprint = {"type": "LinearRing", "coordinates": ring}
    bands = (
        replace(one, read=_either(one.read, two.read), smooth=_either(one.smooth, two.smooth))
        for one, two in zip(first.bands, second.bands, strict=True)
    )
    properties = {**first.properties, "system:footprint": footprint}
    return replace(first, properties=properties, bands=tuple(bands))


def _either(one: Read, two: Read) -> Read:
    def read(grid: Grid) -> tuple[Pixels, Pixels]:
        (values, mask), (others, seen) = one(grid), two(grid)
        return np.where(mask, values, others), mask | seen

    return read


# --- sensors -------------------------------------------------------------------------------------


def _sentinel2(item: Item, _: Path) -> tuple[str, str, dict[str, Any]]:
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


def _sentinel2_bands(item: Item) -> dict[str, str]:
    keys = [key for key in item["assets"] if key[0] == "B" or key == "SCL"]
    return {key if key in ("B8A", "SCL") else f"B{int(key[1:])}": key for key in keys}


def _harmonised(numbers: Pixels, item: Item) -> Pixels:
    """Return numbers without the offset of baselines from 04.00 on; never below 0."""
    if numbers.dtype == "uint8" or float(item["properties"]["s2:processing_baseline"]) < 4:
        return numbers
    harmonised: Pixels = np.maximum(numbers.astype("int32") - _S2_OFFSET, 0).astype(numbers.dtype)
    return harmonised


def _landsat(item: Item, folder: Path) -> tuple[str, str, dict[str, Any]]:
    sensor, level, place, day, collection, tier = item["id"].split("_")
    facts, processed = item["properties"], f"{_when(item) + timedelta(days=9):%Y%m%d}"
    properties = {
        "LANDSAT_PRODUCT_ID": f"{sensor}_{level}_{place}_{day}_{processed}_{collection}_{tier}",
        "CLOUD_COVER": facts["eo:cloud_cover"],
        "SUN_ELEVATION": facts["view:sun_elevation"],
        "WRS_PATH": int(place[:3]),
        "WRS_ROW": int(place[3:]),
    }
    properties |= _coefficients(item, folder)
    level_2 = "_L2" if level.startswith("L2") else ""
    name = f"LANDSAT/{sensor}/C{collection}/{tier}{level_2}"
    return name, f"{sensor}_{place}_{day}", properties


def _coefficients(item: Item, folder: Path) -> dict[str, float]:
    """Return the numbers of a scene's metadata file, without its groups."""
    if "MTL.json" not in item["assets"]:
        return {}
    groups = json.loads((folder / item["assets"]["MTL.json"]["href"]).read_text())
    numbers = (
        (key, value)
        for group in groups["LANDSAT_METADATA_FILE"].values()
        for key, value in group.items()
    )
    return {key: float(value) for key, value in numbers if key != "SPACECRAFT_ID"}


def _landsat_bands(item: Item) -> dict[str, str]:
    sensor = item["id"][:2]
    level_1 = "_L1" in item["id"]
    start = "B" if level_1 else "SR_B"
    keys = {f"{start}{n}": key for n, key in enumerate(_REFLECTANCE[sensor], start=1)}
    keys |= _LEVEL_1[sensor] if level_1 else {"ST_B10": "lwir11"}
    keys |= {"QA_PIXEL": "qa_pixel", "QA_RADSAT": "qa_radsat"}
    return {name: key for name, key in keys.items() if key in item["assets"]}


def _sentinel1(item: Item, _: Path) -> tuple[str, str, dict[str, Any]]:
    facts = item["properties"]
    properties = {
        "instrumentMode": "IW",
        "resolution": "H",
        "orbitProperties_pass": facts["sat:orbit_state"].upper(),
        "relativeOrbitNumber_start": facts["sat:relative_orbit"],
        "sliceNumber": int(facts["s1:slice_number"]),
        "transmitterReceiverPolarisation": ["VV", "VH"],
    }
    # Mission, mode, product, times, orbit, datatake; the last part is a checksum.
    return "COPERNICUS/S1_GRD", "_".join([*item["id"].split("_")[:8], "0000"]), properties


def _decibels(numbers: Pixels, _: Item) -> Pixels:
    power: Pixels = np.maximum(numbers.astype("float64"), 1e-10)
    return 10 * np.log10(power)


# --- maps ----------------------------------------------------------------------------------------


def _worldcover(item: Item, _: Path) -> tuple[str, str, dict[str, Any]]:
    version = "v100" if _when(item).year <= 2020 else "v200"
    return f"ESA/WorldCover/{version}", f"{_when(item):%Y}", _class_table("esa-worldcover", "Map")


def _nlcd(item: Item, _: Path) -> tuple[str, str, dict[str, Any]]:
    release = "2019_REL" if _when(item).year <= 2019 else "2021_REL"
    name = f"USGS/NLCD_RELEASES/{release}/NLCD"
    return name, f"{_when(item):%Y}", _class_table("nlcd", "landcover")


def _cdl(item: Item, _: Path) -> tuple[str, str, dict[str, Any]]:
    return "USDA/NASS/CDL", f"{_when(item):%Y}", _class_table("cdl", "cropland")


def _corine(item: Item, _: Path) -> tuple[str, str, dict[str, Any]]:
    table = _class_table("corine", "landcover")
    return "COPERNICUS/CORINE/V20/100m", f"{_when(item):%Y}", table


def _class_table(product: str, band: str) -> dict[str, Any]:
    """Return the classes of a map as Earth Engine repeats them: its own legend, not our table."""
    rows = [row for row in _legends() if row["product"] == product]
    return {
        f"{band}_class_names": [row["name"] for row in rows],
        f"{band}_class_palette": [row["colour"] for row in rows],
        f"{band}_class_values": [int(row["value"]) for row in rows],
    }


@cache
def _legends() -> list[dict[str, str]]:
    """Return the classes of all maps: product, value, colour, name."""
    lines = files("pipeline.simulate.earthengine").joinpath("legends.csv").read_text().splitlines()
    return [*csv.DictReader(line for line in lines if not line.startswith("#"))]


@cache
def _three_figures() -> dict[int, int]:
    """Return CORINE's codes of three figures, with which its class names begin."""
    names = load_product("corine").classes.items()
    return {int(code): int(name[:3]) for code, name in names if name[:3].isdigit()}


def _corine_codes(numbers: Pixels, _: Item) -> Pixels:
    table = np.zeros(256, "int32")
    table[list(_three_figures())] = list(_three_figures().values())
    codes: Pixels = table[numbers.astype("uint8")]
    return codes


def _terrain(item: Item, _: Path) -> tuple[str, str, dict[str, Any]]:
    return "COPERNICUS/DEM/GLO30", item["id"], {}


def _one(name: str) -> Callable[[Item], dict[str, str]]:
    """Return what names the one band of a map."""
    return lambda item: {name: next(iter(item["assets"]))}


#: What Earth Engine has, whether the archive has images of it or not.
_COLLECTIONS = (
    "COPERNICUS/CORINE/V20/100m",
    "COPERNICUS/DEM/GLO30",
    "COPERNICUS/S1_GRD",
    "COPERNICUS/S2_HARMONIZED",
    "COPERNICUS/S2_SR_HARMONIZED",
    "ESA/WorldCover/v100",
    "ESA/WorldCover/v200",
    "LANDSAT/LC08/C02/T1",
    "LANDSAT/LC08/C02/T1_L2",
    "LANDSAT/LC09/C02/T1",
    "LANDSAT/LC09/C02/T1_L2",
    "LANDSAT/LE07/C02/T1",
    "LANDSAT/LE07/C02/T1_L2",
    "LANDSAT/LT04/C02/T1",
    "LANDSAT/LT05/C02/T1",
    "LANDSAT/LT05/C02/T1_L2",
    "USDA/NASS/CDL",
    "USGS/NLCD_RELEASES/2019_REL/NLCD",
    "USGS/NLCD_RELEASES/2021_REL/NLCD",
)
#: STAC collection of an archive to how Earth Engine has it.
_SHELVES = {
    "sentinel-2-l2a": _Shelf(_sentinel2, _sentinel2_bands, _harmonised),
    "sentinel-2-l1c": _Shelf(_sentinel2, _sentinel2_bands, _harmonised),
    "landsat-c2-l1": _Shelf(_landsat, _landsat_bands),
    "landsat-c2-l2": _Shelf(_landsat, _landsat_bands),
    "sentinel-1-rtc": _Shelf(
        _sentinel1, lambda _: {"VV": "vv", "VH": "vh"}, _decibels, masked=_S1_MASKED
    ),
    "esa-worldcover": _Shelf(_worldcover, _one("Map")),
    "nlcd": _Shelf(_nlcd, _one("landcover")),
    "usda-cdl": _Shelf(_cdl, _one("cropland")),
    "corine": _Shelf(_corine, _one("landcover"), _corine_codes, masked=48),
    "cop-dem-glo-30": _Shelf(_terrain, _one("DEM"), masked=None),
}


# --- items as images -----------------------------------------------------------------------------


def _image(folder: Path, item: Item, shelf: _Shelf) -> tuple[str, Image]:
    """Return an item as an image, and the collection that it is in."""
    collection, index, properties = shelf.describe(item, folder)
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


def _band(folder: Path, item: Item, shelf: _Shelf, name: str, key: str) -> Band:
    asset, path, facts = (
        item["assets"][key],
        folder / item["assets"][key]["href"],
        item["properties"],
    )
    pixel_m, _, x_min_m, _, _, y_max_m = asset.get("proj:transform", facts.get("proj:transform"))[
        :6
    ]
    height, width = asset.get("proj:shape", facts.get("proj:shape"))
    grid = Grid(int(facts["proj:epsg"]), pixel_m, x_min_m, y_max_m, width, height)

    def at(xs: Pixels, ys: Pixels) -> tuple[Pixels, Pixels]:
        numbers, inside = _under(path, grid, xs, ys)
        seen = inside if shelf.masked is None else inside & (numbers != shelf.masked)
        return shelf.values(numbers, item), seen

    with rasterio.open(path) as file:
        dtype = shelf.values(np.zeros((1, 1), file.dtypes[0]), item).dtype
    return Band(
        name,
        dtype.name,
        grid,
        read=lambda wanted: at(*wanted.centres(grid.epsg)),
        smooth=lambda wanted: _bilinear(at, grid, *wanted.centres(grid.epsg)),
    )


def _when(item: Item) -> datetime:
    return datetime.fromisoformat(item["properties"]["datetime"]).astimezone(UTC)


def _bilinear(
    at: Callable[[Pixels, Pixels], tuple[Pixels, Pixels]], grid: Grid, xs: Pixels, ys: Pixels
) -> tuple[Pixels, Pixels]:
    """Return means of the four pixels around positions, weighted by how near their centres are."""
    column, row = (xs - grid.x_min_m) / grid.pixel_m - 0.5, (grid.y_max_m - ys) / grid.pixel_m - 0.5
    left, top = np.floor(column), np.floor(row)
    values, mask = np.zeros(xs.shape), np.ones(xs.shape, bool)
    for right in (0, 1):
        for down in (0, 1):
            x = grid.x_min_m + (left + right + 0.5) * grid.pixel_m
            y = grid.y_max_m - (top + down + 0.5) * grid.pixel_m
            numbers, seen = at(x, y)
            weight = np.abs(1 - right - (column - left)) * np.abs(1 - down - (row - top))
            values += weight * numbers
            mask &= seen
    return values, mask


def _under(path: Path, grid: Grid, xs: Pixels, ys: Pixels) -> tuple[Pixels, Pixels]:
    """Return the file's pixels at positions, and which lie in the file at all."""
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

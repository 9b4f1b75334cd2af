"""Maps in projections of their own: terrain and land cover, made once for a region.

Their pixels lie on no lattice of a UTM zone, so whoever cuts cells from them must warp; what a
pixel holds is the truth at its centre, to `_STEP_M`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, cos, floor, radians
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from pyproj import Transformer
from rasterio import Affine
from rasterio.windows import Window

from pipeline.products.model import Product
from pipeline.raster.zones import to_plane, zones_at
from pipeline.simulate.delivery.scenes import delivered_dtype
from pipeline.simulate.delivery.shelves import Shelf
from pipeline.simulate.truth.ground import STEP, class_codes, kind_of
from pipeline.simulate.truth.landscape import landscape
from pipeline.simulate.truth.noise import Place

Region = tuple[float, float, float, float]

_BLOCK_PX = 512
#: Maps reach so far beyond their region, so that cells on its edge are whole: some 5 km.
_MARGIN_DEG = 0.05
#: The ground is looked up on a grid of so many metres.
_STEP_M = 10


@dataclass(frozen=True, slots=True)
class _Grid:
    """How a map is cut and named."""

    name: str
    """Item id; `{year}` and `{tile}` are filled in."""
    epsg: int = 4326
    pixel: float = 1 / 3600
    """Pixel size in the units of the CRS."""
    tile_deg: int = 0
    """Edge of its tiles; 0: one file."""
    centred: bool = False
    """Whether a tile's edge is a line of pixel centres."""


#: CRS and pixels of the real maps. Copernicus DEM: one arc second (below 50 degrees of latitude;
#: further north the real one is wider in longitude), pixel centres on whole degrees.
_GRIDS = {
    "cop-dem-glo-30": _Grid("Copernicus_DSM_COG_10_{tile}_DEM", tile_deg=1, centred=True),
    "esa-worldcover": _Grid("ESA_WorldCover_10m_{year}_v200_{tile}", pixel=1 / 12_000, tile_deg=3),
    "nlcd": _Grid("nlcd-{year}", epsg=5070, pixel=30),
    "cdl": _Grid("cropland_{year}_0_0_cog", epsg=5070, pixel=30),
    "corine": _Grid("corine-{year}", epsg=3035, pixel=100),
}


def write_map(
    folder: Path, shelf: Shelf, region: Region, years: Sequence[int], seed: int
) -> list[dict[str, Any]]:
    """Write a map of a region, and return its items: one for each year, if it is yearly."""
    product = shelf.product
    grid = _GRIDS.get(product.id, _Grid(f"{product.id}-{{year}}"))
    items = []
    for tile, bounds in _tiles(grid, _widened(region)):
        path = f"files/{shelf.provider}/{product.id}/{tile or 'map'}.tif"
        shape, transform = _write(folder / path, product, grid, bounds, seed)
        for year in years[:1] if product.temporal == "static" else years:
            name = grid.name.format(year=year, tile=tile)
            items.append(_item(shelf, grid, name, year, path, shape, transform))
    return items


def _widened(region: Region) -> Region:
    west, south, east, north = region
    margin = _MARGIN_DEG / cos(radians(max(abs(south), abs(north))))
    return west - margin, south - _MARGIN_DEG, east + margin, north + _MARGIN_DEG


def _tiles(grid: _Grid, region: Region) -> Iterator[tuple[str, Region]]:
    """Yield name and bounds (in the map's CRS) of the files that cover a region."""
    west, south, east, north = region
    if not grid.tile_deg:
        turn = Transformer.from_crs(4326, grid.epsg, always_xy=True)
        yield "", turn.transform_bounds(*region, densify_pts=41)
        return
    size = grid.tile_deg
    for lat in range(floor(south / size) * size, ceil(north / size) * size, size):
        for lon in range(floor(west / size) * size, ceil(east / size) * size, size):
            box = max(west, lon), max(south, lat), min(east, lon + size), min(north, lat + size)
            yield _tile_name(lon, lat, long=grid.centred), box


def _tile_name(lon: int, lat: int, *, long: bool) -> str:
    north, east = "NS"[lat < 0], "EW"[lon < 0]
    between = "_00_" if long else ""
    return f"{north}{abs(lat):02d}{between}{east}{abs(lon):03d}{'_00' if long else ''}"


def _write(
    path: Path, product: Product, grid: _Grid, bounds: Region, seed: int
) -> tuple[tuple[int, int], Affine]:
    west, south, east, north = bounds
    shift = grid.pixel / 2 if grid.centred else 0.0
    first = floor((west + shift) / grid.pixel) * grid.pixel - shift
    top = ceil((north - shift) / grid.pixel) * grid.pixel + shift
    width, height = ceil((east - first) / grid.pixel), ceil((top - south) / grid.pixel)
    transform = Affine(grid.pixel, 0, first, 0, -grid.pixel, top)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=1,
        dtype=delivered_dtype(product),
        crs=f"EPSG:{grid.epsg}",
        transform=transform,
        nodata=product.nodata,
        tiled=True,
        blockxsize=_BLOCK_PX,
        blockysize=_BLOCK_PX,
        compress="deflate",
        num_threads=1,
    ) as file:
        for row in range(0, height, _BLOCK_PX):
            for column in range(0, width, _BLOCK_PX):
                window = Window(
                    column, row, min(_BLOCK_PX, width - column), min(_BLOCK_PX, height - row)
                )
                file.write(_values(product, grid, transform, window, seed), 1, window=window)
    return (height, width), transform


def _values(
    product: Product, grid: _Grid, transform: Affine, window: Window, seed: int
) -> npt.NDArray[Any]:
    """Return what a block of a map holds, shape (y, x)."""
    columns = np.arange(window.width) + window.col_off + 0.5
    rows = np.arange(window.height) + window.row_off + 0.5
    x, y = np.meshgrid(transform.c + transform.a * columns, transform.f + transform.e * rows)
    turn = Transformer.from_crs(grid.epsg, 4326, always_xy=True)
    lon, lat = turn.transform(x, y)
    zones, _ = zones_at(lon, lat)
    values = np.zeros(lon.shape, delivered_dtype(product))
    for zone in sorted(set(zones[zones > 0].ravel().tolist())):
        inside = zones == zone
        east_m, north_m = to_plane(lon[inside], lat[inside], zone)
        values[inside] = map_values(product, zone, east_m, north_m, seed)
    return values


def map_values(
    product: Product,
    zone: int,
    x_m: npt.NDArray[np.float64],
    n_m: npt.NDArray[np.float64],
    seed: int = 0,
) -> npt.NDArray[Any]:
    """Return the truth of a map at scattered points of a zone's plane, to `_STEP_M`."""
    column, row = (np.floor(v / _STEP_M).astype(np.int64) for v in (x_m, n_m))
    columns, at_column = np.unique(column, return_inverse=True)
    rows, at_row = np.unique(row, return_inverse=True)
    middle = _STEP_M // 2
    land = landscape(Place(zone, columns * _STEP_M + middle, rows * _STEP_M + middle, seed))
    if product.kind == "labels":
        found: npt.NDArray[Any] = class_codes(product, land)[at_row, at_column]
        return found
    step = STEP[kind_of(product, product.bands[0])]
    return (land.height[at_row, at_column] * step).astype(delivered_dtype(product))


def _item(
    shelf: Shelf,
    grid: _Grid,
    name: str,
    year: int,
    path: str,
    shape: tuple[int, int],
    transform: Affine,
) -> dict[str, Any]:
    height, width = shape
    right, bottom = transform.c + transform.a * width, transform.f + transform.e * height
    edges = (transform.c, bottom, right, transform.f)
    turn = Transformer.from_crs(grid.epsg, 4326, always_xy=True)
    outline = shapely.transform(
        shapely.segmentize(
            shapely.box(*edges), max(right - transform.c, transform.f - bottom) / 20
        ),
        lambda points: np.stack(turn.transform(points[:, 0], points[:, 1]), axis=-1),
    )
    words = {"datatake": str(year), "tile": "map", "baseline": "1"}
    own = {
        key: words[word]
        for word, key in shelf.facts.properties.items()
        if word in words and key != "id" and not key.startswith("=")
    }
    (asset,) = shelf.facts.assets[shelf.product.bands[0].name]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [],
        "id": name,
        "collection": shelf.facts.collection,
        "geometry": shapely.geometry.mapping(outline),
        "bbox": list(outline.bounds),
        "properties": {
            "datetime": f"{year}-01-01T00:00:00Z",
            "proj:epsg": grid.epsg,
            "proj:shape": [height, width],
            "proj:transform": list(transform)[:6],
            **own,
        },
        "assets": {asset.asset: {"href": path, "type": "image/tiff", "roles": ["data"]}},
        "links": [],
    }

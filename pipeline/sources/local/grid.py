"""What a raster on disk says of itself, and how an item states it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from pyproj import Transformer
from pyproj.exceptions import ProjError
from rasterio.errors import RasterioError

#: Nothing beside the file is looked at: no .aux.xml, no .ovr, no listing of the folder.
_ALONE = {
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "VRT_SHARED_SOURCE": "0",
}
#: Pieces that an edge is cut into before it is projected: of a 110 km edge each is off by < 1 m.
_PIECES = 32


class Unreadable(Exception):
    """A folder or file that cannot become an item; the text says why."""


@dataclass(frozen=True, slots=True)
class RasterGrid:
    """Where the pixels of a north-up raster lie."""

    epsg: int
    x_min_m: float
    y_max_m: float
    pixel_m: float
    rows: int
    columns: int

    def stated(self) -> dict[str, Any]:
        """Return it in the words of the STAC projection extension."""
        step, x, y = self.pixel_m, self.x_min_m, self.y_max_m
        return {
            "proj:epsg": self.epsg,
            "proj:shape": [self.rows, self.columns],
            "proj:transform": [step, 0, x, 0, -step, y],
        }

    def outline(self) -> shapely.Geometry:
        """Return the outer edge in longitude and latitude, bent where the projection bends it."""
        width, height = self.columns * self.pixel_m, self.rows * self.pixel_m
        box = shapely.box(self.x_min_m, self.y_max_m - height, self.x_min_m + width, self.y_max_m)
        return shapely.transform(
            shapely.segmentize(box, max(width, height) / _PIECES),
            _to_lonlat(self.epsg).transform,
            interleaved=False,
        )


def grid_of(path: Path) -> RasterGrid:
    """Read the grid of a GeoTIFF, whatever its name says; `Unreadable` if we cannot use it."""
    try:
        with rasterio.Env(**_ALONE), rasterio.open(path, driver="GTiff") as raster:
            crs, step = raster.crs, raster.transform
            rows, columns = raster.shape
    except RasterioError as error:
        raise Unreadable(f"{path.name} is no GeoTIFF that can be opened: {error}") from error
    epsg = None if crs is None else crs.to_epsg()
    if epsg is None:
        raise Unreadable(f"{path.name} does not say in which CRS it is")
    if step.b or step.d or step.a <= 0 or step.e != -step.a:
        raise Unreadable(f"the pixels of {path.name} are not square and north up")
    return RasterGrid(epsg, step.c, step.f, step.a, rows, columns)


def outline_of(path: Path) -> shapely.Geometry:
    """Return the outer edge of a GeoTIFF on whatever grid, in longitude and latitude."""
    try:
        with rasterio.Env(**_ALONE), rasterio.open(path, driver="GTiff") as raster:
            crs, step = raster.crs, raster.transform
            rows, columns = raster.shape
    except RasterioError as error:
        raise Unreadable(f"{path.name} is no GeoTIFF that can be opened: {error}") from error
    if crs is None or step.is_identity:
        raise Unreadable(f"{path.name} does not say where its pixels are")
    edge = shapely.segmentize(shapely.box(0, 0, columns, rows), max(rows, columns) / _PIECES)
    col, row = shapely.get_coordinates(edge).T
    x, y = step.a * col + step.b * row + step.c, step.d * col + step.e * row + step.f
    try:
        to_lonlat = Transformer.from_crs(crs.to_wkt(), "OGC:CRS84", always_xy=True)
    except ProjError as error:
        raise Unreadable(f"the CRS of {path.name} cannot be used: {error}") from error
    return shapely.Polygon(np.stack(to_lonlat.transform(x, y), axis=1))


def asset_of(path: Path, kind: str, grid: RasterGrid | None = None) -> dict[str, Any]:
    """Return the asset entry of a file, with its length and, if it is known, its grid."""
    entry = {"href": str(path), "type": kind, "file:size": path.stat().st_size}
    return entry if grid is None else {**entry, **grid.stated()}


def make_item(
    name: str,
    collection: str,
    outline: shapely.Geometry,
    properties: Mapping[str, Any],
    assets: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return a STAC item of files on this machine."""
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": collection,
        "geometry": shapely.geometry.mapping(outline),
        "bbox": list(outline.bounds),
        "properties": dict(properties),
        "assets": {key: dict(entry) for key, entry in assets.items()},
        "links": [],
    }


def problem_item(name: str, collection: str, problem: Unreadable) -> dict[str, Any]:
    """Return an item that says what is wrong, so that the search can list it as unusable."""
    point = shapely.box(0, 0, 0, 0)
    return make_item(name, collection, point, {"terrashard:problem": str(problem)}, {})


@cache
def _to_lonlat(epsg: int) -> Transformer:
    return Transformer.from_crs(epsg, "OGC:CRS84", always_xy=True)

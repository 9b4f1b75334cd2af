"""Read a user's points: GeoJSON, GeoParquet or CSV. The file is checked, not believed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import shapely

from pipeline.errors import RecipeError
from pipeline.raster.zones import Floats

#: Longest name of a point that is kept.
_NAME_LENGTH = 200

#: Reference systems whose coordinates are longitude, latitude (GeoParquet writes x first).
_LON_LAT = {("OGC", "CRS84"), ("EPSG", "4326")}


@dataclass(frozen=True, slots=True)
class UserPoints:
    """Points in the order of the file, as columns of one length."""

    lon_deg: Floats
    lat_deg: Floats
    names: list[str]
    """Empty where a point has none."""


def read_points(path: Path) -> UserPoints:
    """Read points with an optional `name` each; the suffix tells the format.

    Raises
    ------
    RecipeError
        There is no such file, it is not of its format, or a point is none (says which).
    """
    readers = {
        ".csv": _from_csv,
        ".geojson": _from_geojson,
        ".json": _from_geojson,
        ".parquet": _from_parquet,
        ".geoparquet": _from_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise RecipeError(f"points in {path}: the suffix must be one of {', '.join(readers)}.")
    if not path.is_file():
        raise RecipeError(f"points in {path}: there is no such file.")
    try:
        points = reader(path)
    except (pa.ArrowException, shapely.errors.GEOSException, ValueError, OSError) as error:
        raise RecipeError(f"points in {path} cannot be read: {error}.") from error
    lon, lat = points.lon_deg, points.lat_deg
    sound = (np.abs(lon) <= 180) & (np.abs(lat) <= 90)
    if not sound.all():
        row = int(np.argmin(sound))
        raise RecipeError(
            f"points in {path}: point {row + 1} is at lon {lon[row]}, lat {lat[row]}; longitudes "
            "are -180 to 180 and latitudes -90 to 90, in degrees."
        )
    return points


def _from_csv(path: Path) -> UserPoints:
    types = {"lon": pa.float64(), "lat": pa.float64(), "name": pa.string()}
    table = pyarrow.csv.read_csv(
        path, convert_options=pyarrow.csv.ConvertOptions(column_types=types)
    )
    return _from_columns(table)


def _from_columns(table: pa.Table) -> UserPoints:
    missing = [name for name in ("lon", "lat") if name not in table.column_names]
    if missing:
        raise ValueError(
            f"column {' and '.join(missing)} is missing; it has {', '.join(table.column_names)}"
        )
    lon, lat = (_numbers(table.column(name), name) for name in ("lon", "lat"))
    return UserPoints(lon, lat, _names(table))


def _numbers(column: pa.ChunkedArray, name: str) -> Floats:
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise ValueError(f"column {name} holds {column.type}, not numbers")
    # Nulls become NaN, which no check of the range lets pass.
    return np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64)


def _names(table: pa.Table) -> list[str]:
    if "name" not in table.column_names:
        return [""] * table.num_rows
    return [_name(value) for value in table.column("name").to_pylist()]


def _name(value: Any) -> str:
    return "" if value is None else str(value)[:_NAME_LENGTH]


def _from_geojson(path: Path) -> UserPoints:
    document = json.loads(path.read_text(encoding="utf-8"))
    kind, features = _member(document, "type"), _member(document, "features")
    if kind != "FeatureCollection" or not isinstance(features, list):
        raise ValueError(f"it is not a FeatureCollection (its type is {kind!r})")
    lon, lat, names = [], [], []
    for number, feature in enumerate(features, start=1):
        x, y, name = _point_of(feature, number)
        lon.append(x)
        lat.append(y)
        names.append(name)
    return UserPoints(np.array(lon, dtype=np.float64), np.array(lat, dtype=np.float64), names)


def _point_of(feature: Any, number: int) -> tuple[float, float, str]:
    geometry = _member(feature, "geometry")
    found = _member(geometry, "coordinates")
    is_point = _member(geometry, "type") == "Point" and isinstance(found, list) and len(found) >= 2
    if not is_point or not all(type(value) in (int, float) for value in found[:2]):
        raise ValueError(f"feature {number} is not a Point with longitude and latitude")
    name = _member(_member(feature, "properties"), "name")
    return float(found[0]), float(found[1]), _name(name)


def _member(thing: Any, key: str) -> Any:
    """Return a member of a JSON object; None if there is none, or if it is no object."""
    return thing.get(key) if isinstance(thing, dict) else None


def _from_parquet(path: Path) -> UserPoints:
    table = pyarrow.parquet.read_table(path)
    metadata = (table.schema.metadata or {}).get(b"geo")
    if metadata is None:
        return _from_columns(table)
    geo = json.loads(metadata)
    primary = str(_member(geo, "primary_column"))
    column = _member(_member(geo, "columns"), primary)
    if _member(column, "encoding") != "WKB" or primary not in table.column_names:
        raise ValueError(f"it has no geometry column {primary!r} encoded as WKB")
    _check_lon_lat(_member(column, "crs"))
    shapes = shapely.from_wkb(table.column(primary).to_numpy(zero_copy_only=False))
    is_point = shapely.get_type_id(shapes) == shapely.GeometryType.POINT
    if not is_point.all():
        raise ValueError(f"geometry {int(np.argmin(is_point)) + 1} is not a point")
    return UserPoints(shapely.get_x(shapes), shapely.get_y(shapes), _names(table))


def _check_lon_lat(crs: Any) -> None:
    """Refuse other reference systems; without one, GeoParquet means longitude, latitude."""
    if crs is None:
        return
    named = crs.get("id") if isinstance(crs, dict) else None
    code = (
        (str(named.get("authority")), str(named.get("code"))) if isinstance(named, dict) else None
    )
    if code not in _LON_LAT:
        raise ValueError("its coordinates are not longitude and latitude (OGC:CRS84)")

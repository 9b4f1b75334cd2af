"""STAC items as the real providers write them, wrong types and all.

Names, types and habits follow recorded answers. DLR gives numbers as text, a null `proj:epsg` in
the properties with the CRS on the assets (null there too in about a fifth of the recorded items),
and a sun azimuth that is wrong by 180 degrees. The Planetary Computer gives fractions of a percent,
the tile without `MGRS-`, and a datatake id that contains the baseline. Earth Search writes whole
numbers as int, and an offset beside the flag that says it was removed. Copernicus writes STAC 1.1
with `proj:code` on the assets. What a product file names and no manner here knows is filled in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import shapely

from pipeline.products.model import Band
from pipeline.raster.zones import to_sphere
from pipeline.simulate.delivery.orbits import Scene
from pipeline.simulate.delivery.scenes import offset_of, sun_of
from pipeline.simulate.delivery.shelves import File, Shelf, files_of
from pipeline.simulate.truth.noise import below

_COG = "image/tiff; application=geotiff; profile=cloud-optimized"
_EXTENSIONS = "https://stac-extensions.github.io"
#: One EnMAP item in so many lacks its CRS everywhere (20 of 106 recorded items).
_WITHOUT_CRS = 16
#: One Sentinel-2 scene of Earth Search in so many was processed again, and one in so many of these
#: has an item without assets besides. Our choice: a search should meet both in a small archive.
_AGAIN, _PENDING = 3, 2
#: By the baseline of a scene (`orbits`) an older and a newer one.
_BEFORE = {"03.01": "02.14", "05.09": "04.00"}
_AFTER = {"03.01": "05.00", "05.09": "05.10"}
#: Distance of the points of an outline, in metres: straight in the plane, they are not quite
#: straight in longitude and latitude (20 m off at the middle of a 30-km edge without them).
_OUTLINE_STEP_M = 1000

Properties = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Written:
    """What was written for a scene.

    Attributes
    ----------
    files : dict of str to str
        Asset key to path relative to the archive folder.
    percent : dict of str to float
        Shares of the seen pixels, by name; `nodata` is the share of all pixels that was not seen.
    """

    files: Mapping[str, str]
    percent: Mapping[str, float]


def item_of(
    shelf: Shelf, scene: Scene, written: Written, *, outline: shapely.Polygon | None = None
) -> dict[str, Any]:
    """Return the item of a scene in its provider's manner.

    `outline` in longitude and latitude replaces the scene's own.
    """
    grids = {} if _is_radar_geometry(shelf) else {file.key: file for file in files_of(shelf)}
    outline = _outline(scene) if outline is None else outline
    version, extensions = (
        ("1.1.0", "v2.0.0") if shelf.provider == "copernicus" else ("1.0.0", "v1.0.0")
    )
    return {
        "type": "Feature",
        "stac_version": version,
        "stac_extensions": [f"{_EXTENSIONS}/projection/{extensions}/schema.json"],
        "id": item_id(shelf, scene),
        "collection": shelf.facts.collection,
        "geometry": {
            "type": "Polygon",
            "coordinates": [[list(p) for p in outline.exterior.coords]],
        },
        "bbox": list(outline.bounds),
        "properties": properties_of(shelf, scene, written.percent),
        "assets": {
            key: _asset(shelf, scene, grids[key], href) if key in grids else _document(href)
            for key, href in written.files.items()
        },
        "links": [],
    }


def items_of(shelf: Shelf, scene: Scene, written: Written) -> list[dict[str, Any]]:
    """Return all items of a scene: Earth Search has several of one that was processed again.

    `_0_` is of an older baseline, `_1_` the scene's own (recorded for 2020: 02.14 and 05.00); some
    have a `_2_` that is newer still and lists no asset, as items whose files are yet to come. What
    is seen does not depend on the processor here, so both list the same files.
    """
    own = item_of(shelf, scene, written)
    draw = below(_AGAIN * _PENDING, 96, *scene.item.encode())
    if (_sensor(scene), shelf.provider) != ("sentinel-2", "earth-search") or draw % _AGAIN:
        return [own]
    older, newer = _BEFORE[scene.baseline], _AFTER[scene.baseline]
    items = [_numbered(item_of(shelf, _processed(scene, older), written), 0), _numbered(own, 1)]
    if draw // _AGAIN == 0:
        pending = item_of(shelf, _processed(scene, newer), replace(written, files={}))
        items.append(_numbered(pending, 2))
    return items


def _processed(scene: Scene, baseline: str) -> Scene:
    """Return a scene as another processor made it."""
    datatake = scene.datatake.removesuffix(scene.baseline) + baseline
    return replace(scene, baseline=baseline, datatake=datatake)


def _numbered(item: dict[str, Any], sequence: int) -> dict[str, Any]:
    """Return an item of Earth Search as the one of that number."""
    number = str(sequence)
    properties = {**item["properties"], "s2:sequence": number}
    return {**item, "id": item["id"].replace("_0_", f"_{number}_"), "properties": properties}


def properties_of(shelf: Shelf, scene: Scene, percent: Mapping[str, float]) -> Properties:
    """Return the properties of a scene's item."""
    properties = {"datetime": f"{scene.when:%Y-%m-%dT%H:%M:%S.%fZ}"}
    describe = _MANNERS.get((_sensor(scene), shelf.provider)) or _SENSORS.get(_sensor(scene))
    if describe is not None:
        properties |= describe(shelf, scene, percent)
    return _whole_numbers(shelf, properties | _missing(shelf, scene, percent, properties))


def _sensor(scene: Scene) -> str:
    """Return the beginning of a product's id that names its sensor: `sentinel-2`, `landsat`."""
    parts = scene.product.split("-")
    return "-".join(parts[:2]) if parts[0] == "sentinel" else parts[0]


def item_id(shelf: Shelf, scene: Scene) -> str:
    """Return the item's id, which only some providers leave as the processor wrote it."""
    match _sensor(scene), shelf.provider:
        case "sentinel-2", "earth-search":
            satellite, level = scene.item[:3], scene.item[7:10]
            return f"{satellite}_{scene.tile}_{scene.when:%Y%m%d}_0_{level}"
        case "sentinel-2", "copernicus":
            return _safe_name(scene)
        case "sentinel-1", "planetary-computer" if scene.product.endswith("-rtc"):
            return f"{scene.item}_rtc"
    return scene.item


def _missing(
    shelf: Shelf, scene: Scene, percent: Mapping[str, float], properties: Properties
) -> Properties:
    """Return the properties that the product file names for this provider and no manner gave."""
    elevation = round(sun_of(scene)[0], 6)
    words = {
        "datatake": scene.datatake,
        "tile": scene.tile,
        "baseline": scene.baseline,
        "cloud_percent": round(percent.get("cloud", 0.0), 6),
        "sun_elevation_deg": elevation,
        "sun_zenith_deg": round(90 - elevation, 6),
        "offset_applied": True,
        "offset_add": offset_of(scene, shelf.product) if shelf.product.offsets else 0,
    }
    own: Properties = {
        key: words[word]
        for word, key in shelf.facts.properties.items()
        if word in words and key != "id" and not key.startswith("=")
    }
    if shelf.provider not in ("dlr", "copernicus"):
        own["proj:epsg"] = 4326 if _is_radar_geometry(shelf) else scene.epsg
    return {key: value for key, value in own.items() if key not in properties}


def _whole_numbers(shelf: Shelf, properties: Properties) -> Properties:
    """Write whole numbers as int where the provider does."""
    if shelf.provider != "earth-search":
        return properties
    return {
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in properties.items()
    }


# --- properties, by sensor and provider -----------------------------------------------------------


def _enmap(shelf: Shelf, scene: Scene, percent: Mapping[str, float]) -> Properties:
    elevation, azimuth = sun_of(scene)
    whole = {key: str(round(value)) for key, value in percent.items()}
    start = scene.when
    return {
        "version": scene.baseline,
        "datetime": f"{start:%Y-%m-%dT%H:%M:%SZ}",
        "start_datetime": f"{start:%Y-%m-%dT%H:%M:%S.%fZ}",
        "end_datetime": f"{start + timedelta(seconds=4.5):%Y-%m-%dT%H:%M:%S.%fZ}",
        "platform": "enmap",
        "proj:epsg": None,
        "sat:relative_orbit": str((start.date().toordinal() * 15 + scene.track) % 100_000),
        "sat:orbit_state": "DESCENDING",
        "eo:cloud_cover": whole["cloud"],
        "eo:snow_cover": whole["snow"],
        "view:sun_azimuth": round((azimuth + 180) % 360, 6),
        "view:sun_elevation": round(elevation, 6),
        "processing:facility": "NZ",
        "processing:level": "L2A",
        "eo:instrument": "HSI",
        "enmap:archivedVersion": scene.baseline,
        "enmap:cirrus_cover": whole["cirrus"],
        "enmap:cloud_shadow": whole["shadow"],
        "enmap:haze_cover": whole["haze"],
        "enmap:water_cover": whole["water"],
        "enmap:datatakeID": scene.datatake,
        "enmap:tileID": scene.tile,
        "enmap:nodata": f"{shelf.product.nodata:.0f}",
        "enmap:overallQuality": "0" if percent["cloud"] < 60 else "2",
        "enmap:sceneAzimuthAngle": "12.5288077092",
        "enmap:sunAzimuthAngle": f"{azimuth:.6f}",
        "enmap:sunElevationAngle": f"{elevation:.6f}",
    }


def _sentinel2(shelf: Shelf, scene: Scene, percent: Mapping[str, float]) -> Properties:
    del shelf
    elevation, azimuth = sun_of(scene)
    shares = {key: round(value, 6) for key, value in percent.items()}
    level = "S2MSI1C" if scene.product.endswith("-l1c") else "S2MSI2A"
    properties: Properties = {
        "datetime": f"{scene.when:%Y-%m-%dT%H:%M:%S.024000Z}",
        "platform": f"Sentinel-{scene.item[1:3]}",
        "proj:epsg": scene.epsg,
        "instruments": ["msi"],
        "constellation": "Sentinel 2",
        "s2:mgrs_tile": scene.tile,
        "s2:datatake_id": scene.datatake,
        "s2:product_uri": f"{_safe_name(scene)}.SAFE",
        "s2:product_type": level,
        "s2:datatake_type": "INS-NOBS",
        "s2:processing_baseline": scene.baseline,
        "sat:orbit_state": "descending",
        "sat:relative_orbit": scene.track % 143 + 1,
        "s2:mean_solar_zenith": round(90 - elevation, 6),
        "s2:mean_solar_azimuth": round(azimuth, 6),
        "eo:cloud_cover": shares["cloud"],
        "s2:nodata_pixel_percentage": shares["nodata"],
    }
    if level == "S2MSI2A":
        properties |= {
            "s2:water_percentage": shares["water"],
            "s2:snow_ice_percentage": shares["snow"],
            "s2:thin_cirrus_percentage": shares["cirrus"],
            "s2:cloud_shadow_percentage": shares["shadow"],
        }
    return properties


def _sentinel2_earth_search(shelf: Shelf, scene: Scene, percent: Mapping[str, float]) -> Properties:
    elevation, azimuth = sun_of(scene)
    ours = _sentinel2(shelf, scene, percent)
    same = ("s2:datatake_id", "s2:product_uri", "s2:product_type", "s2:datatake_type")
    properties = {
        **{key: ours[key] for key in (*same, "s2:processing_baseline", "eo:cloud_cover")},
        "s2:nodata_pixel_percentage": ours["s2:nodata_pixel_percentage"],
        "platform": f"sentinel-{scene.item[1:3].lower()}",
        "constellation": "sentinel-2",
        "instruments": ["msi"],
        "grid:code": f"MGRS-{scene.tile}",
        "mgrs:utm_zone": scene.zone,
        "mgrs:latitude_band": scene.tile[2],
        "mgrs:grid_square": scene.tile[3:],
        "view:sun_azimuth": azimuth,
        "view:sun_elevation": elevation,
        "s2:sequence": "0",
    }
    if "offset_applied" in shelf.facts.properties:
        properties["earthsearch:boa_offset_applied"] = offset_of(scene, shelf.product) != 0
    return properties


def _sentinel2_copernicus(shelf: Shelf, scene: Scene, percent: Mapping[str, float]) -> Properties:
    elevation, azimuth = sun_of(scene)
    del shelf
    return {
        "platform": f"sentinel-{scene.item[1:3].lower()}",
        "constellation": "sentinel-2",
        "instruments": ["msi"],
        "processing:version": scene.baseline,
        "grid:code": f"MGRS-{scene.tile}",
        "eo:cloud_cover": round(percent["cloud"], 2),
        "view:sun_azimuth": azimuth,
        "view:sun_elevation": elevation,
    }


def _landsat(shelf: Shelf, scene: Scene, percent: Mapping[str, float]) -> Properties:
    elevation, azimuth = sun_of(scene)
    sensor, level, place, day = scene.item.split("_")[:4]
    number = int(sensor[2:])
    loud = shelf.facts.only.get("platform", "").startswith("LANDSAT")
    cloud = round(percent["cloud"], 2)
    return {
        "platform": f"LANDSAT_{number}" if loud else f"landsat-{number}",
        "instruments": ["tm"] if number == 5 else ["etm+"] if number == 7 else ["oli", "tirs"],
        "gsd": 30,
        "eo:cloud_cover": cloud,
        "landsat:cloud_cover_land": cloud,
        "landsat:wrs_type": "2",
        "landsat:wrs_path": place[:3],
        "landsat:wrs_row": place[3:],
        "landsat:scene_id": f"{sensor[0]}{sensor[1]}{number}{place}{day}LGN00",
        "landsat:correction": level,
        "landsat:collection_number": "02",
        "landsat:collection_category": "T1",
        "view:off_nadir": 0,
        "view:sun_azimuth": round(azimuth, 8),
        "view:sun_elevation": round(elevation, 8),
    }


def _sentinel1(shelf: Shelf, scene: Scene, percent: Mapping[str, float]) -> Properties:
    del percent
    end = scene.when + timedelta(seconds=25)
    upper = shelf.provider == "planetary-computer"
    platform = f"sentinel-{scene.item[1:3].lower()}"
    form = "%Y-%m-%d %H:%M:%S.%f+00:00" if upper else "%Y-%m-%dT%H:%M:%S.%fZ"
    return {
        "start_datetime": f"{scene.when:{form}}",
        "end_datetime": f"{end:{form}}",
        "platform": platform.upper() if upper else platform,
        "constellation": "Sentinel-1" if upper else "sentinel-1",
        "sar:instrument_mode": "IW",
        "sar:polarizations": ["VV", "VH"],
        "sar:product_type": "GRD",
        "sar:frequency_band": "C",
        "sar:looks_equivalent_number": 4.4,
        "sat:orbit_state": "descending",
        "sat:relative_orbit": scene.track % 175 + 1,
        "s1:datatake_id": scene.datatake,
        "s1:slice_number": scene.tile,
        "s1:product_timeliness": scene.baseline,
        "s1:resolution": "high",
        "s1:orbit_source": "RESORB",
    }


Describe = Callable[[Shelf, Scene, Mapping[str, float]], Properties]
_SENSORS: Mapping[str, Describe] = {
    "enmap": _enmap,
    "sentinel-2": _sentinel2,
    "landsat": _landsat,
    "sentinel-1": _sentinel1,
}
_MANNERS: Mapping[tuple[str, str], Describe] = {
    ("sentinel-2", "earth-search"): _sentinel2_earth_search,
    ("sentinel-2", "copernicus"): _sentinel2_copernicus,
}


def _safe_name(scene: Scene) -> str:
    """Return the product's name with the baseline that the item's id leaves out."""
    mission, level, when, rest = scene.item.split("_", 3)
    return f"{mission}_{level}_{when}_N{scene.baseline.replace('.', '')}_{rest}"


# --- assets ---------------------------------------------------------------------------------------


def _asset(shelf: Shelf, scene: Scene, file: File, href: str) -> dict[str, Any]:
    """Return an asset with its grid: what providers say beside it differs."""
    grid = _grid(scene, file)
    kind = "image/jp2" if href.endswith(".jp2") else _COG
    asset: dict[str, Any] = {"href": href, "type": kind, "roles": ["data"]}
    if shelf.provider == "dlr":
        grid["proj:transform"] = [*grid["proj:transform"], 0.0, 0.0, 1.0]
        title = file.key.replace("_", " ").capitalize()
        asset |= {"title": title, "description": f"{title} layer", **grid}
        asset["proj:epsg"] = scene.epsg if has_crs(scene) else None
    elif shelf.provider == "copernicus":
        asset |= {**grid, "proj:code": f"EPSG:{scene.epsg}"}
    elif shelf.provider == "earth-search":
        del grid["proj:bbox"]
        asset |= {**grid, "gsd": round(file.pixel_m)}
        if shelf.product.offsets and isinstance(file.members[0], Band):
            asset["raster:bands"] = [{"nodata": 0, "scale": 0.0001, "offset": -0.1}]
    else:
        asset |= {**grid, "gsd": float(file.pixel_m)}
    bands = [member for member in file.members if isinstance(member, Band)]
    if bands and bands[0].wavelength_nm is not None:
        asset["eo:bands"] = [_band(shelf, band) for band in bands]
    return asset


def _is_radar_geometry(shelf: Shelf) -> bool:
    return shelf.product.geolocation == "gcp"


def _document(href: str) -> dict[str, Any]:
    """Return an asset without a grid: coefficients, or an image in radar geometry."""
    if href.endswith(".tiff"):
        return {"href": href, "type": _COG, "roles": ["data"]}
    kind = "application/xml" if href.endswith(".xml") else "application/json"
    return {"href": href, "type": kind, "roles": ["metadata"]}


def _band(shelf: Shelf, band: Band) -> dict[str, Any]:
    """Return an entry of `eo:bands`: micrometres, but nanometres at DLR."""
    if shelf.provider == "dlr":
        return {
            "name": band.index,
            "center_wavelength": band.wavelength_nm,
            "full_width_half_max": band.fwhm_nm,
            "enmap:gain_of_band": shelf.product.scale,
            "enmap:offset_of_band": 0,
        }
    return {"name": band.name, "center_wavelength": round((band.wavelength_nm or 0) / 1000, 4)}


def has_crs(scene: Scene) -> bool:
    """Whether an EnMAP item says in which CRS its assets are."""
    return int(below(_WITHOUT_CRS, *scene.item.encode())) > 0


def _outline(scene: Scene) -> shapely.Polygon:
    """Return the footprint in longitude and latitude, to 0.1 m."""
    plane = shapely.segmentize(scene.outline(), _OUTLINE_STEP_M)
    ring = shapely.get_coordinates(shapely.orient_polygons(plane))
    lon, lat = to_sphere(ring[:, 0], ring[:, 1], scene.zone)
    return shapely.Polygon(list(zip(lon.round(6).tolist(), lat.round(6).tolist(), strict=True)))


def _grid(scene: Scene, file: File) -> dict[str, Any]:
    """Return where the pixels of a file lie, in the words of STAC's projection extension."""
    pixel, inset = file.pixel_m, file.inset_m
    west, north = scene.x_min_m + inset, scene.y_max_m - inset
    width, height = scene.width_m - 2 * inset, scene.height_m - 2 * inset
    return {
        "proj:shape": [round(height / pixel), round(width / pixel)],
        "proj:transform": [float(v) for v in (pixel, 0, west, 0, -pixel, north)],
        "proj:bbox": [float(v) for v in (west, north - height, west + width, north)],
    }

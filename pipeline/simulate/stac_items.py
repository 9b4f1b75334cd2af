"""STAC items as the real providers write them, wrong types and all.

Names, types and habits follow recorded answers of DLR and of the Planetary Computer: DLR gives
numbers as text, a null `proj:epsg` in the properties with the CRS on the assets (null there too in
about a fifth of the recorded items), and a sun azimuth that is wrong by 180 degrees; the Planetary
Computer gives fractions of a percent, the tile without `MGRS-`, and a datatake id that contains
the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import shapely

from pipeline.products.catalogue import Product
from pipeline.raster.zones import to_sphere
from pipeline.simulate.clouds import sun
from pipeline.simulate.noise import below
from pipeline.simulate.orbits import Scene

COLLECTION_TITLES = {
    "ENMAP_HSI_L2A": "EnMAP HSI L2A, simulated",
    "sentinel-2-l2a": "Sentinel-2 Level-2A, simulated",
    "simulated-labels": "Arrangement of fields, simulated",
}

_COG = "image/tiff; application=geotiff; profile=cloud-optimized"
_EXTENSIONS = "https://stac-extensions.github.io"
#: One EnMAP item in so many lacks its CRS everywhere (20 of 106 recorded items).
_WITHOUT_CRS = 16
#: Distance of the points of an outline, in metres: straight in the plane, they are not quite
#: straight in longitude and latitude (20 m off at the middle of a 30-km edge without them).
_OUTLINE_STEP_M = 1000

_DLR_ASSETS = {
    "image": ("Spectral Image", ["data"]),
    "quality_classes": ("Quality classes", ["quality"]),
    "quality_cloud": ("Quality cloud", ["quality", "cloud"]),
    "quality_cloud_shadow": ("Quality cloud shadow", ["quality", "cloud-shadow"]),
    "quality_haze": ("Quality haze", ["quality"]),
    "quality_cirrus": ("Quality cirrus", ["quality"]),
    "quality_snow": ("Quality snow", ["quality", "snow-ice"]),
    "quality_testflags": ("Quality test flags", ["quality"]),
    "defective_pixel_mask": ("Defective pixel mask", ["quality"]),
}


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


def enmap_item(scene: Scene, product: Product, written: Written) -> dict[str, Any]:
    """Return the item of an EnMAP scene in DLR's manner."""
    elevation, azimuth = sun(scene.zone, scene.n_max_m - scene.height_m / 2, scene.when)
    whole = {key: str(round(value)) for key, value in written.percent.items()}
    grid = _dlr_grid(scene)
    assets = {
        key: {
            "href": written.files[key],
            "type": _COG,
            "title": title,
            "description": f"{title} layer",
            **grid,
            "roles": roles,
        }
        for key, (title, roles) in _DLR_ASSETS.items()
    }
    assets["image"]["eo:bands"] = [
        {
            "name": band.index,
            "center_wavelength": band.wavelength_nm,
            "full_width_half_max": band.fwhm_nm,
            "enmap:gain_of_band": product.scale,
            "enmap:offset_of_band": 0,
        }
        for band in product.bands
    ]
    start = scene.when
    properties = {
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
        "enmap:nodata": "-32768",
        "enmap:overallQuality": "0" if written.percent["cloud"] < 60 else "2",
        "enmap:sceneAzimuthAngle": "12.5288077092",
        "enmap:sunAzimuthAngle": f"{azimuth:.6f}",
        "enmap:sunElevationAngle": f"{elevation:.6f}",
    }
    extensions = ("eo/v1.1.0", "view/v1.0.0", "projection/v1.0.0", "processing/v1.0.0")
    return _item(scene, "ENMAP_HSI_L2A", extensions, properties, assets)


def sentinel_item(scene: Scene, product: Product, written: Written) -> dict[str, Any]:
    """Return the item of a Sentinel-2 scene in the Planetary Computer's manner."""
    elevation, azimuth = sun(scene.zone, scene.n_max_m - scene.height_m / 2, scene.when)
    percent = {key: round(value, 6) for key, value in written.percent.items()}
    properties = {
        "datetime": f"{scene.when:%Y-%m-%dT%H:%M:%S.024000Z}",
        "platform": f"Sentinel-{scene.item[1:3]}",
        "proj:epsg": scene.epsg,
        "instruments": ["msi"],
        "constellation": "Sentinel 2",
        "s2:mgrs_tile": scene.tile,
        "s2:datatake_id": scene.datatake,
        "s2:product_uri": f"{_safe_name(scene)}",
        "s2:product_type": "S2MSI2A",
        "s2:datatake_type": "INS-NOBS",
        "s2:processing_baseline": scene.baseline,
        "sat:orbit_state": "descending",
        "sat:relative_orbit": scene.track % 143 + 1,
        "s2:mean_solar_zenith": round(90 - elevation, 6),
        "s2:mean_solar_azimuth": round(azimuth, 6),
        "eo:cloud_cover": percent["cloud"],
        "s2:nodata_pixel_percentage": percent["nodata"],
        "s2:water_percentage": percent["water"],
        "s2:snow_ice_percentage": percent["snow"],
        "s2:thin_cirrus_percentage": percent["cirrus"],
        "s2:cloud_shadow_percentage": percent["shadow"],
    }
    sizes = {band.name: round(band.pixel_m) for band in product.bands} | {"SCL": 20}
    assets = {key: _band_asset(scene, href, sizes[key]) for key, href in written.files.items()}
    for band in product.bands:
        if band.name in assets and band.wavelength_nm is not None:
            assets[band.name]["eo:bands"] = [
                {"name": band.name, "center_wavelength": round(band.wavelength_nm / 1000, 4)}
            ]
    extensions = ("eo/v1.0.0", "sat/v1.0.0", "projection/v1.0.0")
    return _item(scene, "sentinel-2-l2a", extensions, properties, assets)


def labels_item(scene: Scene, written: Written) -> dict[str, Any]:
    """Return the item of a label map: plain and correct STAC."""
    properties = {
        "datetime": f"{scene.when:%Y-%m-%dT%H:%M:%SZ}",
        "proj:epsg": scene.epsg,
        "terrashard:datatake": scene.datatake,
        "terrashard:tile": scene.tile,
    }
    assets = {key: _band_asset(scene, href, 30) for key, href in written.files.items()}
    return _item(scene, "simulated-labels", ("projection/v1.0.0",), properties, assets)


def _safe_name(scene: Scene) -> str:
    """Return the product's name with the baseline that the item's id leaves out."""
    mission, level, when, rest = scene.item.split("_", 3)
    return f"{mission}_{level}_{when}_N{scene.baseline.replace('.', '')}_{rest}.SAFE"


def enmap_folder(scene: Scene) -> str:
    """Return the folder of an EnMAP scene's files, as DLR lays them out."""
    day = f"{scene.when:%Y/%m/%d}"
    return f"files/ENMAP/files/L2A/{day}/DT{scene.datatake}/{scene.tile}"


def sentinel_folder(scene: Scene) -> str:
    """Return the folder of a Sentinel-2 scene's images, as the Planetary Computer lays them out."""
    tile = scene.tile
    home = f"{tile[:2]}/{tile[2]}/{tile[3:]}/{scene.when:%Y/%m/%d}"
    return f"files/sentinel2-l2/{home}/{_safe_name(scene)}/GRANULE/L2A_T{tile}/IMG_DATA"


def _item(
    scene: Scene,
    collection: str,
    extensions: tuple[str, ...],
    properties: dict[str, Any],
    assets: dict[str, Any],
) -> dict[str, Any]:
    outline = _outline(scene)
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [f"{_EXTENSIONS}/{name}/schema.json" for name in extensions],
        "id": scene.item,
        "collection": collection,
        "geometry": {
            "type": "Polygon",
            "coordinates": [[list(p) for p in outline.exterior.coords]],
        },
        "bbox": list(outline.bounds),
        "properties": properties,
        "assets": assets,
        "links": [],
    }


def _outline(scene: Scene) -> shapely.Polygon:
    """Return the footprint in longitude and latitude, to 0.1 m."""
    plane = shapely.segmentize(scene.outline(), _OUTLINE_STEP_M)
    ring = shapely.get_coordinates(shapely.orient_polygons(plane))
    lon, lat = to_sphere(ring[:, 0], ring[:, 1], scene.zone)
    return shapely.Polygon(list(zip(lon.round(6).tolist(), lat.round(6).tolist(), strict=True)))


def _band_asset(scene: Scene, href: str, pixel_m: int) -> dict[str, Any]:
    return {
        "href": href,
        "proj:bbox": _bbox(scene),
        "proj:shape": [scene.height_m // pixel_m, scene.width_m // pixel_m],
        "proj:transform": _transform(scene, pixel_m),
        "gsd": float(pixel_m),
        "type": _COG,
        "roles": ["data"],
    }


def _dlr_grid(scene: Scene) -> dict[str, Any]:
    """Return the projection of an EnMAP asset; its EPSG is null in some items."""
    known = int(below(_WITHOUT_CRS, *scene.item.encode())) > 0
    return {
        "proj:epsg": scene.epsg if known else None,
        "proj:shape": [scene.height_m // 30, scene.width_m // 30],
        "proj:transform": [*_transform(scene, 30), 0.0, 0.0, 1.0],
        "proj:bbox": _bbox(scene),
    }


def _bbox(scene: Scene) -> list[float]:
    x, y = scene.x_min_m, scene.y_max_m
    return [float(v) for v in (x, y - scene.height_m, x + scene.width_m, y)]


def _transform(scene: Scene, pixel_m: int) -> list[float]:
    return [float(v) for v in (pixel_m, 0, scene.x_min_m, 0, -pixel_m, scene.y_max_m)]

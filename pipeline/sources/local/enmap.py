"""EnMAP product folders as users have them on disk, and patches cut from them.

A scene is a `*-SPECTRAL_IMAGE*.TIF` with the quality layers beside it; of level 1B, an image for
each of the two detectors. The METADATA.XML tells footprint, clouds, sun and band table, and of
levels 1B and 1C what numbers and places mean. Without it (HySpecNet-11k patches) those of level 2A
take time, datatake, tile and processor from the file name and the footprint from the raster's
outline; clouds are unknown. The levels lie in the same archives: scenes of another one than that
which is searched are listed, with the name of their product. Items use DLR's property and asset
names.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import shapely

from pipeline.errors import GiveUp
from pipeline.raster.enmap import DETECTORS, Level1, parse_level1
from pipeline.sources.local.grid import Unreadable, asset_of, grid_of, make_item, problem_item

#: ENMAP01-____L2A-DT0000004950_20221103T162438Z_001_V010110_20221118T145147Z, and for a patch of
#: HySpecNet-11k -Y01460273_X03110438 (rows and columns of the scene) after it.
_NAME = re.compile(
    r"ENMAP\d\d-____(?P<level>L1B|L1C|L2A)-DT(?P<datatake>\d{10})_(?P<start>\d{8}T\d{6})Z_(?P<tile>\d{3})"
    r"_V(?P<version>\d{6})_\d{8}T\d{6}Z(?P<patch>(-[A-Za-z0-9_]+)?)"
)
#: Level 1B has an image for each of the two detectors; the first stands for both.
_IMAGE = re.compile(r"(?P<stem>.+)-SPECTRAL_IMAGE(_VNIR|_COG)?\.TIFF?", re.IGNORECASE)
#: Kind of folder to the level of its scenes.
_LEVELS = {"enmap-folder": "L2A", "enmap-l1c-folder": "L1C", "enmap-l1b-folder": "L1B"}
#: DLR's asset key to the part of the file name.
_LAYERS = {
    "image": "SPECTRAL_IMAGE",
    "quality_classes": "QL_QUALITY_CLASSES",
    "quality_cloud": "QL_QUALITY_CLOUD",
    "quality_cloud_shadow": "QL_QUALITY_CLOUDSHADOW",
    "quality_haze": "QL_QUALITY_HAZE",
    "quality_cirrus": "QL_QUALITY_CIRRUS",
    "quality_snow": "QL_QUALITY_SNOW",
    "quality_testflags": "QL_QUALITY_TESTFLAGS",
    "defective_pixel_mask": "QL_PIXELMASK",
}
_TIFF = "image/tiff; application=geotiff"
#: Parts of which level 1B has one for each detector, and one that is left out.
_BY_DETECTOR = ("SPECTRAL_IMAGE", "QL_PIXELMASK", "QL_QUALITY_TESTFLAGS")
_OF_DETECTORS = {
    "image_vnir": "SPECTRAL_IMAGE_VNIR",
    "image_swir": "SPECTRAL_IMAGE_SWIR",
    "defective_pixel_mask_vnir": "QL_PIXELMASK_VNIR",
    "defective_pixel_mask_swir": "QL_PIXELMASK_SWIR",
}
_CORNERS = ("upper_left", "lower_left", "lower_right", "upper_right")
#: Path in METADATA.XML, below its root, to the property it becomes.
_FACTS = {
    "base/temporalCoverage/startTime": "start_datetime",
    "specific/datatakeID": "enmap:datatakeID",
    "specific/sunElevationAngle/center": "view:sun_elevation",
    "specific/qualityFlag/cloudCover": "eo:cloud_cover",
    "specific/qualityFlag/hazeCover": "enmap:haze_cover",
    "specific/qualityFlag/cirrusCover": "enmap:cirrus_cover",
    "specific/qualityFlag/overallQuality": "enmap:overallQuality",
}
_POINT = "base/spatialCoverage/boundingPolygon/point"
_BAND = "specific/bandCharacterisation/bandID"


@dataclass(slots=True)
class _Metadata:
    properties: dict[str, Any] = field(default_factory=dict)
    corners: dict[str, tuple[float, float]] = field(default_factory=dict)
    bands: list[dict[str, Any]] = field(default_factory=list)
    path: Path | None = None


def enmap_items(path: Path, collection: str) -> Iterator[dict[str, Any]]:
    """Yield an item for each scene or patch in a folder and the folders below it, by name."""
    for image in sorted(path.rglob("*")):
        match = _IMAGE.fullmatch(image.name)
        if match is None or not image.is_file():
            continue
        try:
            yield _item(image, match["stem"], collection)
        except Unreadable as problem:
            yield problem_item(match["stem"], collection, problem)


def _item(image: Path, stem: str, collection: str) -> dict[str, Any]:
    name = _NAME.fullmatch(stem)
    if name is None:
        raise Unreadable(f"{image.name} is not named like an EnMAP product")
    level = name["level"]
    if level != _LEVELS[collection]:
        raise Unreadable(f"{stem} is of another level: take product enmap-{level.lower()}")
    start = datetime.strptime(name["start"], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    metadata = _metadata(image.parent, stem)
    version = name["version"]
    properties = {
        "datetime": start.isoformat(),
        "enmap:datatakeID": name["datatake"],
        "version": ".".join((version[:2], version[2:4], version[4:])),
        **metadata.properties,
        "enmap:tileID": name["tile"] + name["patch"],
    }
    described = None if level == "L2A" else _described(metadata, stem)
    if level == "L1B" and described is not None:
        outline = _footprint(metadata, stem)
        assets = _of_detectors(image, stem, metadata, described)
    else:
        outline, assets = _on_grid(image, stem, metadata)
    if described is not None and metadata.path is not None:
        assets["metadata"] = asset_of(metadata.path, "application/xml")
    return make_item(stem, collection, outline, properties, assets)


def _on_grid(
    image: Path, stem: str, metadata: _Metadata
) -> tuple[shapely.Geometry, dict[str, dict[str, Any]]]:
    """Return the outline and the files of a scene of level 2A or 1C."""
    grid = grid_of(image)
    outline = grid.outline()
    if len(metadata.corners) == len(_CORNERS):
        seen = _footprint(metadata, stem)
        outline = outline.intersection(seen) if seen.is_valid else outline
    assets = {
        key: asset_of(file, _TIFF, grid if key == "image" else None)
        for key, part in _LAYERS.items()
        if (file := _layer(image, stem, part)) is not None
    }
    if metadata.bands:
        assets["image"]["eo:bands"] = metadata.bands
    return outline, assets


def _of_detectors(
    image: Path, stem: str, metadata: _Metadata, described: Level1
) -> dict[str, dict[str, Any]]:
    """Return the files of a scene of level 1B, with the band table of each detector's image."""
    if len(described.cameras) != len(described.gains):
        raise Unreadable(
            f"the METADATA.XML of {stem} has {len(described.cameras)} cameras (RPC) for "
            f"{len(described.gains)} bands: nothing says where its pixels lie"
        )
    names = {key: part for key, part in _LAYERS.items() if part not in _BY_DETECTOR}
    found = {
        key: asset_of(file, _TIFF)
        for key, part in (names | _OF_DETECTORS).items()
        if (file := _layer(image, stem, part)) is not None
    }
    first = 0
    for detector in DETECTORS:
        count = described.channels.get(detector, 0)
        if f"image_{detector}" not in found or not count:
            raise Unreadable(f"{stem} lacks the image of detector {detector}, or its channels")
        found[f"image_{detector}"]["eo:bands"] = metadata.bands[first : first + count]
        first += count
    return found


def _footprint(metadata: _Metadata, stem: str) -> shapely.Geometry:
    if len(metadata.corners) < len(_CORNERS):
        raise Unreadable(f"the METADATA.XML of {stem} does not state four corners")
    return shapely.Polygon([metadata.corners[corner] for corner in _CORNERS])


def _described(metadata: _Metadata, stem: str) -> Level1:
    """Return what a scene of level 1 says of its numbers; `Unreadable` if it does not."""
    if metadata.path is None:
        raise Unreadable(f"{stem} has no METADATA.XML, which says what its numbers mean")
    try:
        return parse_level1(metadata.path.read_bytes(), metadata.path.name)
    except (GiveUp, OSError) as error:
        raise Unreadable(str(error)) from error


def _layer(image: Path, stem: str, part: str) -> Path | None:
    """Return the file of a layer beside the image, or None; only files that are there count."""
    if part in (_LAYERS["image"], _OF_DETECTORS["image_vnir"]):
        return image
    wanted = re.compile(rf"{re.escape(stem)}-{part}(_COG)?\.TIFF?", re.IGNORECASE)
    found = sorted(file for file in image.parent.iterdir() if wanted.fullmatch(file.name))
    return found[0] if found else None


def _metadata(folder: Path, stem: str) -> _Metadata:
    """Read the METADATA.XML of a scene if it is there, in one pass.

    Most of its 4 MB are orbit and frame times after the section we need: reading stops before.
    """
    found = sorted(folder.glob(f"{stem}-METADATA*.[xX][mM][lL]"))
    metadata = _Metadata()
    if not found:
        return metadata
    metadata.path = found[0]
    trail: list[str] = []
    try:
        with found[0].open("rb") as stream:
            for event, element in ET.iterparse(stream, events=("start", "end")):
                if event == "start":
                    trail.append(element.tag)
                    continue
                where = "/".join(trail[1:])
                trail.pop()
                if where == "specific":
                    break
                _take(metadata, where, element)
    except (ET.ParseError, ValueError, OSError) as error:
        raise Unreadable(f"{found[0].name} cannot be read: {error}") from error
    return metadata


def _take(metadata: _Metadata, where: str, element: ET.Element) -> None:
    """Keep what an element that has just ended says, if it is one of ours."""
    if where in _FACTS:
        metadata.properties[_FACTS[where]] = (element.text or "").strip()
    elif where == _POINT:
        corner = element.findtext("frame", "")
        lon, lat = (float(element.findtext(key, "nan")) for key in ("longitude", "latitude"))
        if corner in _CORNERS:
            metadata.corners.setdefault(corner, (lon, lat))
    elif where == _BAND:
        metadata.bands.append(
            {
                "name": element.get("number"),
                "center_wavelength": float(element.findtext("wavelengthCenterOfBand", "nan")),
                "full_width_half_max": float(element.findtext("FWHMOfBand", "nan")),
            }
        )

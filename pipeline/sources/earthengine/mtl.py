"""The metadata file of a Landsat scene, put together again from the properties of its image.

Earth Engine has no files, but carries the entries of the MTL as properties of the images in its
collections of delivered numbers (LANDSAT/LC08/C02/T1, ...), under the MTL's own names.
Source: google/earthengine-catalog, templates of the Landsat collections.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

#: Beginnings of names, and the group of the MTL that they stand in.
_GROUPS = {
    "REFLECTANCE_": "LEVEL1_RADIOMETRIC_RESCALING",
    "RADIANCE_": "LEVEL1_RADIOMETRIC_RESCALING",
    "K1_CONSTANT_": "LEVEL1_THERMAL_CONSTANTS",
    "K2_CONSTANT_": "LEVEL1_THERMAL_CONSTANTS",
    "SUN_": "IMAGE_ATTRIBUTES",
}


def mtl_of(properties: Mapping[str, Any]) -> bytes:
    """Return an MTL.json with what a calibration needs, as `pipeline.raster.landsat` reads it."""
    groups: dict[str, dict[str, Any]] = {}
    for name in sorted(properties):
        for beginning, group in _GROUPS.items():
            if name.startswith(beginning):
                groups.setdefault(group, {})[name] = properties[name]
    return json.dumps({"LANDSAT_METADATA_FILE": groups}).encode()

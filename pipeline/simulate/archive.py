"""Make a simulated archive: the files of scenes, and the items a catalogue answers with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely

from pipeline.errors import RecipeError
from pipeline.products.catalogue import load_product
from pipeline.raster.zones import to_plane, zones_at
from pipeline.simulate.catalogue import ITEMS
from pipeline.simulate.files import write_enmap, write_labels, write_sentinel
from pipeline.simulate.orbits import SMALL, Orbit, Scene, scenes_over, upright
from pipeline.simulate.stac_items import (
    COLLECTION_TITLES,
    Written,
    enmap_item,
    labels_item,
    sentinel_item,
)

Region = tuple[float, float, float, float]
Items = dict[str, list[dict[str, Any]]]

#: Product to the sub-path that serves it and the collection it is in.
_SHELVES = {
    "enmap-l2a": ("dlr", "ENMAP_HSI_L2A"),
    "sentinel-2-l2a": ("planetary-computer", "sentinel-2-l2a"),
    "simulated-labels": ("labels", "simulated-labels"),
}
_WRITERS = {
    "enmap-l2a": (write_enmap, enmap_item),
    "sentinel-2-l2a": (write_sentinel, sentinel_item),
}
_GDAL_CACHE_MB = 256


@dataclass(frozen=True, slots=True)
class ArchiveReport:
    """What was made."""

    scenes: int
    files: int
    size_bytes: int


def make_archive(
    folder: Path,
    *,
    products: Sequence[str],
    region: Region,
    start: date,
    end: date,
    seed: int = 0,
    orbits: Mapping[str, Orbit] = SMALL,
    least_share: float = 0.0,
    workers: int = 2,
    advance: Callable[[int], None] | None = None,
) -> ArchiveReport:
    """Write every scene of some products that sees a region in a period.

    Parameters
    ----------
    folder : Path
        New or empty folder; it gets `archive.json` and `files/`.
    products : sequence of str
        Of `enmap-l2a`, `sentinel-2-l2a`, `simulated-labels`.
    region : (west, south, east, north) in degrees
        west > east crosses the antimeridian.
    start, end : date
        First day, and day after the last.
    seed : int
        Which world: ground and weather.
    orbits : dict of str to Orbit
        Sizes and passes of the sensors; `orbits.REAL` are the true ones.
    least_share : float
        Scenes of which no more than this share lies in the region are left out.
    workers : int
        Threads; the bytes do not depend on it.
    advance : callable or None
        Called with a number of scenes when they are done.

    Raises
    ------
    RecipeError
        An unknown product, an empty region or period, or a folder that is not empty.
    """
    _check(folder, products, region, start, end)
    groups = [
        list(group)
        for _, group in groupby(
            sorted(
                _all_scenes(products, region, start, end, orbits, least_share),
                key=lambda scene: (*_raster(scene), scene.when),
            ),
            key=_raster,
        )
    ]
    folder.mkdir(parents=True, exist_ok=True)
    items: Items = {product: [] for product in products}
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for product, made in pool.map(partial(_write_group, folder, seed), groups):
            items[product] += made
            if advance is not None:
                advance(len(made))
    _write_items(folder, items)
    sizes = [path.stat().st_size for path in (folder / "files").rglob("*") if path.is_file()]
    return ArchiveReport(sum(map(len, items.values())), len(sizes), sum(sizes))


def _check(folder: Path, products: Sequence[str], region: Region, start: date, end: date) -> None:
    unknown = set(products) - set(_SHELVES)
    if unknown or not products:
        raise RecipeError(
            f"cannot simulate {', '.join(sorted(unknown)) or 'no product'}; "
            f"products that can be: {', '.join(_SHELVES)}."
        )
    west, south, east, north = region
    if west == east or south >= north or max(map(abs, (south, north))) > 80:
        raise RecipeError(
            f"region {region} must be west, south, east, north in degrees, not empty, and within "
            "80 degrees of latitude."
        )
    if start >= end:
        raise RecipeError(f"the period from {start} to {end} is empty.")
    if folder.exists() and any(folder.iterdir()):
        raise RecipeError(f"{folder} is not empty; an archive is made in a new or empty folder.")


def _all_scenes(
    products: Sequence[str],
    region: Region,
    start: date,
    end: date,
    orbits: Mapping[str, Orbit],
    least_share: float,
) -> list[Scene]:
    scenes = []
    for zone, area in _areas(region):
        for product in products:
            if product == "simulated-labels":
                scenes.append(_label_scene(zone, area))
            else:
                scenes += scenes_over(
                    orbits[product], zone, area, start, end, least_share=least_share
                )
    return scenes


def _areas(region: Region) -> list[tuple[int, shapely.Geometry]]:
    """Return the UTM zones a region lies in and its hull in the plane of each."""
    west, south, east, north = region
    width = (east - west) % 360
    lon, lat = np.meshgrid(west + np.linspace(0, width, 241), np.linspace(south, north, 81))
    zones, _ = zones_at(lon, lat)
    areas = []
    for zone in sorted(set(zones[zones > 0].ravel().tolist())):
        inside = zones == zone
        x, n = to_plane(lon[inside], lat[inside], zone)
        hull = shapely.convex_hull(shapely.multipoints(np.stack([x, n], axis=-1)))
        areas.append((zone, shapely.buffer(hull, 1)))
    return areas


def _label_scene(zone: int, area: shapely.Geometry) -> Scene:
    """Return the label map of a region: one file, dated long ago, valid for all times."""
    south = shapely.centroid(area).y < 0
    x_min_m, n_max_m, width_m, height_m = upright(area, "simulated-labels", south=south)
    far = 10**12
    return Scene(
        product="simulated-labels",
        item=f"labels-{zone:02d}-{x_min_m}-{n_max_m}",
        datatake="labels",
        tile=f"{zone:02d}",
        baseline="1",
        track=0,
        when=datetime(2020, 1, 1, tzinfo=UTC),
        zone=zone,
        south=south,
        x_min_m=x_min_m,
        n_max_m=n_max_m,
        width_m=width_m,
        height_m=height_m,
        across=(-far, far),
        along=None,
    )


def _raster(scene: Scene) -> tuple[Any, ...]:
    """Return what scenes written together have in common."""
    return scene.product, scene.zone, scene.x_min_m, scene.n_max_m, scene.track, scene.south


def _write_group(
    folder: Path, seed: int, scenes: Sequence[Scene]
) -> tuple[str, list[dict[str, Any]]]:
    name = scenes[0].product
    with rasterio.Env(GDAL_CACHEMAX=_GDAL_CACHE_MB, GDAL_PAM_ENABLED="NO"):
        if name == "simulated-labels":
            return name, [labels_item(scene, write_labels(folder, scene, seed)) for scene in scenes]
        product = load_product(name)
        write, describe = _WRITERS[name]
        written: list[Written] = write(folder, product, scenes, seed)
        return name, [
            describe(scene, product, files) for scene, files in zip(scenes, written, strict=True)
        ]


def _write_items(folder: Path, items: Items) -> None:
    providers: dict[str, dict[str, Any]] = {}
    for product, made in items.items():
        provider, collection = _SHELVES[product]
        made = sorted(made, key=lambda item: item["id"])
        shelf = {"title": COLLECTION_TITLES[collection], "items": made}
        providers.setdefault(provider, {})[collection] = shelf
    text = json.dumps({"providers": providers}, indent=1)
    (folder / ITEMS).write_text(text + "\n")

"""Make a simulated archive: the files of scenes, and the items a catalogue answers with."""

from __future__ import annotations

import json
import shutil
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
from pipeline.raster.zones import to_plane, zones_at
from pipeline.simulate.delivery.files import write_scenes
from pipeline.simulate.delivery.maps import write_map
from pipeline.simulate.delivery.orbits import SMALL, Orbit, Scene, orbit_of, scenes_over, upright
from pipeline.simulate.delivery.radar import write_grd
from pipeline.simulate.delivery.shelves import Shelf, shelf_of
from pipeline.simulate.delivery.stac_items import items_of
from pipeline.simulate.service.catalogue import ITEMS

Region = tuple[float, float, float, float]
Items = dict[str, list[dict[str, Any]]]

_GDAL_CACHE_MB = 256
#: Marks a folder whose archive is being made; what an interrupt left is then made again.
_UNFINISHED = "unfinished"


@dataclass(frozen=True, slots=True)
class ArchiveReport:
    """What was made."""

    scenes: int
    """Items: a scene that was processed again has several."""
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
    providers: Mapping[str, str] | None = None,
    least_share: float = 0.0,
    workers: int = 2,
    advance: Callable[[int], None] | None = None,
) -> ArchiveReport:
    """Write every scene of some products that sees a region in a period.

    Parameters
    ----------
    folder : Path
        New or empty folder, or one where this was interrupted; it gets `archive.json` and
        `files/`.
    products : sequence of str
        Ids of product files.
    region : (west, south, east, north) in degrees
        west > east crosses the antimeridian.
    start, end : date
        First day, and day after the last.
    seed : int
        Which world: ground and weather.
    orbits : dict of str to Orbit
        Pattern of product ids to the sizes and passes of their sensor; `orbits.REAL` are the true
        ones.
    providers : dict of str to str
        Product to the provider in whose manner it is served; else as `simulated` serves it.
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
    shelves = {product: shelf_of(product, (providers or {}).get(product)) for product in products}
    flown = {key: shelf for key, shelf in shelves.items() if not shelf.is_map}
    groups = [
        list(group)
        for _, group in groupby(
            sorted(
                _all_scenes(flown, region, start, end, orbits, least_share),
                key=lambda scene: (*_raster(scene), scene.when),
            ),
            key=_raster,
        )
    ]
    _begin(folder)
    items: Items = {product: [] for product in products}
    with ThreadPoolExecutor(max_workers=workers) as pool:
        write = partial(_write_group, folder, seed, shelves)
        for group, (product, made) in zip(groups, pool.map(write, groups), strict=True):
            items[product] += made
            if advance is not None:
                advance(len(group))
    for product, shelf in shelves.items():
        if shelf.is_map:
            items[product] += write_map(
                folder, shelf, region, range(start.year, end.year + 1), seed
            )
    _write_items(folder, shelves, items)
    (folder / _UNFINISHED).unlink()
    sizes = [path.stat().st_size for path in (folder / "files").rglob("*") if path.is_file()]
    return ArchiveReport(sum(map(len, items.values())), len(sizes), sum(sizes))


def _check(folder: Path, products: Sequence[str], region: Region, start: date, end: date) -> None:
    if not products:
        raise RecipeError('no product to simulate: none has `provider = "simulated"`.')
    west, south, east, north = region
    if west == east or south >= north or max(map(abs, (south, north))) > 80:
        raise RecipeError(
            f"region {region} must be west, south, east, north in degrees, not empty, and within "
            "80 degrees of latitude."
        )
    if start >= end:
        raise RecipeError(f"the period from {start} to {end} is empty.")
    if folder.exists() and any(folder.iterdir()) and not (folder / _UNFINISHED).exists():
        raise RecipeError(f"{folder} is not empty; an archive is made in a new or empty folder.")


def _begin(folder: Path) -> None:
    """Mark the folder, and clear away what an interrupted run left in it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _UNFINISHED).touch()
    shutil.rmtree(folder / "files", ignore_errors=True)


def _all_scenes(
    shelves: Mapping[str, Shelf],
    region: Region,
    start: date,
    end: date,
    orbits: Mapping[str, Orbit],
    least_share: float,
) -> list[Scene]:
    scenes = []
    for zone, area in _areas(region):
        for product, shelf in shelves.items():
            if shelf.product.temporal == "static":
                scenes.append(_static_scene(product, zone, area))
            else:
                orbit = orbit_of(product, orbits)
                scenes += scenes_over(orbit, zone, area, start, end, least_share=least_share)
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


def _static_scene(product: str, zone: int, area: shapely.Geometry) -> Scene:
    """Return the map of a region: one file, dated long ago, valid for all times."""
    south = shapely.centroid(area).y < 0
    x_min_m, n_max_m, width_m, height_m = upright(area, product, south=south)
    far = 10**12
    return Scene(
        product=product,
        item=f"{product}-{zone:02d}-{x_min_m}-{n_max_m}",
        datatake="map",
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
    folder: Path, seed: int, shelves: Mapping[str, Shelf], scenes: Sequence[Scene]
) -> tuple[str, list[dict[str, Any]]]:
    name = scenes[0].product
    write = write_grd if shelves[name].product.geolocation == "gcp" else write_scenes
    with rasterio.Env(GDAL_CACHEMAX=_GDAL_CACHE_MB, GDAL_PAM_ENABLED="NO"):
        written = write(folder, shelves[name], scenes, seed)
    made = zip(scenes, written, strict=True)
    return name, [item for scene, files in made for item in items_of(shelves[name], scene, files)]


def _write_items(folder: Path, shelves: Mapping[str, Shelf], items: Items) -> None:
    """Write the catalogue; products of one collection that share a scene share its item."""
    providers: dict[str, dict[str, Any]] = {}
    for product, made in items.items():
        shelf = shelves[product]
        collections = providers.setdefault(shelf.provider, {})
        title = f"{shelf.product.title}, simulated"
        there = collections.setdefault(shelf.facts.collection, {"title": title, "items": []})
        known = {item["id"]: item for item in there["items"]}
        for item in made:
            if item["id"] in known:
                known[item["id"]]["assets"] |= item["assets"]
            else:
                there["items"].append(item)
        there["items"].sort(key=lambda item: str(item["id"]))
    text = json.dumps({"providers": providers}, indent=1)
    (folder / ITEMS).write_text(text + "\n")

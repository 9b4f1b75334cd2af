"""Items of the scenes that a satellite could have taken, in the manner of one collection.

Only the items of a page are written, from pieces that are made once for each place. There are no
files behind their addresses, which have the form of the real ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from typing import Any

import numpy as np
import shapely
from shapely.affinity import translate

from pipeline.raster.zones import Bools, Floats, Ints, to_plane
from pipeline.simulate.delivery.orbits import Scene, tile_name, upright
from pipeline.simulate.delivery.shelves import Shelf, files_of, shelf_of
from pipeline.simulate.delivery.stac_items import Written, has_crs, item_id, item_of, properties_of
from pipeline.simulate.service.wishes import area, meets, span
from pipeline.simulate.truth.noise import hash64
from pipeline.simulate.world.survey import EPOCH, FLIGHTS, Survey, survey, tile_corner

#: Stand for the item's id and properties in the pieces of a place.
_NAME, _PROPERTIES = "@name@", "@properties@"
_TILE_M = 109_800
#: From this day on Sentinel-2's values have an offset.
_BASELINE_4 = datetime(2022, 1, 25, tzinfo=UTC)
#: Shares of a scene that items state beside the cloud cover.
_SHARES = ("cloud", "snow", "cirrus", "shadow", "haze", "water", "nodata")
_NOTHING = dict.fromkeys(_SHARES, 0.0)
#: The same day and place of another level has the same clouds; none is 0 and overcast 100.
_CLOUD_CHANNEL = 4711
#: Places whose pieces are kept, some 10 kB each, and answers whose items are.
_KEPT_PLACES, _KEPT_ANSWERS = 8192, 16

#: By provider and collection: satellite to the product whose manner its items have.
_LEVEL_1 = {"LT05": "landsat-tm-toa", "LE07": "landsat-etm-toa"} | dict.fromkeys(
    ("LC08", "LC09"), "landsat-oli-tirs-toa"
)
_LEVEL_2 = dict.fromkeys(("LT05", "LE07"), "landsat-etm-sr") | dict.fromkeys(
    ("LC08", "LC09"), "landsat-oli-sr"
)
_SENTINEL_2 = dict.fromkeys(("S2A", "S2B"), "sentinel-2-l2a")
PRODUCTS: Mapping[tuple[str, str], Mapping[str, str]] = {
    ("planetary-computer", "sentinel-2-l2a"): _SENTINEL_2,
    ("planetary-computer", "sentinel-1-grd"): dict.fromkeys(("S1A", "S1B"), "sentinel-1-grd"),
    ("planetary-computer", "landsat-c2-l2"): _LEVEL_2,
    ("earth-search", "sentinel-2-l2a"): _SENTINEL_2,
    ("earth-search", "landsat-c2-l2"): _LEVEL_2,
    ("copernicus", "sentinel-2-l1c"): dict.fromkeys(("S2A", "S2B"), "sentinel-2-l1c"),
    ("usgs", "landsat-c2l1"): _LEVEL_1,
    ("usgs", "landsat-c2l2-sr"): _LEVEL_2,
    ("dlr", "ENMAP_HSI_L2A"): {"ENMAP": "enmap-l2a"},
}
#: Where the files of a collection would be, as recorded items have it.
_HOMES: Mapping[tuple[str, str], str] = {
    ("planetary-computer", "sentinel-2-l2a"): "https://sentinel2l2a01.blob.core.windows.net/"
    f"sentinel2-l2/{_NAME}.SAFE/GRANULE/{_NAME}/IMG_DATA",
    ("planetary-computer", "sentinel-1-grd"): "https://sentinel1euwest.blob.core.windows.net/"
    f"s1-grd/GRD/{_NAME}/measurement",
    ("planetary-computer", "landsat-c2-l2"): "https://landsateuwest.blob.core.windows.net/"
    f"landsat-c2/level-2/standard/{_NAME}/{_NAME}",
    ("earth-search", "sentinel-2-l2a"): "https://sentinel-cogs.s3.us-west-2.amazonaws.com/"
    f"sentinel-s2-l2a-cogs/{_NAME}",
    ("earth-search", "landsat-c2-l2"): f"s3://usgs-landsat/collection02/level-2/{_NAME}/{_NAME}",
    ("copernicus", "sentinel-2-l1c"): f"s3://eodata/Sentinel-2/MSI/L1C/{_NAME}.SAFE/GRANULE",
    ("usgs", "landsat-c2l1"): f"https://landsatlook.usgs.gov/data/collection02/{_NAME}/{_NAME}",
    ("usgs", "landsat-c2l2-sr"): f"https://landsatlook.usgs.gov/data/collection02/{_NAME}/{_NAME}",
    ("dlr", "ENMAP_HSI_L2A"): f"https://download.geoservice.dlr.de/ENMAP/files/L2A/{_NAME}/{_NAME}",
}
#: What else recorded items hold: not read by any product, but sent and parsed.
_BESIDE = ("thumbnail", "preview", "visual", "metadata", "product-metadata", "granule-metadata")


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """The items that answer a search: columns of one length, in the order they are sent."""

    place: Ints
    satellite: Ints
    when_s: Ints
    cloud_percent: Floats

    def __len__(self) -> int:
        return len(self.place)

    def take(self, which: Any) -> Items:
        """Return some of them."""
        return Items(
            self.place[which], self.satellite[which], self.when_s[which], self.cloud_percent[which]
        )


class Collection:
    """One collection of one provider."""

    def __init__(self, provider: str, name: str) -> None:
        self.products = PRODUCTS[provider, name]
        self._home = _HOMES[provider, name]
        self._shelves = {
            product: shelf_of(product, provider) for product in set(self.products.values())
        }
        self.mission = next(
            mission for mission in FLIGHTS if next(iter(self._shelves)).startswith(mission)
        )
        self.matching = lru_cache(_KEPT_ANSWERS)(self._matching)
        self._pieces: dict[tuple[int, str, bool], str] = {}

    def _matching(self, asked: str) -> Items:
        """Return what answers a search: its `bbox`, `datetime` and `query` as JSON."""
        wish = json.loads(asked)
        first, last = span(wish["datetime"])
        seen, tree = survey_of(self.mission)
        wanted = area(wish)
        if wanted is None:
            places = np.arange(len(seen))
        else:
            turns = [translate(wanted, turn) for turn in (-360, 0, 360)]
            found = [tree.query(turn, predicate="intersects") for turn in turns]
            places = np.unique(np.concatenate(found))
        place, satellite, when = seen.passes(places, _seconds(first), _seconds(last))
        cloud = _cloud_percent(place, when)
        items = Items(place, satellite, when, cloud)
        kept = np.isin(satellite, [n for n, s in enumerate(self.names) if s in self.products])
        for name, tests in (wish["query"] or {}).items():
            kept &= self._meets(items, name, tests)
        return items.take(kept)

    @property
    def names(self) -> list[str]:
        return [satellite.name for satellite in FLIGHTS[self.mission].satellites]

    def _meets(self, items: Items, name: str, tests: Any) -> Bools:
        """Return which items meet a test. In what is asked for only the cloud cover differs between
        those of one satellite and track."""
        if name == "eo:cloud_cover" and isinstance(tests, dict) and tests.keys() <= {"lte"}:
            return np.asarray(items.cloud_percent <= tests.get("lte", 100))
        passed = np.zeros(len(items), dtype=bool)
        seen, _ = survey_of(self.mission)
        alike = items.satellite << 32
        if name == "sat:relative_orbit":
            alike += seen.track[items.place]
        for group in np.unique(alike).tolist():
            mine = alike == group
            example = int(np.flatnonzero(mine)[0])
            _, shelf, scene, percent = self._scene(items, example)
            passed[mine] = meets({name: tests}, properties_of(shelf, scene, percent))
        return passed

    def texts(self, items: Items, which: range) -> list[str]:
        """Return items as JSON."""
        return [self._text(items, k) for k in which]

    def _text(self, items: Items, which: int) -> str:
        product, shelf, scene, percent = self._scene(items, which)
        # EnMAP's items may leave out the CRS of their assets
        whole = self.mission != "enmap" or has_crs(scene)
        key = int(items.place[which]), product, whole
        if key not in self._pieces:
            if len(self._pieces) >= _KEPT_PLACES:
                self._pieces.clear()
            self._pieces[key] = self._cut(key[0], shelf, scene)
        properties = json.dumps(properties_of(shelf, scene, percent), separators=(",", ":"))
        name = item_id(shelf, scene)
        return self._pieces[key].replace(_NAME, name).replace(f'"{_PROPERTIES}"', properties)

    def _scene(self, items: Items, which: int) -> tuple[str, Shelf, Scene, dict[str, float]]:
        """Return a scene, in whose manner it is served, and what covers it."""
        satellite = self.names[items.satellite[which]]
        product, place = self.products[satellite], int(items.place[which])
        still, nodata_percent = still_scene(self.mission, product, place)
        when = EPOCH + timedelta(seconds=int(items.when_s[which]))
        scene = replace(still, when=when, **identity(satellite, still, when))
        percent = dict.fromkeys(_SHARES, 0.0)
        percent |= {"cloud": float(items.cloud_percent[which]), "nodata": nodata_percent}
        return product, self._shelves[product], scene, percent

    def _cut(self, place: int, shelf: Shelf, scene: Scene) -> str:
        """Return the item of a scene with marks where those of other passes differ."""
        facts, known = shelf.facts, {*(b.name for b in shelf.product.bands), "*"}
        known |= {layer.name for layer in shelf.product.mask_layers}
        files = {file.key: f"{self._home}/{file.key}.tif" for file in files_of(shelf)}
        for word, entries in facts.assets.items():
            if word not in known:
                ending = "xml" if "calibration" in word or "noise" in word else "json"
                files |= {entry.asset: f"{self._home}/{entry.asset}.{ending}" for entry in entries}
        files |= {key: f"{self._home}/{key}.xml" for key in _BESIDE}
        seen, _ = survey_of(self.mission)
        item = item_of(shelf, scene, Written(files, _NOTHING), outline=seen.outline[place])
        for asset in item["assets"].values():
            if self._home.startswith("https://landsatlook"):
                bucket = asset["href"].replace(
                    "https://landsatlook.usgs.gov/data", "s3://usgs-landsat"
                )
                asset["alternate"] = {"s3": {"storage:requester_pays": True, "href": bucket}}
        item |= {"id": _NAME, "properties": _PROPERTIES}
        item["links"] = [{"rel": rel, "href": f"{self._home}/{rel}"} for rel in ("self", "root")]
        return json.dumps(item, separators=(",", ":"))


@cache
def survey_of(mission: str) -> tuple[Survey, shapely.STRtree]:
    """Return the places of a mission; kept by all its collections."""
    seen = survey(FLIGHTS[mission])
    return seen, shapely.STRtree(seen.outline)


@lru_cache(4 * _KEPT_PLACES)
def still_scene(mission: str, product: str, place: int) -> tuple[Scene, float]:
    """Return a scene of a place without what differs between passes, and how much of it is fill."""
    seen, _ = survey_of(mission)
    zone, number = int(seen.zone[place]), int(seen.number[place])
    ring = shapely.get_coordinates(seen.outline[place])
    shape = shapely.Polygon(np.stack(to_plane(ring[:, 0], ring[:, 1], zone), axis=-1))
    if seen.flight.frame_km:
        south = shapely.centroid(shape).y < 0 and mission != "landsat"
        tile = str(number + 500)
        x_min_m, n_max_m, width_m, height_m = upright(shape, product, south=bool(south))
    else:
        south, column, row = number < 0, number % 100, number // 100
        tile, (x_min_m, n_max_m) = tile_name(zone, column, row, 100_000), tile_corner(number)
        width_m = height_m = _TILE_M
    scene = Scene(
        product=product,
        item="",
        datatake="",
        tile=tile,
        baseline="",
        track=int(seen.track[place]),
        when=EPOCH,
        zone=zone,
        south=bool(south),
        x_min_m=x_min_m,
        n_max_m=n_max_m,
        width_m=width_m,
        height_m=height_m,
        across=(0, 0),
        along=None,
    )
    return scene, round(100 - 100 * shapely.area(shape) / (width_m * height_m), 6)


def identity(satellite: str, still: Scene, when: datetime) -> dict[str, Any]:
    """Return item, datatake, tile and baseline of a scene, in the form that each mission has."""
    product, track = still.product, still.track
    day, second = f"{when:%Y%m%d}", f"{when:%Y%m%dT%H%M%S}"
    if product.startswith("sentinel-2"):
        baseline = "03.01" if when < _BASELINE_4 else "05.09"
        level, orbit = product[-3:].upper(), track % 143 + 1
        return {
            "item": f"{satellite}_MSI{level}_{second}_R{orbit:03d}_T{still.tile}_{second}",
            "datatake": f"G{satellite}_{second}_{orbit:06d}_N{baseline}",
            "baseline": baseline,
        }
    if product.startswith("landsat"):
        level = "L1TP" if product.endswith("-toa") else "L2SP"
        path, row = f"{track + 1:03d}", f"{int(still.tile) - 440:03d}"
        return {
            "item": f"{satellite}_{level}_{path}{row}_{day}_02_T1",
            "datatake": f"{satellite}_{path}_{day}",
            "tile": row,
            "baseline": level,
        }
    if product.startswith("sentinel-1"):
        # Each satellite counts its own data takes, so both have the same numbers.
        flight, days = FLIGHTS["sentinel-1"], (when - EPOCH).days
        count = days // flight.days * flight.orbits + track
        return {
            "item": f"{satellite}_IW_GRDH_1SDV_{second}_{second}_{days * 15:06d}_{count:06X}",
            "datatake": str(count),
            "baseline": "Fast-24h",
        }
    take, frame = f"{when:%y%j}{track:05d}", int(still.tile)
    return {
        "item": f"ENMAP01-____L2A-DT{take}_{second}Z_{frame:03d}_V010402_{second}Z",
        "datatake": take,
        "tile": f"{frame:03d}",
        "baseline": "01.04.02",
    }


def _cloud_percent(place: Ints, when_s: Ints) -> Floats:
    """Return cloud covers: mostly next to nothing or nearly all, 28 % of them below 20 percent."""
    drawn = hash64(_CLOUD_CHANNEL, place, when_s // 60) >> np.uint64(11)
    return np.asarray(np.round(100 * np.sin(np.pi / 2 * drawn / 2.0**53) ** 2, 2))


def _seconds(when: datetime) -> float:
    return (when - EPOCH).total_seconds()

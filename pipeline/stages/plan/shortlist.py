"""Which scenes are good enough to be asked for: the scenes table as arrays, once per product."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.raster.zones import FALSE_NORTHING_SOUTH_M, Floats, Ints
from pipeline.recipe import LoadedRecipe
from pipeline.stages.plan.footprints import Footprints
from pipeline.stages.plan.warped import in_zones

#: Columns of `Scene` that planning reads: not the assets, which are most of the table.
SCENE_COLUMNS = (
    "scene",
    "product",
    "item",
    "datatake",
    "acquired",
    "baseline",
    "cloud_percent",
    "sun_elevation_deg",
    "epsg",
    "x_min_m",
    "y_min_m",
    "x_max_m",
    "y_max_m",
    "geometry",
)

#: What an unknown cloud cover counts as.
_UNKNOWN_CLOUD_PERCENT = 100.0


@dataclass(frozen=True, slots=True, eq=False)
class SceneList:
    """Every scene once, numbered in the order of the ids."""

    table: pa.Table
    """The table they come from; may hold a scene several times."""
    row: Ints
    """By number: where in that table."""
    names: pa.LargeStringArray
    """By number: its id."""
    datatake: Ints
    """By number: its datatake's place in `datatakes`."""
    datatakes: pa.LargeStringArray
    """Names of datatakes, sorted."""

    def column(self, name: str) -> Any:
        """Return a column of numbers, by number of the scene; NaN where there is none."""
        return self.table.column(name).to_numpy()[self.row]


@dataclass(frozen=True, slots=True, eq=False)
class Shortlist:
    """Scenes of one product that meet the recipe's limits: columns of one length, by id.

    One that is warped stands here once for each zone that it shows some of.
    """

    number: Ints
    """In the `SceneList`."""
    zone: Ints
    bounds: Floats
    """Of the pixels, shape (scene, 4): west, south, east, north; northings from the equator."""
    time: Ints
    """Of acquisition, in microseconds since 1970."""
    cloud_percent: Floats
    """Unknown counts as 100."""
    datatake: Ints
    footprints: Footprints

    def __len__(self) -> int:
        return len(self.number)


def list_scenes(scenes: pa.Table) -> SceneList:
    """Return the scenes of a table, each identity once: its newest baseline."""
    names = scenes.column("scene").cast(pa.large_string()).combine_chunks()
    order = pc.sort_indices(names)
    ordered = names.take(order)
    first = np.ones(len(ordered), dtype=bool)
    first[1:] = pc.not_equal(ordered.slice(1), ordered.slice(0, max(len(ordered) - 1, 0)))
    if not first.all():
        keys = {"scene": names, "baseline": _ages(scenes.column("baseline"))}
        order = pc.sort_indices(
            pa.table({**keys, "item": scenes.column("item")}),
            [("scene", "ascending"), ("baseline", "descending"), ("item", "descending")],
        )
        order, ordered = order.filter(pa.array(first)), ordered.filter(pa.array(first))
    row = order.to_numpy().astype(np.int64)
    datatake, datatakes = _sorted_codes(scenes.column("datatake"))
    return SceneList(scenes, row, ordered, datatake[row], datatakes)


def shortlist(scenes: SceneList, loaded: LoadedRecipe, product: str) -> Shortlist:
    """Return the scenes of a product that may serve.

    Left out are scenes above the recipe's cloud limit (unknown counts as 100), below its sun
    limit (unknown passes), and those outside UTM, in whose plane no cell lies, unless they are
    warped. A cell may stick
    out of a footprint by half a pixel.
    """
    wish = loaded.wishes[product]
    cloud = _known(scenes.column("cloud_percent"), _UNKNOWN_CLOUD_PERCENT)
    sun = _known(scenes.column("sun_elevation_deg"), 90.0)
    epsg = scenes.column("epsg")
    sides = [scenes.column(f"{name}_m") for name in ("x_min", "y_min", "x_max", "y_max")]
    bounds = np.stack(sides, axis=1)
    bounds[:, 1::2] -= np.where(epsg // 100 == 327, FALSE_NORTHING_SOUTH_M, 0.0)[:, None]
    good = pc.equal(scenes.table.column("product"), product).to_numpy()[scenes.row]
    good = good & (cloud <= wish.max_cloud_percent) & (sun >= wish.min_sun_elevation_deg)
    outlines = scenes.table.column("geometry").cast(pa.large_binary())
    if loaded.products[product].warp is not None:
        number = np.flatnonzero(good)
        outlines = outlines.take(pa.array(scenes.row[number])).combine_chunks()
        which, zone, bounds, outlines = in_zones(outlines)
        number = number[which]
    else:
        good &= np.isin(epsg // 100, (326, 327)) & np.isfinite(bounds).all(axis=1)
        number = np.flatnonzero(good)
        zone, bounds = epsg[number] % 100, bounds[number]
        outlines = outlines.take(pa.array(scenes.row[number])).combine_chunks()
    acquired = scenes.table.column("acquired").cast(pa.int64()).to_numpy()
    return Shortlist(
        number=number,
        zone=zone,
        bounds=bounds,
        time=acquired[scenes.row[number]],
        cloud_percent=cloud[number],
        datatake=scenes.datatake[number],
        footprints=Footprints(outlines, zone, bounds, loaded.pixel_m(product) / 2),
    )


def by_preference(
    choice: str, *, cloud_percent: Floats, distance: Ints, time: Ints
) -> tuple[Floats | Ints, Floats | Ints]:
    """Return the two columns that rank acquisitions, the more important one last, for `lexsort`.

    `least-cloudy`: cloud, then distance from the wanted time. `nearest`: the other way round.
    `newest`: time, then cloud. Smaller is better in all of them; ties are left to the caller.
    """
    if choice == "nearest":
        return cloud_percent, distance
    if choice == "newest":
        return cloud_percent, -time
    return distance, cloud_percent


def _ages(baselines: pa.ChunkedArray) -> pa.Array:
    """Return numbers that grow with the processing baseline, compared part by part."""
    encoded = baselines.combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    parts = [tuple(int(part) for part in re.findall(r"\d+", name)) for name in names]
    ranks = {part: rank for rank, part in enumerate(sorted(set(parts)))}
    return pa.array([ranks[part] for part in parts], pa.int64()).take(encoded.indices)


def _sorted_codes(names: pa.ChunkedArray) -> tuple[Ints, pa.Array]:
    """Number strings by their place among the distinct ones, in sorted order."""
    encoded = names.cast(pa.large_string()).combine_chunks().dictionary_encode()
    order = pc.sort_indices(encoded.dictionary)
    place = np.empty(len(order), dtype=np.int64)
    place[order.to_numpy()] = np.arange(len(order))
    return place[encoded.indices.to_numpy()], encoded.dictionary.take(order)


def _known(values: Floats, missing: float) -> Floats:
    return np.where(np.isnan(values), missing, values)

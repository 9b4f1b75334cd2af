"""Requests to catalogues for a whole recipe, per 1,000 locations.

    python benchmarks/api_calls.py [RECIPE ...]

The locations are drawn as the recipe says and the questions are those that `search` asks. How many
items each question has is counted on a made-up year with the tiles of `plan.py`: a Sentinel-2 tile
is seen by every orbit whose swath meets it, every five days; a Landsat scene every sixteen days for
each satellite; a Sentinel-1 scene every twelve. A question is one request for each page, and at
least one. The original downloaders asked 4,000 to 12,000 times for 1,000 locations: once an image.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np

from pipeline.ports import Query
from pipeline.recipe import LoadedRecipe, load_recipe
from pipeline.records import Location
from pipeline.run.sample import run_sample
from pipeline.sources.providers import load_provider
from pipeline.stages.questions import queries
from pipeline.store.layout import LOCATIONS
from pipeline.store.objects import open_store
from pipeline.store.tables import read_all

_DEG_KM = 111.32


@dataclass(frozen=True)
class Footprints:
    """How densely a sensor's items lie."""

    step_km: float
    """Scenes begin so far apart, in both directions."""
    size_km: float
    """Edge of a scene: one that only touches the asked box is an item too."""
    every_days: float
    """A scene of a place comes so often at the equator (all satellites together)."""


#: By the beginning of the product's id. Sentinel-2: a tile is met by (290 + 110) / 280 orbits every
#: 5 days. Landsat: frames of 185 x 180 km every 16 days. Sentinel-1: 250 x 170 km every 6 days.
SENSORS = {
    "sentinel-2": Footprints(100, 110, 5 * 280 / 400),
    "landsat": Footprints(170, 185, 16),
    "sentinel-1": Footprints(200, 220, 6),
}


def items(query: Query, seen: Footprints) -> int:
    """Return how many items a question has."""
    if query.bbox is None or query.start is None or query.end is None:
        raise SystemExit("only searches by area and time are counted")
    west, south, east, north = query.bbox
    narrow = np.cos(np.radians((south + north) / 2))
    width_km, height_km = (east - west) * _DEG_KM * narrow, (north - south) * _DEG_KM
    places = np.prod([(edge + seen.size_km) / seen.step_km for edge in (width_km, height_km)])
    # Orbits converge: at latitude phi a place is seen 1 / cos(phi) times as often.
    times = (query.end - query.start).days / seen.every_days / narrow
    return round(float(places * times))


def count(loaded: LoadedRecipe) -> list[tuple[str, str, int, int, int]]:
    """Return product, provider, questions, items and requests of each product."""
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        run_sample(loaded, store)
        locations = read_all(store, LOCATIONS, Location, ["lon_deg", "lat_deg", "geometry"])
    print(f"\n### {loaded.name}: {locations.num_rows:,} locations\n")
    found = []
    for product, wish in loaded.wishes.items():
        provider = load_provider(wish.providers[0], url=None)
        asked = queries(loaded, product, locations)
        seen = next(value for name, value in SENSORS.items() if product.startswith(name))
        counts = [items(query, seen) for query in asked]
        size = provider.page_sizes.get(asked[0].collection, provider.page_size)
        pages = sum(max(1, ceil(n / size)) for n in counts)
        found.append((product, provider.name, len(asked), sum(counts), pages))
    thousands = locations.num_rows / 1000
    print("| product | provider | questions | items | requests | per 1,000 locations |")
    print("|---|---|---|---|---|---|")
    for product, name, asked_of, of, pages in found:
        print(
            f"| {product} | {name} | {asked_of:,} | {of:,} | {pages:,} | {pages / thousands:.1f} |"
        )
    total = sum(pages for *_, pages in found)
    print(f"| all | | | | {total:,} | {total / thousands:.1f} |")
    return found


def main() -> None:
    """Print one table for each recipe."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipes", nargs="*", default=["ssl4eo-s12", "ssl4eo-l"])
    for name in parser.parse_args().recipes:
        count(load_recipe(Path(name) if name.endswith(".toml") else name))


if __name__ == "__main__":
    main()

"""Plan a million locations against three million scenes: time and memory.

    python benchmarks/plan.py [--locations 1000000] [--scenes 3000000]

The archive is made up, but shaped like Sentinel-2's year: tiles of 109.8 km every 100 km in every
zone, orbits 280 km apart at the equator with a swath of 290 km, so that most footprints are cut
by a swath edge and cells at high latitudes are seen by several orbits; a pass every five days;
clouds mostly all or nothing. Tables are made and read in processes of their own, so the peak is
that of planning: the tables with the columns that `run_plan` reads, the plan, and all in between.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from pipeline.products.catalogue import lattice
from pipeline.raster.lattice import cells_at
from pipeline.raster.zones import Floats, Ints, to_sphere
from pipeline.recipe import LoadedRecipe, Recipe

TILE_M, STEP_M = 109_800.0, 100_000.0
SWATH_M, ORBITS_APART_M, REVISIT_DAYS = 290_000.0, 280_000.0, 5
#: Eastward drift of an orbit per metre northward: 98.6° inclination, descending.
SLANT = 0.2
#: Share of tiles with land, so that scenes per tile come out as in the real archive.
LAND = 0.475

RECIPE = Recipe.model_validate(
    {
        "name": "bench",
        "sample": {"strategy": "uniform"},
        "cell": {"lattice": "s2r10", "size_px": 264},
        "slots": {"kind": "seasons", "start": "2021-03-01", "end": "2022-03-01"},
        "product": [{"id": "sentinel-2-l2a", "provider": "planetary-computer"}],
    }
)


def tiles(rng: np.random.Generator) -> tuple[Ints, Floats, Floats]:
    """Return zone, west and south of the tiles, from 56° S to 72° N."""
    zone, south = np.meshgrid(np.arange(1, 61), np.arange(-62, 80) * STEP_M, indexing="ij")
    zone, south = zone.ravel(), south.ravel()
    half = 3 * 111_320 * np.cos(south / 6.371e6)
    col = np.arange(-4, 4)
    west = 500_000 + col * STEP_M
    kept = (np.abs(west + TILE_M / 2 - 500_000) < half[:, None] + TILE_M / 2) & (
        rng.random((len(zone), len(col))) < LAND
    )
    row, which = np.nonzero(kept)
    return zone[row], west[which], south[row]


def write_scenes(path: Path, count: int) -> None:
    """Write the columns of `Scene` that planning reads."""
    rng = np.random.default_rng(1)
    zone, west, south = tiles(rng)
    middle = south + TILE_M / 2
    apart = ORBITS_APART_M * np.cos(middle / 6.371e6)
    # Orbits whose swath meets the tile: number, and where its middle crosses the tile's middle.
    first = np.ceil((west - SLANT * middle - 500_000 - SWATH_M / 2) / apart).astype(int)
    orbit = first[:, None] + np.arange(12)
    crossing = 500_000 + orbit * apart[:, None] + SLANT * middle[:, None]
    seen = (crossing > west[:, None] - SWATH_M / 2 + 5_000) & (
        crossing < west[:, None] + TILE_M + SWATH_M / 2 - 5_000
    )
    tile, which = np.nonzero(seen)
    orbit, crossing = orbit[tile, which], crossing[tile, which]
    day = np.arange(365 // REVISIT_DAYS) * REVISIT_DAYS
    tile, orbit, crossing = (np.repeat(a, len(day)) for a in (tile, orbit, crossing))
    day = np.tile(day, len(tile) // len(day)) + orbit % REVISIT_DAYS
    order = rng.permutation(len(tile))[:count]
    tile, orbit, crossing, day = (a[order] for a in (tile, orbit, crossing, day))
    writer = None
    for start in range(0, len(tile), 250_000):
        k = slice(start, start + 250_000)
        table = scene_rows(
            rng,
            tile[k],
            zone[tile[k]],
            west[tile[k]],
            south[tile[k]],
            orbit[k],
            crossing[k],
            day[k],
        )
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    if writer is not None:
        writer.close()


def scene_rows(
    rng: np.random.Generator,
    tile: Ints,
    zone: Ints,
    west: Floats,
    south: Floats,
    orbit: Ints,
    crossing: Floats,
    day: Ints,
) -> pa.Table:
    """Return one row per tile, orbit and day, with the footprint the swath leaves of the tile."""
    count = len(tile)
    middle = south + TILE_M / 2
    at = crossing + rng.normal(0, 800, count)
    low, high = south - 1e4, south + TILE_M + 1e4
    swath = np.stack(
        [
            np.stack([at + SLANT * (n - middle) + side * SWATH_M / 2, n], axis=1)
            for side, n in ((-1, low), (1, low), (1, high), (-1, high))
        ],
        axis=1,
    )
    square = shapely.box(west, south, west + TILE_M, south + TILE_M)
    seen = shapely.intersection(square, shapely.polygons(swath))
    points, owner = shapely.get_coordinates(seen, return_index=True)
    lon, lat = to_sphere(points[:, 0], points[:, 1], zone[owner])
    lon = (lon + 180) % 360 - 180
    shapely.set_coordinates(seen, np.round(np.stack([lon, lat], axis=1), 7))
    acquired = np.datetime64("2021-03-01T10:30:00", "us") + day.astype("timedelta64[D]")
    acquired = acquired + (-south / 6_700).astype("timedelta64[s]")
    north = south >= 0
    stamp = np.datetime_as_string(acquired.astype("datetime64[D]"))
    take = [f"S2A_{d}T{z:02d}{o + 900:04d}" for d, z, o in zip(stamp, zone, orbit, strict=True)]
    name = [f"{z:02d}{t:06d}" for z, t in zip(zone.tolist(), tile.tolist(), strict=True)]
    base = np.where(north, south, south + 1e7)
    return pa.table(
        {
            "scene": [f"sentinel-2-l2a/{d}/{t}" for d, t in zip(take, name, strict=True)],
            "product": ["sentinel-2-l2a"] * count,
            "item": [f"S2A_MSIL2A_{d}_{t}_N0500" for d, t in zip(take, name, strict=True)],
            "datatake": take,
            "acquired": pa.array(acquired, pa.timestamp("us", tz="UTC")),
            "baseline": ["05.00"] * count,
            "cloud_percent": np.round(100 * rng.beta(0.4, 0.4, count), 4),
            "sun_elevation_deg": rng.uniform(10, 70, count),
            "epsg": np.where(north, 32600, 32700) + zone,
            "x_min_m": west,
            "y_min_m": base,
            "x_max_m": west + TILE_M,
            "y_max_m": base + TILE_M,
            "geometry": pa.array(shapely.to_wkb(seen), pa.binary()),
        }
    )


def write_locations(path: Path, count: int) -> None:
    """Write the columns of `Location` that planning reads: cells anywhere on the tiles."""
    rng = np.random.default_rng(2)
    zone, west, south = tiles(np.random.default_rng(1))
    which = rng.integers(0, len(zone), 3 * count)
    lon, lat = to_sphere(
        west[which] + rng.random(3 * count) * TILE_M,
        south[which] + rng.random(3 * count) * TILE_M,
        zone[which],
    )
    cells = cells_at(lon, lat, lattice("s2r10"), 264)
    cells = cells[np.sort(np.unique(cells.keys(), return_index=True)[1])]
    cells = cells[cells.admissible()][:count]
    lon, lat = cells.centres()
    columns = {
        "location": cells.ids(),
        "epsg": cells.epsg,
        "x_min_m": cells.x_min_m,
        "y_max_m": cells.y_max_m,
        "size_m": np.full(len(cells), cells.size_m),
        "lon_deg": lon,
        "lat_deg": lat,
    }
    pq.write_table(pa.table(columns), path, compression="zstd")


def measure(folder: Path) -> dict[str, float]:
    """Read the tables, plan, and return what it took."""
    from pipeline.stages.plan.plan import plan

    loaded = LoadedRecipe(RECIPE, folder)
    begun = time.perf_counter()
    locations = pq.read_table(folder / "locations.parquet")
    scenes = pq.read_table(folder / "scenes.parquet")
    read_s = time.perf_counter() - begun
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun, worked = time.perf_counter(), time.process_time()
    made = plan(loaded, locations, scenes, cutoff=None)
    plan_s, work_s = time.perf_counter() - begun, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts = made.patches["candidates"].combine_chunks().value_lengths().to_numpy()
    return {
        "locations": locations.num_rows,
        "scene rows": scenes.num_rows,
        "patches": made.patches.num_rows,
        "with candidates, %": round(100 * float((counts > 0).mean()), 1),
        "candidates": int(counts.sum()),
        "scenes named": made.scenes.num_rows,
        "shards": len(made.shard_rows),
        "reading the tables, s": round(read_s, 1),
        "planning, s": round(plan_s, 1),
        "planning, processor s": round(work_s, 1),
        "peak memory after reading, GB": round(before * 1024 / 1e9, 2),
        "peak memory, GB": round(peak * 1024 / 1e9, 2),
    }


def main() -> None:
    """Make the tables, measure in a process of its own, print a table."""
    parser = argparse.ArgumentParser(description="Time and memory of planning.")
    parser.add_argument("--locations", type=int, default=1_000_000)
    parser.add_argument("--scenes", type=int, default=3_000_000)
    parser.add_argument("--folder", type=Path, help="keep the tables here, and use them again")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "scenes.parquet").exists():
            write_scenes(folder / "scenes.parquet", options.scenes)
            write_locations(folder / "locations.parquet", options.locations)
        command = [sys.executable, __file__, "--measure", "--folder", str(folder)]
        ended = subprocess.run(command, check=True, capture_output=True, text=True)
    print("| what | figure |\n|---|---|")
    for name, value in json.loads(ended.stdout).items():
        print(f"| {name} | {value:,} |")


if __name__ == "__main__":
    main()

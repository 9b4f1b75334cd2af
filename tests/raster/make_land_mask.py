"""Make `pipeline/raster/land.npz`, the coarse land mask, from Natural Earth's ocean.

Natural Earth (1:110 million, version 4 and later, public domain) comes with the package odc-geo
(extra `bench`). A square of the mask is land unless the ocean covers all of it, so coasts pass.

    python tests/raster/make_land_mask.py [TARGET]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import shapely

#: Squares per degree.
PER_DEGREE = 4
TARGET = Path(__file__).parents[2] / "pipeline" / "raster" / "land.npz"


def land_squares(every: int = 1) -> np.ndarray:
    """Return what is land, bool, shape (latitude from the north, longitude from -180°).

    `every` leaves out rows: 10 gives the first of every ten.
    """
    from odc.geo.data import ocean_geojson

    shapes = [shapely.geometry.shape(part["geometry"]) for part in ocean_geojson()["features"]]
    ocean = shapely.union_all(shapely.make_valid(np.array(shapes)))
    shapely.prepare(ocean)
    west = np.arange(360 * PER_DEGREE) / PER_DEGREE - 180
    south = 90 - np.arange(1, 180 * PER_DEGREE + 1, every) / PER_DEGREE
    lon, lat = np.meshgrid(west, south)
    step = 1 / PER_DEGREE
    return ~shapely.covers(ocean, shapely.box(lon, lat, lon + step, lat + step))


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    land = land_squares()
    np.savez_compressed(target, packed=np.packbits(land, axis=1), per_degree=PER_DEGREE)
    print(f"{target}: {land.mean():.1%} of the squares, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()

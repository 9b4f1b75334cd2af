"""Files on other grids come onto a cell's pixels by position, checked against pyproj alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.control import GroundControlPoint
from rasterio.transform import Affine

from pipeline.errors import GiveUp
from pipeline.ports import PixelGrid, Stat
from pipeline.raster.warp import open_warped

CELL = PixelGrid(32616, 500_015.0, 4_500_015.0, 30, 64, 64)


class Files:
    """Files of one folder."""

    requests = 0
    bytes_read = 0

    def stat(self, href: str) -> Stat:
        return Stat(Path(href).stat().st_size, None)

    def ranges(self, href: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        data = Path(href).read_bytes()
        return [data[start:stop] for start, stop in ranges]


def centres(grid: PixelGrid, epsg: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the pixel centres of a cell in another CRS, shape (y, x) each."""
    step = grid.pixel_m
    x = grid.x_min_m + (np.arange(grid.width_px) + 0.5) * step
    y = grid.y_max_m - (np.arange(grid.height_px) + 0.5) * step
    to = Transformer.from_crs(grid.epsg, epsg, always_xy=True)
    there_x, there_y = to.transform(*np.meshgrid(x, y))
    return np.asarray(there_x), np.asarray(there_y)


def write(path: Path, values: NDArray[Any], **profile: Any) -> str:
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=values.shape[0],
        width=values.shape[1],
        count=1,
        dtype=values.dtype,
        **profile,
    ) as raster:
        raster.write(values, 1)
    return str(path)


def read(href: str, grid: PixelGrid = CELL, **how: Any) -> NDArray[Any]:
    with open_warped(Files(), href) as raster:
        pixels: NDArray[Any] = raster.read((1,), grid, **how)
    found: NDArray[Any] = pixels[0]
    return found


def test_labels_take_the_pixel_that_holds_the_centre(tmp_path: Path) -> None:
    east, north = centres(CELL, 5070)
    west_m = math.floor(east.min() / 30) * 30 - 900.0
    top_m = math.ceil(north.max() / 30) * 30 + 900.0
    codes = np.random.default_rng(0).integers(1, 255, (140, 140)).astype("uint8")
    href = write(
        tmp_path / "nlcd.tif",
        codes,
        crs="EPSG:5070",
        transform=Affine(30, 0, west_m, 0, -30, top_m),
    )
    found = read(href, method="nearest", nodata=0)
    row, col = (top_m - north) / 30, (east - west_m) / 30
    expected = codes[np.floor(row).astype(int), np.floor(col).astype(int)]
    away = np.minimum(np.abs(row - np.round(row)), np.abs(col - np.round(col)))
    sure = away > 1e-4  # on an edge either side is right
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(found[sure], expected[sure])


def test_terrain_is_interpolated_between_pixels_of_any_shape(tmp_path: Path) -> None:
    lon, lat = centres(CELL, 4326)
    wide, high = 1.5 / 3600, 1 / 3600  # arc seconds, as Copernicus DEM has them from 50 degrees on
    west, top = lon.min() - 20 * wide, lat.max() + 20 * high
    rows, cols = np.mgrid[0:150, 0:150] + 0.5
    plane = (100 + 3000 * (cols * wide) - 2000 * (rows * high)).astype("float32")
    href = write(
        tmp_path / "dem.tif", plane, crs="EPSG:4326", transform=Affine(wide, 0, west, 0, -high, top)
    )
    found = read(href, method="bilinear", nodata=None)
    np.testing.assert_allclose(found, 100 + 3000 * (lon - west) - 2000 * (top - lat), atol=2e-3)


def test_control_points_place_pixels_within_a_sixth_of_one(tmp_path: Path) -> None:
    """A turned and slightly bent image, as radar makes them; its pixels tell line and sample."""
    lines, samples = 800, 900

    def ground(line: Any, sample: Any) -> tuple[Any, Any]:
        x = 499_000 + 9.6 * sample - 1.9 * line + 2e-5 * sample**2
        y = 4_501_500 - 2.1 * sample - 9.7 * line + 1e-5 * line**2
        return x, y

    to_lonlat = Transformer.from_crs(32616, 4326, always_xy=True)
    points = [
        GroundControlPoint(line, sample, *to_lonlat.transform(*ground(line, sample)))
        for line in np.linspace(0, lines, 9)
        for sample in np.linspace(0, samples, 11)
    ]
    grid = PixelGrid(32616, 500_000.0, 4_500_000.0, 10, 100, 100)
    image = np.mgrid[0:lines, 0:samples].astype("float32") + 0.5
    x = grid.x_min_m + (np.arange(100) + 0.5) * 10
    y = grid.y_max_m - (np.arange(100) + 0.5) * 10
    x, y = np.meshgrid(x, y)
    line, sample = (
        read(
            write(tmp_path / f"{axis}.tif", image[axis], crs="EPSG:4326", gcps=points),
            grid,
            method="bilinear",
            nodata=None,
        ).astype("float64")
        for axis in (0, 1)
    )
    off_x, off_y = ground(line, sample)
    assert np.abs(off_x - x).max() < 10 / 6
    assert np.abs(off_y - y).max() < 10 / 6


def test_beyond_the_file_there_is_nothing(tmp_path: Path) -> None:
    codes = np.ones((10, 10), "uint8")
    far = Affine(30, 0, 2_000_000, 0, -30, 3_000_000)
    href = write(tmp_path / "far.tif", codes, crs="EPSG:5070", transform=far)
    assert (read(href, method="nearest", nodata=0) == 0).all()
    east, north = centres(CELL, 5070)
    near = Affine(30, 0, east.mean(), 0, -30, north.mean())
    href = write(tmp_path / "near.tif", codes, crs="EPSG:5070", transform=near)
    found = read(href, method="nearest", nodata=0)
    assert 50 < (found == 1).sum() < 150


def test_what_a_file_itself_calls_nothing_is_nothing(tmp_path: Path) -> None:
    """Editions of a map differ in the number: 0 in one, 250 in the next."""
    east, north = centres(CELL, 5070)
    codes = np.full((400, 400), 11, "uint8")
    codes[:, 200:] = 250
    there = Affine(30, 0, east.mean() - 200 * 30, 0, -30, north.mean() + 200 * 30)
    href = write(tmp_path / "map.tif", codes, crs="EPSG:5070", transform=there, nodata=250)
    found = read(href, method="nearest", nodata=0)
    assert set(np.unique(found).tolist()) == {0, 11}


@pytest.mark.parametrize(
    ("profile", "failure"),
    [
        ({}, "wrong-grid"),
        ({"crs": "EPSG:5070", "transform": Affine(1, 0, 0, 0, -1, 0)}, "not-an-image"),
    ],
)
def test_what_cannot_be_placed_is_refused(
    tmp_path: Path, profile: dict[str, Any], failure: str
) -> None:
    href = write(tmp_path / "x.tif", np.ones((4, 4), "uint8"), **profile)
    with pytest.raises(GiveUp) as error:
        read(href, method="nearest", nodata=None)
    assert error.value.failure == failure


def test_control_points_that_place_nothing_are_refused_or_show_nothing(tmp_path: Path) -> None:
    def href(spread: float) -> str:
        points = [GroundControlPoint(k, k, -87 + spread * k, 40 - spread * k) for k in range(4)]
        codes = np.ones((4, 4), "uint8")
        return write(tmp_path / f"{spread}.tif", codes, crs="EPSG:4326", gcps=points)

    with pytest.raises(GiveUp) as error:
        read(href(0.0), method="nearest", nodata=0)
    assert error.value.failure == "wrong-grid"
    assert (read(href(1e30), method="nearest", nodata=0) == 0).all()


def test_a_damaged_file_is_corrupt(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(1, 255, (140, 140)).astype("uint8")
    east, north = centres(CELL, 5070)
    corner = Affine(30, 0, east.min() - 900, 0, -30, north.max() + 900)
    path = tmp_path / "x.tif"
    write(path, codes, crs="EPSG:5070", transform=corner, compress="deflate", tiled=True)
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(GiveUp) as error:
        read(str(path), method="nearest", nodata=0)
    assert error.value.failure in ("corrupt", "truncated")

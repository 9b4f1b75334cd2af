"""Deflate blocks unpacked without GDAL hold what GDAL finds in them, and no damage passes."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from pipeline.errors import GiveUp
from pipeline.ports import Stat
from pipeline.raster.blocks import AssetRaster, open_asset
from pipeline.raster.inflate import band_runs
from pipeline.raster.windows import Window

HEIGHT, WIDTH = 50, 75
WHOLE = [Window(0, 0, WIDTH, HEIGHT)]


class Memory:
    """A byte source that holds one file."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def stat(self, _href: str) -> Stat:
        return Stat(len(self.data), None)

    def ranges(self, _href: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        return [self.data[start:stop] for start, stop in ranges]


def _file(path: Path, pixels: np.ndarray, **options: Any) -> bytes:
    grid = {"crs": "EPSG:32633", "transform": Affine(30, 0, 300015, 0, -30, 5800005)}
    bands, height, width = pixels.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=bands,
        height=height,
        width=width,
        dtype=pixels.dtype,
        **(grid | {"compress": "deflate"} | options),
    ) as file:
        file.write(pixels)
    return path.read_bytes()


def _noise(dtype: str, bands: int = 3) -> np.ndarray:
    random = np.random.default_rng(1)
    bits = random.integers(0, 256, (bands, HEIGHT, WIDTH * np.dtype(dtype).itemsize), np.uint8)
    pixels = bits.view(dtype)
    return np.where(np.isfinite(pixels), pixels, 0).astype(dtype)


def _unpacked(asset: AssetRaster) -> bool:
    return asset._facts.packing is not None


KINDS = [
    (dtype, predictor)
    for dtype in ("uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64")
    for predictor in ((1, 2, 3) if dtype.startswith("f") else (1, 2))
]
TILES = {"tiled": True, "blockxsize": 32, "blockysize": 16}
LAYOUTS = list(product(("pixel", "band"), ("tiles", "strips"), ("LITTLE", "BIG")))


@pytest.mark.parametrize(("dtype", "predictor"), KINDS)
@pytest.mark.parametrize(("interleave", "blocks", "order"), LAYOUTS)
def test_it_reads_what_was_written(
    tmp_path: Path, dtype: str, predictor: int, interleave: str, blocks: str, order: str
) -> None:
    pixels = _noise(dtype)
    data = _file(
        tmp_path / "a.tif",
        pixels,
        interleave=interleave,
        predictor=predictor,
        ENDIANNESS=order,
        **(TILES if blocks == "tiles" else {"blockysize": 7}),
    )
    with open_asset(Memory(data), "a.tif") as asset:
        found = asset.read([3, 1, 2], WHOLE, fill=0)[0]
        assert _unpacked(asset)
        assert asset.blocks_decoded == asset.blocks_touched > 0
    np.testing.assert_array_equal(found, pixels[[2, 0, 1]])


@pytest.mark.parametrize(("nodata", "dtype"), [(None, "uint16"), (7, "uint16"), (-1.5, "float32")])
def test_a_block_that_the_file_leaves_out_holds_what_gdal_says(
    tmp_path: Path, nodata: float | None, dtype: str
) -> None:
    pixels = np.full((3, HEIGHT, WIDTH), 0 if nodata is None else nodata, dtype)
    pixels[:, :16, :32] = 5
    path = tmp_path / "a.tif"
    data = _file(path, pixels, nodata=nodata, interleave="pixel", SPARSE_OK=True, **TILES)
    with open_asset(Memory(data), "a.tif") as asset:
        found = asset.read([1, 2, 3], WHOLE, fill=0)[0]
        assert asset.blocks_decoded == 1
    with rasterio.open(path) as plain:
        np.testing.assert_array_equal(found, plain.read())


@pytest.mark.parametrize("predictor", [1, 2])
def test_no_flipped_bit_of_a_block_passes(tmp_path: Path, predictor: int) -> None:
    """Not of the packed bytes, not of the checksum: wrong pixels never come back."""
    pixels = (np.arange(3 * HEIGHT * WIDTH) % 251).astype("uint16").reshape(3, HEIGHT, WIDTH)
    path = tmp_path / "a.tif"
    data = _file(path, pixels, interleave="pixel", predictor=predictor, **TILES)
    with rasterio.open(path) as plain:
        spans = [
            (
                int(plain.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=1)),
                int(plain.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=1)),
            )
            for row in range(4)
            for col in range(3)
        ]
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        start, size = spans[random.integers(len(spans))]
        damaged = bytearray(data)
        damaged[start + random.integers(size)] ^= 1 << random.integers(8)
        with suppress(GiveUp), open_asset(Memory(bytes(damaged)), "a.tif") as asset:
            # A bit of padding between two codes may be anything.
            np.testing.assert_array_equal(asset.read([1, 2, 3], WHOLE, fill=0)[0], pixels)
            continue
        refused += 1
    assert refused > 180


def test_a_block_of_another_length_is_corrupt(tmp_path: Path) -> None:
    """A smaller block's stream in place of a larger one's is sound zlib, and still wrong."""
    path = tmp_path / "a.tif"
    large = bytearray(_file(path, np.zeros((1, HEIGHT, WIDTH), "uint8"), **TILES))
    with rasterio.open(path) as plain:
        start = int(plain.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1))
        size = int(plain.get_tag_item("BLOCK_SIZE_0_0", "TIFF", bidx=1))
    stream = zlib.compress(bytes(100))
    assert len(stream) <= size
    large[start : start + len(stream)] = stream
    with open_asset(Memory(bytes(large)), "a.tif") as asset, pytest.raises(GiveUp) as caught:
        asset.read([1], WHOLE, fill=0)
    assert caught.value.failure == "corrupt"
    assert "a.tif" in str(caught.value)
    assert "100 bytes" in str(caught.value)


@pytest.mark.parametrize("options", [{"compress": "lzw"}, {"compress": "zstd"}, {"nbits": 12}])
def test_what_it_does_not_know_is_left_to_gdal(tmp_path: Path, options: dict[str, Any]) -> None:
    pixels = _noise("uint16") % 4096
    data = _file(tmp_path / "a.tif", pixels, **options)
    with open_asset(Memory(data), "a.tif") as asset:
        assert not _unpacked(asset)
        np.testing.assert_array_equal(asset.read([1, 2, 3], WHOLE, fill=0)[0], pixels)


def test_band_runs_cover_every_wanted_band_in_order() -> None:
    indexes = [5, 6, 7, 3, 3, 4, 1]
    runs = list(band_runs(indexes))
    assert [band + 1 for _, bands in runs for band in range(bands.start, bands.stop)] == indexes
    assert [place for places, _ in runs for place in range(places.start, places.stop)] == list(
        range(7)
    )
    assert len(runs) == 4

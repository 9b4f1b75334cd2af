"""Blocks: what is read equals a plain read, each block is decoded once, and nothing is trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import Affine

from pipeline.errors import GiveUp, TryAgain
from pipeline.ports import Stat
from pipeline.raster.blocks import open_asset
from pipeline.raster.windows import Window

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
SAFE = DATA / "sentinel-2" / "T29UNU"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data beside the project")


class Disk:
    """A byte source over one folder that notes every range it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.requests = 0
        self.bytes_read = 0

    def stat(self, href: str) -> Stat:
        return Stat(Path(href).stat().st_size, None)

    def ranges(self, href: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        self.requests += 1
        self.asked.extend(ranges)
        data = Path(href).read_bytes()
        assert all(0 <= start < stop <= len(data) for start, stop in ranges)
        return [data[start:stop] for start, stop in ranges]


def _write(path: Path, pixels: np.ndarray, **options: Any) -> str:
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "count": pixels.shape[0],
        "height": pixels.shape[1],
        "width": pixels.shape[2],
        "dtype": pixels.dtype,
        "crs": "EPSG:32633",
        "transform": Affine(30, 0, 300015, 0, -30, 5800005),
    }
    with rasterio.open(path, "w", **(profile | options)) as file:
        file.write(pixels)
    return str(path)


def _noise(bands: int, height: int, width: int, dtype: str = "int16") -> np.ndarray:
    generator = np.random.default_rng(bands * height + width)
    return generator.integers(1, 250, (bands, height, width)).astype(dtype)


LAYOUTS: dict[str, dict[str, Any]] = {
    "cube by pixel": {"interleave": "pixel", "tiled": True, "compress": "zstd"},
    "cube by band": {"interleave": "band", "tiled": True, "compress": "deflate", "predictor": 2},
    "strips by pixel": {"interleave": "pixel", "blockysize": 1, "compress": "lzw"},
    "strips by band": {"interleave": "band", "blockysize": 3, "compress": "deflate"},
    "plain strips": {"interleave": "band", "blockysize": 5},
    "one strip": {"interleave": "pixel", "blockysize": 100, "compress": "deflate"},
    "big": {"interleave": "pixel", "tiled": True, "compress": "deflate", "bigtiff": "YES"},
}


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, np.ndarray]:
    options = dict(LAYOUTS[request.param])
    if options.get("tiled"):
        options |= {"blockxsize": 32, "blockysize": 16}
    pixels = _noise(130, 100, 75)
    path = tmp_path_factory.mktemp("layout") / "a.tif"
    return _write(path, pixels, **options), pixels


def _cut(pixels: np.ndarray, indexes: Sequence[int], window: Window, fill: int) -> np.ndarray:
    """Return a window of an array the slow and obvious way."""
    cut = np.full((len(indexes), window.height, window.width), fill, pixels.dtype)
    for y in range(window.height):
        for x in range(window.width):
            row, col = window.row + y, window.col + x
            if 0 <= row < pixels.shape[1] and 0 <= col < pixels.shape[2]:
                cut[:, y, x] = pixels[[i - 1 for i in indexes], row, col]
    return cut


WINDOWS = st.builds(
    Window, st.integers(-20, 90), st.integers(-20, 110), st.integers(1, 40), st.integers(1, 40)
)


@settings(max_examples=15, deadline=None)
@given(
    windows=st.lists(WINDOWS, min_size=1, max_size=5),
    indexes=st.lists(st.integers(1, 130), min_size=1, max_size=4),
    threads=st.sampled_from([1, 3]),
)
def test_windows_hold_what_a_plain_read_holds(
    layout: tuple[str, np.ndarray], windows: list[Window], indexes: list[int], threads: int
) -> None:
    path, pixels = layout
    with open_asset(Disk(), path, threads=threads) as asset:
        found = asset.read(indexes, windows, fill=-9)
        assert asset.blocks_decoded == asset.blocks_touched
    for window, patch in zip(windows, found, strict=True):
        np.testing.assert_array_equal(patch, _cut(pixels, indexes, window, -9))


@pytest.mark.parametrize("threads", [1, 2])
def test_tiling_an_asset_decodes_each_block_once(
    layout: tuple[str, np.ndarray], threads: int
) -> None:
    path, _ = layout
    windows = [Window(x, y, 10, 10) for y in range(0, 100, 10) for x in range(0, 70, 10)]
    source = Disk()
    with open_asset(source, path, threads=threads) as asset:
        asset.read(range(1, 131), windows, fill=0)
        rows, cols = -(-100 // asset.block_px[0]), -(-75 // asset.block_px[1])
        with rasterio.open(path) as plain:
            by_pixel = plain.interleaving.value.lower() == "pixel"
            starts = {
                int(plain.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=band))
                for row in range(rows)
                for col in range(cols)
                if col * asset.block_px[1] < 70
                for band in range(1, 2 if by_pixel else 131)
            }
        assert asset.blocks_touched == asset.blocks_decoded == len(starts)
    # Independently: the source gave the bytes of each touched block once.
    fetched = [start for start, _ in source.asked if start in starts]
    assert sorted(fetched) == sorted(starts)


def test_the_next_bytes_are_fetched_while_some_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = _noise(1, 256, 256)
    options = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    path = _write(tmp_path / "a.tif", pixels, **options)
    monkeypatch.setattr("pipeline.raster.blocks._BATCH_BYTES", 8000)
    monkeypatch.setattr("pipeline.raster.blocks._CALL_BYTES", 1)
    source = Disk()
    with open_asset(source, path) as asset:
        found = asset.read([1], [Window(0, 0, 256, 256)], fill=0)[0]
        assert (asset.blocks_touched, asset.blocks_decoded) == (16, 16)
    np.testing.assert_array_equal(found, pixels)
    assert source.requests > 6


def test_blocks_that_the_file_leaves_out_read_as_nodata(tmp_path: Path) -> None:
    path = tmp_path / "sparse.tif"
    pixels = np.zeros((1, 64, 64), np.uint16)
    pixels[0, :16, :16] = 7
    options = {"tiled": True, "blockxsize": 16, "blockysize": 16, "SPARSE_OK": True}
    with open_asset(Disk(), _write(path, pixels, **options)) as asset:
        found = asset.read([1], [Window(0, 0, 64, 64)], fill=1)[0]
        assert asset.blocks_decoded == 1
    np.testing.assert_array_equal(found, pixels)


def test_facts_and_check(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.tif", _noise(1, 20, 30), nodata=-32768)
    scene = {"epsg": 32633, "x_min_m": 300015, "y_min_m": 5799405}
    with open_asset(Disk(), path) as asset:
        assert (asset.epsg, asset.x_min_m, asset.y_max_m, asset.pixel_m) == (
            32633,
            300015,
            5800005,
            30,
        )
        assert (asset.width, asset.height, asset.count) == (30, 20, 1)
        assert (asset.dtype, asset.nodata) == (np.int16, -32768)
        asset.check(**scene, x_max_m=300915, y_max_m=5800005)
        _refuses("wrong-size", lambda: asset.check(**scene, x_max_m=301915, y_max_m=5800005))
        moved = scene | {"x_min_m": 300115}
        _refuses("wrong-grid", lambda: asset.check(**moved, x_max_m=301015, y_max_m=5800005))
        south = scene | {"epsg": 32733}
        _refuses("wrong-grid", lambda: asset.check(**south, x_max_m=300915, y_max_m=5800005))
        _refuses("wrong-size", lambda: asset.read([2], [Window(0, 0, 1, 1)], fill=0))


def _refuses(failure: str, action: Callable[[], object]) -> None:
    with pytest.raises(GiveUp) as caught:
        action()
    assert caught.value.failure == failure


def _open(path: Path | str, source: Any = None) -> None:
    with open_asset(source or Disk(), str(path)) as asset:
        asset.read(range(1, asset.count + 1), [Window(0, 0, asset.width, asset.height)], fill=0)


@pytest.mark.parametrize(
    "content",
    [
        b"<html><body>Please log in</body></html>",
        b"<VRTDataset rasterXSize='9' rasterYSize='9'></VRTDataset>",
        b"",
        b"\x00\x00\x00\x0cjP  \r\n\x87\n not wanted here",
    ],
)
def test_what_is_no_tiff_never_reaches_gdal(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    _refuses("not-an-image", lambda: _open(path))


def test_a_damaged_block_is_corrupt_and_a_cut_file_truncated(tmp_path: Path) -> None:
    whole = Path(_write(tmp_path / "a.tif", _noise(1, 90, 90), compress="deflate")).read_bytes()
    damaged = tmp_path / "damaged.tif"
    middle = len(whole) // 2
    damaged.write_bytes(whole[:middle] + b"\xff" * 64 + whole[middle + 64 :])
    _refuses("corrupt", lambda: _open(damaged))
    cut = tmp_path / "cut.tif"
    cut.write_bytes(whole[: len(whole) - 200])
    _refuses("truncated", lambda: _open(cut))


@settings(max_examples=60, deadline=None)
@given(place=st.integers(4, 400), value=st.integers(0, 255), length=st.integers(1, 8))
def test_any_damage_to_the_directory_is_a_named_failure_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int, length: int
) -> None:
    path = tmp_path_factory.mktemp("damage") / "a.tif"
    whole = bytearray(Path(_write(path, _noise(2, 40, 40), compress="deflate")).read_bytes())
    whole[place : place + length] = bytes([value]) * length
    path.write_bytes(whole)
    with suppress(GiveUp):
        _open(path)


@pytest.mark.parametrize(
    "options",
    [
        {"transform": Affine(30, 1, 300015, 1, -30, 5800005)},
        {"transform": Affine(30, 0, 300015, 0, -20, 5800005)},
        {"transform": Affine(30, 0, 300015, 0, 30, 5800005)},
        {"crs": None},
    ],
)
def test_a_grid_that_is_not_north_up_and_square_is_refused(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    path = _write(tmp_path / "a.tif", _noise(1, 9, 9), **options)
    _refuses("wrong-grid", lambda: _open(path))


def test_side_cars_are_not_read(tmp_path: Path) -> None:
    pixels = _noise(1, 9, 9)
    path = _write(tmp_path / "a.tif", pixels)
    (tmp_path / "a.tfw").write_text("10\n0\n0\n-10\n5\n5\n")
    (tmp_path / "a.tif.aux.xml").write_text("<PAMDataset><SRS>EPSG:4326</SRS></PAMDataset>")
    source = Disk()
    with open_asset(source, path) as asset:
        assert (asset.epsg, asset.x_min_m) == (32633, 300015)


def test_the_sources_own_error_comes_through(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.tif", _noise(1, 200, 200), compress="deflate", blockysize=8)

    class Failing(Disk):
        def ranges(self, href: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
            if self.requests >= 2:
                raise TryAgain("the server is busy", failure="throttled")
            return super().ranges(href, ranges)

    with pytest.raises(TryAgain, match="busy"):
        _open(path, Failing())


def test_an_error_below_gdal_while_it_opens_comes_through(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.tif", _noise(1, 400, 400))

    class Failing(Disk):
        def ranges(self, href: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
            if self.requests:
                raise GiveUp("it changed", failure="changed")
            return super().ranges(href, ranges)

    _refuses("changed", lambda: _open(path, Failing()))


@needs_data
@pytest.mark.parametrize("name", ["SCL_60m", "B01_60m"])
def test_jpeg_2000_reads_through_pages(name: str) -> None:
    path = next(SAFE.glob(f"*/GRANULE/*/IMG_DATA/R60m/*_{name}.jp2"))
    with rasterio.open(path) as plain:
        whole = plain.read()
    windows = [Window(x, y, 64, 64) for y in range(700, 1000, 64) for x in range(-30, 500, 64)]
    with open_asset(Disk(), str(path), driver=("GTiff", "JP2OpenJPEG")) as asset:
        assert (asset.epsg, asset.pixel_m, asset.y_max_m) == (32629, 60, 5900040)
        found = asset.read([1], windows, fill=0)
        assert asset.blocks_touched == asset.blocks_decoded > 0
    for window, patch in zip(windows, found, strict=True):
        inside = patch[:, :, max(0, -window.col) :]
        left = max(0, window.col)
        cut = whole[:, window.row : window.row + 64, left : window.col + 64]
        np.testing.assert_array_equal(inside, cut)


@needs_data
def test_a_cut_jpeg_2000_is_a_named_failure(tmp_path: Path) -> None:
    path = next(SAFE.glob("*/GRANULE/*/IMG_DATA/R60m/*_SCL_60m.jp2"))
    cut = tmp_path / "cut.jp2"
    cut.write_bytes(path.read_bytes()[:100_000])
    with (
        pytest.raises(GiveUp) as caught,
        open_asset(Disk(), str(cut), driver=("JP2OpenJPEG",)) as asset,
    ):
        asset.read([1], [Window(0, 0, asset.width, asset.height)], fill=0)
    assert caught.value.failure in {"corrupt", "truncated"}


@needs_data
def test_every_layer_of_an_enmap_product_reads_as_a_plain_read() -> None:
    folder = next((DATA / "enmap" / "hyspecnet").iterdir())
    for path in sorted(folder.glob("*.TIF")):
        with rasterio.open(path) as plain:
            whole = plain.read()
        with open_asset(Disk(), str(path)) as asset:
            found = asset.read(
                range(1, asset.count + 1), [Window(0, 0, 64, 128), Window(64, 0, 64, 128)], fill=0
            )
            assert asset.blocks_touched == asset.blocks_decoded
        np.testing.assert_array_equal(np.concatenate(found, axis=2), whole)

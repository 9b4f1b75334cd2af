"""Masks and radiometry on real scenes, read the way a task reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.products.catalogue import load_product
from pipeline.products.model import FILL_INT16, LEGEND
from pipeline.raster.blocks import open_asset
from pipeline.raster.masks import decode, fractions, native_dtype, pack
from pipeline.raster.radiometry import harmonise
from pipeline.raster.statistics import moments
from pipeline.raster.windows import Window
from pipeline.sources.bytes.http import open_source
from pipeline.sources.providers import load_provider

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data beside the project")


def _read(path: Path, fill: float = 0) -> np.ndarray:
    """Return all of a file, shape (band, y, x)."""
    source = open_source(load_provider("local"))
    with open_asset(source, str(path), driver=("GTiff", "JP2OpenJPEG")) as asset:
        whole = Window(0, 0, asset.width, asset.height)
        return asset.read(range(1, asset.count + 1), [whole], fill=fill)[0]


def _layer_files(folder: Path) -> dict[str, Path]:
    return {
        path.stem.rpartition("QL_")[2].removeprefix("QUALITY_").lower(): path
        for path in folder.glob("*-QL_*.TIF")
    }


@pytest.fixture(scope="module", params=["X03110438", "X04390566"])
def enmap(request: pytest.FixtureRequest) -> Path:
    return next((DATA / "enmap" / "hyspecnet").glob(f"*{request.param}"))


def test_the_quality_layers_of_an_enmap_patch_say_clear_water(enmap: Path) -> None:
    product = load_product("enmap-l2a")
    files = _layer_files(enmap)
    layers = {
        layer.name: _read(files[layer.name])[0]
        for layer in product.mask_layers
        if not layer.per_band
    }
    mask = decode(layers, product)
    assert (mask == LEGEND["water"]).all()
    found = fractions(mask, ["cloud", "thin-cloud", "cloud-shadow"])
    assert (found.valid, found.clear) == (1, 1)
    native = pack(layers, product)
    assert native.dtype == native_dtype(product)
    for layer in product.mask_layers:
        if not layer.per_band:
            kept = native >> layer.shift_bits & ((1 << layer.width_bits) - 1)
            np.testing.assert_array_equal(kept, layers[layer.name])


def test_the_empty_bands_of_an_enmap_patch_and_its_negative_water(enmap: Path) -> None:
    product = load_product("enmap-l2a")
    delivered = _read(next(enmap.glob("*-SPECTRAL_IMAGE.TIF")), fill=FILL_INT16)
    made = harmonise(delivered, product=product, offset_add=0)
    np.testing.assert_array_equal(made.stored, delivered)
    empty = {band + 1 for band in np.flatnonzero(made.fill.all(axis=(1, 2)))}
    assert empty == {*range(127, 142), *range(161, 168)}
    assert not made.saturated.any()
    seen = made.stored[~made.fill]
    assert 0.3 < (seen < 0).mean() < 0.5
    counted = moments(made.stored, made.fill)
    assert (counted.count == 0).sum() == 22
    assert counted.minimum.min() == seen.min()
    assert counted.maximum.max() == seen.max()


@pytest.fixture(scope="module")
def granule() -> Path:
    return next((DATA / "sentinel-2" / "T29UNU").glob("*.SAFE/GRANULE/*"))


def test_cloud_share_of_a_sentinel_2_tile_is_what_its_metadata_says(granule: Path) -> None:
    product = load_product("sentinel-2-l2a")
    scl = _read(next(granule.glob("IMG_DATA/R20m/*_SCL_20m.jp2")))[0]
    mask = decode({"scl": scl}, product)
    found = fractions(mask, ["cloud", "thin-cloud"])
    assert found.cloudy is not None
    # MTD_MSIL2A.xml, Cloud_Coverage_Assessment: 59.769726 percent. Ours is one pixel of 18 million
    # below that.
    assert found.cloudy == pytest.approx(0.59769726, abs=1.01 / np.count_nonzero(scl))
    with_shadow = fractions(mask, ["cloud", "thin-cloud", "cloud-shadow"])
    assert with_shadow.cloudy == pytest.approx(0.7008, abs=1e-4)
    assert found.valid == pytest.approx(1 - 0.4042, abs=1e-4)
    np.testing.assert_array_equal(pack({"scl": scl}, product), scl)


def test_dark_pixels_of_a_sentinel_2_tile_lie_near_zero(granule: Path) -> None:
    product = load_product("sentinel-2-l2a")
    delivered = _read(next(granule.glob("IMG_DATA/R60m/*_B01_60m.jp2")))
    scl = _read(next(granule.glob("IMG_DATA/R60m/*_SCL_60m.jp2")))[0]
    made = harmonise(delivered, product=product, offset_add=-1000)
    np.testing.assert_array_equal(made.fill, delivered == 0)
    assert (made.stored[made.fill] == FILL_INT16).all()
    seen = ~made.fill
    exact = delivered[seen].astype(np.int64) - 1000
    np.testing.assert_array_equal(made.stored[seen], exact)
    assert (made.stored[seen] < 0).sum() == 54_565
    water = made.stored[0][(scl == 6) & seen[0]] * product.scale
    assert -0.02 < np.median(water) < 0.06


@pytest.mark.parametrize(("band", "pixel_m"), [("B02", 10), ("B05", 20), ("B09", 60)])
def test_a_cell_cut_by_others_has_its_own_grid(band: str, pixel_m: float) -> None:
    folder = next((DATA / "sentinel-2" / "majortom").glob("*/*/*"))
    source = open_source(load_provider("local"))
    with open_asset(source, str(folder / f"{band}.tif")) as asset:
        grid: dict[str, Any] = {"epsg": 32633, "x_min_m": 819627.364, "y_max_m": 10340.0}
        asset.check(**grid, x_max_m=819627.364 + 10680, y_min_m=-340.0)
        assert asset.pixel_m == pixel_m
        corners = [Window(-4, -4, 8, 8), Window(asset.width - 4, asset.height - 4, 8, 8)]
        first, last = asset.read([1], corners, fill=0)
        assert asset.blocks_touched == asset.blocks_decoded
    assert (first[0, :4] == 0).all()
    assert (first[0, 4:, 4:] > 1000).all()
    assert (last[0, :4, :4] > 1000).all()
    assert (last[0, 4:] == 0).all()


def test_float_tiles_over_land_keep_their_values() -> None:
    path = DATA / "enmap" / "potsdam" / "images" / "enmap_potsdam_tile_64_0.tif"
    delivered = _read(path, fill=FILL_INT16)
    product = load_product("enmap-l2a").model_copy(update={"stored_dtype": "float32"})
    made = harmonise(delivered, product=product, offset_add=0)
    empty = {band + 1 for band in np.flatnonzero(made.fill.all(axis=(1, 2)))}
    assert empty == {*range(130, 136)}
    np.testing.assert_array_equal(made.stored[~made.fill], delivered[~made.fill])

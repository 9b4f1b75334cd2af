"""Landsat folders: from the files of a product to items, and from level 1 and 2 to shards."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.transform import Affine

from pipeline.engine.serial import SerialEngine
from pipeline.errors import RecipeError
from pipeline.products.catalogue import load_product
from pipeline.products.model import LEGEND
from pipeline.recipe import LoadedRecipe, load_recipe
from pipeline.records import LedgerRow, Scene, Unusable
from pipeline.run.everything import run_everything
from pipeline.run.verify import run_verify
from pipeline.sources.local.folders import local_items
from pipeline.stages.search.normalise import normalise
from pipeline.store.commit import newest, read_commit
from pipeline.store.objects import open_store
from pipeline.store.reader import open_dataset
from pipeline.store.tables import to_rows
from pipeline.watch.progress import Progress

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "landsat"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="real data (../shared/data) not here")
CELL_PX = 32
#: North-western corner of the 30 m pixels, on the lattice; edge in pixels.
WEST_M, NORTH_M, SIZE_PX, EPSG = 300_015.0, 5_000_025.0, 96, 32633
SUN_ELEVATION_DEG = 30.0
L1 = "LC08_L1TP_190028_20210704_20210712_02_T1"
L2 = "LC08_L2SP_190028_20210704_20210712_02_T1"
CLEAR = 21824  # QA_PIXEL: clear, all confidences low
CLOUD = 22280


def mtl(stem: str) -> dict[str, Any]:
    """Return metadata with the groups and texts of a real MTL.json."""
    level1: dict[str, str] = {}
    for band in range(1, 12):
        level1 |= {f"RADIANCE_MULT_BAND_{band}": "3.3420E-04", f"RADIANCE_ADD_BAND_{band}": "0.1"}
        if band < 10:
            level1 |= {
                f"REFLECTANCE_MULT_BAND_{band}": "2.0000E-05",
                f"REFLECTANCE_ADD_BAND_{band}": "-0.100000",
            }
    return {
        "LANDSAT_METADATA_FILE": {
            "PRODUCT_CONTENTS": {"LANDSAT_PRODUCT_ID": stem},
            "IMAGE_ATTRIBUTES": {
                "SPACECRAFT_ID": "LANDSAT_8",
                "DATE_ACQUIRED": "2021-07-04",
                "SCENE_CENTER_TIME": "09:47:35.9783990Z",
                "CLOUD_COVER": "3.21",
                "SUN_ELEVATION": f"{SUN_ELEVATION_DEG:.8f}",
            },
            # A level 2 product repeats the names, for another scaling.
            "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS": {"REFLECTANCE_MULT_BAND_1": "2.75e-05"},
            "LEVEL1_RADIOMETRIC_RESCALING": level1,
            "LEVEL1_THERMAL_CONSTANTS": {
                "K1_CONSTANT_BAND_10": "774.8853",
                "K2_CONSTANT_BAND_10": "1321.0789",
                "K1_CONSTANT_BAND_11": "480.8883",
                "K2_CONSTANT_BAND_11": "1201.1442",
            },
        }
    }


def numbers(seed: int, size_px: int = SIZE_PX) -> NDArray[np.uint16]:
    """Return digital numbers, each pixel its own, none of them 0."""
    first = 8000 + 100 * seed
    return np.arange(first, first + size_px**2, dtype="uint16").reshape(size_px, size_px)


def write(path: Path, values: NDArray[Any], *, pixel_m: float = 30, inset_m: float = 0) -> None:
    """Write one image, as the owner does: tiled deflate, nodata 0."""
    corner = Affine(pixel_m, 0, WEST_M + inset_m, 0, -pixel_m, NORTH_M - inset_m)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=values.shape[1],
        height=values.shape[0],
        count=1,
        dtype=values.dtype,
        crs=rasterio.CRS.from_epsg(EPSG),
        transform=corner,
        tiled=True,
        blockxsize=32,
        blockysize=32,
        compress="deflate",
    ) as raster:
        raster.write(values, 1)


def write_landsat(folder: Path, stem: str, qa_pixel: NDArray[np.uint16] | None = None) -> Path:
    """Write a product folder of level 1 (with the panchromatic band) or 2."""
    folder.mkdir(parents=True)
    level2 = "_L2" in stem
    bands = [f"SR_B{band}" for band in range(1, 8)] if level2 else [f"B{b}" for b in range(1, 12)]
    for seed, band in enumerate(bands, 1):
        if band == "B8":  # 15 m pixels whose centres are those of the 30 m ones, and between
            pan = numbers(seed, 2 * SIZE_PX - 1)
            write(folder / f"{stem}_B8.TIF", pan, pixel_m=15, inset_m=7.5)
        else:
            write(folder / f"{stem}_{band}.TIF", numbers(seed))
    quality = np.full((SIZE_PX, SIZE_PX), CLEAR, "uint16") if qa_pixel is None else qa_pixel
    write(folder / f"{stem}_QA_PIXEL.TIF", quality)
    write(folder / f"{stem}_QA_RADSAT.TIF", np.zeros_like(quality))
    (folder / f"{stem}_MTL.json").write_text(json.dumps(mtl(stem)))
    return folder


RECIPE = """
name = "landsat"
[sample]
strategy = "scenes"
product = "landsat-oli-sr"
min_cover_fraction = 0.9
[cell]
lattice = "landsat30"
size_px = 32
snap = "scene"
[slots]
kind = "months"
start = {month}-01
end = {after}-01
[[product]]
id = "landsat-oli-sr"
path = "{folder}"
contained = false
min_valid_fraction = {valid}
{toa}
"""
TOA = """
[[product]]
id = "landsat-oli-tirs-toa"
path = "{folder}"
follows = "landsat-oli-sr"
bands = ["B1", "B4", "B8", "B10"]
resampling = "nearest"
"""


def rows(folder: Path, product: str) -> list[Scene | Unusable]:
    known = load_product(product)
    return [normalise(item, known, "local", None) for item in local_items(folder, known)]


class Built:
    """A recipe over a folder of products, run up to its published version."""

    def __init__(self, root: Path, recipe: str) -> None:
        (root / "recipe.toml").write_text(recipe)
        self.loaded: LoadedRecipe = load_recipe(root / "recipe.toml")
        self.store = open_store(root / "built")
        with Progress(live=False) as progress:
            dict(
                run_everything(
                    self.loaded, self.store, engine=SerialEngine, until="publish", progress=progress
                )
            )
        self.data = open_dataset(root / "built")

    def ledger(self) -> list[LedgerRow]:
        return [
            row
            for shard, revision in newest(self.store).items()
            for row in to_rows(read_commit(self.store, shard, revision).ledger, LedgerRow)
        ]

    def patches(self, product: str) -> list[tuple[tuple[slice, slice], Any, Any]]:
        """Return for each patch where in the scene it lies, its bands, and its mask."""
        reader = self.data.patches(product)
        bands, masks = reader.read(slice(None))
        found = []
        for row, patch, mask in zip(reader.rows.to_pylist(), bands, masks, strict=True):
            col = round((row["x_min_m"] - WEST_M) / 30)
            top = round((NORTH_M - row["y_max_m"]) / 30)
            found.append(((slice(top, top + CELL_PX), slice(col, col + CELL_PX)), patch, mask))
        return found


def test_both_levels_of_a_pass_are_scenes_of_one_datatake(tmp_path: Path) -> None:
    write_landsat(tmp_path / "a", L2)
    write_landsat(tmp_path / "b", L1)
    (level2,) = (row for row in rows(tmp_path, "landsat-oli-sr") if isinstance(row, Scene))
    (level1,) = (row for row in rows(tmp_path, "landsat-oli-tirs-toa") if isinstance(row, Scene))
    assert level2.scene == "landsat-oli-sr/LC08_190_20210704/028"
    assert level1.datatake == level2.datatake
    assert (level2.cloud_percent, level2.sun_elevation_deg) == (3.21, 30)
    assert level2.acquired.isoformat() == "2021-07-04T09:47:35.978399+00:00"
    assert (level2.epsg, level2.x_min_m, level2.y_max_m) == (EPSG, WEST_M, NORTH_M)
    assert level2.x_max_m - level2.x_min_m == 30 * SIZE_PX
    assert {asset.name for asset in level1.assets} == {
        *(f"B{band}" for band in range(1, 12)), "QA_PIXEL", "QA_RADSAT", "MTL.json"
    }  # fmt: skip
    # Level 1 and other sensors are told apart by name, not taken for one another.
    reasons = {row.reason for row in rows(tmp_path, "landsat-etm-sr") if isinstance(row, Unusable)}
    assert reasons == {"other-product"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / f"{L2}_MTL.json").write_text("{"),
        lambda folder: (folder / f"{L2}_MTL.json").write_text('{"LANDSAT_METADATA_FILE": [1]}'),
        lambda folder: [path.unlink() for path in folder.glob("*_SR_B*.TIF")],
        lambda folder: (folder / f"{L2}_SR_B1.TIF").write_bytes(b"<!DOCTYPE html>"),
        lambda folder: (folder / f"{L2}_MTL.json").rename(folder / "scene_MTL.json"),
    ],
)
def test_a_damaged_folder_is_listed(tmp_path: Path, damage: Any) -> None:
    damage(write_landsat(tmp_path / "a", L2))
    (row,) = rows(tmp_path, "landsat-oli-sr")
    assert isinstance(row, Unusable)
    assert row.reason == "unreadable"


def test_shards_hold_the_scene_s_own_reflectance_and_temperature(tmp_path: Path) -> None:
    quality = np.full((SIZE_PX, SIZE_PX), CLEAR, "uint16")
    quality[:10, :20] = CLOUD
    write_landsat(tmp_path / "scenes" / "a", L2, quality)
    write_landsat(tmp_path / "scenes" / "b", L1, quality)
    folder = tmp_path / "scenes"
    toa = TOA.format(folder=folder)
    recipe = RECIPE.format(folder=folder, month="2021-07", after="2021-08", valid=1, toa=toa)
    built = Built(tmp_path, recipe)
    ledger = built.ledger()
    assert {row.state for row in ledger} == {"written"}
    reflected = built.patches("landsat-oli-sr")
    assert len(reflected) == (SIZE_PX // CELL_PX) ** 2
    for where, bands, mask in reflected:
        for band in range(7):
            np.testing.assert_array_equal(bands[band], numbers(band + 1)[where])
        np.testing.assert_array_equal(mask == LEGEND["cloud"], quality[where] == CLOUD)
    height = math.sin(math.radians(SUN_ELEVATION_DEG))
    centre = numbers(8, 2 * SIZE_PX - 1)[::2, ::2]  # pan pixels on the centres of the others
    for where, bands, _ in built.patches("landsat-oli-tirs-toa"):
        for stored, delivered in ((0, numbers(1)), (1, numbers(4)), (2, centre)):
            expected = (delivered[where] * 2e-5 - 0.1) / height
            np.testing.assert_allclose(bands[stored], expected, rtol=1e-6)
        kelvin = 1321.0789 / np.log(774.8853 / (numbers(10)[where] * 3.342e-4 + 0.1) + 1)
        np.testing.assert_allclose(bands[3], kelvin, atol=0.0051)
    for row in ledger:
        if row.product == "landsat-oli-tirs-toa":
            assert row.resampling == "nearest"
            assert any(source.href.endswith("_MTL.json") for source in row.sources)


@pytest.mark.parametrize("change", ['resampling = "average"', "pixel_m = 15"])
def test_the_panchromatic_grid_is_refused_where_it_cannot_be_met(
    tmp_path: Path, change: str
) -> None:
    toa = TOA.format(folder=".")
    toa = toa.replace('resampling = "nearest"', change)
    recipe = RECIPE.format(folder=".", month="2021-07", after="2021-08", valid=1, toa=toa)
    (tmp_path / "recipe.toml").write_text(recipe)
    with pytest.raises(RecipeError, match="share centres"):
        load_recipe(tmp_path / "recipe.toml")


# --- maps on other grids follow their image ----------------------------------------------------

MAPS = """
[[product]]
id = "corine"
path = "{maps}/corine"
follows = "landsat-oli-sr"
[[product]]
id = "cop-dem-glo-30"
path = "{maps}/dem"
follows = "landsat-oli-sr"
allow_unmasked = true
"""


def ground(rows: slice, cols: slice, epsg: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the pixel centres of a part of the scene in another CRS, shape (y, x) each."""
    x = WEST_M + (np.arange(cols.start, cols.stop) + 0.5) * 30
    y = NORTH_M - (np.arange(rows.start, rows.stop) + 0.5) * 30
    to = Transformer.from_crs(EPSG, epsg, always_xy=True)
    there_x, there_y = to.transform(*np.meshgrid(x, y))
    return np.asarray(there_x), np.asarray(there_y)


def write_maps(folder: Path) -> tuple[float, float, NDArray[np.int8]]:
    """Write two years of land cover in EPSG:3035 and two tiles of terrain in degrees.

    Returns the corner of the land cover, and its codes of 2018.
    """
    whole = slice(0, SIZE_PX)
    east, north = ground(whole, whole, 3035)
    west_m, top_m = (
        math.floor(east.min() / 100) * 100 - 400,
        math.ceil(north.max() / 100) * 100 + 400,
    )
    codes = np.random.default_rng(1).integers(1, 45, (45, 45)).astype("int8")
    (folder / "corine").mkdir(parents=True)
    for year, shift in ((2012, 0), (2018, 1)):
        with rasterio.open(
            folder / "corine" / f"U{year}_CLC{year}_V2020_20u1.tif", "w", driver="GTiff",
            height=45, width=45, count=1, dtype="int8", nodata=-128, crs="EPSG:3035",
            transform=Affine(100, 0, west_m, 0, -100, top_m),
        ) as raster:  # fmt: skip
            raster.write((codes + shift - 1) % 44 + 1, 1)
    (folder / "dem").mkdir()
    lon, lat = ground(whole, whole, 4326)
    middle, step = float(lon.mean()), 1 / 3600
    for name, start in (("E012", middle - 300 * step), ("E013", middle)):
        cols, rows = np.meshgrid(np.arange(300) + 0.5, np.arange(300) + 0.5)
        height = 3000 * (start + cols * step) - 2000 * (lat.max() + 50 * step - rows * step)
        with rasterio.open(
            folder / "dem" / f"Copernicus_DSM_COG_10_N45_00_{name}_00_DEM.tif", "w",
            driver="GTiff", height=300, width=300, count=1, dtype="float32", crs="EPSG:4326",
            transform=Affine(step, 0, start, 0, -step, lat.max() + 50 * step),
        ) as raster:  # fmt: skip
            raster.write(height.astype("float32"), 1)
    return west_m, top_m, codes % 44 + 1


def test_maps_of_the_nearest_year_come_onto_the_pixels_of_the_image(tmp_path: Path) -> None:
    write_landsat(tmp_path / "scenes" / "a", L2)
    west_m, top_m, codes = write_maps(tmp_path / "maps")
    recipe = RECIPE.format(
        folder=tmp_path / "scenes", month="2021-07", after="2021-08", valid=1,
        toa=MAPS.format(maps=tmp_path / "maps"),
    )  # fmt: skip
    built = Built(tmp_path, recipe)
    ledger = built.ledger()
    assert {row.state for row in ledger} == {"written"}
    words = {row.product: (row.resampling, row.mask_source) for row in ledger}
    assert words["corine"] == ("nearest", "none")
    assert words["cop-dem-glo-30"] == ("bilinear", "none")
    assert {row.scenes[0] for row in ledger if row.product == "corine"} == {"corine/2018/Europe"}
    assert {len(row.scenes) for row in ledger if row.product == "cop-dem-glo-30"} == {1, 2}
    again = run_verify(built.loaded, built.store, share=1)
    assert again.compared == len(ledger), "warped once more, the same"
    for (rows, cols), bands, _ in built.patches("corine"):
        east, north = ground(rows, cols, 3035)
        row, col = (top_m - north) / 100, (east - west_m) / 100
        expected = codes[np.floor(row).astype(int), np.floor(col).astype(int)]
        sure = np.minimum(np.abs(row - np.round(row)), np.abs(col - np.round(col))) > 1e-4
        np.testing.assert_array_equal(bands[0][sure], expected[sure])
        assert sure.mean() > 0.99
    for (rows, cols), bands, _ in built.patches("cop-dem-glo-30"):
        lon, lat = ground(rows, cols, 4326)
        # Half a pixel on either side of the seam of the tiles has no neighbour beyond it.
        np.testing.assert_allclose(bands[0], 3000 * lon - 2000 * lat, atol=0.5)
        assert np.median(np.abs(bands[0] - (3000 * lon - 2000 * lat))) < 0.02


def test_maps_cannot_be_tiled(tmp_path: Path) -> None:
    recipe = RECIPE.format(
        folder=".", month="2021-07", after="2021-08", valid=1, toa=MAPS.format(maps=".")
    )
    (tmp_path / "recipe.toml").write_text(
        recipe.replace(
            'strategy = "scenes"\nproduct = "landsat-oli-sr"',
            'strategy = "scenes"\nproduct = "corine"',
        )
    )
    with pytest.raises(RecipeError, match="on no lattice"):
        load_recipe(tmp_path / "recipe.toml")


# --- real scenes -----------------------------------------------------------------------------


@needs_data
def test_thinned_copies_are_refused_by_name() -> None:
    found = rows(DATA, "landsat-oli-sr")
    assert [type(row) for row in found] == [Unusable, Unusable]
    assert all("not square" in row.detail for row in found if isinstance(row, Unusable))


@needs_data
def test_real_pixels_and_quality_reach_the_shards(tmp_path: Path) -> None:
    """A real scene of Greenland: its own numbers, words and metadata, laid on a grid of 30 m."""
    (source,) = DATA.glob("LC08_L2SP_*")
    stem = source.name
    folder = tmp_path / "scenes" / stem
    folder.mkdir(parents=True)
    truth: dict[str, Any] = {}
    for key in [*(f"SR_B{band}" for band in range(1, 8)), "QA_PIXEL", "QA_RADSAT"]:
        with rasterio.open(source / f"{stem}_{key}.TIF") as raster:
            truth[key] = raster.read(1)
        write(folder / f"{stem}_{key}.TIF", truth[key])
    (folder / f"{stem}_MTL.json").write_bytes((source / f"{stem}_MTL.json").read_bytes())
    (scene,) = rows(tmp_path / "scenes", "landsat-oli-sr")
    assert isinstance(scene, Scene)
    assert scene.scene == "landsat-oli-sr/LC08_005_20150710/009"
    assert (scene.cloud_percent, round(scene.sun_elevation_deg or 0, 3)) == (54.65, 40.002)
    recipe = RECIPE.format(
        folder=tmp_path / "scenes", month="2015-07", after="2015-08", valid=0.01, toa=""
    )
    built = Built(tmp_path, recipe)
    counts = np.zeros(len(LEGEND), int)
    patches = built.patches("landsat-oli-sr")
    for where, bands, mask in patches:
        seen = mask != LEGEND["fill"]
        for band in range(7):
            np.testing.assert_array_equal(bands[band][seen], truth[f"SR_B{band + 1}"][where][seen])
        # Fill by QA_PIXEL, and by the images: 921 pixels of the whole say one and not the other.
        images = np.stack([truth[f"SR_B{band}"][where] for band in range(1, 8)])
        expected = (truth["QA_PIXEL"][where] & 1 == 0) & (images > 0).any(axis=0)
        np.testing.assert_array_equal(seen, expected)
        counts += np.bincount(mask.ravel(), minlength=len(LEGEND))
    assert len(patches) > 100
    share = counts / counts[1:].sum()
    # QA_PIXEL: 22280 (cloud) 28.17 %, 30048 (snow) 20.02 % of all, 47.60 % of which are fill.
    assert share[LEGEND["cloud"]] == pytest.approx(28.17 / 52.4, abs=0.06)
    assert share[LEGEND["snow"]] == pytest.approx(20.02 / 52.4, abs=0.06)

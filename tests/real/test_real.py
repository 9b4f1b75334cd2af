"""Real scenes, from recipe to published version, against an independent reading of the files."""

from __future__ import annotations

import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from pipeline.engine.serial import SerialEngine
from pipeline.products.model import LEGEND
from pipeline.recipe import LoadedRecipe, load_recipe
from pipeline.records import LedgerRow
from pipeline.run.everything import run_everything
from pipeline.run.verify import run_verify
from pipeline.store.commit import newest, read_commit
from pipeline.store.objects import open_store
from pipeline.store.reader import open_dataset
from pipeline.store.tables import to_rows
from pipeline.watch.progress import Progress

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1].parent / "shared" / "data"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"the real scenes are not at {DATA}"),
]


class Built:
    """A recipe run up to its published version, or to its end."""

    def __init__(self, loaded: LoadedRecipe, root: Path, until: str | None) -> None:
        self.loaded = loaded
        self.store = open_store(root)
        with Progress(live=False) as progress:
            stages = run_everything(
                self.loaded,
                self.store,
                engine=SerialEngine,
                until=until,
                device="cpu",
                progress=progress,
            )
            self.reports: dict[str, Any] = dict(stages)
        self.data = open_dataset(root)

    def rows(self) -> list[LedgerRow]:
        """Return the whole ledger."""
        return [
            row
            for shard, revision in newest(self.store).items()
            for row in to_rows(read_commit(self.store, shard, revision).ledger, LedgerRow)
        ]

    def patches(self, product: str) -> Iterator[tuple[dict[str, Any], Any, Any]]:
        """Yield index row, bands and mask of every written patch of a product."""
        reader = self.data.patches(product)
        bands, masks = reader.read(slice(None))
        yield from zip(reader.rows.to_pylist(), bands, masks, strict=True)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    """Build each recipe once."""
    built: dict[str, Built] = {}

    def once(recipe: str) -> Built:
        if recipe not in built:
            folder = tmp_path_factory.mktemp("real")
            loaded, until = load_recipe(HERE / recipe), "publish"
            if recipe == "sentinel-2.toml":
                loaded, until = with_labels(loaded, folder / "labels"), None
            built[recipe] = Built(loaded, folder / "root", until)
        return built[recipe]

    return once


def with_labels(loaded: LoadedRecipe, folder: Path) -> LoadedRecipe:
    """Write the labels of the Sentinel-2 tile into a folder, and let the recipe find them there."""
    folder.mkdir()
    scl = read_jp2("SCL")
    codes = sum(np.where(scl == found, code, 0) for found, code in SCL_LABELS.items())
    with rasterio.open(safe("SCL")) as source:
        grid = {"transform": source.transform, "crs": source.crs}
    height, width = scl.shape
    shape = {"count": 1, "height": height, "width": width, "dtype": "uint8"}
    with rasterio.open(folder / "T29UNU.tif", "w", driver="GTiff", **shape, **grid) as file:
        file.write(codes.astype("uint8"), 1)
    images, labels = loaded.recipe.product
    wishes = (images, labels.model_copy(update={"path": str(folder)}))
    return LoadedRecipe(loaded.recipe.model_copy(update={"product": wishes}), loaded.folder)


def paste(
    files: list[Path], indexes: list[int], row: dict[str, Any], edge: int, pixel_m: float
) -> NDArray[Any]:
    """Read a cell from whole files in order; the first value that is there wins, else NaN."""
    canvas = np.full((len(indexes), edge, edge), np.nan)
    for file in files:
        with rasterio.open(file) as source:
            pixels = source.read(indexes).astype("float64")
            col = round((source.transform.c - row["x_min_m"]) / pixel_m)
            line = round((row["y_max_m"] - source.transform.f) / pixel_m)
            nodata = source.nodata
        if nodata is not None:
            pixels[pixels == nodata] = np.nan
        for y in range(max(0, line), min(edge, line + pixels.shape[1])):
            for x in range(max(0, col), min(edge, col + pixels.shape[2])):
                if np.isnan(canvas[:, y, x]).all():
                    canvas[:, y, x] = pixels[:, y - line, x - col]
    return canvas


# --- EnMAP over water ------------------------------------------------------------------------


def test_enmap_cells_hold_the_delivered_numbers(build: Callable[[str], Built]) -> None:
    built = build("enmap.toml")
    loaded = built.loaded
    files = sorted((DATA / "enmap" / "hyspecnet").rglob("*SPECTRAL_IMAGE*"))
    stored = loaded.bands("enmap-l2a")
    bands = [older_index(built, name) for name in stored]
    assert len(bands) == len(set(bands)) == 202
    # What lies in the file at 142 is 1531 nm, and our B143.
    assert bands[stored.index("B143")] == 142
    seen = 0
    for row, image, mask in built.patches("enmap-l2a"):
        expected = paste(files, bands, row, 64, 30)
        np.testing.assert_array_equal(image, np.nan_to_num(expected, nan=-32768).astype("int16"))
        assert (mask == LEGEND["water"]).all()
        seen += 1
    assert seen == built.reports["extract"].written > 0


def older_index(built: Built, name: str) -> int:
    """Return where processors before 01.04.02 have a band, by its centre and width."""
    band = built.loaded.products["enmap-l2a"].band(name)
    root = ET.parse(DATA / "enmap" / "metadata" / "enmap_wavelength.xml").getroot()
    (number,) = [
        int(row.get("number", ""))
        for row in root.iter("bandID")
        if abs(float(row.findtext("wavelengthCenterOfBand", "")) - (band.wavelength_nm or 0)) < 1
        and float(row.findtext("FWHMOfBand", "")) == band.fwhm_nm
    ]
    return number


def test_enmap_channels_of_one_detector_have_its_noise(build: Callable[[str], Built]) -> None:
    """The patches say nothing of wavelengths, but over water their noise tells the detectors apart.

    By their widths B082 and B100 are SWIR channels, B083 and B101 VNIR ones. The file has them the
    other way round, as only the older table does.
    """
    built = build("enmap.toml")
    stored = built.loaded.bands("enmap-l2a")
    images = [image for row, image, _ in built.patches("enmap-l2a") if len(row["scenes"]) == 1]

    def noise(name: str) -> float:
        band = np.concatenate(
            [np.diff(image[stored.index(name)].astype(float)) for image in images]
        )
        return float(np.median(np.abs(band)))

    assert max(noise("B080"), noise("B085")) < noise("B081") / 2 > noise("B082")
    assert noise("B083") > 2 * noise("B082")
    assert noise("B101") > 2 * noise("B100")


def test_enmap_reads_every_quality_layer_and_each_block_once(
    build: Callable[[str], Built],
) -> None:
    built = build("enmap.toml")
    report = built.reports["extract"]
    assert report.blocks_decoded == report.blocks_touched > 0
    rows = [row for row in built.rows() if row.state == "written"]
    read = {source.href.rsplit("-", 1)[-1] for row in rows for source in row.sources}
    layers = {
        "QL_PIXELMASK", "QL_QUALITY_CIRRUS", "QL_QUALITY_CLASSES", "QL_QUALITY_CLOUD",
        "QL_QUALITY_CLOUDSHADOW", "QL_QUALITY_HAZE", "QL_QUALITY_SNOW", "QL_QUALITY_TESTFLAGS",
    }  # fmt: skip
    names = {name.split(".")[0] for name in read}
    assert {layer for layer in layers if any(layer in name for name in names)} == layers
    # Half of these water pixels have a marked value somewhere. Of the file's 22 empty bands one, at
    # 1519 nm, is among the 202: it has another number in newer processors, which fill it.
    assert all(0 < row.defective_fraction < 0.5 for row in rows)
    assert all(row.absent_bands == ["B142"] for row in rows)
    assert {len(row.scenes) for row in rows} == {1, 2}


def test_enmap_verifies_against_its_sources(build: Callable[[str], Built]) -> None:
    built = build("enmap.toml")
    report = run_verify(built.loaded, built.store, share=1)
    assert report.compared == built.reports["extract"].written


# --- EnMAP over land, without quality layers --------------------------------------------------


def test_potsdam_cells_span_files_and_say_that_nothing_masked_them(
    build: Callable[[str], Built],
) -> None:
    built = build("enmap-potsdam.toml")
    product = built.loaded.products["enmap-potsdam"]
    bands = [product.band(name).index for name in built.loaded.bands("enmap-potsdam")]
    files = sorted((DATA / "enmap" / "potsdam" / "images").glob("*.tif"))
    rows = {row.location: row for row in built.rows() if row.product == "enmap-potsdam"}
    for row, image, mask in built.patches("enmap-potsdam"):
        expected = paste(files, bands, row, 32, 30)
        np.testing.assert_array_equal(image, expected.astype("float32"))
        np.testing.assert_array_equal(mask == 0, np.isnan(expected).all(axis=0))
        entry = rows[row["location"]]
        assert entry.mask_source == "none"
        # Bands 130 to 135 are empty in this processor's version; 22 others are in the older one.
        empty = {i for i, index in enumerate(bands) if 130 <= index <= 135}
        stored = built.loaded.bands("enmap-potsdam")
        assert {stored.index(name) for name in entry.absent_bands} == empty
    assert max(len(row.scenes) for row in rows.values()) > 1


def test_potsdam_labels_follow_their_image(build: Callable[[str], Built]) -> None:
    built = build("enmap-potsdam.toml")
    files = sorted((DATA / "enmap" / "potsdam" / "labels").glob("*.tif"))
    image = {row["location"] for row, _, _ in built.patches("enmap-potsdam")}
    labels = {}
    for row, codes, mask in built.patches("potsdam-labels"):
        expected = paste(files, [1], row, 32, 30)
        np.testing.assert_array_equal(codes, np.nan_to_num(expected).astype("uint8"))
        np.testing.assert_array_equal(mask == 0, np.isnan(expected[0]))
        labels[row["location"]] = codes
    assert set(labels) == image


# --- Sentinel-2 ------------------------------------------------------------------------------


#: Codes of the scene classification that become labels.
SCL_LABELS = {4: 1, 5: 2, 6: 3}


def safe(name: str) -> Path:
    return next((DATA / "sentinel-2" / "T29UNU").rglob(f"*_{name}_60m.jp2"))


def read_jp2(name: str) -> NDArray[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(safe(name)) as source:
            return source.read(1)


def test_sentinel_2_decides_by_the_scene_classification(build: Callable[[str], Built]) -> None:
    built = build("sentinel-2.toml")
    scl = read_jp2("SCL")
    rows = built.rows()
    planned = {r["location"]: r for r, _, _ in built.patches("sentinel-2-l2a")}
    assert {row.location for row in rows if row.state == "written"} == set(planned)
    assert any(row.reason == "cloudy" for row in rows)
    for row in planned.values():
        col, line = _corner(row)
        cell = scl[line : line + 64, col : col + 64]
        assert np.isin(cell, [3, 8, 9, 10]).mean() <= 0.10
        assert (cell != 0).all()


def test_sentinel_2_has_the_offset_removed_exactly(build: Callable[[str], Built]) -> None:
    built = build("sentinel-2.toml")
    names = built.loaded.bands("sentinel-2-l2a")
    delivered = {name: read_jp2(name).astype("int64") for name in names}
    scl = read_jp2("SCL")
    water = []
    for row, image, mask in built.patches("sentinel-2-l2a"):
        col, line = _corner(row)
        for number, name in enumerate(names):
            cell = delivered[name][line : line + 64, col : col + 64]
            expected = np.where(cell == 0, -32768, np.minimum(cell - 1000, 32767))
            np.testing.assert_array_equal(image[number], expected)
        wet = scl[line : line + 64, col : col + 64] == 6
        np.testing.assert_array_equal(mask[wet] == LEGEND["water"], True)
        water.append(image[names.index("B12")][wet])
    reflectance = np.concatenate(water) * 1e-4
    assert reflectance.size
    # Water absorbs all of the shortwave infrared: near 0, where the offset left in would make 0.1.
    assert abs(np.median(reflectance)) < 0.03


def _corner(row: dict[str, Any]) -> tuple[int, int]:
    """Return column and row of a cell in the tile, whose corner is (499980, 5900040)."""
    return round((row["x_min_m"] - 499_980) / 60), round((5_900_040 - row["y_max_m"]) / 60)


def test_sentinel_2_ends_in_a_model_that_is_judged_on_other_ground(
    build: Callable[[str], Built],
) -> None:
    built = build("sentinel-2.toml")
    assert list(built.reports)[-2:] == ["pretrain", "evaluate"]
    learned, report = built.reports["pretrain"], built.reports["evaluate"]
    assert (learned.steps, learned.collapsed, learned.transductive) == (20, False, False)
    scl = read_jp2("SCL")
    for row, codes, _ in built.patches("sentinel-2-labels"):
        col, line = _corner(row)
        cell = scl[line : line + 64, col : col + 64]
        assert all(
            (codes[0] == code).sum() == (cell == found).sum() for found, code in SCL_LABELS.items()
        )
    assert all({"vegetation", "water"} <= set(report.windows[part]) for part in report.windows)
    parts = built.data.index.select(["location", "split"]).to_pylist()
    locations = {row["location"] for row in parts}
    assert len({(row["location"], row["split"]) for row in parts}) == len(locations)
    # Water is black in the infrared: a probe that misses it is a bug, not a model.
    linear = {r.features: r.micro.value for r in report.results if r.probe == "linear"}
    assert set(linear) == {"model", "untrained", "image-statistics", "random-filters"}
    assert linear["image-statistics"] > 0.95
    assert min(linear.values()) > 0.8

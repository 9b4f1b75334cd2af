"""Scenes of two processors, which write other channels at the same numbers, in one data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from pipeline.engine.serial import SerialEngine
from pipeline.products.catalogue import load_product
from pipeline.recipe import LoadedRecipe, Recipe
from pipeline.records import LedgerRow, Scene
from pipeline.run.everything import run_everything
from pipeline.run.verify import run_verify
from pipeline.store import layout
from pipeline.store.commit import newest, read_commit
from pipeline.store.objects import open_store
from pipeline.store.reader import open_dataset
from pipeline.store.tables import read_table, to_rows
from pipeline.watch.progress import Progress

ENMAP = load_product("enmap-l2a")
EDGE_PX = 16
#: The newer table as it is in the product file, the older one by rows of (centre, width) in nm.
NEWER = [(band.wavelength_nm, band.fwhm_nm) for band in ENMAP.bands]
OLDER = [(band.wavelength_nm, band.fwhm_nm) for band in ENMAP.band_tables[0].bands]
LAYERS = ("QL_QUALITY_CLASSES", "QL_QUALITY_CLOUD", "QL_QUALITY_CLOUDSHADOW", "QL_QUALITY_HAZE")
LAYERS += ("QL_QUALITY_CIRRUS", "QL_QUALITY_SNOW")


def channel_image(table: list[tuple[Any, Any]]) -> np.ndarray:
    """What each channel sees, wherever it stands in the file: a channel keeps its width."""
    pattern = np.arange(EDGE_PX**2).reshape(EDGE_PX, EDGE_PX)
    return np.stack([round(1000 * width) + pattern for _, width in table]).astype("int16")


def write_scene(root: Path, datatake: int, version: str, table: Any, *, stated: bool) -> None:
    stem = (
        f"ENMAP01-____L2A-DT{datatake:010d}_2023070{datatake}T104526Z_001"
        f"_V{version.replace('.', '')}_20240101T000000Z"
    )
    folder = root / stem
    folder.mkdir(parents=True)
    marked = [[width == ENMAP.band("B150").fwhm_nm] for _, width in table]
    files = {
        "SPECTRAL_IMAGE": channel_image(table),
        "QL_PIXELMASK": np.broadcast_to(np.array(marked)[..., None], (224, EDGE_PX, EDGE_PX)),
        **{name: np.zeros((1, EDGE_PX, EDGE_PX)) for name in LAYERS},
    }
    files["QL_QUALITY_CLASSES"] = np.ones((1, EDGE_PX, EDGE_PX))
    for name, pixels in files.items():
        with rasterio.open(
            folder / f"{stem}-{name}.TIF",
            "w",
            driver="GTiff",
            width=EDGE_PX,
            height=EDGE_PX,
            count=len(pixels),
            dtype="int16" if name == "SPECTRAL_IMAGE" else "uint8",
            nodata=-32768 if name == "SPECTRAL_IMAGE" else None,
            crs="EPSG:32633",
            transform=Affine(30, 0, 364335, 0, -30, 5810055),
            interleave="pixel",
            compress="deflate",
        ) as file:
            file.write(pixels.astype(file.dtypes[0]))
    if stated:
        rows = "".join(
            f'<bandID number="{number}"><wavelengthCenterOfBand>{centre}</wavelengthCenterOfBand>'
            f"<FWHMOfBand>{width}</FWHMOfBand></bandID>"
            for number, (centre, width) in enumerate(table, 1)
        )
        (folder / f"{stem}-METADATA.XML").write_text(
            "<level_X><specific><qualityFlag><cloudCover>0</cloudCover></qualityFlag>"
            f"<bandCharacterisation>{rows}</bandCharacterisation></specific></level_X>"
        )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedRecipe, Path]:
    """Three passes over one cell: of a newer processor, and of two older ones."""
    folder = tmp_path_factory.mktemp("tables")
    write_scene(folder / "scenes", 1, "01.04.02", NEWER, stated=True)
    write_scene(folder / "scenes", 2, "01.02.00", OLDER, stated=True)
    write_scene(folder / "scenes", 3, "01.01.10", OLDER, stated=False)
    recipe = Recipe.model_validate(
        {
            "name": "tables",
            "sample": {"strategy": "scenes", "product": "enmap-l2a"},
            "cell": {"lattice": "enmap30", "size_px": 8},
            "slots": {"kind": "all", "start": "2023-07-01", "end": "2023-08-01"},
            "product": [{"id": "enmap-l2a", "path": str(folder / "scenes")}],
        }
    )
    loaded = LoadedRecipe(recipe, folder)
    with Progress(live=False) as progress:
        for _ in run_everything(
            loaded,
            open_store(folder / "root"),
            engine=SerialEngine,
            until="publish",
            progress=progress,
        ):
            pass
    return loaded, folder / "root"


def test_every_processor_s_patches_hold_the_same_channels(root: tuple[LoadedRecipe, Path]) -> None:
    loaded, folder = root
    stored = [ENMAP.band(name) for name in loaded.bands("enmap-l2a")]
    widths = [round(1000 * (band.fwhm_nm or 0)) for band in stored]
    reader = open_dataset(folder).patches("enmap-l2a")
    images, _ = reader.read(slice(None))
    assert len(images) >= 3
    takes = {row["scenes"][0].split("/")[1] for row in reader.rows.to_pylist()}
    assert takes == {"0000000001", "0000000002", "0000000003"}
    for image in images:
        channel = np.asarray(image) - np.asarray(image)[:1] + widths[0]
        assert (channel == np.array(widths)[:, None, None]).all()


def test_the_plan_says_where_an_older_file_has_its_bands(root: tuple[LoadedRecipe, Path]) -> None:
    store = open_store(root[1])
    scenes = {
        scene.datatake: scene for scene in to_rows(read_table(store, layout.plan_scenes(1)), Scene)
    }
    assert scenes["0000000001"].band_indexes == []
    assert scenes["0000000002"].band_indexes == scenes["0000000003"].band_indexes
    assert [scenes["0000000002"].band_indexes[k - 1] for k in (82, 83, 136, 142, 167)] == [
        83, 82, 0, 141, 167,
    ]  # fmt: skip


def test_marks_of_single_bands_follow_their_channel(root: tuple[LoadedRecipe, Path]) -> None:
    store = open_store(root[1])
    rows = [
        row
        for shard, revision in newest(store).items()
        for row in to_rows(read_commit(store, shard, revision).ledger, LedgerRow)
    ]
    assert {row.state for row in rows} == {"written"}
    assert {round(row.defective_fraction or 0, 6) for row in rows} == {round(1 / 202, 6)}


def test_verify_reads_the_same_bands(root: tuple[LoadedRecipe, Path]) -> None:
    loaded, folder = root
    assert run_verify(loaded, open_store(folder), share=1).compared >= 3

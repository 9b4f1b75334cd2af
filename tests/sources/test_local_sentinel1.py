"""Sentinel-1 folders: from a SAFE with ground control points to shards in decibels."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.control import GroundControlPoint

from pipeline.engine.serial import SerialEngine
from pipeline.products.catalogue import load_product
from pipeline.products.model import LEGEND
from pipeline.recipe import load_recipe
from pipeline.records import LedgerRow, Scene, Unusable
from pipeline.run.everything import run_everything
from pipeline.run.sample import run_sample
from pipeline.run.search import run_search
from pipeline.sources.local.folders import local_items
from pipeline.stages.search.normalise import normalise
from pipeline.store.commit import newest, read_commit
from pipeline.store.layout import SCENES
from pipeline.store.objects import open_store
from pipeline.store.reader import open_dataset
from pipeline.store.tables import read_all, to_rows
from pipeline.task.coefficients import Calibrations, Coefficients
from pipeline.task.read import Reader
from pipeline.task.shard import sources_of
from pipeline.watch.progress import Progress

NAME = "S1A_IW_GRDH_1SDV_20210704T170557_20210704T170622_038632_048EF4_5E4B"
LINES, SAMPLES = 900, 1000
#: The image is turned: ground position of line 0, sample 0, and steps per sample and line, in m.
ORIGIN = (299_000.0, 5_002_000.0)
STEPS = ((9.7, -2.0), (-2.1, -9.6))
#: Border without data, in lines.
BORDER = 60
RECIPE = """
name = "radar"
[sample]
strategy = "grid"
region = [{west}, {south}, {east}, {north}]
[cell]
lattice = "s2r10"
size_px = 64
[slots]
kind = "months"
start = 2021-07-01
end = 2021-08-01
[[product]]
id = "sentinel-1-grd"
path = "."
allow_unmasked = true
contained = false
min_valid_fraction = 0.1
"""

#: Noise annotations of processors before and since 2.90.
OLD_NOISE = (
    "<noise><noiseVectorList><noiseVector><line>0</line><pixel>0 1000</pixel>"
    "<noiseLut>100 100</noiseLut></noiseVector></noiseVectorList></noise>"
)
NEW_NOISE = (
    "<noise><noiseRangeVectorList><noiseRangeVector><line>0</line><pixel>0 1000</pixel>"
    "<noiseRangeLut>100 100</noiseRangeLut></noiseRangeVector></noiseRangeVectorList></noise>"
)


def position(line: Any, sample: Any) -> tuple[Any, Any]:
    """Return easting and northing in EPSG:32633."""
    (xs, xl), (ys, yl) = STEPS
    return ORIGIN[0] + xs * sample + xl * line, ORIGIN[1] + ys * sample + yl * line


def line_and_sample(x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the inverse of `position`."""
    turn = np.linalg.inv(np.array(STEPS))
    sample, line = np.tensordot(turn, np.stack([x - ORIGIN[0], y - ORIGIN[1]]), axes=1)
    return line, sample


def amplitude(line: Any, sample: Any, seed: int) -> Any:
    return 200 * seed + 0.2 * line + 0.1 * sample


def write_safe(folder: Path) -> Path:
    """Write a SAFE of two polarisations, whose table is 300 + sample / 10 + line / 5."""
    safe = folder / f"{NAME}.SAFE"
    tables = safe / "annotation" / "calibration"
    tables.mkdir(parents=True)
    (safe / "measurement").mkdir()
    to_lonlat = Transformer.from_crs(32633, "OGC:CRS84", always_xy=True)
    points = [
        GroundControlPoint(line, sample, *to_lonlat.transform(*position(line, sample)), 0)
        for line in np.linspace(0, LINES, 10)
        for sample in np.linspace(0, SAMPLES, 11)
    ]
    line, sample = np.mgrid[0:LINES, 0:SAMPLES]
    for seed, key in ((1, "vv"), (2, "vh")):
        image = np.rint(amplitude(line, sample, seed)).astype("uint16")
        image[:BORDER] = 0
        stem = f"s1a-iw-grd-{key}-20210704t170557-20210704t170622-038632-048ef4-00{seed}"
        with rasterio.open(
            safe / "measurement" / f"{stem}.tiff", "w", driver="GTiff", height=LINES,
            width=SAMPLES, count=1, dtype="uint16", gcps=points, crs="EPSG:4326",
        ) as raster:  # fmt: skip
            raster.write(image, 1)
        vectors = "".join(
            f"<calibrationVector><line>{at}</line><pixel>0 {SAMPLES}</pixel><sigmaNought>"
            f"{300 + at / 5} {300 + at / 5 + SAMPLES / 10}</sigmaNought></calibrationVector>"
            for at in (0, 500, LINES)
        )
        (tables / f"calibration-{stem}.xml").write_text(
            f"<calibration><calibrationVectorList>{vectors}</calibrationVectorList></calibration>"
        )
    corners = [position(*at) for at in ((0, 0), (0, SAMPLES), (LINES, SAMPLES), (LINES, 0))]
    listed = " ".join(f"{lat},{lon}" for lon, lat in (to_lonlat.transform(*c) for c in corners))
    (safe / "manifest.safe").write_text(
        '<xfdu xmlns:safe="urn:safe" xmlns:s="urn:s1" xmlns:gml="urn:gml"><safe:startTime>'
        "2021-07-04T17:05:57.1</safe:startTime><safe:stopTime>2021-07-04T17:06:22.1"
        "</safe:stopTime><s:mode>IW</s:mode><s:productType>GRD</s:productType>"
        "<s1:pass xmlns:s1='urn:p'>DESCENDING</s1:pass>"
        "<safe:relativeOrbitNumber type='start'>22</safe:relativeOrbitNumber>"
        "<safe:relativeOrbitNumber type='stop'>23</safe:relativeOrbitNumber>"
        "<s:missionDataTakeID>298740</s:missionDataTakeID><s:sliceNumber>4</s:sliceNumber>"
        f"<gml:coordinates>{listed}</gml:coordinates></xfdu>"
    )
    return safe


def only(folder: Path) -> Scene | Unusable:
    product = load_product("sentinel-1-grd")
    (row,) = (normalise(item, product, "local", None) for item in local_items(folder, product))
    return row


def test_a_safe_becomes_the_scene_that_catalogues_know(tmp_path: Path) -> None:
    write_safe(tmp_path)
    scene = only(tmp_path)
    assert isinstance(scene, Scene)
    assert scene.scene == "sentinel-1-grd/S1A_048EF4/4"
    assert scene.facts == '{"orbit_direction":"descending","relative_orbit":22}'
    assert scene.acquired.isoformat() == "2021-07-04T17:05:57.100000+00:00"
    assert {asset.name for asset in scene.assets} == {
        "vv", "vh", "schema-calibration-vv", "schema-calibration-vh"
    }  # fmt: skip


@pytest.mark.parametrize(
    "damage",
    [
        lambda safe: (safe / "manifest.safe").write_text("<a><b></a>"),
        lambda safe: (safe / "manifest.safe").write_text("<a/>"),
        lambda safe: [path.unlink() for path in safe.glob("measurement/*")],
    ],
)
def test_a_damaged_safe_is_listed(tmp_path: Path, damage: Any) -> None:
    damage(write_safe(tmp_path))
    row = only(tmp_path)
    assert isinstance(row, Unusable)
    assert row.reason == "unreadable"


@pytest.mark.parametrize(("directions", "found"), [(["descending"], 1), (["ascending"], 0)])
def test_folders_of_another_orbit_than_the_recipe_requires_are_counted(
    tmp_path: Path, directions: list[str], found: int
) -> None:
    write_safe(tmp_path)
    region = {"west": 12.4, "south": 45.0, "east": 12.6, "north": 45.1}
    require = f"\nrequire = {{ orbit_direction = {json.dumps(directions)} }}\n"
    (tmp_path / "recipe.toml").write_text(RECIPE.format(**region) + require)
    loaded, store = load_recipe(tmp_path / "recipe.toml"), open_store(tmp_path / "built")
    run_sample(loaded, store)
    report = run_search(loaded, store)
    assert report.found == {"sentinel-1-grd": found}
    assert report.unusable == ({} if found else {"not-as-required": 1})
    (*rejected,) = read_all(store, SCENES, Unusable, suffix="unusable").to_pylist()
    assert [row["detail"] for row in rejected] == (
        [] if found else ["orbit_direction is 'descending'; `require` allows ascending"]
    )


def test_shards_hold_sigma_nought_where_the_control_points_say(tmp_path: Path) -> None:
    write_safe(tmp_path)
    scene = only(tmp_path)
    assert isinstance(scene, Scene)
    region = {"west": scene.x_min_m, "south": scene.y_min_m, "east": scene.x_max_m}
    recipe = RECIPE.format(north=scene.y_max_m, **region)
    (tmp_path / "recipe.toml").write_text(recipe)
    loaded, store = load_recipe(tmp_path / "recipe.toml"), open_store(tmp_path / "built")
    with Progress(live=False) as progress:
        dict(run_everything(loaded, store, engine=SerialEngine, until="publish", progress=progress))
    ledger = [
        row
        for shard, revision in newest(store).items()
        for row in to_rows(read_commit(store, shard, revision).ledger, LedgerRow)
    ]
    written = [row for row in ledger if row.state == "written"]
    assert {row.resampling for row in written} == {"gcp-bilinear"}
    assert {row.reason for row in ledger if row.state != "written"} <= {"not-seen", "no-candidate"}
    assert all(len(row.sources) == 4 for row in written), "two images and two tables"
    reader = open_dataset(tmp_path / "built").patches("sentinel-1-grd")
    stated = [json.loads(of_scene) for row in reader.rows.to_pylist() for of_scene in row["facts"]]
    assert stated == [{"orbit_direction": "descending", "relative_orbit": 22}] * len(reader.rows)
    bands, masks = reader.read(slice(None))
    whole = 0
    for row, patch, mask in zip(reader.rows.to_pylist(), bands, masks, strict=True):
        at = (np.arange(64) + 0.5) * 10
        x, y = np.meshgrid(row["x_min_m"] + at, row["y_max_m"] - at)
        line, sample = line_and_sample(x, y)
        inside = (line > BORDER + 1) & (line < LINES - 1) & (sample > 1) & (sample < SAMPLES - 1)
        outside = (line < BORDER - 1) | (line > LINES + 1) | (sample < -1) | (sample > SAMPLES + 1)
        assert (mask[inside] == LEGEND["valid"]).all()
        assert (mask[outside] == LEGEND["fill"]).all()
        for band, seed in ((0, 1), (1, 2)):
            table = 300 + line / 5 + sample / 10
            expected = 20 * np.log10(amplitude(line - 0.5, sample - 0.5, seed) / table)
            # Amplitudes are whole numbers: half of one in 200 is 0.02 dB.
            np.testing.assert_allclose(patch[band][inside], expected[inside], atol=0.03)
            assert np.isnan(patch[band][outside]).all()
        whole += bool(inside.all())
    assert whole > 20


@pytest.mark.parametrize(
    ("year", "noise", "gone"),
    [(2016, OLD_NOISE, True), (2016, NEW_NOISE, False), (2021, "<never-read/>", False)],
)
def test_the_noise_annotation_of_an_old_scene_says_whether_its_borders_are_noise(
    tmp_path: Path, year: int, noise: str, gone: bool
) -> None:
    for table in (write_safe(tmp_path) / "annotation" / "calibration").glob("calibration-*"):
        table.with_name(table.name.replace("calibration-", "noise-")).write_text(noise)
    found = only(tmp_path)
    assert isinstance(found, Scene)
    scene = replace(found, acquired=datetime(year, 7, 4, tzinfo=UTC))
    (tmp_path / "recipe.toml").write_text(RECIPE.format(west=15, south=45, east=15.1, north=45.1))
    loaded = load_recipe(tmp_path / "recipe.toml")
    reader = Reader(sources_of(loaded, 1.0, "test"), {}, final=True)
    calibrations = Calibrations(loaded, reader)
    with ThreadPoolExecutor(1) as readers:
        calibrations.load([scene], readers)
    own = calibrations[scene.scene]
    assert isinstance(own, Coefficients), own
    assert len(own.prepare) == 2
    weak = np.full((1, 2, 2), 9, "uint16")
    for prepare in own.prepare:
        assert np.isnan(prepare(weak, 0, 0)).all() == gone

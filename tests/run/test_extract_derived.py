"""Extraction of scenes without quality layers, by a mask made from their image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import rasterio

from pipeline.products.model import LEGEND
from pipeline.raster.thresholds import classify

MASK = """
[mask]
method = "toa-thresholds"
bands = { blue = "a", red = "b", nir = "wide", swir16 = "wide" }

[providers.local]
"""

OFFSET = """
offsets = [{from_baseline = "04.00", add = -1000}]
dark_objects = [
  {bands = ["a"], least = -0.02, most = 0.035, never_below = -0.03},
  {bands = ["wide"], least = -0.02, most = 0.035, never_below = -0.03},
]
"""


@pytest.fixture
def rig(rig: Any) -> Any:
    """One product of reflectance, whose image may decide, and any share of clouds allowed."""
    product = rig.folder / "image.toml"
    text = product.read_text().replace('id = "image"', 'id = "image"\nscale = 0.0001', 1)
    product.write_text(text.replace("[providers.local]", MASK, 1))
    rig.wishes[0]["max_cloud_fraction"] = 1.0
    return rig


def whiten(rig: Any, scene: str, *, part: slice = slice(None), value: int = 6000) -> None:
    """Put a cloud into some columns of 60 m."""
    for asset, times in (("fine", 2), ("coarse", 1)):
        with rasterio.open(rig.file(scene, asset), "r+") as file:
            pixels = file.read()
            start = None if part.start is None else part.start * times
            stop = None if part.stop is None else part.stop * times
            pixels[:, :, start:stop] = value
            file.write(pixels)


def expected(bands: Any) -> Any:
    """Return the mask of stored bands."""
    blue, red, wide = bands.astype("float32") * np.float32(1e-4)
    return classify(blue, red, wide, wide)


def test_the_image_decides_and_each_block_of_it_is_decoded_once(rig: Any) -> None:
    rig.scene("image/d1/t1", masked=False, block=64)
    for sample in range(4):
        rig.patch(sample, [["image/d1/t1"]])
    report = rig.extract()
    assert (report.written, report.blocks_decoded, report.blocks_touched) == (4, 2, 2)
    codes = set()
    for sample in range(4):
        bands, mask = rig.stored(sample)
        np.testing.assert_array_equal(bands, rig.truth("image/d1/t1", sample))
        np.testing.assert_array_equal(mask, expected(bands))
        codes |= set(np.unique(mask))
    assert codes >= {LEGEND["land"], LEGEND["cloud"]}
    row = rig.ledger()[0, "image", 0, "2021-07"]
    assert row.mask_source == "toa-thresholds"
    assert [source.href for source in row.sources] == sorted(
        str(rig.file("image/d1/t1", name)) for name in ("fine", "coarse")
    )


@pytest.mark.parametrize(
    "wish",
    [
        {},
        {"bands": ["a"]},
        {"bands": ["wide"]},
        {"bands": ["wide", "a"]},
        {"pixel_m": 60, "resampling": "average"},
        {"pixel_m": 60, "resampling": "nearest", "bands": ["b", "wide"]},
        {"pixel_m": 60, "bands": ["wide"]},
    ],
)
def test_the_stored_bands_are_those_of_an_extraction_without_a_mask(rig: Any, wish: Any) -> None:
    rig.wishes[0].update(wish, allow_unmasked=True)
    rig.scene("image/d1/t1", masked=False)
    rig.patch(1, [["image/d1/t1"]])
    rig.extract()
    product = rig.folder / "image.toml"
    product.write_text(product.read_text().replace(MASK, "[providers.local]"))
    plain = rig.elsewhere("plain")
    plain.extract()
    rows = [r.ledger()[0, "image", 1, "2021-07"] for r in (rig, plain)]
    assert [row.mask_source for row in rows] == ["toa-thresholds", "none"]
    np.testing.assert_array_equal(rig.stored(1)[0], plain.stored(1)[0])
    assert rows[0].resampling == rows[1].resampling
    assert (plain.stored(1)[1] == LEGEND["valid"]).all()


def test_a_cloudy_patch_falls_to_the_next_candidate(rig: Any) -> None:
    rig.wishes[0]["max_cloud_fraction"] = 0.7
    rig.scene("image/d1/t1", masked=False)
    rig.scene("image/d2/t1", masked=False)
    whiten(rig, "image/d1/t1", part=slice(0, 8))
    rig.patch(0, [["image/d1/t1"], ["image/d2/t1"]])
    rig.patch(1, [["image/d1/t1"], ["image/d2/t1"]])
    rig.patch(0, [["image/d1/t1"]], slot="2021-08")
    report = rig.extract()
    rows = rig.ledger()
    assert [rows[0, "image", s, "2021-07"].rank for s in (0, 1)] == [1, 0]
    np.testing.assert_array_equal(rig.stored(0)[0], rig.truth("image/d2/t1", 0))
    assert report.rejected == {"cloudy": 1}
    assert "> 0.7 by toa-thresholds" in rows[0, "image", 0, "2021-08"].detail


def test_quality_layers_decide_where_there_are_some(rig: Any) -> None:
    rig.scene("image/d1/t1")
    whiten(rig, "image/d1/t1")
    rig.patch(0, [["image/d1/t1"]])
    rig.extract()
    assert rig.ledger()[0, "image", 0, "2021-07"].mask_source == "product"
    assert (rig.stored(0)[1] == LEGEND["land"]).all()


def test_where_the_image_has_nothing_the_next_file_fills_in(rig: Any) -> None:
    rig.scene("image/d1/a", masked=False, empty=(slice(0, 64), slice(20, 64)))
    rig.scene("image/d1/b")
    rig.patch(1, [["image/d1/a", "image/d1/b"]])
    assert rig.extract().written == 1
    bands = rig.truth("image/d1/b", 1)
    bands[:, :, :4] = rig.truth("image/d1/a", 1)[:, :, :4]
    np.testing.assert_array_equal(rig.stored(1)[0], bands)
    np.testing.assert_array_equal(rig.stored(1)[1][:, :4], expected(bands)[:, :4])
    # One of the two was decided by the image: that is what is said of both.
    assert rig.ledger()[0, "image", 1, "2021-07"].mask_source == "toa-thresholds"


def test_a_scene_that_lacks_a_band_is_refused_by_its_name(rig: Any) -> None:
    rig.wishes[0]["bands"] = ["a"]
    rig.scene("image/d1/t1", masked=False)
    scene = rig.scenes["image/d1/t1"]
    there = [asset for asset in scene.assets if asset.name != "coarse"]
    rig.scenes["image/d1/t1"] = replace(scene, assets=there)
    rig.patch(0, [["image/d1/t1"]])
    assert rig.extract().rejected == {"unmasked": 1}
    row = rig.ledger()[0, "image", 0, "2021-07"]
    assert "`mask.method = 'toa-thresholds'` needs its wide" in row.detail


def test_a_band_that_cannot_be_read_is_a_failure_and_no_cloud(rig: Any) -> None:
    rig.scene("image/d1/t1", masked=False)
    rig.scene("image/d2/t1", masked=False)
    rig.patch(0, [["image/d1/t1"], ["image/d2/t1"]])
    rig.patch(1, [["image/d2/t1"]])
    rig.file("image/d1/t1", "coarse").unlink()
    report = rig.extract()
    assert (report.written, report.failed, report.rejected) == (1, {"gone": 1}, {})


def test_an_offset_that_was_not_removed_is_told_before_it_looks_like_cloud(rig: Any) -> None:
    rig.wishes[0]["max_cloud_fraction"] = 0.0
    product = rig.folder / "image.toml"
    product.write_text(product.read_text().replace("mask_layers", f"{OFFSET}\nmask_layers", 1))
    rig.scene("image/d1/t1", masked=False)
    for asset in ("fine", "coarse"):
        with rasterio.open(rig.file("image/d1/t1", asset), "r+") as file:
            pixels = np.full(file.read().shape, 900, "int16")  # 0.19 with the offset: cloud
            pixels[:, -4:] = 0
            file.write(pixels + np.int16(1030))
    rig.patch(0, [["image/d1/t1"]])
    assert rig.extract().rejected == {"offset-contradiction": 1}

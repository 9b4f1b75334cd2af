"""Extraction of scenes whose processing offset is audited by their own pixels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import rasterio

from pipeline.task import audit

OFFSET = """
offsets = [{from_baseline = "04.00", add = -1000}]
dark_objects = [
  {bands = ["a"], least = -0.02, most = 0.035, never_below = -0.03},
  {bands = ["wide", "b"], least = -0.02, most = 0.035, never_below = -0.03},
]
mask_layers"""


@pytest.fixture
def rig(rig: Any) -> Any:
    """One product of reflectance, in whose files an offset may be."""
    product = rig.folder / "image.toml"
    text = product.read_text().replace('id = "image"', 'id = "image"\nscale = 0.0001', 1)
    product.write_text(text.replace("mask_layers", OFFSET, 1))
    return rig


def water(rig: Any, scene: str, *, lift: int, add: int, darkest: int = 30) -> None:
    """Put water far from every patch and `lift` into all files, of which `add` is stated."""
    rig.scene(scene)
    for asset in ("fine", "coarse"):
        with rasterio.open(rig.file(scene, asset), "r+") as file:
            pixels = file.read().astype("int32") % 3000 + 300 + darkest
            pixels[:, -4:] = darkest
            file.write((pixels + lift).astype("int16"))
    rig.scenes[scene] = replace(rig.scenes[scene], offset_add=add)


def without(rig: Any, scene: str, asset: str) -> None:
    """Take a file out of a scene's list."""
    there = [entry for entry in rig.scenes[scene].assets if entry.name != asset]
    rig.scenes[scene] = replace(rig.scenes[scene], assets=there)


def audited(rig: Any, sample: int = 0) -> str:
    return str(rig.ledger()[0, "image", sample, "2021-07"].offset_audit)


@pytest.mark.parametrize("bands", ["default", ["a"], ["b"], ["wide"], ["b", "wide"]])
@pytest.mark.parametrize(
    ("offset_add", "lift", "rank"),
    [(0, 1000, 1), (-1000, 0, 1), (-1000, 1000, 0), (0, 0, 0)],
)
def test_a_scene_whose_offset_is_not_as_stated_is_left_for_the_next_one(
    rig: Any, bands: Any, offset_add: int, lift: int, rank: int
) -> None:
    """Whatever is stored, and for every patch of it: those that hold no dark object too."""
    rig.wishes[0]["bands"] = bands
    water(rig, "image/d1/t1", lift=lift, add=offset_add)
    rig.scene("image/d2/t1")
    rig.patch(0, [["image/d1/t1"], ["image/d2/t1"]])
    rig.patch(1, [["image/d1/t1"]])
    report = rig.extract()
    assert rig.ledger()[0, "image", 0, "2021-07"].rank == rank
    assert report.rejected == ({"offset-contradiction": 1} if rank else {})
    assert report.written == (1 if rank else 2)
    assert audited(rig, 1) == ("" if rank else "passed")


def test_a_bright_scene_is_silent_and_the_least_of_several_counts(rig: Any) -> None:
    water(rig, "image/d1/t1", lift=0, add=0, darkest=1800)
    water(rig, "image/d1/t2", lift=0, add=0)
    rig.patch(0, [["image/d1/t2", "image/d1/t1"]])
    rig.patch(1, [["image/d1/t2"]])
    assert rig.extract().written == 2
    assert (audited(rig, 0), audited(rig, 1)) == ("silent", "passed")


def test_a_product_without_offset_has_nothing_to_audit(rig: Any) -> None:
    product = rig.folder / "image.toml"
    product.write_text(product.read_text().replace(OFFSET, "mask_layers"))
    rig.scene("image/d1/t1")
    rig.patch(0, [["image/d1/t1"]])
    assert rig.extract().written == 1
    assert audited(rig) == ""


def test_a_product_that_states_no_dark_objects_is_not_audited_and_says_so(rig: Any) -> None:
    product = rig.folder / "image.toml"
    text = product.read_text()
    start, stop = text.index("dark_objects"), text.index("mask_layers")
    product.write_text(text[:start] + text[stop:])
    water(rig, "image/d1/t1", lift=1000, add=0)
    rig.patch(0, [["image/d1/t1"]])
    assert rig.extract().written == 1
    assert audited(rig) == "none"


def test_a_scene_without_the_band_is_audited_by_its_substitute(rig: Any) -> None:
    rig.wishes[0]["bands"] = ["a"]
    water(rig, "image/d1/t1", lift=1000, add=0)
    without(rig, "image/d1/t1", "coarse")
    rig.patch(0, [["image/d1/t1"]])
    assert rig.extract().rejected == {"offset-contradiction": 1}
    assert "1030 in a and 1030 in b" in rig.ledger()[0, "image", 0, "2021-07"].detail


@pytest.mark.parametrize("gone", ["listed", "not listed"])
def test_where_a_file_that_is_not_stored_is_not_there_nobody_looked(rig: Any, gone: str) -> None:
    rig.wishes[0]["bands"] = ["wide"]
    water(rig, "image/d1/t1", lift=1000, add=0)
    if gone == "listed":
        rig.file("image/d1/t1", "fine").unlink()
    else:
        without(rig, "image/d1/t1", "fine")
    rig.patch(0, [["image/d1/t1"]])
    report = rig.extract()
    assert (report.written, report.failed) == (1, {})
    assert audited(rig) == "none"


def test_a_stored_file_that_is_not_there_is_a_failure_as_ever(rig: Any) -> None:
    for scene in ("image/d1/t1", "image/d2/t1"):
        water(rig, scene, lift=0, add=0)
    rig.file("image/d1/t1", "fine").unlink()
    rig.patch(0, [["image/d1/t1"], ["image/d2/t1"]])
    rig.patch(1, [["image/d2/t1"]])
    report = rig.extract()
    assert (report.written, report.failed) == (1, {"gone": 1})


def test_a_file_without_a_small_overview_is_not_read_whole_and_nobody_looked(
    rig: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "_MOST_PX", 16)
    water(rig, "image/d1/t1", lift=1000, add=0)
    rig.patch(0, [["image/d1/t1"]])
    assert rig.extract().written == 1
    assert audited(rig) == "none"

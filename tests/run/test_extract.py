"""Extraction of a hand-made archive: pixels to the digit, decisions, failures, resume."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.engine.dask import DaskEngine
from pipeline.errors import IntegrityError, RecipeError, TryAgain
from pipeline.products.model import FILL_INT16, LEGEND
from pipeline.store import layout
from pipeline.store.commit import claim_folder, read_commit
from pipeline.store.version import ShardEntry
from pipeline.task import shard as shard_task
from pipeline.task.order import ShardOrder
from pipeline.task.shard import build_shard

CLOUD = np.full((64, 64), 2, "uint8")


def clouds(first_px: int, last_px: int) -> Any:
    """Return quality codes with cloud in some columns."""
    codes = np.ones((64, 64), "uint8")
    codes[:, first_px:last_px] = 2
    return codes


# --- pixels ----------------------------------------------------------------------------------


def test_pixels_masks_and_the_coarser_band_are_exact(rig: Any) -> None:
    rig.scene("image/d1/t1", classes=clouds(16, 17))
    for sample in range(4):
        rig.patch(sample, [["image/d1/t1"]])
    report = rig.extract()
    assert (report.written, report.shards) == (4, 1)
    for sample in range(4):
        bands, mask = rig.stored(sample)
        np.testing.assert_array_equal(bands, rig.truth("image/d1/t1", sample))
        assert (mask == LEGEND["cloud"]).sum() == (16 if sample == 1 else 0)
    row = rig.ledger()[0, "image", 1, "2021-07"]
    assert (row.clear_fraction, row.valid_fraction) == (15 / 16, 1.0)
    assert (row.resampling, row.mask_source, row.rank) == ("repeat", "product", 0)
    assert row.mean[0] == rig.truth("image/d1/t1", 1)[0].mean()
    assert [source.href for source in row.sources] == sorted(
        str(rig.file("image/d1/t1", name)) for name in ("fine", "coarse", "classes")
    )


def test_each_block_is_decoded_once_however_many_windows_it_serves(rig: Any) -> None:
    rig.scene("image/d1/t1", block=64)
    for sample in range(4):
        rig.patch(sample, [["image/d1/t1"]])
    report = rig.extract()
    assert report.blocks_decoded == report.blocks_touched == 3
    files = [rig.file("image/d1/t1", name).stat().st_size for name in ("fine", "coarse", "classes")]
    assert sum(files) / 2 < report.bytes_read <= sum(files) + 3 * 2**16, "each part about once"


def test_a_cell_across_two_files_of_a_datatake_is_whole(rig: Any) -> None:
    # The second file starts in the middle of cell 1, and wins nothing that the first one saw.
    rig.scene("image/d1/west", edge=32)
    rig.scene("image/d1/east", col=24)
    rig.patch(1, [["image/d1/west", "image/d1/east"]])
    rig.patch(2, [["image/d1/west", "image/d1/east"]])
    assert rig.extract().written == 2
    west, east = rig.truth("image/d1/west", 1), rig.truth("image/d1/east", 2)
    np.testing.assert_array_equal(rig.stored(1)[0], west)
    np.testing.assert_array_equal(rig.stored(2)[0], east)
    # Cell 1 lies wholly in the first file: nothing of the second one's bands was read for it.
    sources = {len(row.sources) for row in rig.ledger().values()}
    assert sources == {4}


def test_a_swath_edge_is_filled_by_the_next_file(rig: Any) -> None:
    seen = np.ones((64, 64), "uint8")
    seen[:, 20:] = 0
    rig.scene("image/d1/a", classes=seen)
    rig.scene("image/d1/b")
    rig.patch(1, [["image/d1/a", "image/d1/b"]])
    assert rig.extract().written == 1
    expected = rig.truth("image/d1/b", 1)
    expected[:, :, :4] = rig.truth("image/d1/a", 1)[:, :, :4]
    np.testing.assert_array_equal(rig.stored(1)[0], expected)


def test_nodata_is_fill_and_mask_zero(rig: Any) -> None:
    rig.wishes[0]["min_valid_fraction"] = 0.5
    rig.scene("image/d1/t1", empty=(slice(0, 4), slice(0, 64)))
    rig.patch(0, [["image/d1/t1"]])
    rig.extract()
    bands, mask = rig.stored(0)
    assert (bands[:, :4] == FILL_INT16).all()
    assert (mask[:4] == 0).all()
    np.testing.assert_array_equal(bands[:, 4:], rig.truth("image/d1/t1", 0)[:, 4:])
    assert rig.ledger()[0, "image", 0, "2021-07"].valid_fraction == 0.75


# --- decisions -------------------------------------------------------------------------------


def test_a_cloudy_patch_falls_to_the_next_candidate_and_costs_no_bands(rig: Any) -> None:
    rig.scene("image/d1/t1", classes=clouds(0, 16))
    rig.scene("image/d2/t1")
    for sample in (0, 1):
        rig.patch(sample, [["image/d1/t1"], ["image/d2/t1"]])
    rig.extract()
    rows = rig.ledger()
    assert [rows[0, "image", s, "2021-07"].rank for s in (0, 1)] == [1, 0]
    np.testing.assert_array_equal(rig.stored(0)[0], rig.truth("image/d2/t1", 0))


def test_every_rejection_has_its_reason(rig: Any) -> None:
    rig.scene("image/d1/t1", classes=CLOUD)
    rig.scene("image/d2/t1", masked=False)
    rig.scene("image/d3/t1", edge=8)
    rig.patch(0, [["image/d1/t1"]])
    rig.patch(1, [["image/d2/t1"]])
    rig.patch(2, [["image/d3/t1"]])
    rig.patch(3, [])
    report = rig.extract()
    assert report.rejected == {"cloudy": 1, "unmasked": 1, "not-seen": 1, "no-candidate": 1}
    assert report.written == 0
    assert not [key for key in rig.objects() if "/bands/c/" in key]


@pytest.mark.parametrize(("bands", "lost"), [(["a"], 4), (["b", "wide"], 0), ("default", 4)])
def test_what_is_saturated_in_other_bands_than_the_stored_ones_is_not_lost(
    rig: Any, bands: Any, lost: int
) -> None:
    product = rig.folder / "image.toml"
    text = product.read_text().replace('"a", index = 1,', '"a", index = 1, saturated_bit = 4,')
    rule = '{layer = "classes", saturated = true, code = "defective"}'
    product.write_text(text.replace("mask_rules = [", f"mask_rules = [\n  {rule},", 1))
    rig.wishes[0]["bands"] = bands
    classes = np.ones((64, 64), "uint8")
    classes[0, :4] = 1 << 4
    rig.scene("image/d1/t1", classes=classes)
    rig.patch(0, [["image/d1/t1"]])
    assert rig.extract().written == 1
    assert np.count_nonzero(rig.stored(0)[1] == LEGEND["defective"]) == lost


def test_nodata_found_in_the_bands_sends_a_patch_to_the_next_candidate(rig: Any) -> None:
    rig.scene("image/d1/t1", empty=(slice(0, 64), slice(0, 16)))
    rig.scene("image/d2/t1")
    rig.patch(0, [["image/d1/t1"], ["image/d2/t1"]])
    rig.patch(1, [["image/d1/t1"], ["image/d2/t1"]])
    rig.extract()
    rows = rig.ledger()
    assert [rows[0, "image", s, "2021-07"].rank for s in (0, 1)] == [1, 0]


def test_a_scene_of_another_zone_is_no_matter_for_the_patches_it_suits(rig: Any) -> None:
    rig.scene("image/d1/t1")
    rig.scene("image/d2/t1")
    rig.scenes["image/d2/t1"] = replace(rig.scenes["image/d2/t1"], epsg=32634)
    rig.patch(0, [["image/d1/t1"], ["image/d2/t1"]])
    rig.patch(1, [["image/d1/t1"]])
    rig.patch(2, [["image/d2/t1"]])
    rig.patches[2] = replace(rig.patches[2], epsg=32634)
    report = rig.extract()
    # Its file says zone 33 and its scene 34: that is a failure of the patch that it suits.
    assert (report.written, report.failed) == (2, {"wrong-grid": 1})


def test_unmasked_scenes_pass_if_the_recipe_says_so(rig: Any) -> None:
    rig.wishes[0]["allow_unmasked"] = True
    rig.scene("image/d1/t1", masked=False)
    rig.patch(0, [["image/d1/t1"]])
    rig.extract()
    assert rig.ledger()[0, "image", 0, "2021-07"].mask_source == "none"
    assert (rig.stored(0)[1] == LEGEND["valid"]).all()


def test_leader_and_follower_stand_and_fall_together(rig: Any) -> None:
    rig.wishes.append({**rig.wishes[0], "id": "beside.toml", "follows": "image.toml"})
    rig.scene("image/d1/t1")
    rig.scene("image/d2/t1")
    rig.scene("beside/e1/t1", classes=clouds(0, 16))
    rig.scene("beside/e2/t1")
    for sample in (0, 1):
        rig.patch(sample, [["image/d1/t1"], ["image/d2/t1"]])
        rig.patch(sample, [["beside/e1/t1"], ["beside/e2/t1"]], product="beside", group="image")
    rig.patch(2, [["image/d1/t1"]])
    rig.patch(2, [["beside/e9/t1"]], product="beside", group="image")
    rig.patches[-1].candidates[0][0] = "beside/e3/t1"
    rig.scene("beside/e3/t1", classes=CLOUD)
    rig.extract()
    rows = rig.ledger()
    ranks = {(p, s): rows[0, p, s, "2021-07"].rank for p in ("image", "beside") for s in (0, 1)}
    assert ranks == {("image", 0): 1, ("beside", 0): 1, ("image", 1): 0, ("beside", 1): 0}
    assert rows[0, "image", 2, "2021-07"].reason == "with-group"
    assert rows[0, "beside", 2, "2021-07"].reason == "cloudy"


# --- failures --------------------------------------------------------------------------------


def break_file(rig: Any, how: str, scene: str = "image/d2/t1") -> None:
    path = rig.file(scene, "fine")
    if how == "gone":
        path.unlink()
    elif how == "not-an-image":
        path.write_text("<!DOCTYPE html><html>please log in</html>")
    elif how == "wrong-size":
        shutil.copy(rig.file("image/small/t1", "fine"), path)
    elif how == "wrong-grid":
        shutil.copy(rig.file("image/away/t1", "fine"), path)
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("how", ["gone", "not-an-image", "wrong-size", "wrong-grid", "truncated"])
def test_a_broken_file_is_a_failure_and_never_pixels(rig: Any, how: str) -> None:
    rig.scene("image/d1/t1")
    rig.scene("image/d2/t1", block=64)
    rig.scene("image/small/t1", edge=16)
    rig.scene("image/away/t1", col=1)
    rig.patch(0, [["image/d1/t1"]])
    rig.patch(1, [["image/d1/t1"]])
    # The next candidate is sound, but a failure does not fall back.
    rig.patch(2, [["image/d2/t1"], ["image/d1/t1"]])
    break_file(rig, how)
    report = rig.extract()
    assert report.written == 2
    assert report.failed == {how: 1}
    row = rig.ledger()[0, "image", 2, "2021-07"]
    assert (row.state, row.rank, row.pixel_digest) == ("failed", -1, "")


def test_one_bad_block_fails_only_the_patches_on_it(rig: Any) -> None:
    rig.scene("image/d1/t1")
    for sample in range(4):
        rig.patch(sample, [["image/d1/t1"]])
    path = rig.file("image/d1/t1", "fine")
    with __import__("rasterio").open(path) as file:
        offset = int(file.get_tag_item("BLOCK_OFFSET_2_0", "TIFF", bidx=1))
    data = bytearray(path.read_bytes())
    data[offset : offset + 40] = bytes(40)
    path.write_bytes(data)
    report = rig.extract()
    assert (report.written, report.failed) == (3, {"corrupt": 1})
    assert rig.ledger()[0, "image", 2, "2021-07"].state == "failed"


def test_if_over_half_fails_nothing_is_committed(rig: Any) -> None:
    rig.scene("image/d1/t1")
    rig.scene("image/d2/t1")
    rig.patch(0, [["image/d1/t1"]])
    for sample in (1, 2):
        rig.patch(sample, [["image/d2/t1"]])
    break_file(rig, "gone")
    with pytest.raises(TryAgain, match="2 of 3 patches failed"):
        rig.extract()
    assert rig.objects() == {}
    assert rig.extract(accept_failures=True).failed == {"gone": 2}


# --- resume ----------------------------------------------------------------------------------


def fill(rig: Any) -> None:
    for number in range(3):
        rig.scene(f"image/d{number}/t1", classes=clouds(0, 6 * number))
    for shard in range(3):
        for sample in range(3):
            for month in (7, 8):
                names = [f"image/d{(n + month) % 3}/t1" for n in range(3)]
                rig.patch(sample, [[n] for n in names], slot=f"2021-0{month}", shard=shard)


def test_resume_skips_what_is_committed_and_ends_in_the_same_bytes(rig: Any) -> None:
    fill(rig)
    rig.extract()
    whole, digest = rig.objects(), rig.digest()
    name = layout.shard_name(1, 1)
    rig.store.delete(layout.commit(name, 1))
    # What a killed attempt may have left behind.
    rig.store.put(f"{layout.shard_folder(name, 1)}/image/stray/c/0", b"left over")
    report = rig.extract()
    assert (report.shards, report.skipped) == (1, 2)
    assert rig.objects() == whole
    assert rig.digest() == digest
    assert rig.extract().shards == 0


def test_a_shard_that_is_committed_is_not_built_again(rig: Any) -> None:
    """A worker died after its commit, and the next one finds a source gone."""
    fill(rig)
    rig.extract()
    whole = rig.objects()
    break_file(rig, "gone", "image/d1/t1")
    report = build_shard(ShardOrder(rig.store.url, 1, 0, final=True, accept_failures=True))
    assert (report.committed, report.written) == (True, 6)
    assert rig.objects() == whole


def test_an_outcome_that_another_worker_began_is_left_alone_and_cleared_away(rig: Any) -> None:
    """A worker was taken for dead; what it had begun to write must not mix with ours."""
    fill(rig)
    rig.lock()
    name = layout.shard_name(1, 1)
    rig.store.put(layout.outcome(name, 1, 1), b"digest of what it wanted to write")
    rig.store.put(f"{layout.shard_folder(name, 1)}/zarr.json", b"the other's")
    rig.extract()
    assert read_commit(rig.store, name, 1).folder == f"shards/{name}/r1.2"
    assert list(rig.store.list(layout.shard_folder(name, 1))) == []
    commit = read_commit(rig.store, name, 1)
    assert ShardEntry.of(commit, "").name == f"{name}/r1.2"
    for key, (digest, _) in commit.objects.items():
        data = rig.store.get(f"{commit.folder}/{key}")
        assert hashlib.sha256(data).hexdigest() == digest


def test_of_two_outcomes_the_first_commit_counts(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(rig)
    rig.lock()
    slow = ShardOrder(rig.store.url, 1, 0, final=True, accept_failures=True, run="slow")
    fast = replace(slow, run="fast")
    done = []

    def overtaken(store: Any, commit: Any) -> Any:
        """Claim; then, before anything is written, another worker that sees less is faster."""
        mine = claim_folder(store, commit)
        monkeypatch.undo()
        break_file(rig, "gone", "image/d1/t1")
        done.append(build_shard(fast))
        return mine

    monkeypatch.setattr(shard_task, "claim_folder", overtaken)
    report = build_shard(slow)
    assert (report.written, report.failed) == (done[0].written, done[0].failed)
    assert report.failed.total() > 0
    commit = read_commit(rig.store, slow.name, 1)
    assert commit.folder == f"shards/{slow.name}/r1.2"
    kept = [key for key in rig.store.list("shards") if not key.endswith(".outcome")]
    assert kept == sorted(f"{commit.folder}/{key}" for key in commit.objects)


@pytest.mark.slow
def test_bytes_do_not_depend_on_workers(rig: Any) -> None:
    fill(rig)
    rig.extract()
    other = rig.elsewhere("other")
    with DaskEngine(workers=2) as engine:
        other.extract(engine)
    assert other.objects() == rig.objects()


def test_a_plan_that_was_tampered_with_is_refused(rig: Any) -> None:
    fill(rig)
    rig.lock()
    path = rig.folder / "root" / layout.plan(1)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(IntegrityError, match="locked"):
        rig.extract()


def test_without_a_plan_a_person_is_told_to_make_one(rig: Any) -> None:
    rig.shards = 1
    with pytest.raises(RecipeError, match="terrashard plan"):
        rig.extract()

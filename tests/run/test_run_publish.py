"""Publishing freezes what is committed, once, and never touches what it froze."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import IntegrityError, RecipeError
from pipeline.ports import ObjectStore
from pipeline.recipe import LoadedRecipe, Recipe
from pipeline.records import LedgerRow, Location, PlannedPatch
from pipeline.run.publish import run_publish
from pipeline.store import layout
from pipeline.store.commit import Commit, write_commit
from pipeline.store.ledger import dataset_digest
from pipeline.store.objects import open_store
from pipeline.store.shard import ArraySpec, image_key
from pipeline.store.tables import append, create_same, from_rows, write_table
from pipeline.store.version import read_version

PRODUCT = "sentinel-2-l2a"
BANDS = ("B02", "B03")


def recipe(folder: Path, **changes: Any) -> LoadedRecipe:
    values = {
        "name": "tiny",
        "sample": {"strategy": "uniform", "count": 10},
        "cell": {"lattice": "s2r10", "size_px": 240},
        "slots": {"kind": "months", "start": "2021-01-01", "end": "2022-01-01"},
        "product": [{"id": PRODUCT, "path": ".", "bands": list(BANDS)}],
        "split": {"block_km": 3, "train": 0.5, "val": 0.25, "test": 0.25},
    }
    return LoadedRecipe(Recipe.model_validate({**values, **changes}), folder)


def cell(k: int) -> Location:
    values: dict[str, Any] = {f.name: 0.0 for f in fields(Location)}
    values |= {"location": f"cell{k:03d}", "index": k, "zone": "33N", "epsg": 32633, "stratum": ""}
    values |= {"x_min_m": 3e5 + 24_000 * k, "y_max_m": 5e6, "size_m": 2400.0, "geometry": b"o"}
    return Location(**values)


def row(k: int, sample: int, state: str = "written") -> LedgerRow:
    good = state == "written"
    values = {name: [float(k)] * 2 if good else [] for name in ("mean", "minimum", "maximum")}
    return LedgerRow(
        sample=sample,
        time=0,
        location=f"cell{k:03d}",
        product=PRODUCT,
        slot="2021-01",
        state=state,  # type: ignore[arg-type]
        reason="" if good else "cloudy",
        detail="",
        rank=0 if good else -1,
        scenes=["s"] if good else [],
        acquired=datetime(2021, 1, 5, tzinfo=UTC) if good else None,
        clear_fraction=1.0 if good else None,
        valid_fraction=1.0 if good else None,
        mask_source="product",
        offset_audit="",
        absent_bands=[],
        defective_fraction=None,
        saturated_count=0,
        shift_x_px=0.0,
        shift_y_px=0.0,
        resampling="none",
        pixel_digest=f"{k:064d}" if good else "",
        residual=[],
        sources=[],
        count=[100] * 2 if good else [],
        m2=[0.0] * 2 if good else [],
        **values,
    )


def spec() -> ArraySpec:
    return ArraySpec(
        product=PRODUCT,
        samples=8,
        times=1,
        bands=BANDS,
        size_px=240,
        dtype="int16",
        fill=-32768.0,
        scale=1e-4,
        offset=0.0,
        unit="1",
        wavelength_nm=(490.0, 560.0),
        pixel_m=10.0,
        native_dtype="uint8",
        compression_level=3,
    )


def commit_shard(
    store: ObjectStore, loaded: LoadedRecipe, shard: int, rows: list[LedgerRow], **changes: Any
) -> None:
    key = image_key(PRODUCT, "bands")
    commit = Commit(
        shard=layout.shard_name(1, shard),
        revision=1,
        plan=1,
        identity=loaded.identity,
        plan_digest="",
        objects={key: ("0" * 64, 10)},
        specs={PRODUCT: spec()},
        ledger=from_rows(rows, LedgerRow),
    )
    write_commit(store, replace(commit, **changes))


@pytest.fixture
def root(tmp_path: Path) -> tuple[LoadedRecipe, ObjectStore]:
    """A root with 24 planned patches in three shards, of which none is built."""
    loaded, store = recipe(tmp_path), open_store(tmp_path / "root")
    append(store, layout.LOCATIONS, from_rows([cell(k) for k in range(24)], Location), Location)
    plan = [
        PlannedPatch(
            shard=k // 8,
            sample=k % 8,
            time=0,
            location=f"cell{k:03d}",
            product=PRODUCT,
            slot="2021-01",
            group=PRODUCT,
            candidates=[["s"]],
            epsg=32633,
            x_min_m=0.0,
            y_max_m=0.0,
            size_m=2400.0,
            lon_deg=0.0,
            lat_deg=0.0,
        )
        for k in range(24)
    ]
    write_table(store, layout.plan(1), from_rows(plan, PlannedPatch))
    create_same(store, layout.plan_header(1), b"{}")
    return loaded, store


def shard_rows(shard: int, rejected: tuple[int, ...] = ()) -> list[LedgerRow]:
    return [
        row(k, k % 8, "rejected" if k in rejected else "written")
        for k in range(8 * shard, 8 * shard + 8)
    ]


def test_nothing_committed_is_nothing_to_publish(root) -> None:
    with pytest.raises(RecipeError, match="no committed shard"):
        run_publish(*root)


def test_a_version_says_what_is_in_it(root) -> None:
    loaded, store = root
    commit_shard(store, loaded, 0, shard_rows(0, rejected=(3,)))
    commit_shard(store, loaded, 1, shard_rows(1))
    report = run_publish(loaded, store)
    assert (report.version, report.new, report.locations, report.pending) == (1, True, 15, 8)
    assert sum(report.patches[PRODUCT].values()) == 15
    assert report.dataset_digest == dataset_digest(store)
    version = read_version(store)
    assert version.counts["rejected"] == {"cloudy": 1}
    assert [entry.name for entry in version.shards] == ["p000001-s00000/r1", "p000001-s00001/r1"]
    assert version.shards[0].extents[PRODUCT].images == ("bands",)
    assert LoadedRecipe.restore(version.recipe).identity == loaded.identity
    assert str(loaded.folder) not in store.get(layout.version(1)).decode()


def test_statistics_leave_validation_and_test_out(root) -> None:
    loaded, store = root
    for shard in range(3):
        commit_shard(store, loaded, shard, shard_rows(shard))
    report = run_publish(loaded, store)
    values = layout.read_json(store, layout.version_file(1, "statistics.json"))[PRODUCT]
    train = report.patches[PRODUCT]["train"]
    assert 0 < train < 24
    assert values["patches"] == train
    assert values["bands"][0]["count"] == 100 * train
    assert values["bands"][0]["name"] == "B02"


def test_publishing_again_without_news_is_the_same_version(root) -> None:
    loaded, store = root
    commit_shard(store, loaded, 0, shard_rows(0))
    first = run_publish(loaded, store)
    before = list(store.list())
    again = run_publish(loaded, store)
    assert (again.version, again.new) == (1, False)
    assert replace(again, new=True) == first
    assert list(store.list()) == before


def test_news_make_a_new_version_and_the_old_one_stays(root) -> None:
    loaded, store = root
    commit_shard(store, loaded, 0, shard_rows(0, rejected=(3,)))
    run_publish(loaded, store)
    old = {key: store.get(key) for key in store.list(layout.VERSIONS)}
    commit_shard(store, loaded, 1, shard_rows(1))
    assert run_publish(loaded, store).version == 2
    healed = shard_rows(0)
    commit_shard(store, loaded, 0, healed, revision=2)
    assert run_publish(loaded, store).version == 3
    assert {key: store.get(key) for key in old} == old
    assert [e.revision for e in read_version(store, 2).shards] == [1, 1]
    assert [e.revision for e in read_version(store, 3).shards] == [2, 1]


def test_leftovers_of_a_killed_run_are_reused_or_passed_over_never_overwritten(root) -> None:
    loaded, store = root
    commit_shard(store, loaded, 0, shard_rows(0))
    run_publish(loaded, store)
    store.delete(layout.version(1))
    assert run_publish(loaded, store).version == 1, "its files were right, only the manifest lacked"
    store.delete(layout.version(1))
    commit_shard(store, loaded, 1, shard_rows(1))
    left = store.get(layout.version_file(1, "index.parquet"))
    assert run_publish(loaded, store).version == 2
    assert store.get(layout.version_file(1, "index.parquet")) == left
    assert run_publish(loaded, store).new is False


def test_commits_of_another_recipe_are_refused(root) -> None:
    loaded, store = root
    commit_shard(store, loaded, 0, shard_rows(0), identity="other")
    with pytest.raises(IntegrityError, match="belongs to another recipe"):
        run_publish(loaded, store)


def test_shards_that_differ_in_their_arrays_are_refused(root) -> None:
    loaded, store = root
    commit_shard(store, loaded, 0, shard_rows(0))
    other = replace(spec(), scale=1.0)
    commit_shard(store, loaded, 1, shard_rows(1), specs={PRODUCT: other})
    with pytest.raises(IntegrityError, match="shards differ"):
        run_publish(loaded, store)


@pytest.mark.parametrize("old", [0, 1])
def test_shards_from_before_widths_were_kept_go_with_newer_ones(root, old: int) -> None:
    loaded, store = root
    told = replace(spec(), fwhm_nm=(65.0, None))
    for shard in range(2):
        specs = {PRODUCT: spec() if shard == old else told}
        commit_shard(store, loaded, shard, shard_rows(shard), specs=specs)
    number = run_publish(loaded, store).version
    assert read_version(store, number).specs[PRODUCT].fwhm_nm == (65.0, None)


def test_a_root_of_another_recipe_is_refused(root, tmp_path: Path) -> None:
    loaded, store = root
    commit_shard(store, loaded, 0, shard_rows(0))
    run_publish(loaded, store)
    with pytest.raises(RecipeError, match="Choose another root"):
        run_publish(recipe(tmp_path, seed=5), store)

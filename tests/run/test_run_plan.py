"""`run_plan` on a root of its own: three files, growth from plan to plan, what it will cost."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import shapely

from pipeline.errors import IntegrityError, RecipeError, TryAgain
from pipeline.products.model import Product
from pipeline.raster.lattice import cells_from_corners
from pipeline.recipe import LoadedRecipe, Recipe
from pipeline.records import Asset, LedgerRow, Location, PlannedPatch, Scene
from pipeline.run.plan import PlanReport, run_plan
from pipeline.store import layout
from pipeline.store.commit import Commit, write_commit
from pipeline.store.objects import open_store
from pipeline.store.tables import append, from_rows, read_table, to_rows

PRODUCT = Product.model_validate(
    {
        "id": "image",
        "title": "made up",
        "lattice": "s2r10",
        "bands": [{"name": "fine", "pixel_m": 10}, {"name": "coarse", "pixel_m": 20}],
        "mask_layers": [{"name": "classes", "pixel_m": 20}],
        "settling_days": 5,
        "sources": ["made up"],
        "providers": {
            "simulated": {
                "collection": "image",
                "assets": {
                    "fine": [{"asset": "F"}],
                    "coarse": [{"asset": "C"}],
                    "classes": [{"asset": "Q"}],
                },
            }
        },
    }
)
MARCH = datetime(2021, 3, 6, tzinfo=UTC)


def recipe(*, end: str = "2021-04-01", shard_mb: float = 1.0, seed: int = 0) -> LoadedRecipe:
    values = {
        "name": "toy",
        "seed": seed,
        "sample": {"strategy": "uniform"},
        "cell": {"lattice": "s2r10", "size_px": 64},
        "slots": {"kind": "months", "start": "2021-01-01", "end": end},
        "product": [{"id": "image", "provider": "simulated", "candidates": 2}],
        "shards": {"shard_mb": shard_mb},
    }
    return LoadedRecipe(Recipe.model_validate(values), Path(), facts={"image": PRODUCT})


def locations(loaded: LoadedRecipe, first: int, count: int) -> list[Location]:
    """Return cells in a row, from west to east."""
    cells = cells_from_corners(
        [32633] * count,
        [500_480 + 640 * k for k in range(first, first + count)],
        [5_100_800] * count,
        loaded.lattice,
        64,
    )
    lon, lat = cells.centres()
    return [
        Location(
            location=cells.ids()[k],
            index=first + k,
            zone="33N",
            epsg=32633,
            x_min_m=float(cells.x_min_m[k]),
            y_max_m=float(cells.y_max_m[k]),
            size_m=640.0,
            lon_deg=float(lon[k]),
            lat_deg=float(lat[k]),
            stratum="",
            geometry=shapely.to_wkb(cells.outlines()[k]),
        )
        for k in range(count)
    ]


def scene(
    day: float, *, tile: str = "T", baseline: str = "05.00", size: int | None = None
) -> Scene:
    """Return a scene that sees everything within 50 km."""
    acquired = datetime(2021, 1, 1, tzinfo=UTC) + timedelta(days=day)
    take = f"S_{acquired:%Y%m%d}"
    return Scene(
        scene=f"image/{take}/{tile}",
        product="image",
        provider="simulated",
        item=f"{take}_{tile}_{baseline}",
        datatake=take,
        tile=tile,
        acquired=acquired,
        baseline=baseline,
        offset_add=0,
        cloud_percent=day % 7,
        sun_elevation_deg=40.0,
        epsg=32633,
        x_min_m=450_240.0,
        y_min_m=5_050_240.0,
        x_max_m=450_240.0 + 102_400,
        y_max_m=5_050_240.0 + 102_400,
        geometry=shapely.to_wkb(shapely.box(13, 44, 17, 48)),
        assets=[
            Asset(name=name, href=f"http://x/{take}/{name}", size_bytes=size, checksum=None)
            for name in "FCQ"
        ],
        band_indexes=[],
    )


@pytest.fixture
def store(tmp_path: Path) -> Any:
    return open_store(tmp_path / "root")


@pytest.fixture
def root(store: Any) -> Any:
    """A root with three cells and a scene every ten days of the first quarter."""
    append(store, layout.LOCATIONS, from_rows(locations(recipe(), 0, 3), Location), Location)
    append(store, layout.SCENES, from_rows([scene(d) for d in range(5, 90, 10)], Scene), Scene)
    return store


def patches(store: Any, number: int) -> list[PlannedPatch]:
    return to_rows(read_table(store, layout.plan(number)), PlannedPatch)


def commit(store: Any, number: int, states: dict[tuple[str, str], str]) -> None:
    """Write the commits of a plan, with the given states; what is not said was written."""
    digest = layout.read_json(store, layout.plan_header(number))["patches_sha256"]
    rows = patches(store, number)
    for shard in {row.shard for row in rows}:
        ledger = [
            LedgerRow(
                sample=row.sample,
                time=row.time,
                location=row.location,
                product=row.product,
                slot=row.slot,
                state=states.get((row.location, row.slot), "written"),  # type: ignore[arg-type]
                reason="",
                detail="",
                rank=0,
                scenes=[],
                acquired=None,
                clear_fraction=None,
                valid_fraction=None,
                mask_source="none",
                offset_audit="",
                absent_bands=[],
                defective_fraction=None,
                saturated_count=0,
                shift_x_px=0,
                shift_y_px=0,
                resampling="none",
                pixel_digest="",
                count=[],
                mean=[],
                m2=[],
                minimum=[],
                maximum=[],
                residual=[],
                sources=[],
            )
            for row in rows
            if row.shard == shard
        ]
        write_commit(
            store,
            Commit(
                shard=layout.shard_name(number, shard),
                revision=1,
                plan=number,
                identity=recipe().identity,
                plan_digest=digest,
                objects={},
                specs={},
                ledger=from_rows(ledger, LedgerRow),
            ),
        )


def test_a_plan_is_two_tables_and_a_header_that_locks_them(root: Any) -> None:
    loaded = recipe(shard_mb=0.05)
    report = run_plan(loaded, root, cutoff=MARCH)
    assert report.number == 1
    header = layout.read_json(root, layout.plan_header(1))
    for key, name in ((layout.plan(1), "patches"), (layout.plan_scenes(1), "scenes")):
        data = root.get(key)
        assert header[f"{name}_sha256"] == hashlib.sha256(data).hexdigest()
    rows = patches(root, 1)
    assert header["patches"] == len(rows) == 6
    assert {row.slot for row in rows} == {"2021-01", "2021-02"}
    assert all(len(row.candidates) == 2 for row in rows)
    assert LoadedRecipe.restore(header["recipe"]).identity == header["identity"] == loaded.identity
    assert header["cutoff"] == MARCH.isoformat()
    file = pq.ParquetFile(root.path(layout.plan(1)))
    groups = [file.read_row_group(k, ["shard"])["shard"] for k in range(file.num_row_groups)]
    assert [set(group.to_pylist()) for group in groups] == [{k} for k in range(header["shards"])]
    named = {name for row in rows for candidate in row.candidates for name in candidate}
    scenes = to_rows(read_table(root, layout.plan_scenes(1)), Scene)
    assert [row.scene for row in scenes] == sorted(named)
    assert all(len(row.assets) == 3 for row in scenes)


def test_a_dry_run_writes_nothing(root: Any) -> None:
    before = sorted(root.list())
    report = run_plan(recipe(), root, dry_run=True)
    assert report.number is None
    assert report.estimate is not None
    assert report.estimate.patches == 9
    assert sorted(root.list()) == before


def test_nothing_new_is_no_plan(root: Any) -> None:
    run_plan(recipe(), root)
    assert run_plan(recipe(), root) == PlanReport(None, None)
    assert layout.plan_header(2) not in set(root.list())


def test_each_plan_holds_what_is_new(root: Any) -> None:
    """Locations, months and scenes come one after another; nothing is planned twice."""
    run_plan(recipe(end="2021-02-01"), root)
    append(root, layout.LOCATIONS, from_rows(locations(recipe(), 3, 1), Location), Location)
    assert run_plan(recipe(end="2021-02-01"), root).number == 2
    assert run_plan(recipe(end="2021-04-01"), root, cutoff=MARCH).number == 3
    assert run_plan(recipe(end="2021-04-01"), root).number == 4
    slots = [[row.slot for row in patches(root, number)] for number in (1, 2, 3, 4)]
    assert slots == [["2021-01"] * 3, ["2021-01"], ["2021-02"] * 4, ["2021-03"] * 4]


def test_a_rejected_patch_opens_again_when_its_candidates_change(root: Any) -> None:
    loaded = recipe()
    run_plan(loaded, root)
    first, second, third = (row.location for row in locations(loaded, 0, 3))
    commit(root, 1, {(first, "2021-01"): "rejected", (second, "2021-01"): "failed"})
    assert run_plan(loaded, root).number is None
    append(root, layout.SCENES, from_rows([scene(14)], Scene), Scene)
    assert run_plan(loaded, root).number == 2
    assert [(row.location, row.slot) for row in patches(root, 2)] == [(first, "2021-01")]
    # It waits for its shard now, so it stays closed; `third` was written and stays so too.
    append(root, layout.SCENES, from_rows([scene(21)], Scene), Scene)
    assert run_plan(loaded, root).number is None
    assert third not in {row.location for row in patches(root, 2)}


def test_a_plan_takes_the_newest_baseline(root: Any) -> None:
    newer = replace(scene(5, baseline="05.10"), cloud_percent=0.0)
    append(root, layout.SCENES, from_rows([newer], Scene), Scene)
    run_plan(recipe(), root)
    scenes = to_rows(read_table(root, layout.plan_scenes(1)), Scene)
    assert newer in scenes
    assert len({row.scene for row in scenes}) == len(scenes)


def test_tables_of_a_run_that_was_stopped_do_not_matter(root: Any, tmp_path: Path) -> None:
    """Equal ones are used, others are left alone; only the header makes a plan."""
    run_plan(recipe(), root)
    rows, scenes = (root.get(key) for key in (layout.plan(1), layout.plan_scenes(1)))
    header = root.get(layout.plan_header(1))
    root.delete(layout.plan_header(1))
    root.delete(layout.plan_scenes(1))
    assert run_plan(recipe(), root).number == 1
    assert root.get(layout.plan_scenes(1)) == scenes
    assert root.get(layout.plan_header(1)) == header
    root.delete(layout.plan_header(1))
    assert run_plan(recipe(), root, cutoff=MARCH).number == 2
    assert root.get(layout.plan(1)) == rows


def test_a_plan_that_another_run_finished_is_not_overwritten(
    root: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run finishes between this one's reading and writing."""
    encode = run_plan.__globals__["encode_table"]

    def meanwhile(*args: Any, **values: Any) -> bytes:
        monkeypatch.undo()
        run_plan(recipe(), root, cutoff=MARCH)
        return bytes(encode(*args, **values))

    monkeypatch.setitem(run_plan.__globals__, "encode_table", meanwhile)
    with pytest.raises(TryAgain, match="meanwhile"):
        run_plan(recipe(), root)
    assert len([key for key in root.list(layout.PLANS) if key.endswith(".json")]) == 1


def test_a_root_without_scenes_or_of_another_recipe_is_refused(store: Any) -> None:
    with pytest.raises(RecipeError, match="terrashard sample"):
        run_plan(recipe(), store)
    append(store, layout.LOCATIONS, from_rows(locations(recipe(), 0, 1), Location), Location)
    with pytest.raises(RecipeError, match="terrashard search"):
        run_plan(recipe(), store)
    layout.claim(store, recipe())
    with pytest.raises(RecipeError, match="`seed` is 1 in the recipe and "):
        run_plan(recipe(seed=1), store)


def test_a_location_listed_twice_is_an_error(root: Any) -> None:
    append(root, layout.LOCATIONS, from_rows(locations(recipe(), 2, 1), Location), Location)
    with pytest.raises(IntegrityError, match="twice"):
        run_plan(recipe(), root)


def test_the_estimate_counts_blocks_once_for_each_shard(root: Any) -> None:
    """Three cells side by side share the blocks of each file."""
    stated = run_plan(recipe(), root, dry_run=True).estimate
    assert stated is not None
    # Three months, one scene each, three files each; all in one shard.
    assert (stated.samples, stated.patches, stated.scenes) == (3, 9, 3)
    assert (stated.shards, stated.requests) == (1, 3 * 3 * 2)
    # Bands of 16 bits, classes of 8, in blocks of 1024 pixels: at 10 m the cells touch two of
    # them, side by side, at 20 m one. Before them comes the head of each file.
    assert stated.bytes_to_download == 3 * (1024**2 * (2 * 2 + 2 + 1) + 3 * 2**16)
    assert stated.bytes_on_disk == 9 * 64**2 * (2 * 2 + 1 + 1)
    assert stated.peak_memory_bytes == stated.bytes_on_disk + 10**9
    assert stated.hours(8) == pytest.approx(stated.bytes_to_download / 3.6e9)


def test_the_estimate_counts_bands_that_only_the_mask_is_made_from(root: Any) -> None:
    values = PRODUCT.model_dump()
    del values["providers"]["simulated"]["assets"]["classes"]
    looked = {"blue": "fine", "red": "fine", "nir": "fine", "swir16": "coarse"}
    values["mask"] = {"method": "toa-thresholds", "bands": looked}
    plain = recipe().recipe
    wish = plain.product[0].model_copy(update={"bands": ("fine",)})
    loaded = LoadedRecipe(
        plain.model_copy(update={"product": (wish,)}),
        Path(),
        facts={"image": Product.model_validate(values)},
    )
    stated = run_plan(loaded, root, dry_run=True).estimate
    assert stated is not None
    assert stated.requests == 3 * 2 * 2
    assert stated.bytes_to_download == 3 * (1024**2 * (2 * 2 + 2) + 2 * 2**16)
    assert stated.bytes_on_disk == 9 * 64**2 * (2 + 1 + 1)


def test_the_estimate_uses_stated_sizes(store: Any) -> None:
    append(store, layout.LOCATIONS, from_rows(locations(recipe(), 0, 1), Location), Location)
    append(store, layout.SCENES, from_rows([scene(5, size=100_000_000)], Scene), Scene)
    stated = run_plan(recipe(), store, dry_run=True).estimate
    assert stated is not None
    assert (stated.patches, stated.without_candidates) == (1, 2)
    # Of 10 by 10 blocks at 10 m one is touched, at 20 m one of 5 by 5.
    assert stated.bytes_to_download == 1_000_000 + 2 * 4_000_000 + 3 * 2**16

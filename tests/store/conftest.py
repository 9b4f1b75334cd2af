"""A small data set, built with the store itself: two products, two shards, gaps in both."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.ports import ObjectStore
from pipeline.recipe import LoadedRecipe, Recipe
from pipeline.records import LedgerRow, Location, PlannedPatch
from pipeline.store import layout
from pipeline.store.commit import Commit, write_commit
from pipeline.store.objects import open_store
from pipeline.store.shard import ArraySpec, ShardWriter, encode_patch, store_shard
from pipeline.store.tables import append, create_same, from_rows, write_table

SIZE = {"optical": 16, "labels": 8}
BANDS = {"optical": ("red", "nir", "swir"), "labels": ("class",)}
DTYPE = {"optical": "int16", "labels": "uint8"}
MOMENTS = ("count", "mean", "m2", "minimum", "maximum")
FILL = {"optical": -32768.0, "labels": 0.0}

PRODUCT = """
id = "{id}"
title = "{id}"
kind = "{kind}"
temporal = "dated"
lattice = "s2r10"
stored_dtype = "{dtype}"
scale = 0.0001
sources = ["made for a test"]
bands = [{bands}]
"""

RECIPE = {
    "name": "small",
    "seed": 3,
    "sample": {"strategy": "grid", "region": [0, 0, 1, 1]},
    "cell": {"lattice": "s2r10", "size_px": 16},
    "slots": {"kind": "months", "start": "2021-01-01", "end": "2022-01-01"},
    "split": {"block_km": 1, "train": 0.5, "val": 0.25, "test": 0.25},
}


def spec_of(product: str, samples: int, times: int) -> ArraySpec:
    bands = BANDS[product]
    return ArraySpec(
        product=product,
        samples=samples,
        times=times,
        bands=bands,
        size_px=SIZE[product],
        dtype=DTYPE[product],
        fill=FILL[product],
        scale=0.0001,
        offset=0.0,
        unit="1",
        wavelength_nm=tuple(600.0 + 200 * k for k in range(len(bands)))
        if product == "optical"
        else (None,),
        pixel_m=10 if product == "optical" else 20,
        native_dtype="uint8" if product == "optical" else None,
        compression_level=3,
    )


@dataclass
class Root:
    """What was put into a root, to compare with what comes out."""

    url: str
    store: ObjectStore
    loaded: LoadedRecipe
    truth: dict[tuple[str, str, str], tuple[Any, Any]] = field(default_factory=dict)
    """(location, product, slot) of written patches to bands and mask."""
    states: list[str] = field(default_factory=list)


def _loaded(folder: Path) -> LoadedRecipe:
    for name in ("optical", "labels"):
        bands = ", ".join(
            f'{{name = "{band}", pixel_m = {160 / SIZE[name]}}}' for band in BANDS[name]
        )
        text = PRODUCT.format(
            id=name, kind="image" if name == "optical" else "labels", dtype=DTYPE[name], bands=bands
        )
        (folder / f"{name}.toml").write_text(text)
    wishes = [{"id": f"{name}.toml", "path": "."} for name in ("optical", "labels")]
    return LoadedRecipe(Recipe.model_validate({**RECIPE, "product": wishes}), folder)


def _locations(count: int) -> list[Location]:
    return [
        Location(
            location=f"33N-s2r10-16-{k:05d}-00007",
            index=count - k,
            zone="33N",
            epsg=32633,
            x_min_m=500_000.0 + 1600 * k,
            y_max_m=1120.0 + 160,
            size_m=160.0,
            lon_deg=15 + 0.01 * k,
            lat_deg=0.01,
            stratum="",
            geometry=b"outline",
        )
        for k in range(count)
    ]


def _state(location: int, product: str, time: int) -> tuple[str, str]:
    if location == 2:
        return "rejected", "cloudy"
    if (location, product, time) == (4, "optical", 1):
        return "failed", "truncated"
    return "written", ""


def build(url: str, folder: Path, *, locations: int = 6, seed: int = 0) -> Root:
    """Write locations, one plan and two shards with their commits."""
    store = open_store(url)
    root = Root(url, store, _loaded(folder))
    rng = np.random.default_rng(seed)
    layout.claim(store, root.loaded)
    cells = _locations(locations)
    append(store, layout.LOCATIONS, from_rows(cells, Location), Location)
    half = locations // 2
    plan: list[PlannedPatch] = []
    commits = []
    for shard, members in enumerate((cells[:half], cells[half:])):
        specs = {p: spec_of(p, len(members), 2) for p in ("optical", "labels")}
        writer, ledger = ShardWriter(specs), []
        for product, spec in specs.items():
            scenes = np.full((len(members), 2), "", dtype=object)
            times = np.full((len(members), 2), "NaT", dtype="M8[us]")
            for sample, cell in enumerate(members):
                for time in range(2):
                    state, reason = _state(cells.index(cell), product, time)
                    acquired = datetime(2021, 1 + time, 3, tzinfo=UTC) + timedelta(hours=sample)
                    slot, scene = f"2021-{time + 1:02d}", f"{product}/d{time}/t"
                    common = {
                        "sample": sample,
                        "time": time,
                        "location": cell.location,
                        "product": product,
                        "slot": slot,
                    }
                    plan.append(
                        PlannedPatch(
                            shard=shard,
                            group=product,
                            candidates=[[scene]],
                            epsg=cell.epsg,
                            x_min_m=cell.x_min_m,
                            y_max_m=cell.y_max_m,
                            size_m=cell.size_m,
                            lon_deg=cell.lon_deg,
                            lat_deg=cell.lat_deg,
                            **common,
                        )
                    )
                    values: dict[str, list[Any]] = {name: [] for name in MOMENTS}
                    digest = ""
                    if state == "written":
                        scenes[sample, time] = scene
                        times[sample, time] = np.datetime64(acquired.replace(tzinfo=None), "us")
                        bands = rng.integers(0, 90, spec.shape).astype(spec.dtype)
                        mask = rng.integers(0, 9, spec.shape[1:]).astype("uint8")
                        if product == "labels" and time:
                            bands[:] = 0
                        native = mask + 1 if spec.native_dtype else None
                        patch = encode_patch(spec, bands, mask, native)
                        writer.put(product, sample, time, patch)
                        root.truth[cell.location, product, slot] = (bands, mask)
                        digest = patch.digest
                        flat = bands.reshape(len(spec.bands), -1).astype(float)
                        values = {
                            "count": [flat.shape[1]] * len(flat),
                            "mean": flat.mean(axis=1).tolist(),
                            "m2": (flat.var(axis=1) * flat.shape[1]).tolist(),
                            "minimum": flat.min(axis=1).tolist(),
                            "maximum": flat.max(axis=1).tolist(),
                        }
                    root.states.append(state)
                    ledger.append(
                        ledger_row(state, reason, scene, acquired, digest, common, values)
                    )
            writer.set_coordinates(
                product,
                location=[cell.location for cell in members],
                epsg=[cell.epsg for cell in members],
                x_origin_m=[cell.x_min_m for cell in members],
                y_origin_m=[cell.y_max_m for cell in members],
                scene=scenes,
                acquired=times,
            )
        name = layout.shard_name(1, shard)
        objects = store_shard(store, layout.shard_folder(name, 1), writer)
        commits.append((name, objects, specs, ledger))
    write_table(store, layout.plan(1), from_rows(plan, PlannedPatch))
    create_same(store, layout.plan_header(1), layout.dump_json({"plan": 1}))
    for name, objects, specs, ledger in commits:
        write_commit(
            store,
            Commit(
                shard=name,
                revision=1,
                plan=1,
                identity=root.loaded.identity,
                plan_digest="",
                objects=objects,
                specs=specs,
                ledger=from_rows(ledger, LedgerRow),
            ),
        )
    return root


def ledger_row(
    state: str,
    reason: str,
    scene: str,
    acquired: datetime,
    digest: str,
    common: dict[str, Any],
    values: dict[str, list[Any]],
) -> LedgerRow:
    written = state == "written"
    return LedgerRow(
        state=state,
        reason=reason,
        detail="",
        rank=0 if written else -1,
        scenes=[scene] if written else [],
        acquired=acquired if written else None,
        clear_fraction=0.5 if written else None,
        valid_fraction=1.0 if written else None,
        mask_source="product",
        offset_audit="",
        absent_bands=[],
        defective_fraction=None,
        saturated_count=0,
        shift_x_px=0.0,
        shift_y_px=0.0,
        resampling="none",
        pixel_digest=digest,
        residual=[],
        sources=[],
        **common,
        **values,
    )


@pytest.fixture(scope="session")
def _built(tmp_path_factory: pytest.TempPathFactory) -> Root:
    folder = tmp_path_factory.mktemp("small")
    return build(str(folder / "root"), folder)


@pytest.fixture
def small(_built: Root, tmp_path: Path) -> Root:
    """A data set with everything but a version; a copy, so tests may damage it."""
    url = str(tmp_path / "root")
    shutil.copytree(_built.url, url)
    return replace(_built, url=url, store=open_store(url))

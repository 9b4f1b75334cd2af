"""A small published root for the rooms that learn from one: classes are patterns, not colours."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import settings

from pipeline.ports import ObjectStore
from pipeline.raster.statistics import moments
from pipeline.recipe import LoadedRecipe, Recipe
from pipeline.records import LedgerRow, Location, PlannedPatch
from pipeline.run.publish import run_publish
from pipeline.store import layout
from pipeline.store.commit import Commit, write_commit
from pipeline.store.objects import open_store
from pipeline.store.shard import ArraySpec, ShardWriter, encode_patch, store_shard
from pipeline.store.tables import append, create_same, from_rows, write_table

# Threads of torch and BLAS wait in a spin: where tests run side by side that costs nine tenths of
# the time (measured on 2 busy cores). Read when they are loaded, here and in child processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A slow machine is no failure of a law.
settings.register_profile("terrashard", deadline=None)
settings.load_profile("terrashard")

SLOTS = ("2021-01", "2021-02")
BANDS = {"image": "abcd", "labels": "c", "radar": "xy"}
CELL_M, SIZE_PX, LABEL_PX, LOCATIONS = 160.0, 16, 8, 24

PRODUCT = """
id = "{id}"
title = "{id}"
kind = "{kind}"
temporal = "{temporal}"
lattice = "s2r10"
stored_dtype = "{dtype}"
bands = [{bands}]
sources = ["made for a test"]
"""

RECIPE: dict[str, Any] = {
    "name": "patterns",
    "seed": 1,
    "sample": {"strategy": "grid", "region": [0, 0, 1, 1]},
    "cell": {"lattice": "s2r10", "size_px": SIZE_PX},
    "slots": {"kind": "months", "start": "2021-01-01", "end": "2021-03-01"},
    "split": {"block_km": 0.16, "train": 0.5, "val": 0.2, "test": 0.3},
}


@dataclass(frozen=True)
class Published:
    """A root with one version of `image` (4 bands), `labels` (static, 8 px) and `radar`.

    `image` and `radar` (2 bands) have 16 pixels and show the same patterns.
    """

    store: ObjectStore
    folder: Path

    def recipe(self, **tables: Any) -> LoadedRecipe:
        """Return its recipe with other tables, such as `pretrain` or `evaluate`."""
        wishes = [{"id": f"{name}.toml", "path": "."} for name in BANDS]
        values = {**RECIPE, "product": wishes, **tables}
        return LoadedRecipe(Recipe.model_validate(values), self.folder)


@pytest.fixture
def small_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `backbone = "small"` be timm's own ResNet for tests."""
    from pipeline.pretrain.encoders import backbones
    from pipeline.recipe import training

    monkeypatch.setitem(backbones.RESNETS, "small", "test_resnet")
    monkeypatch.setattr(training, "BACKBONES", (*training.BACKBONES, "small"))


@pytest.fixture
def published(_published_once: Path, tmp_path: Path, small_backbone: None) -> Published:
    """A root of its own, to train in, also with the encoder of `small_backbone`."""
    folder = tmp_path / "published"
    shutil.copytree(_published_once, folder)
    return Published(open_store(folder / "root"), folder)


@pytest.fixture
def published_yearly(tmp_path: Path, small_backbone: None) -> Published:
    """A root whose labels are maps of a year, one for each slot, and differ between the slots."""
    return _publish(tmp_path, "yearly")


@pytest.fixture(scope="session")
def _published_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _publish(tmp_path_factory.mktemp("published"), "static").folder


def _publish(folder: Path, labels: str) -> Published:
    for name, kind, temporal, dtype, pixel_m in (
        ("image", "image", "dated", "int16", 10),
        ("labels", "labels", labels, "uint8", 20),
        ("radar", "image", "dated", "int16", 10),
    ):
        listed = ", ".join(f'{{name = "{band}", pixel_m = {pixel_m}}}' for band in BANDS[name])
        text = PRODUCT.format(id=name, kind=kind, temporal=temporal, dtype=dtype, bands=listed)
        more = 'ignore_class = 0\nclasses = {1 = "rows", 2 = "columns"}\n'
        (folder / f"{name}.toml").write_text(text + (more if kind == "labels" else ""))
    root = Published(open_store(folder / "root"), folder)
    _fill(root.store, root.recipe(), yearly=labels == "yearly")
    run_publish(root.recipe(), root.store)
    return root


def _fill(store: ObjectStore, loaded: LoadedRecipe, *, yearly: bool) -> None:
    layout.claim(store, loaded)
    cells = [_cell(k) for k in range(LOCATIONS)]
    append(store, layout.LOCATIONS, from_rows(cells, Location), Location)
    specs = {name: _spec(loaded, name, yearly=yearly) for name in BANDS}
    writer = ShardWriter(specs)
    ledger: list[LedgerRow] = []
    plan: list[PlannedPatch] = []
    rng = np.random.default_rng(0)
    for product, spec in specs.items():
        scenes = np.full((LOCATIONS, spec.times), "", dtype=object)
        times = np.full((LOCATIONS, spec.times), "NaT", dtype="M8[us]")
        for sample, cell in enumerate(cells):
            first = np.random.default_rng(100 + sample).integers(1, 3, (2, 2))
            # Every third location was seen once only.
            for time in range(min(spec.times, 1 if sample % 3 == 0 else 2)):
                labels = 3 - first if yearly and time else first
                bands = len(spec.bands)
                stored = _labels(labels) if product == "labels" else _image(labels, bands, rng)
                mask = np.full(stored.shape[1:], 8, "uint8")
                if product == "image" and sample == 1:
                    mask[:2], stored[:, :2] = 0, -32768
                patch = encode_patch(spec, stored, mask, None)
                writer.put(product, sample, time, patch)
                acquired = datetime(2021, 1 + time, 3, tzinfo=UTC)
                scenes[sample, time] = f"{product}/{time}/t"
                times[sample, time] = np.datetime64(acquired.replace(tzinfo=None), "us")
                place = {
                    "sample": sample,
                    "time": time,
                    "location": cell.location,
                    "product": product,
                    "slot": SLOTS[time],
                }
                plan.append(_planned(cell, place))
                ledger.append(_row(place, acquired, stored, mask, patch.digest))
        writer.set_coordinates(
            product,
            location=[cell.location for cell in cells],
            epsg=[cell.epsg for cell in cells],
            x_origin_m=[cell.x_min_m for cell in cells],
            y_origin_m=[cell.y_max_m for cell in cells],
            scene=scenes,
            acquired=times,
        )
    write_table(store, layout.plan(1), from_rows(plan, PlannedPatch))
    create_same(store, layout.plan_header(1), layout.dump_json({"plan": 1}))
    name = layout.shard_name(1, 0)
    commit = Commit(
        shard=name,
        revision=1,
        plan=1,
        identity=loaded.identity,
        plan_digest="",
        objects=store_shard(store, layout.shard_folder(name, 1), writer),
        specs=specs,
        ledger=from_rows(ledger, LedgerRow),
    )
    write_commit(store, commit)


def _image(labels: np.ndarray, bands: int, rng: np.random.Generator) -> np.ndarray:
    """Stripes along rows or columns in each quarter: equal histograms, different patterns."""
    stripes = np.where(np.arange(8) % 2, 300, -300)
    quarters = {1: np.repeat(stripes[:, None], 8, 1), 2: np.repeat(stripes[None], 8, 0)}
    plain = np.block([[quarters[int(code)] for code in row] for row in labels])
    gain = rng.uniform(0.5, 1.5, (bands, 1, 1))
    noise = rng.normal(0, 60, (bands, SIZE_PX, SIZE_PX))
    return (1000 + gain * plain + noise).round().astype("int16")


def _labels(labels: np.ndarray) -> np.ndarray:
    codes = np.kron(labels, np.ones((4, 4))).astype("uint8")[None]
    codes[0, 0, 0] = 0
    return codes


def _cell(k: int) -> Location:
    return Location(
        location=f"33N-s2r10-16-{k:05d}-00007",
        index=k,
        zone="33N",
        epsg=32633,
        x_min_m=500_000.0 + 1600 * k,
        y_max_m=1280.0,
        size_m=CELL_M,
        lon_deg=15 + 0.01 * k,
        lat_deg=0.01,
        stratum="",
        geometry=b"outline",
    )


def _spec(loaded: LoadedRecipe, product: str, *, yearly: bool) -> ArraySpec:
    facts, bands = loaded.products[product], loaded.bands(product)
    return ArraySpec(
        product=product,
        samples=LOCATIONS,
        times=1 if product == "labels" and not yearly else 2,
        bands=bands,
        size_px=LABEL_PX if product == "labels" else SIZE_PX,
        dtype=facts.stored_dtype,
        fill=facts.fill,
        scale=facts.scale,
        offset=facts.offset,
        unit=facts.unit,
        wavelength_nm=(None,) * len(bands),
        pixel_m=facts.bands[0].pixel_m,
        native_dtype=None,
        compression_level=3,
    )


def _planned(cell: Location, place: dict[str, Any]) -> PlannedPatch:
    return PlannedPatch(
        shard=0,
        group=place["product"],
        candidates=[["scene"]],
        epsg=cell.epsg,
        x_min_m=cell.x_min_m,
        y_max_m=cell.y_max_m,
        size_m=cell.size_m,
        lon_deg=cell.lon_deg,
        lat_deg=cell.lat_deg,
        **place,
    )


def _row(
    place: dict[str, Any], acquired: datetime, stored: np.ndarray, mask: np.ndarray, digest: str
) -> LedgerRow:
    found = moments(stored, np.broadcast_to(mask == 0, stored.shape))
    lists = ("count", "mean", "m2", "minimum", "maximum")
    return LedgerRow(
        state="written",
        reason="",
        detail="",
        rank=0,
        scenes=["scene"],
        acquired=acquired,
        clear_fraction=1.0,
        valid_fraction=float((mask > 0).mean()),
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
        **place,
        **{name: getattr(found, name).tolist() for name in lists},
    )


@pytest.fixture(scope="session")
def bucket() -> Iterator[Callable[[str], str]]:
    """A real S3 server on loopback; returns a function from a prefix to its URL."""
    import warnings

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")  # moto's own imports
        import logging

        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        server.start()
        try:
            address = f"http://127.0.0.1:{port}"
            patch.setenv("AWS_ENDPOINT_URL", address)
            patch.setenv("AWS_ACCESS_KEY_ID", "testing")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
            patch.setenv("AWS_REGION", "us-east-1")
            httpx.put(f"{address}/bucket", trust_env=False).raise_for_status()
            yield lambda prefix: f"s3://bucket/{prefix}"
        finally:
            server.stop()

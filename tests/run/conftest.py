"""A hand-made archive on disk and a plan over it; every pixel is a function of its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import zarr
from numpy.typing import NDArray
from rasterio.transform import Affine

from pipeline.engine.serial import SerialEngine
from pipeline.ports import Engine
from pipeline.recipe import LoadedRecipe, Recipe
from pipeline.records import Asset, LedgerRow, PlannedPatch, Scene
from pipeline.run.extract import ExtractReport, run_extract
from pipeline.store import layout
from pipeline.store.commit import newest, read_commit
from pipeline.store.ledger import dataset_digest
from pipeline.store.objects import open_store
from pipeline.store.tables import from_rows, to_rows, write_table
from pipeline.watch.progress import Progress

WEST_M, NORTH_M, EPSG, CELL_PX, CELL_M = 300_015.0, 5_000_025.0, 32633, 16, 480.0
NODATA = -999
#: Quality codes of the archive: 0 nothing, 1 land, 2 cloud.
PRODUCT = """
id = "{id}"
title = "{id}"
lattice = "enmap30"
nodata = -999
bands = [
  {{name = "a", index = 1, pixel_m = 30}},
  {{name = "b", index = 2, pixel_m = 30}},
  {{name = "wide", index = 1, pixel_m = 60}},
]
mask_layers = [{{name = "classes", pixel_m = 30}}]
mask_rules = [
  {{layer = "classes", values = [0], code = "fill"}},
  {{layer = "classes", values = [2], code = "cloud"}},
  {{layer = "classes", values = [1], code = "land"}},
]
sources = ["made for a test"]
[providers.local]
collection = "{id}"
[providers.local.assets]
a = [{{asset = "fine"}}]
b = [{{asset = "fine"}}]
wide = [{{asset = "coarse"}}]
classes = [{{asset = "classes"}}]
[providers.simulated]
like = "local"
collection = "{id}"
"""


def truth(scene: int, band: int, east_m: NDArray[Any], south_m: NDArray[Any]) -> NDArray[Any]:
    """Return what a scene delivers at metres from the archive's corner (pixel centres)."""
    col, row = np.floor(east_m / 30).astype(int), np.floor(south_m / 30).astype(int)
    return ((col * 71 + row * 137 + band * 1009 + scene * 3001) % 9000 - 400).astype("int16")


@dataclass
class Rig:
    """Scenes on disk, a plan over them, and the root they are extracted to."""

    folder: Path
    wishes: list[dict[str, Any]]
    scenes: dict[str, Scene] = field(default_factory=dict)
    patches: list[PlannedPatch] = field(default_factory=list)
    shards: int = 0
    root: str = "root"

    @property
    def store(self) -> Any:
        return open_store(self.folder / self.root)

    @property
    def loaded(self) -> LoadedRecipe:
        recipe = Recipe.model_validate(
            {
                "name": "rig",
                "sample": {"strategy": "grid", "region": (0, 0, 1, 1)},
                "cell": {"lattice": "enmap30", "size_px": CELL_PX},
                "slots": {"kind": "months", "start": "2021-01-01", "end": "2022-01-01"},
                "product": self.wishes,
            }
        )
        return LoadedRecipe(recipe, self.folder)

    def scene(
        self,
        name: str,
        *,
        col: int = 0,
        row: int = 0,
        edge: int = 64,
        classes: NDArray[Any] | None = None,
        empty: tuple[slice, slice] | None = None,
        block: int = 16,
        masked: bool = True,
    ) -> str:
        """Write a scene's files; `empty` are pixels (y, x) without any value.

        It starts `col`, `row` pixels of 30 m from the archive's corner, and has `edge` of them.
        """
        number = len(self.scenes)
        folder = self.folder / "scenes" / name.replace("/", "_")
        folder.mkdir(parents=True)
        fine, coarse = self._pixels(number, col, row, edge), self._wide(number, col, row, edge)
        if empty is not None:
            fine[:, empty[0], empty[1]] = NODATA
            half = [slice(part.start // 2, part.stop // 2) for part in empty]
            coarse[:, half[0], half[1]] = NODATA
        quality = np.ones((edge, edge), "uint8") if classes is None else classes
        layers = {"fine": (fine, 30.0), "coarse": (coarse, 60.0)}
        if masked:
            layers["classes"] = (quality[None], 30.0)
        corner = WEST_M + col * 30, NORTH_M - row * 30
        for layer, (pixels, pixel_m) in layers.items():
            _write(folder / f"{layer}.tif", pixels, corner, pixel_m, block)
        product, datatake, tile = name.split("/")
        self.scenes[name] = Scene(
            scene=name,
            product=product,
            provider="local",
            item=name,
            datatake=datatake,
            tile=tile,
            acquired=datetime(2021, 7, 1, tzinfo=UTC) + timedelta(days=number),
            baseline="",
            offset_add=0,
            cloud_percent=None,
            sun_elevation_deg=None,
            epsg=EPSG,
            x_min_m=corner[0],
            y_min_m=corner[1] - edge * 30,
            x_max_m=corner[0] + edge * 30,
            y_max_m=corner[1],
            geometry=b"",
            assets=[
                Asset(name=a, href=str(folder / f"{a}.tif"), size_bytes=None, checksum=None)
                for a in layers
            ],
            band_indexes=[],
        )
        return name

    def file(self, scene: str, asset: str) -> Path:
        """Return the path of a scene's file."""
        return next(Path(a.href) for a in self.scenes[scene].assets if a.name == asset)

    def patch(
        self,
        sample: int,
        candidates: Sequence[Sequence[str]],
        *,
        product: str = "image",
        group: str | None = None,
        slot: str = "2021-07",
        shard: int = 0,
    ) -> None:
        """Plan a patch; cell number n lies n cells east of the archive's corner."""
        time = sum(
            p.sample == sample and p.product == product and p.shard == shard for p in self.patches
        )
        self.patches.append(
            PlannedPatch(
                shard=shard,
                sample=sample,
                time=time,
                location=f"cell-{shard}-{sample}",
                product=product,
                slot=slot,
                group=group or product,
                candidates=[list(c) for c in candidates],
                epsg=EPSG,
                x_min_m=WEST_M + sample * CELL_M,
                y_max_m=NORTH_M,
                size_m=CELL_M,
                lon_deg=12.0,
                lat_deg=45.0,
            )
        )

    def lock(self) -> None:
        """Write the plan."""
        key = lambda p: (p.shard, p.product, p.sample, p.time)  # noqa: E731
        self.shards = len({p.shard for p in self.patches})
        layout.claim(self.store, self.loaded)
        write_plan(self, sorted(self.patches, key=key), list(self.scenes.values()))

    def extract(self, engine: Engine | None = None, **values: Any) -> ExtractReport:
        """Plan, if that was not done, and extract."""
        if not self.shards:
            self.lock()
        machines = engine or SerialEngine()
        with Progress(live=False) as progress:
            return run_extract(
                self.loaded, self.store, machines, progress=progress, pause_s=0, **values
            )

    def elsewhere(self, root: str, *, planned: bool = False) -> Rig:
        """Return the same archive and plan, for another root; `planned`: its plan is written."""
        return replace(self, root=root, shards=self.shards if planned else 0)

    def ledger(self) -> dict[tuple[int, str, int, str], LedgerRow]:
        """Return every ledger row by shard number, product, sample and slot."""
        found = {}
        for shard, revision in newest(self.store).items():
            for row in to_rows(read_commit(self.store, shard, revision).ledger, LedgerRow):
                number = layout.parse_shard(shard)[1]
                found[number, row.product, row.sample, row.slot] = row
        return found

    def stored(self, sample: int, *, product: str = "image", time: int = 0) -> tuple[Any, Any]:
        """Return bands and mask of a patch of shard 0, by zarr-python."""
        revision = newest(self.store)[layout.shard_name(1, 0)]
        folder = self.folder / self.root / layout.shard_folder(layout.shard_name(1, 0), revision)
        group = zarr.open_group(folder, mode="r")[product]
        return group["bands"][sample, time], group["mask"][sample, time]

    def truth(self, scene: str, sample: int) -> NDArray[Any]:
        """Return the bands of a cell as a scene delivers them, the coarse one repeated."""
        number = list(self.scenes).index(scene)
        col = sample * CELL_PX
        wide = self._wide(number, col, 0, CELL_PX).repeat(2, axis=1).repeat(2, axis=2)
        return np.concatenate([self._pixels(number, col, 0, CELL_PX), wide])

    def digest(self) -> str:
        """Return the data set's digest."""
        return dataset_digest(self.store)

    def objects(self) -> dict[str, bytes]:
        """Return every shard object and commit by key."""
        keys = [k for folder in (layout.SHARDS, layout.COMMITS) for k in self.store.list(folder)]
        return {key: self.store.get(key) for key in keys}

    def _pixels(self, number: int, col: int, row: int, edge: int) -> NDArray[Any]:
        south, east = np.mgrid[0:edge, 0:edge] * 30.0 + 15
        return np.stack([truth(number, band, east + col * 30, south + row * 30) for band in (0, 1)])

    def _wide(self, number: int, col: int, row: int, edge: int) -> NDArray[Any]:
        south, east = np.mgrid[0 : edge // 2, 0 : edge // 2] * 60.0 + 30
        return truth(number, 2, east + col * 30, south + row * 30)[None]


def write_plan(rig: Rig, patches: list[PlannedPatch], scenes: list[Scene]) -> None:
    import hashlib

    tables = {
        "patches": write_table(rig.store, layout.plan(1), from_rows(patches, PlannedPatch)),
        "scenes": write_table(rig.store, layout.plan_scenes(1), from_rows(scenes, Scene)),
    }
    header = {
        "recipe": rig.loaded.dump(),
        "identity": rig.loaded.identity,
        "shards": rig.shards,
        **{f"{name}_sha256": hashlib.sha256(data).hexdigest() for name, data in tables.items()},
    }
    rig.store.put(layout.plan_header(1), layout.dump_json(header))


def _write(
    path: Path, pixels: NDArray[Any], corner: tuple[float, float], pixel_m: float, block: int
) -> None:
    bands, height, width = pixels.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=bands,
        dtype=pixels.dtype,
        crs=f"EPSG:{EPSG}",
        transform=Affine(pixel_m, 0, corner[0], 0, -pixel_m, corner[1]),
        tiled=True,
        blockxsize=block,
        blockysize=block,
        compress="deflate",
        interleave="pixel",
    ) as file:
        file.write(pixels)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """One product, no clouds allowed."""
    for name in ("image", "beside"):
        (tmp_path / f"{name}.toml").write_text(PRODUCT.format(id=name))
    return Rig(tmp_path, [wish()])


def wish(name: str = "image", **values: Any) -> dict[str, Any]:
    """Return the wish for a product of the rig."""
    return {"id": f"{name}.toml", "path": ".", "max_cloud_fraction": 0.1, **values}

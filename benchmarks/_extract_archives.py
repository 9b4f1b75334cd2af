"""The two archives of the extraction benchmark, and the plans over them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import Affine
from rasterio.windows import Window

from pipeline.products.catalogue import load_product
from pipeline.recipe import LoadedRecipe, Recipe
from pipeline.records import Asset, PlannedPatch, Scene
from pipeline.store import layout
from pipeline.store.objects import open_store
from pipeline.store.tables import from_rows, write_table

EPSG = 32633
#: EnMAP's quality layers; all clear.
LAYERS = ("classes", "cloud", "cloudshadow", "haze", "cirrus", "snow", "testflags")


@dataclass(frozen=True)
class Patch:
    """One patch of the benchmark: what a method needs to read it."""

    x_min_m: float
    y_max_m: float
    size_m: float
    size_px: int
    files: tuple[tuple[str, Path, float], ...]
    """Name, file and pixel size of every image file of its scene."""


@dataclass(frozen=True)
class Case:
    """An archive, its plan, and its patches by shard."""

    root: Path
    recipe: dict[str, Any]
    patches: tuple[tuple[Patch, ...], ...]

    @property
    def count(self) -> int:
        """How many patches there are."""
        return sum(map(len, self.patches))

    def loaded(self) -> LoadedRecipe:
        """Return the recipe."""
        return LoadedRecipe(Recipe.model_validate(self.recipe), self.root.parent)

    def files(self) -> list[Path]:
        """Return every file of the archive."""
        return sorted((self.root.parent / "files").rglob("*.tif"))

    def shares(self) -> list[list[Patch]]:
        """Return the patches as the shards have them."""
        return [list(shard) for shard in self.patches]

    def few(self, count: int) -> list[Patch]:
        """Return some patches, spread over the archive."""
        every = [patch for shard in self.patches for patch in shard]
        return [every[(2 * k + 1) * len(every) // (2 * count)] for k in range(count)]


def enmap_case(folder: Path, *, quick: bool) -> Case:
    """Four cubes of 1200 x 1200 x 224, each tiled into 81 patches of 128 px: one shard each.

    The third and fourth have the pixels of the first and second, under names of their own.
    """
    bands, edge = 224, 640 if quick else 1200
    cells = (edge - 37) // 128
    scenes, shards = [], []
    made = []
    for number in range(2):
        corner = 300_015.0 + 100_000 * number, 5_000_025.0
        files = {"image": _cube(folder / "files" / f"{number}", number, corner, edge, bands)}
        for layer in LAYERS:
            path = folder / "files" / f"{number}" / f"{layer}.tif"
            files[_enmap_asset(layer)] = _flat(path, corner, edge, 30, 1)
        made.append((corner, files))
    made += [
        (corner, _again(files, folder / "files" / f"{number}"))
        for number, (corner, files) in enumerate(made, start=2)
    ]
    for number, (corner, files) in enumerate(made):
        scenes.append(_scene("enmap-l2a", number, corner, edge * 30, files, 0))
        # Cells are tiles of the fixed tiling, and scenes begin anywhere: windows straddle blocks.
        spots = [(37 + 128 * x, 21 + 128 * y) for y in range(cells) for x in range(cells)]
        shards.append([(corner, spot) for spot in spots])
    return _case(folder, "enmap-l2a", "enmap30", 128, 30, scenes, shards, bands="all")


def sentinel_case(folder: Path, *, quick: bool) -> Case:
    """Four dates of a tile of 10,980 px, 12 bands in files of their own, with 96 cells of 264 px.

    The later dates have the first one's pixels, under names of their own. One shard a date.
    """
    edge = 5_490 if quick else 10_980
    product = load_product("sentinel-2-l2a")
    corner = 300_000.0, 5_000_040.0
    base = _texture(np.random.default_rng(0), edge)
    files = {}
    for number, band in enumerate(product.bands):
        step = round(band.pixel_m / 10)
        path = folder / "files" / "0" / f"{band.name}.tif"
        pixels = (base[::step, ::step] // (1 + number % 3) + 1100 + 60 * number).astype("uint16")
        files[f"{band.name}_{band.pixel_m:.0f}m"] = _single(path, corner, pixels, band.pixel_m)
    files["SCL_20m"] = _flat(folder / "files" / "0" / "SCL.tif", corner, edge // 2, 20, 4)
    dates = [files, *(_again(files, folder / "files" / f"{number}") for number in (1, 2, 3))]
    scenes = [
        _scene("sentinel-2-l2a", number, corner, edge * 10, paths, -1000)
        for number, paths in enumerate(dates)
    ]
    cells = edge // 264
    chosen = np.random.default_rng(1).choice(cells * cells, 48 if quick else 96, replace=False)
    spots = sorted((264 * int(k // cells), 264 * int(k % cells)) for k in chosen)
    shards = [[(corner, (x, y)) for y, x in spots]] * 4
    return _case(folder, "sentinel-2-l2a", "s2r10", 264, 10, scenes, shards, bands="default")


def _case(
    folder: Path,
    product: str,
    lattice: str,
    size_px: int,
    pixel_m: float,
    scenes: list[Scene],
    shards: list[list[tuple[tuple[float, float], tuple[int, int]]]],
    *,
    bands: str,
) -> Case:
    recipe = {
        "name": "bench",
        "sample": {"strategy": "grid", "region": (0, 0, 1, 1)},
        "cell": {"lattice": lattice, "size_px": size_px},
        "slots": {"kind": "months", "start": "2021-01-01", "end": "2022-01-01"},
        "product": [{"id": product, "path": ".", "bands": bands, "max_cloud_fraction": 0.1}],
    }
    rows, patches = [], []
    for shard, spots in enumerate(shards):
        scene = scenes[shard]
        own = []
        for sample, (corner, (col, row)) in enumerate(spots):
            x_min_m, y_max_m = corner[0] + col * pixel_m, corner[1] - row * pixel_m
            size_m = size_px * pixel_m
            rows.append(_planned(shard, sample, product, scene, x_min_m, y_max_m, size_m))
            images = tuple(
                (a.name, Path(a.href), _pixel_m(a.name, pixel_m))
                for a in scene.assets
                if a.name == "image" or a.name.startswith("B")
            )
            own.append(Patch(x_min_m, y_max_m, size_m, size_px, images))
        patches.append(tuple(own))
    root = folder / "root"
    case = Case(root, recipe, tuple(patches))
    _write_plan(case, rows, scenes)
    return case


def _pixel_m(asset: str, finest_m: float) -> float:
    return float(asset.split("_")[1][:-1]) if "_" in asset else finest_m


def _enmap_asset(layer: str) -> str:
    names = {"cloudshadow": "cloud_shadow"}
    return f"quality_{names.get(layer, layer)}"


def _planned(
    shard: int, sample: int, product: str, scene: Scene, x_m: float, y_m: float, size_m: float
) -> PlannedPatch:
    return PlannedPatch(
        shard=shard,
        sample=sample,
        time=0,
        location=f"{shard}-{sample}",
        product=product,
        slot="2021-07",
        group=product,
        candidates=[[scene.scene]],
        epsg=EPSG,
        x_min_m=x_m,
        y_max_m=y_m,
        size_m=size_m,
        lon_deg=12.0,
        lat_deg=45.0,
    )


def _scene(
    product: str,
    number: int,
    corner: tuple[float, float],
    edge_m: float,
    files: dict[str, Path],
    offset_add: int,
) -> Scene:
    return Scene(
        scene=f"{product}/d{number}/t",
        product=product,
        provider="local",
        item=f"d{number}",
        datatake=f"d{number}",
        tile="t",
        acquired=datetime(2021, 7, 1, tzinfo=UTC),
        baseline="05.00",
        offset_add=offset_add,
        cloud_percent=0.0,
        sun_elevation_deg=50.0,
        epsg=EPSG,
        x_min_m=corner[0],
        y_min_m=corner[1] - edge_m,
        x_max_m=corner[0] + edge_m,
        y_max_m=corner[1],
        geometry=b"",
        assets=[
            Asset(name=name, href=str(path), size_bytes=None, checksum=None)
            for name, path in files.items()
        ],
    )


def _write_plan(case: Case, rows: list[PlannedPatch], scenes: list[Scene]) -> None:
    store, loaded = open_store(case.root), case.loaded()
    layout.claim(store, loaded)
    rows.sort(key=lambda row: (row.shard, row.product, row.sample, row.time))
    patches = write_table(store, layout.plan(1), from_rows(rows, PlannedPatch))
    named = write_table(store, layout.plan_scenes(1), from_rows(scenes, Scene))
    header = {
        "recipe": loaded.dump(),
        "identity": loaded.identity,
        "shards": len(case.patches),
        "patches_sha256": hashlib.sha256(patches).hexdigest(),
        "scenes_sha256": hashlib.sha256(named).hexdigest(),
    }
    store.put(layout.plan_header(1), layout.dump_json(header))


# --- pixels ----------------------------------------------------------------------------------


def _texture(rng: np.random.Generator, edge: int) -> NDArray[np.int32]:
    """Return fields of some size with noise on top: it compresses to 0.6, about as land does."""
    field = np.zeros((edge, edge), "int32")
    for grain, height in ((183, 900), (31, 400), (6, 160)):
        coarse = rng.integers(0, height, (edge // grain + 2,) * 2, dtype="int32")
        field += coarse.repeat(grain, 0)[:edge].repeat(grain, 1)[:, :edge]
    return field + rng.integers(0, 100, field.shape, dtype="int32")


def _cube(folder: Path, seed: int, corner: tuple[float, float], edge: int, bands: int) -> Path:
    """Write a pixel-interleaved cube: a few spectra, mixed, with noise in every value."""
    folder.mkdir(parents=True)
    path = folder / "image.tif"
    rng = np.random.default_rng(seed)
    ground = _texture(rng, edge)
    wave = np.linspace(0, 6, bands)
    spectra = [1500 + 900 * np.sin(wave + phase) for phase in (0.0, 1.3, 2.9)]
    shares = np.stack([(ground // d) % 100 / 300 for d in (7, 11, 13)])
    profile = _profile(corner, edge, 30, bands, "int16", 512)
    with rasterio.open(path, "w", interleave="pixel", **profile) as file:
        for row in range(0, edge, 512):
            rows = min(512, edge - row)
            block = np.tensordot(np.stack(spectra, 1), shares[:, row : row + rows], axes=1)
            block += rng.normal(0, 12, block.shape)
            file.write(block.astype("int16"), window=Window(0, row, edge, rows))
    return path


def _again(files: dict[str, Path], folder: Path) -> dict[str, Path]:
    """Give files a second name each: another scene with the same pixels, without its disk space."""
    folder.mkdir()
    names = {name: folder / path.name for name, path in files.items()}
    for name, path in files.items():
        names[name].hardlink_to(path)
    return names


def _single(path: Path, corner: tuple[float, float], pixels: NDArray[Any], pixel_m: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = _profile(corner, len(pixels), pixel_m, 1, pixels.dtype.name, 1024)
    with rasterio.open(path, "w", predictor=2, **profile) as file:
        file.write(pixels, 1)
    return path


def _flat(path: Path, corner: tuple[float, float], edge: int, pixel_m: float, code: int) -> Path:
    code = 0 if path.stem in LAYERS[1:] else code
    return _single(path, corner, np.full((edge, edge), code, "uint8"), pixel_m)


def _profile(
    corner: tuple[float, float], edge: int, pixel_m: float, bands: int, dtype: str, block: int
) -> dict[str, Any]:
    return {
        "driver": "GTiff",
        "width": edge,
        "height": edge,
        "count": bands,
        "dtype": dtype,
        "crs": f"EPSG:{EPSG}",
        "transform": Affine(pixel_m, 0, corner[0], 0, -pixel_m, corner[1]),
        "tiled": True,
        "blockxsize": block,
        "blockysize": block,
        "compress": "deflate",
        "bigtiff": "if_safer",
    }

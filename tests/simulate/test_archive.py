"""Files against the truth: every product, random pixels, grids, nodata, quality layers, bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely

from pipeline.errors import RecipeError
from pipeline.products.catalogue import load_product
from pipeline.products.model import LEGEND
from pipeline.raster.masks import decode
from pipeline.raster.zones import northing_from_equator, to_plane
from pipeline.simulate.archive import make_archive
from pipeline.simulate.delivery.orbits import REAL, scenes_over, tile_name
from pipeline.simulate.delivery.scenes import ABSENT_BANDS
from pipeline.simulate.service.server import ArchiveServer
from pipeline.simulate.truth.ground import legend_codes, reflectance
from pipeline.simulate.truth.landscape import landscape
from pipeline.simulate.truth.noise import Place

ENMAP, SENTINEL = load_product("enmap-l2a"), load_product("sentinel-2-l2a")
LAYERS = {
    "classes": "quality_classes",
    "cloud": "quality_cloud",
    "cloudshadow": "quality_cloud_shadow",
    "haze": "quality_haze",
    "cirrus": "quality_cirrus",
    "snow": "quality_snow",
    "testflags": "quality_testflags",
}


def items(archive: Path, collection: str) -> list[dict[str, Any]]:
    providers = json.loads((archive / "archive.json").read_text())["providers"]
    return next(shelf[collection]["items"] for shelf in providers.values() if collection in shelf)


def when(item: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(item["properties"]["datetime"]).astimezone(UTC)


def samples(raster: Any, count: int, seed: int) -> Iterator[tuple[int, int, Place]]:
    """Yield random pixels and their centres, worked out from the file's own georeference."""
    rng = np.random.default_rng(seed)
    for row, column in rng.integers(0, raster.shape, (count, 2)).tolist():
        x, y = raster.xy(row, column)
        n = northing_from_equator(raster.crs.to_epsg(), y)
        assert x == int(x)
        assert n == int(n)
        yield row, column, Place(33, np.array([int(x)]), np.array([int(n)]))


def test_every_enmap_value_is_the_truth(archive: Path) -> None:
    names = [band.name for band in ENMAP.bands]
    seen = 0
    for item in items(archive, "ENMAP_HSI_L2A")[::3]:
        absent = ABSENT_BANDS[item["properties"]["version"]]
        with rasterio.open(archive / item["assets"]["image"]["href"]) as raster:
            values = raster.read()
            assert (raster.dtypes[0], raster.nodata, raster.count) == ("int16", -32768, 224)
            for row, column, place in samples(raster, 12, 1):
                found = values[:, row, column]
                if (found == -32768).all():
                    continue
                seen += 1
                truth = reflectance(ENMAP, names, place, when(item))[:, 0, 0]
                expected = [
                    -32768 if band.index in absent else int(value)
                    for band, value in zip(ENMAP.bands, truth, strict=True)
                ]
                assert found.tolist() == expected
    assert seen > 20


def test_enmap_quality_layers_decode_to_the_truth(archive: Path) -> None:
    for item in items(archive, "ENMAP_HSI_L2A")[::2]:
        paths = {name: archive / item["assets"][key]["href"] for name, key in LAYERS.items()}
        layers = {name: _read(path) for name, path in paths.items()}
        mask = decode(layers, ENMAP)
        with rasterio.open(archive / item["assets"]["image"]["href"]) as raster:
            values = raster.read(1)
            for row, column, place in samples(raster, 15, 2):
                truth = int(legend_codes(ENMAP, place, when(item))[0, 0])
                unseen = values[row, column] == -32768
                assert mask[row, column] == (LEGEND["fill"] if unseen else truth)
        assert ((values == -32768) == (mask == LEGEND["fill"])).all()
        assert 0.5 < (mask != LEGEND["fill"]).mean() < 0.85  # a rotated swath in an upright raster


def test_defective_values_are_few_and_inside(archive: Path) -> None:
    item = items(archive, "ENMAP_HSI_L2A")[0]
    mask = _read(archive / item["assets"]["defective_pixel_mask"]["href"], band=None)
    classes = _read(archive / item["assets"]["quality_classes"]["href"])
    assert mask.shape[0] == 224
    assert 0 < mask.mean() < 0.01
    assert not mask[:, classes == 3].any()


@pytest.mark.parametrize("band", ["B02", "B8A", "B12", "B01"])
def test_every_sentinel_value_is_the_truth(archive: Path, band: str) -> None:
    seen = 0
    for item in items(archive, "sentinel-2-l2a")[::3]:
        with rasterio.open(archive / item["assets"][band]["href"]) as raster:
            values = raster.read(1)
            assert (raster.dtypes[0], raster.nodata) == ("uint16", 0)
            for row, column, place in samples(raster, 12, 3):
                if values[row, column]:
                    seen += 1
                    truth = int(reflectance(SENTINEL, [band], place, when(item)).item())
                    assert values[row, column] == max(truth + 1000, 1)
    assert seen > 20


def test_sentinel_classes_decode_to_the_truth(archive: Path) -> None:
    for item in items(archive, "sentinel-2-l2a")[::3]:
        with rasterio.open(archive / item["assets"]["SCL"]["href"]) as raster:
            classes = raster.read(1)
            mask = decode({"scl": classes}, SENTINEL)
            for row, column, place in samples(raster, 15, 4):
                truth = int(legend_codes(SENTINEL, place, when(item))[0, 0])
                assert mask[row, column] == (truth if classes[row, column] else LEGEND["fill"])
        share = 100 * (classes == 0).mean()
        assert item["properties"]["s2:nodata_pixel_percentage"] == pytest.approx(share, abs=1e-5)


def test_labels_are_the_truth(archive: Path) -> None:
    (item,) = items(archive, "simulated-labels")
    with rasterio.open(archive / item["assets"]["labels"]["href"]) as raster:
        values = raster.read(1)
        for row, column, place in samples(raster, 60, 5):
            assert values[row, column] == landscape(place).arrangement[0, 0]


def test_no_offset_before_baseline_four(tmp_path: Path, arguments: dict[str, Any]) -> None:
    older = {"products": ["sentinel-2-l2a"], "start": date(2021, 5, 1), "end": date(2021, 5, 29)}
    make_archive(tmp_path / "old", **{**arguments, **older})
    item = items(tmp_path / "old", "sentinel-2-l2a")[0]
    assert item["properties"]["s2:processing_baseline"] == "03.01"
    with rasterio.open(tmp_path / "old" / item["assets"]["B04"]["href"]) as raster:
        values = raster.read(1)
        for row, column, place in samples(raster, 30, 6):
            if values[row, column]:
                truth = int(reflectance(SENTINEL, ["B04"], place, when(item)).item())
                assert values[row, column] == max(truth, 1)


# --- grids and swaths -----------------------------------------------------------------------------


def test_pixel_edges_lie_on_the_real_lattices(archive: Path) -> None:
    for item in items(archive, "ENMAP_HSI_L2A"):
        grid = item["assets"]["image"]["proj:transform"]
        assert (grid[2] % 30, grid[5] % 30, len(grid)) == (15, 15, 9)
    for item in items(archive, "sentinel-2-l2a"):
        for asset in item["assets"].values():
            assert [asset["proj:transform"][i] % 60 for i in (2, 5)] == [0, 0]


def test_the_real_tiles_have_their_names_and_corners() -> None:
    """Corners of recorded items: T32TMT at (399960, 5300040), T29UNU at (499980, 5900040)."""
    for zone, name, corner in ((32, "32TMT", (399960, 5300040)), (29, "29UNU", (499980, 5900040))):
        spot = shapely.box(corner[0] + 50_000, corner[1] - 50_000, corner[0] + 51_000, corner[1])
        days = (date(2023, 7, 1), date(2023, 7, 6))
        found = scenes_over(REAL["sentinel-2-*"], zone, spot, *days)
        corners = {scene.tile: (scene.x_min_m, scene.y_max_m) for scene in found}
        assert corners[name] == corner
        assert {scene.width_m for scene in found} == {109_800}


def test_southern_rasters_lie_on_the_southern_lattice() -> None:
    spot = shapely.box(500_000, -3_000_000, 501_000, -2_999_000)
    days = (date(2023, 7, 1), date(2023, 8, 1))
    enmap = scenes_over(REAL["enmap-l2a"], 33, spot, *days)
    assert {(s.epsg, s.x_min_m % 30, s.y_max_m % 30) for s in enmap} == {(32733, 15, 15)}
    sentinel = scenes_over(REAL["sentinel-2-*"], 33, spot, *days)
    assert {(s.epsg, s.x_min_m % 60, s.y_max_m % 60) for s in sentinel} == {(32733, 0, 40)}


def test_tile_names_are_unique_in_a_zone() -> None:
    names = [tile_name(33, column, row, 100_000) for column in range(2, 8) for row in range(20)]
    assert len(set(names)) == len(names)


def test_adjacent_swaths_and_frames_overlap_and_leave_no_gap(archive: Path) -> None:
    found = items(archive, "ENMAP_HSI_L2A")
    shapes = [shapely.geometry.shape(item["geometry"]) for item in found]
    union = shapely.union_all(shapes)
    assert union.geom_type == "Polygon"
    assert not union.interiors
    by_take: dict[str, list[shapely.Geometry]] = {}
    for item, shape in zip(found, shapes, strict=True):
        by_take.setdefault(item["properties"]["enmap:datatakeID"], []).append(shape)
    frames = next(group for group in by_take.values() if len(group) > 1)
    assert shapely.union_all(frames).geom_type == "Polygon"
    takes = [shapely.union_all(group) for group in by_take.values()]
    assert any(
        0 < shapely.intersection(a, b).area < 0.6 * a.area
        for a in takes
        for b in takes
        if a is not b
    )


def test_footprints_are_what_was_seen(archive: Path) -> None:
    """Pixel centres inside the footprint hold data, those outside do not."""
    for collection, key in (("ENMAP_HSI_L2A", "image"), ("sentinel-2-l2a", "B04")):
        for item in items(archive, collection)[:4]:
            with rasterio.open(archive / item["assets"][key]["href"]) as raster:
                seen = raster.read(1) != raster.nodata
                rows, columns = np.nonzero(np.ones(raster.shape, bool))
                grid = raster.transform
                x = grid.c + grid.a * (columns + 0.5)
                y = grid.f + grid.e * (rows + 0.5)
            ring = shapely.get_coordinates(shapely.geometry.shape(item["geometry"]))
            shape = shapely.Polygon(np.stack(to_plane(ring[:, 0], ring[:, 1], 33), axis=-1))
            inside = shapely.contains_xy(shape, x, y).reshape(seen.shape)
            near = shapely.dwithin(shape.exterior, shapely.points(x, y), 0.5).reshape(seen.shape)
            assert (inside == seen)[~near].all()


# --- the whole ------------------------------------------------------------------------------------


def test_two_builds_have_equal_bytes(
    archive: Path, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    make_archive(tmp_path / "again", **arguments, workers=1)
    assert _digests(tmp_path / "again") == _digests(archive)


def test_files_are_laid_out_for_the_cloud(archive: Path) -> None:
    """The directory stands before the pixels, so that one read of the head finds every block."""
    for path in list((archive / "files").rglob("*_image.tif"))[:2]:
        head = path.read_bytes()[:8]
        assert head[:4] == b"II*\0"
        assert int.from_bytes(head[4:], "little") < 1024
        with rasterio.open(path) as raster:
            assert raster.interleaving.name == "pixel"
            assert raster.block_shapes[0][0] <= 512


def test_a_used_folder_and_an_empty_request_are_refused(
    archive: Path, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    with pytest.raises(RecipeError, match="not empty"):
        make_archive(archive, **arguments)
    with pytest.raises(RecipeError, match="landsat"):
        make_archive(tmp_path, **{**arguments, "products": ["landsat"]})
    with pytest.raises(RecipeError, match="period"):
        make_archive(tmp_path, **{**arguments, "end": arguments["start"]})


def test_an_interrupted_archive_is_made_again(
    archive: Path, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    def stop(scenes: int) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        make_archive(folder, **arguments, advance=stop)
    assert any((folder / "files").rglob("*.tif"))
    with pytest.raises(RecipeError, match=r"archive\.json"):
        ArchiveServer(folder)
    make_archive(folder, **arguments)
    assert _digests(folder) == _digests(archive)


def _read(path: Path, band: int | None = 1) -> np.ndarray[Any, Any]:
    with rasterio.open(path) as raster:
        return np.asarray(raster.read() if band is None else raster.read(band))


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }

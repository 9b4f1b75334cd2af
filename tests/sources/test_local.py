"""Product folders as users have them become items, whole, cut down or broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.transform import Affine

from pipeline.errors import RecipeError
from pipeline.products.catalogue import load_product
from pipeline.products.model import Product
from pipeline.records import Scene, Unusable
from pipeline.sources.local.folders import local_items
from pipeline.sources.providers import check_href, load_provider
from pipeline.stages.extract import masked as is_masked
from pipeline.stages.search.normalise import normalise

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
REAL = Path(__file__).resolve().parents[1] / "real"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="real data (../shared/data) not here")

ENMAP = load_product("enmap-l2a")
SENTINEL = load_product("sentinel-2-l2a")
STEM = "ENMAP01-____L2A-DT0000326721_20220724T104526Z_008_V010402_20220801T000000Z"
LAYERS = ("CLASSES", "CLOUD", "CLOUDSHADOW", "HAZE", "CIRRUS", "SNOW")


def write_tiff(path: Path, *, epsg: int | None = 32633, at: Affine | None = None) -> None:
    transform = at or Affine(30, 0, 364095, 0, -30, 5809965)
    crs = None if epsg is None else CRS.from_epsg(epsg)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=40,
        height=20,
        count=1,
        dtype="int16",
        crs=crs,
        transform=transform,
    ) as raster:
        raster.write(np.zeros((1, 20, 40), "int16"))


def write_enmap(folder: Path, *, metadata: str | None = None, suffix: str = ".TIF") -> Path:
    folder.mkdir(parents=True)
    write_tiff(folder / f"{STEM}-SPECTRAL_IMAGE{suffix}")
    for layer in LAYERS:
        write_tiff(folder / f"{STEM}-QL_QUALITY_{layer}{suffix}")
    write_tiff(folder / f"{STEM}-QL_PIXELMASK{suffix}")
    if metadata is not None:
        (folder / f"{STEM}-METADATA.XML").write_text(metadata)
    return folder


def enmap_metadata(*, bands: int = 224, corners: tuple[tuple[float, float], ...] = ()) -> str:
    frames = ("upper_left", "lower_left", "lower_right", "upper_right")
    points = "".join(
        f"<point><frame>{frame}</frame><latitude>{lat}</latitude>"
        f"<longitude>{lon}</longitude></point>"
        for frame, (lon, lat) in zip(frames, corners, strict=False)
    )
    table = "".join(
        f'<bandID number="{band.index}"><wavelengthCenterOfBand>{band.wavelength_nm}'
        f"</wavelengthCenterOfBand><FWHMOfBand>{band.fwhm_nm}</FWHMOfBand></bandID>"
        for band in ENMAP.bands[:bands]
    )
    return (
        "<level_X><base><spatialCoverage><boundingPolygon>" + points + "</boundingPolygon>"
        "</spatialCoverage><temporalCoverage><startTime>2022-07-24T10:45:26.999936Z</startTime>"
        "</temporalCoverage></base><specific><datatakeID>0000326721</datatakeID>"
        "<sunElevationAngle><upper_left>1</upper_left><center>63.5</center></sunElevationAngle>"
        "<qualityFlag><cloudCover>7</cloudCover></qualityFlag>"
        "<bandCharacterisation>" + table + "</bandCharacterisation></specific>"
        "<product><broken"  # never read so far
    )


def rows(path: Path, product: Product) -> list[Scene | Unusable]:
    items = list(local_items(path, product))
    json.dumps(items)  # items are JSON, like those of any catalogue
    return [normalise(item, product, "local", None) for item in items]


def only(path: Path, product: Product) -> Scene:
    (row,) = rows(path, product)
    assert isinstance(row, Scene), row
    return row


def reason(path: Path, product: Product) -> str:
    (row,) = rows(path, product)
    assert isinstance(row, Unusable), row
    return row.reason


# --- EnMAP ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".TIF", "_COG.TIF", ".tif"])
def test_an_enmap_folder_without_metadata_goes_by_its_name(tmp_path: Path, suffix: str) -> None:
    scene = only(write_enmap(tmp_path / "a" / "b", suffix=suffix).parent, ENMAP)
    assert scene.scene == "enmap-l2a/0000326721/8"
    assert scene.baseline == "01.04.02"
    assert scene.acquired.isoformat() == "2022-07-24T10:45:26+00:00"
    assert scene.cloud_percent is None
    assert scene.sun_elevation_deg == pytest.approx(56.9, abs=0.1), "by time and place"
    assert (scene.epsg, scene.x_max_m - scene.x_min_m) == (32633, 1200)
    names = {asset.name for asset in scene.assets}
    assert {"image", "quality_cloud_shadow", "defective_pixel_mask"} <= names
    assert "quality_testflags" not in names, "only files that are there"
    for asset in scene.assets:
        check_href(load_provider("local"), asset.href)
        assert Path(asset.href).stat().st_size == asset.size_bytes


def test_metadata_tell_clouds_sun_time_and_footprint(tmp_path: Path) -> None:
    bounds = (13.0, 52.41, 13.02, 52.43)
    west, south, east, north = bounds
    middle = (west + east) / 2
    corners = ((west, north), (west, south), (middle, south), (middle, north))
    scene = only(write_enmap(tmp_path / "s", metadata=enmap_metadata(corners=corners)), ENMAP)
    assert scene.cloud_percent == 7
    assert scene.sun_elevation_deg == 63.5
    assert scene.acquired.microsecond == 999_936
    seen = shapely.from_wkb(scene.geometry)
    assert seen.bounds[2] == pytest.approx(middle)
    bare = only(write_enmap(tmp_path / "bare"), ENMAP)
    assert shapely.from_wkb(bare.geometry).contains(seen.buffer(-1e-9))


@pytest.mark.parametrize(
    ("level", "images", "word"),
    [
        ("L1B", ("SPECTRAL_IMAGE_VNIR", "SPECTRAL_IMAGE_SWIR"), "take product enmap-l1b"),
        ("L1C", ("SPECTRAL_IMAGE",), "take product enmap-l1c"),
    ],
)
def test_other_levels_are_named_and_not_taken(
    tmp_path: Path, level: str, images: tuple[str, ...], word: str
) -> None:
    for image in images:
        write_tiff(tmp_path / f"{STEM.replace('L2A', level)}-{image}.TIF", epsg=None)
    (row,) = rows(tmp_path, ENMAP)
    assert isinstance(row, Unusable)
    assert row.reason == "unreadable"
    assert word in row.detail


def test_a_folder_without_all_bands_serves_those_that_it_has(tmp_path: Path) -> None:
    write_enmap(tmp_path / "s", metadata=enmap_metadata(bands=218))
    (item,) = local_items(tmp_path, ENMAP)
    row = normalise(item, ENMAP, "local", None, bands=("B001", "B219"))
    assert isinstance(row, Unusable)
    assert row.reason == "other-bands"
    some = normalise(item, ENMAP, "local", None, bands=("B001", "B218"))
    assert isinstance(some, Scene)
    assert some.band_indexes == [*range(1, 219), *[0] * 6]


@needs_data
def test_a_folder_s_own_table_comes_before_its_version(tmp_path: Path) -> None:
    """Its name says 01.04.02; the table in its METADATA.XML is that of an older processor."""
    table = (DATA / "enmap" / "metadata" / "enmap_wavelength.xml").read_text()
    rows = table[table.index("<bandID") : table.rindex("</bandCharacterisation>")]
    metadata = enmap_metadata(bands=0).replace(
        "<bandCharacterisation>", f"<bandCharacterisation>{rows}"
    )
    scene = only(write_enmap(tmp_path / "s", metadata=metadata), ENMAP)
    assert scene.band_indexes[:142] == [
        *range(1, 82), 83, 82, *range(84, 100), 101, 100, *range(102, 136), 0, *range(136, 142),
    ]  # fmt: skip


def test_a_broken_folder_is_listed_and_stops_no_other(tmp_path: Path) -> None:
    write_enmap(tmp_path / "good")
    broken = write_enmap(tmp_path / "broken", metadata="<level_X><base>")
    found = rows(tmp_path, ENMAP)
    assert sorted(type(row).__name__ for row in found) == ["Scene", "Unusable"]
    (broken / f"{STEM}-METADATA.XML").unlink()
    (broken / f"{STEM}-SPECTRAL_IMAGE.TIF").write_bytes(b"<!DOCTYPE html>")
    assert reason(broken, ENMAP) == "unreadable"


def test_a_vrt_in_disguise_is_not_opened(tmp_path: Path) -> None:
    folder = write_enmap(tmp_path / "s")
    secret = tmp_path / "secret.tif"
    write_tiff(secret)
    (folder / f"{STEM}-SPECTRAL_IMAGE.TIF").write_text(
        '<VRTDataset rasterXSize="40" rasterYSize="20"><VRTRasterBand dataType="Int16" band="1">'
        f"<SimpleSource><SourceFilename>{secret}</SourceFilename></SimpleSource>"
        "</VRTRasterBand></VRTDataset>"
    )
    assert reason(folder, ENMAP) == "unreadable"


@pytest.mark.parametrize(
    ("epsg", "transform"),
    [
        (None, Affine(30, 0, 364095, 0, -30, 5809965)),
        (32633, Affine(30, 0, 364095, 0, -20, 5809965)),
        (32633, Affine(29.5, 5.2, 364095, 5.2, -29.5, 5809965)),
    ],
)
def test_rasters_without_a_usable_grid_are_listed(
    tmp_path: Path, epsg: int | None, transform: Affine
) -> None:
    folder = write_enmap(tmp_path / "s")
    write_tiff(folder / f"{STEM}-SPECTRAL_IMAGE.TIF", epsg=epsg, at=transform)
    assert reason(folder, ENMAP) == "unreadable"


@needs_data
def test_real_enmap_patches_touch_and_share_a_datatake() -> None:
    found = rows(DATA / "enmap" / "hyspecnet", ENMAP)
    assert [type(row) for row in found] == [Scene, Scene]
    left, right = (row for row in found if isinstance(row, Scene))
    assert left.datatake == right.datatake == "0000004950"
    assert left.scene != right.scene
    assert (left.epsg, left.x_min_m, left.y_max_m) == (32618, 688005, 4561935)
    assert left.x_max_m == right.x_min_m == 691845
    assert len(left.assets) == 9
    # Without METADATA.XML the table of its processor (01.01.10) holds.
    assert left.band_indexes == right.band_indexes
    places = dict(zip((band.name for band in ENMAP.bands), left.band_indexes, strict=True))
    assert [places[name] for name in ("B082", "B083", "B142", "B160", "B168")] == [
        83, 82, 141, 159, 168,
    ]  # fmt: skip
    shapes = [shapely.from_wkb(row.geometry) for row in (left, right)]
    assert shapely.union_all(shapes).buffer(1e-9).geom_type == "Polygon"


@needs_data
def test_the_real_pre_launch_metadata_are_read_and_refused_for_their_218_bands(
    tmp_path: Path,
) -> None:
    (real,) = (DATA / "enmap" / "metadata").glob("*-METADATA.XML")
    stem = real.name.removesuffix("-METADATA.XML")
    shutil.copy(real, tmp_path / real.name)
    west_north = Affine(30, 0, 642825, 0, -30, 5273595)  # 10.9 E 47.6 N, inside the footprint
    write_tiff(tmp_path / f"{stem}-SPECTRAL_IMAGE.TIF", epsg=32632, at=west_north)
    (item,) = local_items(tmp_path, ENMAP)
    assert len(item["assets"]["image"]["eo:bands"]) == 218
    assert item["properties"]["start_datetime"] == "2017-06-26T10:20:20.999936Z"
    assert item["properties"]["view:sun_elevation"] == "63.038384"
    assert item["properties"]["version"] == "00.02.04"
    stated = [item["properties"][word] for word in ENMAP.providers["local"].facts.values()]
    assert stated == ["1", "0", "0"], "quality, haze and cirrus"
    wanted = [band.name for band in ENMAP.bands if band.default]
    row = normalise(item, ENMAP, "local", None, bands=wanted)
    assert isinstance(row, Unusable)
    assert row.reason == "other-bands"


# --- Sentinel-2 ----------------------------------------------------------------------------------


def write_safe(
    folder: Path,
    *,
    baseline: str = "05.11",
    offsets: tuple[int, ...] = (-1000, -1000),
    footprint: str = "53.2 -9.0 53.2 -7.8 52.3 -8.3 52.3 -9.0 53.2 -9.0",
) -> Path:
    name = f"S2B_MSIL2A_20240730T071619_N{baseline.replace('.', '')}_R006_T29UNU_x.SAFE"
    granule = folder / name / "GRANULE" / "L2A_T29UNU_A038642_20240730T071755"
    for pixel_m, bands in ((10, ("B02",)), (20, ("B02", "SCL")), (60, ("B01", "AOT"))):
        images = granule / "IMG_DATA" / f"R{pixel_m}m"
        images.mkdir(parents=True)
        for band in bands:
            (images / f"T29UNU_20240730T071619_{band}_{pixel_m}m.jp2").write_bytes(b"x")
    sizes = "".join(
        f'<Size resolution="{p}"><NROWS>{109800 // p}</NROWS><NCOLS>{109800 // p}</NCOLS></Size>'
        f'<Geoposition resolution="{p}"><ULX>499980</ULX><ULY>5900040</ULY></Geoposition>'
        for p in (10, 20, 60)
    )
    (granule / "MTD_TL.xml").write_text(
        '<n1:T xmlns:n1="urn:x"><TILE_ID>S2B_OPER_MSI_L2A_TL_2BPS_A038642_T29UNU_N05.11</TILE_ID>'
        f"<Tile_Geocoding><HORIZONTAL_CS_CODE>EPSG:32629</HORIZONTAL_CS_CODE>{sizes}"
        "</Tile_Geocoding><Mean_Sun_Angle><ZENITH_ANGLE>30.5</ZENITH_ANGLE></Mean_Sun_Angle>"
        "</n1:T>"
    )
    listed = "".join(f"<BOA_ADD_OFFSET>{value}</BOA_ADD_OFFSET>" for value in offsets)
    (folder / name / "MTD_MSIL2A.xml").write_text(
        f'<n1:P xmlns:n1="urn:x"><PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE>'
        f'<Datatake datatakeIdentifier="GS2B_20240730T071619_038642_N{baseline}">'
        "<DATATAKE_SENSING_START>2024-07-30T07:16:19.024Z</DATATAKE_SENSING_START></Datatake>"
        f"{listed}<Cloud_Coverage_Assessment>12.5</Cloud_Coverage_Assessment>"
        f"<Global_Footprint><EXT_POS_LIST>{footprint}</EXT_POS_LIST></Global_Footprint></n1:P>"
    )
    return folder / name


def test_a_safe_folder_tells_all_but_the_files_that_are_there(tmp_path: Path) -> None:
    scene = only(write_safe(tmp_path), SENTINEL)
    assert scene.scene == "sentinel-2-l2a/S2B_20240730T071619/29UNU"
    assert (scene.baseline, scene.offset_add) == ("05.11", -1000)
    assert (scene.cloud_percent, scene.sun_elevation_deg) == (12.5, 59.5)
    assert {asset.name for asset in scene.assets} == {"B02_10m", "B02_20m", "B01_60m", "SCL_20m"}
    assert (scene.x_max_m, scene.y_min_m) == (499980 + 109800, 5900040 - 109800)


@pytest.mark.parametrize(
    ("baseline", "offsets", "expected"),
    [
        ("02.14", (), 0),
        ("02.14", (0,), 0),
        ("04.00", (-1000,), -1000),
        ("04.00", (), "offset-contradiction"),
        ("02.14", (-1000,), "offset-contradiction"),
        ("04.00", (-1000, -900), "unreadable"),
    ],
)
def test_metadata_and_baseline_must_agree_on_the_offset(
    tmp_path: Path, baseline: str, offsets: tuple[int, ...], expected: int | str
) -> None:
    folder = write_safe(tmp_path, baseline=baseline, offsets=offsets)
    if isinstance(expected, int):
        assert only(folder, SENTINEL).offset_add == expected
    else:
        assert reason(folder, SENTINEL) == expected


def test_a_safe_without_a_listed_footprint_has_its_tile_s_outline(tmp_path: Path) -> None:
    scene = only(write_safe(tmp_path, footprint=""), SENTINEL)
    shape = shapely.from_wkb(scene.geometry)
    to_plane = Transformer.from_crs("OGC:CRS84", 32629, always_xy=True)
    x, y = to_plane.transform(*shapely.get_coordinates(shape).T)
    assert min(x) == pytest.approx(scene.x_min_m, abs=0.01)
    assert max(y) == pytest.approx(scene.y_max_m, abs=0.01)
    assert len(x) > 100, "bent edges need more than corners"


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "MTD_MSIL2A.xml").write_text("<a><b></a>"),
        lambda folder: next(folder.glob("GRANULE/*/MTD_TL.xml")).unlink(),
        lambda folder: next(folder.glob("GRANULE/*/MTD_TL.xml")).write_text("<a/>"),
        lambda folder: shutil.rmtree(next(folder.glob("GRANULE/*/IMG_DATA"))),
    ],
)
def test_a_damaged_safe_is_listed(tmp_path: Path, damage: Any) -> None:
    folder = write_safe(tmp_path)
    damage(folder)
    assert reason(tmp_path, SENTINEL) == "unreadable"


@pytest.mark.parametrize("masked", [True, False])
def test_level_1c_has_its_own_names_offset_and_mask(tmp_path: Path, masked: bool) -> None:
    folder = write_safe(tmp_path)
    granule = next(folder.glob("GRANULE/*"))
    shutil.rmtree(granule / "IMG_DATA")
    (granule / "IMG_DATA").mkdir()
    (granule / "QI_DATA").mkdir()
    for band in ("B02", "B05", "B10"):
        (granule / "IMG_DATA" / f"T29UNU_20240730T071619_{band}.jp2").write_bytes(b"x")
    if masked:
        (granule / "QI_DATA" / "MSK_CLASSI_B00.jp2").write_bytes(b"x")
    text = (folder / "MTD_MSIL2A.xml").read_text().replace("BOA_ADD", "RADIO_ADD")
    (folder / "MTD_MSIL2A.xml").unlink()
    assert not list(local_items(tmp_path, load_product("sentinel-2-l1c")))
    (folder / "MTD_MSIL1C.xml").write_text(text)
    assert not list(local_items(tmp_path, SENTINEL)), "a level 1C folder is none of 2A"
    product = load_product("sentinel-2-l1c")
    scene = only(tmp_path, product)
    assert scene.scene == "sentinel-2-l1c/S2B_20240730T071619/29UNU"
    assert scene.offset_add == -1000
    assert {asset.name for asset in scene.assets} == {
        "B02", "B05", "B10", *(("MSK_CLASSI_B00",) if masked else ())
    }  # fmt: skip
    (item,) = local_items(tmp_path, product)
    steps = {key: entry["proj:transform"][0] for key, entry in item["assets"].items()}
    assert steps.items() >= {"B02": 10, "B05": 20, "B10": 60}.items()
    assert is_masked(scene, product) == masked


@needs_data
def test_the_real_safe_has_its_offset_clouds_and_swath_edge() -> None:
    scene = only(DATA / "sentinel-2" / "T29UNU", SENTINEL)
    assert scene.scene == "sentinel-2-l2a/S2A_20221005T115411/29UNU"
    assert scene.offset_add == -1000
    assert scene.cloud_percent == pytest.approx(59.769726)
    assert (scene.epsg, scene.x_min_m, scene.y_max_m) == (32629, 499980, 5900040)
    assert "B08_60m" not in {asset.name for asset in scene.assets}
    assert len(scene.assets) == 13, "11 bands at 60 m, SCL at 20 and 60 m"
    to_plane = Transformer.from_crs("OGC:CRS84", 32629, always_xy=True).transform
    seen = shapely.transform(shapely.from_wkb(scene.geometry), to_plane, interleaved=False)
    assert seen.area / 109_800**2 == pytest.approx(1 - 0.4042, abs=0.01)


# --- plain GeoTIFF -------------------------------------------------------------------------------


def test_geotiff_tiles_take_constants_from_the_product_file(tmp_path: Path) -> None:
    product = load_product(str(REAL / "enmap-potsdam-product.toml"))
    for number in range(3):
        write_tiff(
            tmp_path / f"tile_{number}.tif", at=Affine(30, 0, 3e5 + 1200 * number, 0, -30, 5e6)
        )
    (tmp_path / "notes.txt").write_text("no tile")
    (tmp_path / "broken.tif").write_bytes(b"II*\0")
    found = rows(tmp_path, product)
    scenes = [row for row in found if isinstance(row, Scene)]
    assert [row.tile for row in scenes] == ["tile_0", "tile_1", "tile_2"]
    assert {row.datatake for row in scenes} == {"0000001867"}
    assert {row.acquired.isoformat() for row in scenes} == {"2022-07-24T10:45:26+00:00"}
    assert [row.item for row in found if isinstance(row, Unusable)] == ["broken"]


@needs_data
@pytest.mark.parametrize(
    ("product", "folder"),
    [("enmap-potsdam-product.toml", "images"), ("potsdam-labels.toml", "labels")],
)
def test_real_potsdam_tiles(product: str, folder: str) -> None:
    found = rows(DATA / "enmap" / "potsdam" / folder, load_product(str(REAL / product)))
    scenes = [row for row in found if isinstance(row, Scene)]
    assert len(scenes) == len(found) == 6
    assert min(row.x_min_m for row in scenes) == 364095
    assert max(row.y_max_m for row in scenes) == 5809965
    assert {row.epsg for row in scenes} == {32633}


def test_what_is_not_there_is_the_user_s_mistake(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="does not exist"):
        local_items(tmp_path / "nowhere", ENMAP)
    other = ENMAP.model_copy(update={"providers": {}})
    kinds = "enmap-folder, enmap-l1c-folder, enmap-l1b-folder, safe, safe-l1c, safe-s1, "
    with pytest.raises(RecipeError, match=kinds + "landsat-folder, geotiff, "):
        local_items(tmp_path, other)
    assert rows(tmp_path, ENMAP) == []

"""EnMAP folders of levels 1B and 1C: radiance where and as the scene's own metadata say."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from pyproj import Transformer

from pipeline.engine.serial import SerialEngine
from pipeline.errors import GiveUp
from pipeline.products.catalogue import load_product
from pipeline.products.model import LEGEND, Product
from pipeline.raster.camera import Camera
from pipeline.raster.enmap import parse_level1
from pipeline.recipe import load_recipe
from pipeline.records import LedgerRow, Scene, Unusable
from pipeline.run.everything import run_everything
from pipeline.run.verify import run_verify
from pipeline.sources.local.folders import local_items
from pipeline.stages.search.normalise import normalise
from pipeline.store.commit import newest, read_commit
from pipeline.store.objects import open_store
from pipeline.store.reader import open_dataset
from pipeline.store.tables import to_rows
from pipeline.watch.progress import Progress

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="real data (../shared/data) not here")
L1B, L1C = load_product("enmap-l1b"), load_product("enmap-l1c")
STEM = "ENMAP01-____{level}-DT0000326721_20220724T104526Z_008_V010402_20220801T000000Z"
EPSG, EDGE_PX, PIXEL_M = 32633, 200, 30
#: Middle of the scene, on the lattice of EnMAP.
MIDDLE = (390_015.0, 5_800_035.0)
BACKGROUND = -32768
#: Stored in the tests: of VNIR, of SWIR where the two overlap, of SWIR.
BANDS = ("B010", "B080", "B150")
#: Lines by which SWIR lies behind VNIR, and by how much its pixels are turned: real ones are so.
BEHIND, TURN = -19.6, 0.002
HEIGHT_M = 250.0
RECIPE = """
name = "level1"
[sample]
strategy = "grid"
region = [13.366, 52.328, 13.396, 52.352]
[cell]
lattice = "enmap30"
size_px = 32
[slots]
kind = "months"
start = 2022-07-01
end = 2022-08-01
[split]
train = 1.0
val = 0.0
test = 0.0
[[product]]
id = "{product}"
path = "."
bands = ["B010", "B080", "B150"]
max_cloud_fraction = 1.0
"""

TO_LONLAT = Transformer.from_crs(EPSG, "OGC:CRS84", always_xy=True)
TO_UTM = Transformer.from_crs("OGC:CRS84", EPSG, always_xy=True)


def gain(row: int) -> tuple[float, float]:
    """Return gain and offset of a row of the band table."""
    return 1e-5 * (1 + row / 100), -0.001 * (row % 3)


def radiance(x: Any, y: Any, band: int) -> Any:
    """Return what the ground sends up; smooth over some pixels, different in every band."""
    along = np.sin((x + 37 * band) / 210) * np.cos((y - 11 * band) / 260)
    return 0.05 + 0.0002 * band + 0.02 * along


def cloudy(x: Any, y: Any) -> Any:
    return np.hypot(x - MIDDLE[0], y - MIDDLE[1]) < 700


# --- the camera: written again here, so that something else judges GDAL's use of it ---------------


def camera_of(detector: str) -> dict[str, Any]:
    """Return coefficients of a camera that looks down on the scene, by their names in the XML."""
    lon, lat = TO_LONLAT.transform(*MIDDLE)
    scale = EDGE_PX / 2
    east, north = float(np.cos(np.radians(lat))) * 111_320, 111_250.0
    swir = detector == "swir"
    turn = TURN if swir else 0.0
    told = {
        "ROW_OFF": (EDGE_PX - 1) / 2 + (BEHIND if swir else 0),
        "COL_OFF": (EDGE_PX - 1) / 2 + (0.6 if swir else 0),
        "LAT_OFF": lat,
        "LONG_OFF": lon,
        "HEIGHT_OFF": 800.0,
        "ROW_SCALE": scale,
        "COL_SCALE": scale,
        "LAT_SCALE": scale * PIXEL_M / north,
        "LONG_SCALE": scale * PIXEL_M / east,
        "HEIGHT_SCALE": 1500.0,
    }
    # 1, lon, lat, height, lon x lat, ...: a turned image with a little of everything else in it.
    terms = {
        "ROW_NUM": {1: 0.02, 2: 0.20 + turn, 3: -0.98, 4: 0.004, 5: 0.003, 8: 0.002},
        "COL_NUM": {1: -0.01, 2: 0.98, 3: 0.20 - turn, 4: -0.006, 7: 0.001, 9: 0.002},
        "ROW_DEN": {1: 1.0, 2: 0.001},
        "COL_DEN": {1: 1.0, 3: -0.001},
    }
    for key, own in terms.items():
        told |= {f"{key}_{term:02d}": own.get(term, 0.0) for term in range(1, 21)}
    return told


def seen_at(told: dict[str, Any], lon: Any, lat: Any, height_m: float) -> tuple[Any, Any]:
    """Return row and column of places, by the coefficients."""
    L = (lon - told["LONG_OFF"]) / told["LONG_SCALE"]
    P = (lat - told["LAT_OFF"]) / told["LAT_SCALE"]
    H = (height_m - told["HEIGHT_OFF"]) / told["HEIGHT_SCALE"] + 0 * L
    values = [1 + 0 * L, L, P, H, L * P, L * H, P * H, L * L, P * P, H * H, P * L * H, L**3]
    values += [L * P * P, L * H * H, L * L * P, P**3, P * H * H, L * L * H, P * P * H, H**3]

    def polynomial(key: str) -> Any:
        return sum(told[f"{key}_{n + 1:02d}"] * value for n, value in enumerate(values))

    row = polynomial("ROW_NUM") / polynomial("ROW_DEN") * told["ROW_SCALE"] + told["ROW_OFF"]
    col = polynomial("COL_NUM") / polynomial("COL_DEN") * told["COL_SCALE"] + told["COL_OFF"]
    return row, col


def ground_of(told: dict[str, Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return easting and northing of every pixel's centre: the inverse, step by step."""
    row, col = np.mgrid[0:EDGE_PX, 0:EDGE_PX].astype(float)
    lon = np.full(row.shape, told["LONG_OFF"])
    lat = np.full(row.shape, told["LAT_OFF"])
    for _ in range(20):
        here = seen_at(told, lon, lat, HEIGHT_M)
        east = seen_at(told, lon + 1e-6, lat, HEIGHT_M)
        north = seen_at(told, lon, lat + 1e-6, HEIGHT_M)
        a, b = (east[0] - here[0]) / 1e-6, (north[0] - here[0]) / 1e-6
        c, d = (east[1] - here[1]) / 1e-6, (north[1] - here[1]) / 1e-6
        off_row, off_col = row - here[0], col - here[1]
        lon = lon + (d * off_row - b * off_col) / (a * d - b * c)
        lat = lat + (a * off_col - c * off_row) / (a * d - b * c)
    assert np.abs(np.stack(seen_at(told, lon, lat, HEIGHT_M)) - [row, col]).max() < 1e-6
    return TO_UTM.transform(lon, lat)


# --- product folders ------------------------------------------------------------------------------


def metadata(product: Product, corners: list[tuple[float, float]], *, cameras: bool) -> str:
    frames = ("upper_left", "lower_left", "lower_right", "upper_right")
    points = "".join(
        f"<point><frame>{frame}</frame><latitude>{lat}</latitude>"
        f"<longitude>{lon}</longitude></point>"
        for frame, (lon, lat) in zip(frames, corners, strict=True)
    )
    table, looks = "", ""
    for row, band in enumerate(in_table(product)):
        table += (
            f'<bandID number="{row + 1}"><wavelengthCenterOfBand>{band.wavelength_nm}'
            f"</wavelengthCenterOfBand><FWHMOfBand>{band.fwhm_nm}</FWHMOfBand>"
            f"<GainOfBand>{gain(row)[0]!r}</GainOfBand><OffsetOfBand>{gain(row)[1]!r}"
            "</OffsetOfBand></bandID>"
        )
        if cameras:
            told = camera_of(band.part or "vnir")
            inner = "".join(f"<{key}>{value!r}</{key}>" for key, value in told.items())
            looks += f'<bandID number="{row + 1}">{inner}</bandID>'
    count = {part: sum(band.part == part for band in product.bands) for part in ("vnir", "swir")}
    image = "".join(f"<{p}><channels>{n}</channels></{p}>" for p, n in count.items() if n)
    return (
        "<level_X><base><spatialCoverage><boundingPolygon>" + points + "</boundingPolygon>"
        "</spatialCoverage><temporalCoverage><startTime>2022-07-24T10:45:26.999936Z</startTime>"
        "</temporalCoverage></base><specific><datatakeID>0000326721</datatakeID>"
        "<sunElevationAngle><center>56.5</center></sunElevationAngle>"
        "<qualityFlag><cloudCover>7</cloudCover></qualityFlag>"
        f"<backgroundValue>{BACKGROUND}</backgroundValue>"
        f"<meanGroundElevation>{HEIGHT_M}</meanGroundElevation>"
        f"<bandCharacterisation>{table}</bandCharacterisation></specific>"
        f"<product><image>{image}</image><navigation><RPC>{looks}</RPC></navigation></product>"
        "</level_X>"
    )


def in_table(product: Product) -> list[Any]:
    """Return the bands in the order of the metadata: of level 1B those of VNIR first."""
    return sorted(product.bands, key=lambda band: (band.part == "swir", band.index))


def write(path: Path, image: NDArray[Any], **where: Any) -> None:
    with rasterio.open(
        path, "w", driver="GTiff", height=EDGE_PX, width=EDGE_PX, count=len(image),
        dtype=image.dtype, tiled=True, blockxsize=64, blockysize=64, compress="deflate", **where,
    ) as raster:  # fmt: skip
        raster.write(image)


def numbers(product: Product, bands: list[Any], x: Any, y: Any) -> NDArray[np.int16]:
    """Return delivered numbers; bands that no test stores hold the background."""
    rows = {band.name: row for row, band in enumerate(in_table(product))}
    image = np.full((len(bands), EDGE_PX, EDGE_PX), BACKGROUND, np.int16)
    for n, band in enumerate(bands):
        if band.name in BANDS:
            own, add = gain(rows[band.name])
            seen = radiance(x, y, int(band.name[1:]))
            image[n] = np.rint((seen - add) / own)
    return image


def write_layers(folder: Path, stem: str, x: Any, y: Any, seen: Any, **where: Any) -> None:
    layers = {
        "CLASSES": np.where(seen, 1, 3),
        "CLOUD": cloudy(x, y) & seen,
        **dict.fromkeys(("CLOUDSHADOW", "HAZE", "CIRRUS", "SNOW"), np.zeros(seen.shape)),
    }
    for key, values in layers.items():
        write(folder / f"{stem}-QL_QUALITY_{key}.TIF", values.astype(np.uint8)[None], **where)


def write_l1c(folder: Path) -> Path:
    stem, half = STEM.format(level="L1C"), EDGE_PX / 2 * PIXEL_M
    west, north = MIDDLE[0] - half, MIDDLE[1] + half
    at = rasterio.Affine(PIXEL_M, 0, west, 0, -PIXEL_M, north)
    steps = (np.arange(EDGE_PX) + 0.5) * PIXEL_M
    x, y = np.meshgrid(west + steps, north - steps)
    image = numbers(L1C, list(L1C.bands), x, y)
    image[:, :30] = BACKGROUND
    seen = np.ones(x.shape, bool)
    seen[:30] = False
    where = {"crs": f"EPSG:{EPSG}", "transform": at}
    write(folder / f"{stem}-SPECTRAL_IMAGE.TIF", image, **where)
    write_layers(folder, stem, x, y, seen, **where)
    edge = (west, north - 2 * half, west + 2 * half, north)
    corners = [(edge[0], edge[3]), (edge[0], edge[1]), (edge[2], edge[1]), (edge[2], edge[3])]
    text = metadata(L1C, [TO_LONLAT.transform(*corner) for corner in corners], cameras=False)
    (folder / f"{stem}-METADATA.XML").write_text(text)
    return folder


def write_l1b(folder: Path) -> Path:
    stem = STEM.format(level="L1B")
    corners: list[tuple[float, float]] = []
    for detector in ("vnir", "swir"):
        x, y = ground_of(camera_of(detector))
        bands = sorted((b for b in L1B.bands if b.part == detector), key=lambda band: band.index)
        name = detector.upper()
        write(folder / f"{stem}-SPECTRAL_IMAGE_{name}.TIF", numbers(L1B, bands, x, y))
        marks = np.zeros((len(bands), EDGE_PX, EDGE_PX), np.uint8)
        marks[:, :, 100] = 1  # a dead column
        write(folder / f"{stem}-QL_PIXELMASK_{name}.TIF", marks)
        if detector == "vnir":
            write_layers(folder, stem, x, y, np.ones(x.shape, bool))
            corners = [
                TO_LONLAT.transform(x[at], y[at]) for at in ((0, 0), (-1, 0), (-1, -1), (0, -1))
            ]
    text = metadata(L1B, corners, cameras=True)
    (folder / f"{stem}-METADATA.XML").write_text(text)
    return folder


def build(folder: Path, product: Product) -> list[LedgerRow]:
    """Run the whole chain; return the ledger."""
    (folder / "recipe.toml").write_text(RECIPE.format(product=product.id))
    loaded, store = load_recipe(folder / "recipe.toml"), open_store(folder / "built")
    with Progress(live=False) as progress:
        dict(run_everything(loaded, store, engine=SerialEngine, until="publish", progress=progress))
    return [
        row
        for shard, revision in newest(store).items()
        for row in to_rows(read_commit(store, shard, revision).ledger, LedgerRow)
    ]


def centres(row: dict[str, Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    at = (np.arange(32) + 0.5) * PIXEL_M
    return np.meshgrid(row["x_min_m"] + at, row["y_max_m"] - at)  # type: ignore[return-value]


def test_level_1c_is_radiance_by_the_scene_s_own_gains_on_its_own_pixels(tmp_path: Path) -> None:
    write_l1c(tmp_path)
    ledger = build(tmp_path, L1C)
    written = [row for row in ledger if row.state == "written"]
    assert written
    assert {row.resampling for row in written} == {"none"}
    assert {row.reason for row in ledger if row.state == "failed"} == set()
    reader = open_dataset(tmp_path / "built").patches("enmap-l1c")
    bands, masks = reader.read(slice(None))
    for row, patch, mask in zip(reader.rows.to_pylist(), bands, masks, strict=True):
        x, y = centres(row)
        for n, name in enumerate(BANDS):
            own, add = gain(int(name[1:]) - 1)
            number = np.rint((radiance(x, y, int(name[1:])) - add) / own)
            lit = mask != LEGEND["fill"]
            assert lit.any()
            exact = (number * own + add).astype(np.float32)
            np.testing.assert_array_equal(patch[n][lit], exact[lit])
            assert np.isnan(patch[n][~lit]).all()
        assert ((mask == LEGEND["cloud"]) == (cloudy(x, y) & (mask != LEGEND["fill"]))).all()


def shift_px(patch: NDArray[Any], x: Any, y: Any, band: int) -> NDArray[np.float64]:
    """Return by how many pixels a patch lies off the truth: east and south, by least squares."""
    step = 1.0
    along_x = (radiance(x + step, y, band) - radiance(x - step, y, band)) / (2 * step)
    along_y = (radiance(x, y + step, band) - radiance(x, y - step, band)) / (2 * step)
    off = patch - radiance(x, y, band)
    known = np.stack([along_x.ravel(), along_y.ravel(), np.ones(off.size)], axis=1)
    found: NDArray[np.float64] = np.linalg.lstsq(known, off.ravel(), rcond=None)[0][:2]
    return found / PIXEL_M


def test_level_1b_lies_where_each_detector_s_camera_saw_it(tmp_path: Path) -> None:
    write_l1b(tmp_path)
    ledger = build(tmp_path, L1B)
    written = [row for row in ledger if row.state == "written"]
    assert {row.resampling for row in written} == {"rpc-bilinear"}
    assert {row.reason for row in ledger if row.state == "failed"} == set()
    assert all(len(row.sources) == 11 for row in written), "two images and masks, six layers, XML"
    assert max(row.defective_fraction or 0 for row in written) == pytest.approx(1 / 32, abs=0.02)
    reader = open_dataset(tmp_path / "built").patches("enmap-l1b")
    bands, masks = reader.read(slice(None))
    judged = 0
    for row, patch, mask in zip(reader.rows.to_pylist(), bands, masks, strict=True):
        x, y = centres(row)
        sky = mask == LEGEND["cloud"]
        # The nearest pixel of the layer is at most 0.71 of a pixel away, turned as it is.
        edge = np.abs(np.hypot(x - MIDDLE[0], y - MIDDLE[1]) - 700) > 0.8 * PIXEL_M
        clear = ~np.isin(mask, [LEGEND["fill"], LEGEND["defective"]])
        assert (sky == cloudy(x, y))[edge & clear].all()
        if np.isnan(patch).any():
            continue
        judged += 1
        for n, name in enumerate(BANDS):
            band = int(name[1:])
            assert np.abs(shift_px(patch[n], x, y, band)).max() < 0.02, name
            # What bilinear interpolation takes from waves of 44 pixels.
            np.testing.assert_allclose(patch[n], radiance(x, y, band), atol=2e-4)
    assert judged > 3


def test_level_1b_is_read_again_and_found_the_same(tmp_path: Path) -> None:
    write_l1b(tmp_path)
    build(tmp_path, L1B)
    loaded = load_recipe(tmp_path / "recipe.toml")
    report = run_verify(loaded, open_store(tmp_path / "built"), share=1.0)
    assert report.compared > 3
    assert not report.unreadable


@pytest.mark.parametrize(
    ("product", "damage", "words"),
    [
        (L1C, lambda _: None, "no METADATA.XML"),
        (
            L1C,
            lambda xml: xml.replace("<GainOfBand>", "<Gain>").replace("</GainOf", "</"),
            "cannot",
        ),
        (L1C, lambda xml: xml.replace("GainOfBand", "Gain"), "GainOfBand is 'None'"),
        (L1C, lambda xml: xml.replace("<OffsetOfBand>", "<OffsetOfBand>n"), "OffsetOfBand is 'n"),
        (L1B, lambda xml: xml.replace("RPC", "OTHER"), "0 cameras (RPC) for 224 bands"),
        (L1B, lambda xml: xml.replace("ROW_NUM_07", "ROW_NUM_X"), "ROW_NUM_07 is 'None'"),
        (L1B, lambda xml: xml.replace("upper_right", "top"), "four corners"),
        (L1B, lambda xml: xml.replace("channels", "bands"), "image of detector vnir, or its"),
    ],
)
def test_a_scene_that_does_not_say_what_it_is_is_listed(
    tmp_path: Path, product: Product, damage: Callable[[str], str | None], words: str
) -> None:
    (write_l1b if product is L1B else write_l1c)(tmp_path)
    (path,) = tmp_path.glob("*METADATA.XML")
    text = damage(path.read_text())
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    (row,) = (normalise(item, product, "local", None) for item in local_items(tmp_path, product))
    assert isinstance(row, Unusable), row
    assert row.reason == "unreadable"
    assert words in row.detail


def test_a_scene_without_its_second_image_is_listed(tmp_path: Path) -> None:
    for path in write_l1b(tmp_path).glob("*SPECTRAL_IMAGE_SWIR*"):
        path.unlink()
    (row,) = (normalise(item, L1B, "local", None) for item in local_items(tmp_path, L1B))
    assert isinstance(row, Unusable)
    assert "lacks the image of detector swir" in row.detail


def test_a_scene_of_level_1_is_known_as_that_of_level_2_is(tmp_path: Path) -> None:
    (row,) = (normalise(item, L1B, "local", None) for item in local_items(write_l1b(tmp_path), L1B))
    assert isinstance(row, Scene)
    assert row.scene == "enmap-l1b/0000326721/8"
    assert (row.cloud_percent, row.baseline) == (7, "01.04.02")
    assert row.band_indexes == [], "as the product's file says"


@needs_data
def test_the_real_cameras_see_the_real_corners_at_the_corners_of_the_image() -> None:
    """Those of VNIR: rows and columns count from the centre of the first pixel."""
    (path,) = (DATA / "enmap" / "metadata").glob("*-METADATA.XML")
    found = parse_level1(path.read_bytes(), path.name)
    assert (len(found.gains), len(found.cameras)) == (218, 218)
    assert found.background == 0
    vnir, swir = found.cameras[0], found.cameras[-1]
    assert len(set(found.cameras)) == 2, "one for each detector"
    assert vnir.height_m == pytest.approx(1039.777, abs=0.001)
    root = ET.parse(path).getroot()
    points = root.findall("base/spatialCoverage/boundingPolygon/point")
    at = {p.findtext("frame"): (p.findtext("longitude"), p.findtext("latitude")) for p in points}
    names = ("upper_left", "upper_right")
    lon, lat = np.array([at[name] for name in names], dtype=float).T
    rows, cols = (found - 0.5 for found in vnir.rowcol(lon, lat))
    np.testing.assert_allclose(rows, [0, 0], atol=0.05)
    np.testing.assert_allclose(cols, [0, 999], atol=0.35)
    behind = swir.rowcol(lon, lat)[0] - 0.5 - rows
    np.testing.assert_allclose(behind, [-19.55, -19.6], atol=0.05)


def test_a_camera_asks_gdal_as_its_polynomials_say() -> None:
    told = camera_of("swir")
    text = metadata(L1B, [(0, 0)] * 4, cameras=True).encode()
    camera = parse_level1(text, "x").cameras[-1]
    assert isinstance(camera, Camera)
    lon = told["LONG_OFF"] + np.array([-0.01, 0.0, 0.02])
    lat = told["LAT_OFF"] + np.array([0.005, -0.01, 0.01])
    expected = seen_at(told, lon, lat, HEIGHT_M)
    np.testing.assert_allclose(np.stack(camera.rowcol(lon, lat)) - 0.5, expected, atol=1e-6)


def test_no_xml_is_refused_with_its_name() -> None:
    with pytest.raises(GiveUp, match="scene x has no specific/bandCharacterisation"):
        parse_level1(b"<a/>", "scene x")
    with pytest.raises(GiveUp, match="scene x is not the METADATA"):
        parse_level1(b"<a>", "scene x")

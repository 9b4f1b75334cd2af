"""Earth Engine over its client's own protocol: what is asked, what is refused, what comes back."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import FINAL, PASSING, GiveUp, RecipeError, TryAgain
from pipeline.ports import PixelGrid, PixelSource, Query
from pipeline.products.catalogue import load_product
from pipeline.records import Scene, Unusable
from pipeline.simulate.earthengine.graph import EarthEngineRefusal
from pipeline.simulate.earthengine.images import Band, Image
from pipeline.simulate.service.faults import Faults
from pipeline.sources.earthengine import pixels as earthengine_pixels
from pipeline.sources.earthengine.errors import failure_of
from pipeline.sources.earthengine.items import EarthEngineCatalogue, item_of
from pipeline.sources.earthengine.pixels import (
    MOST_BANDS,
    MOST_BYTES,
    MOST_PX,
    EarthEnginePixels,
    parts_of,
)
from pipeline.sources.earthengine.session import EarthEngine
from pipeline.sources.providers import Provider, load_provider
from pipeline.stages.search.normalise import normalise

SENTINEL = load_product("sentinel-2-l2a")
S2 = "COPERNICUS/S2_SR_HARMONIZED"
APRIL = Query(
    product=SENTINEL.id,
    collection=S2,
    bbox=(15.0, 51.8, 15.1, 52.0),
    start=datetime(2023, 4, 1, tzinfo=UTC),
    end=datetime(2023, 5, 1, tzinfo=UTC),
)


def provider(server: Any, **values: Any) -> Provider:
    return load_provider("earth-engine", url=server.url).model_copy(update=values)


def search(server: Any, query: Query = APRIL, **values: Any) -> list[dict[str, Any]]:
    return list(
        EarthEngineCatalogue(provider(server, **values), SENTINEL, attempts=1).search(query)
    )


def pixels(server: Any, **values: Any) -> EarthEnginePixels:
    return EarthEnginePixels(provider(server), **values)


def image_of(server: Any) -> Any:
    """Return an image that sees the whole of its tile."""
    whole = "CLOUDY_PIXEL_PERCENTAGE"
    return max(server.world.collections[S2], key=lambda image: image.properties[whole] < 50)


def address(image: Any) -> str:
    return earthengine_pixels.address(image.id, image.version)


def grid_in(image: Any, *, size_px: int = 4, pixel_m: float = 10, col: int = 0) -> PixelGrid:
    """Return a window from the image's corner, `col` columns to the east."""
    there = image.bands[0].grid
    return PixelGrid(
        there.epsg, there.x_min_m + col * pixel_m, there.y_max_m, pixel_m, size_px, size_px
    )


def band_of(archive_file: Path) -> Any:
    with rasterio.open(archive_file) as file:
        return file.read(1)


# --- what is asked -------------------------------------------------------------------------------


def test_a_query_without_place_and_time_has_no_filter(earth: Any, call: Any, unfolded: Any) -> None:
    server = earth()
    assert search(server, Query(SENTINEL.id, S2))
    expected = call(
        "Collection.toList", collection=call("ImageCollection.load", id=S2), count=500, offset=0
    )
    assert unfolded(server.asked[0][1]["expression"]) == expected


def test_the_whole_expression_of_what_is_left_out(earth: Any, call: Any, unfolded: Any) -> None:
    server = earth()
    tiles = {image.properties["MGRS_TILE"] for image in server.world.collections[S2]}
    tile, cloudy = min(tiles), "CLOUDY_PIXEL_PERCENTAGE"
    query = Query(SENTINEL.id, S2, only=(("MGRS_TILE", (tile,)),), at_most=((cloudy, 40),))
    found = search(server, query)
    expected = [
        image.id.rpartition("/")[2]
        for image in server.world.collections[S2]
        if image.properties["MGRS_TILE"] == tile and image.properties[cloudy] <= 40
    ]
    assert [item["id"] for item in found] == expected
    assert 0 < len(found) < len(server.world.collections[S2])
    listed = call("Filter.listContains", leftValue=[tile], rightField="MGRS_TILE")
    above = call("Filter.greaterThan", leftField=cloudy, rightValue=40)
    clear = call("Filter.not", filter=above)
    images = call(
        "Collection.filter",
        collection=call("ImageCollection.load", id=S2),
        filter=call("Filter.and", filters={"arrayValue": {"values": [listed, clear]}}),
    )
    expected_list = call("Collection.toList", collection=images, count=500, offset=0)
    assert unfolded(server.asked[0][1]["expression"]) == expected_list


def test_the_whole_request_for_pixels(earth: Any, call: Any, unfolded: Any) -> None:
    server = earth()
    image = image_of(server)
    grid = PixelGrid(32633, 500_040.0, 5_750_100.0, 20.0, 5, 3)
    found = pixels(server).pixels(address(image), ["B5", "B8A"], grid, fill=0.0)
    assert found.shape == (2, 3, 5)
    ((name, body),) = server.asked
    assert name == "image:computePixels"
    expression = call(
        "Image.unmask",
        input=call(
            "Image.select",
            input=call("Image.load", id=image.id, version=image.version),
            bandSelectors=["B5", "B8A"],
        ),
        value=call("Image.constant", value=0),
        sameFootprint=False,
    )
    affine = {"scaleX": 20.0, "shearX": 0, "translateX": 500_040.0}
    affine |= {"shearY": 0, "scaleY": -20.0, "translateY": 5_750_100.0}
    assert unfolded(body.pop("expression")) == expression
    assert body == {
        "fileFormat": "NPY",
        "grid": {
            "crsCode": "EPSG:32633",
            "dimensions": {"width": 5, "height": 3},
            "affineTransform": affine,
        },
    }


# --- searching -----------------------------------------------------------------------------------


def test_an_image_becomes_a_scene(earth: Any) -> None:
    server = earth()
    rows = [normalise(i, SENTINEL, "earth-engine", APRIL, bands=["B02"]) for i in search(server)]
    images = {image.id.rpartition("/")[2]: image for image in server.world.collections[S2]}
    assert len(rows) >= 4
    for row in rows:
        assert isinstance(row, Scene), row
        image = images[row.item]
        facts, grid = image.properties, image.bands[1].grid
        assert row.datatake == "_".join(facts["DATATAKE_IDENTIFIER"][1:].split("_")[:2])
        assert row.scene == f"sentinel-2-l2a/{row.datatake}/{facts['MGRS_TILE']}"
        assert row.acquired.timestamp() == facts["system:time_start"] / 1000
        assert row.cloud_percent == facts["CLOUDY_PIXEL_PERCENTAGE"]
        assert row.sun_elevation_deg == 90 - facts["MEAN_SOLAR_ZENITH_ANGLE"]
        assert (row.offset_add, row.epsg) == (0, 32633)
        assert (row.x_min_m, row.y_max_m) == (grid.x_min_m, grid.y_max_m)
        assert {asset.href for asset in row.assets} == {address(image)}
        assert len(row.assets) == 13


def test_pages_bring_every_image_once(earth: Any) -> None:
    server = earth()
    whole = search(server)
    catalogue = EarthEngineCatalogue(provider(server, page_size=3), SENTINEL)
    assert list(catalogue.search(APRIL)) == whole
    assert catalogue.requests == len(whole) // 3 + 1


def test_an_unknown_collection_is_gone(earth: Any) -> None:
    with pytest.raises(GiveUp, match="not found") as refusal:
        search(earth(), replace(APRIL, collection="COPERNICUS/S9"))
    assert refusal.value.failure == "gone"


def test_bands_that_would_be_resampled_are_left_out(earth: Any) -> None:
    info = image_of(earth()).info()
    by_name = {band["id"]: band for band in info["bands"]}
    by_name["B3"]["crs_transform"] = [10, 0, 300_005, 0, -10, 5_700_000]  # another corner
    by_name["B4"]["crs_transform"][0] = 20  # other pixels
    by_name["SCL"]["crs"] = "EPSG:32632"
    item = item_of(info, SENTINEL, "earth-engine", S2)
    assert set(by_name) - set(item["assets"]) == {"B3", "B4", "SCL"}
    row = normalise(item, SENTINEL, "earth-engine", None, bands=["B02", "B03"])
    assert isinstance(row, Unusable)
    assert (row.reason, row.detail) == ("no-assets", "no file for: B03")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@given(values=ANYTHING, key=st.sampled_from(["id", "version", "bands", "properties", ""]))
@settings(max_examples=200)
def test_no_description_of_an_image_ends_a_search(values: Any, key: str) -> None:
    band = {"id": "B2", "crs": "EPSG:32633", "dimensions": [9, 9]}
    band["crs_transform"] = [10, 0, 300_000, 0, -10, 5_700_000]
    ring = [[15.0, 51.0], [15.1, 51.0], [15.1, 51.1], [15.0, 51.0]]
    image: Any = {
        "id": f"{S2}/x",
        "version": 1,
        "bands": [band],
        "properties": {
            "system:time_start": 1_680_000_000_000,
            "system:footprint": {"type": "LinearRing", "coordinates": ring},
            "DATATAKE_IDENTIFIER": "GS2A_20230403T101601_040640_N05.09",
            "MGRS_TILE": "33UVR",
            "PROCESSING_BASELINE": "05.09",
        },
    }
    assert isinstance(_row(image), Scene)
    assert isinstance(_row({**image, key: values} if key else values), Scene | Unusable)


def _row(image: Any) -> Scene | Unusable:
    return normalise(item_of(image, SENTINEL, "earth-engine", S2), SENTINEL, "earth-engine", None)


# --- pixels --------------------------------------------------------------------------------------


def test_pixels_are_the_file_s_without_its_offset(earth: Any, small_archive: Path) -> None:
    server = earth()
    source = pixels(server)
    assert isinstance(source, PixelSource)
    image = image_of(server)
    grid = grid_in(image, size_px=40, pixel_m=20, col=50)
    numbers = _file(small_archive, image, "B8A")
    found = source.pixels(address(image), ["B8A", "SCL"], grid, fill=0.0)
    window = numbers[:40, 50:90]
    expected = np.where(window == 0, 0, np.maximum(window.astype(int) - 1000, 0))
    np.testing.assert_array_equal(found[0], expected)
    np.testing.assert_array_equal(found[1], _file(small_archive, image, "SCL")[:40, 50:90])


def test_pixels_beyond_the_image_hold_the_fill(earth: Any) -> None:
    server = earth()
    image = image_of(server)
    grid = grid_in(image, size_px=8, col=-4)
    inside = replace(grid, x_min_m=grid.x_min_m + 40, width_px=4)
    source = pixels(server)
    found = source.pixels(address(image), ["B2"], grid, fill=-32768)
    assert (found[:, :, :4] == -32768).all()
    seen = source.pixels(address(image), ["B2"], inside, fill=-32768)
    np.testing.assert_array_equal(found[:, :, 4:], seen)
    nothing = source.pixels(address(image), ["B2"], grid, fill=np.nan)
    np.testing.assert_array_equal(np.isnan(nothing), found == -32768)


def test_what_is_too_much_for_one_request_comes_in_parts(earth: Any) -> None:
    server = earth()
    image = image_of(server)
    grid = grid_in(image, size_px=3000)
    source = pixels(server)
    found = source.pixels(address(image), ["B2", "B3"], grid, fill=0)
    assert source.requests == len(list(parts_of(3000, 3000, 2))) > 1
    heights = [body["grid"]["dimensions"]["height"] for _, body in server.asked]
    assert sum(heights) == 3000
    small = replace(grid, width_px=300, height_px=300)
    expected = np.zeros((2, 3000, 3000), found.dtype)
    expected[:, :300, :300] = source.pixels(address(image), ["B2", "B3"], small, fill=0)
    np.testing.assert_array_equal(found, expected)


#: 48 MiB of one band of doubles with their masks, but for three bytes.
AT_MOST_PX = (1365, 4097)


def test_as_many_bytes_as_are_allowed_come_at_once_and_one_row_more_in_two(earth: Any) -> None:
    server = earth()
    image, source = image_of(server), pixels(server)
    width, height = AT_MOST_PX
    assert MOST_BYTES - 9 < width * height * 9 <= MOST_BYTES
    for extra, requests in ((0, 1), (1, 2)):
        before = source.requests
        grid = replace(grid_in(image), width_px=width, height_px=height + extra)
        found = source.pixels(address(image), ["B2"], grid, fill=np.nan)
        assert found.shape == (1, height + extra, width)
        assert source.requests - before == requests
    with pytest.raises(GiveUp, match="Total request size"):
        EarthEngine(provider(server)).npy(
            *(image.id, image.version, ["B2"], grid), fill=-1e30, method="nearest"
        )


def test_as_many_bands_as_are_allowed_come_at_once_and_one_more_in_two(earth: Any) -> None:
    server = earth()
    plain = image_of(server).bands[0].grid

    def band(number: int) -> Band:
        def read(grid: Any) -> Any:
            shape = grid.height_px, grid.width_px
            return np.full(shape, number, "uint16"), np.ones(shape, bool)

        return Band(f"b{number}", "uint16", plain, read, read)

    image = Image("made/up", 1, {}, tuple(band(number) for number in range(MOST_BANDS + 1)))
    server.world.add(image)
    names = [band.name for band in image.bands]
    grid, source = replace(grid_in(image), width_px=2, height_px=1), pixels(server)
    for count, requests in ((MOST_BANDS, 1), (MOST_BANDS + 1, 2)):
        before = source.requests
        found = source.pixels(address(image), names[:count], grid, fill=0)
        np.testing.assert_array_equal(found[:, 0, 1], range(count))
        assert source.requests - before == requests
    with pytest.raises(GiveUp, match="Number of bands"):
        EarthEngine(provider(server)).npy("made/up", 1, names, grid, fill=0, method="nearest")


def test_a_memory_limit_halves_a_request_until_it_passes(earth: Any) -> None:
    server = earth(most_memory_px=500)
    image = image_of(server)
    grid = grid_in(image, size_px=50)
    source = pixels(server)
    found = source.pixels(address(image), ["B2"], grid, fill=0)
    assert source.requests == 1 + 2 + 4 + 8  # 50, 25, 12 or 13, 6 or 7 rows of 50
    free = earth()
    np.testing.assert_array_equal(found, pixels(free).pixels(address(image), ["B2"], grid, fill=0))


def test_a_row_that_is_too_much_is_given_up(earth: Any) -> None:
    server = earth(most_memory_px=5)
    image = image_of(server)
    with pytest.raises(GiveUp) as refusal:
        pixels(server).pixels(address(image), ["B2"], grid_in(image, size_px=6), fill=0)
    assert refusal.value.failure == "too-large"


@given(width=st.integers(1, 100_000), height=st.integers(1, 100_000), bands=st.integers(1, 5000))
@settings(max_examples=60)
def test_parts_fit_a_request_and_cover_a_window_once(width: int, height: int, bands: int) -> None:
    parts, area = [], 0
    for part in parts_of(width, height, bands):
        sides = [part.bands, part.rows, part.cols]
        count, rows, cols = (side.stop - side.start for side in sides)
        assert 0 < count <= MOST_BANDS
        assert 0 < rows <= MOST_PX
        assert 0 < cols <= MOST_PX
        assert count * rows * cols * 9 <= MOST_BYTES
        area += count * rows * cols
        parts.append(tuple((side.start, side.stop) for side in sides))
        if len(parts) > 2000:
            return
    assert area == width * height * bands
    assert len(set(parts)) == len(parts)
    for axis, end in enumerate((bands, height, width)):
        cuts = sorted({part[axis] for part in parts})
        assert [a for a, _ in cuts] == [0, *(b for _, b in cuts[:-1])]
        assert cuts[-1][1] == end


def test_no_more_than_forty_requests_are_in_flight(earth: Any) -> None:
    kinds = Faults(rate=1, kinds=("latency",), latency_s=0.5, at_most=1000)
    server = earth(faults=kinds)
    image = image_of(server)
    source = pixels(server, attempts=1)
    with ThreadPoolExecutor(70) as pool:
        wanted = [grid_in(image, size_px=1, col=col) for col in range(75)]
        list(pool.map(lambda g: source.pixels(address(image), ["B2"], g, fill=0), wanted))
    assert 20 < server.most_in_flight <= 40
    assert source.requests == 75


def test_workers_of_a_run_have_forty_requests_in_flight_together(earth: Any) -> None:
    """Four processes, each with threads enough for all the places."""
    kinds = Faults(rate=1, kinds=("latency",), latency_s=0.5, at_most=1000)
    server = earth(faults=kinds)
    image = image_of(server)
    worker = f"""
from concurrent.futures import ThreadPoolExecutor
from pipeline.ports import PixelGrid
from pipeline.sources.earthengine.pixels import EarthEnginePixels
from pipeline.sources.providers import load_provider

provider = load_provider("earth-engine", url={server.url!r})
source = EarthEnginePixels(provider, share=0.25, attempts=1, run={server.url!r})
assert source.concurrency == 40

def ask(col):
    grid = PixelGrid(32633, 300_000.0 + 10 * col, 5_700_000.0, 10.0, 1, 1)
    return source.pixels({address(image)!r}, ["B2"], grid, fill=0)

with ThreadPoolExecutor(40) as pool:
    list(pool.map(ask, range(40)))
"""
    workers = [subprocess.Popen([sys.executable, "-c", worker]) for _ in range(4)]
    assert [worker.wait(timeout=120) for worker in workers] == [0] * 4
    assert len(server.asked) == 160
    assert 20 < server.most_in_flight <= 40


# --- who may ask ---------------------------------------------------------------------------------


def read_one(server: Any, **values: Any) -> Any:
    image = image_of(server)
    return pixels(server, **values).pixels(address(image), ["B2"], grid_in(image), fill=0)


def test_an_expired_token_is_renewed(earth: Any) -> None:
    server = earth()
    image, source = image_of(server), pixels(server)
    first = source.pixels(address(image), ["B2"], grid_in(image), fill=0)
    server.accounts.expire_tokens()
    again = source.pixels(address(image), ["B2"], grid_in(image), fill=0)
    np.testing.assert_array_equal(first, again)
    assert source.requests == 2


def test_application_default_credentials_are_enough(
    earth: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = earth()
    server.accounts.write_key(tmp_path / "default.json")
    monkeypatch.delenv("TERRASHARD_EARTH_ENGINE_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "default.json"))
    assert read_one(server).shape == (1, 4, 4)


def test_a_user_s_own_login_is_enough(
    earth: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server, login = earth(), tmp_path / ".config" / "earthengine" / "credentials"
    login.parent.mkdir(parents=True)
    server.accounts.write_login(login)
    monkeypatch.delenv("TERRASHARD_EARTH_ENGINE_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    # The client has the address where tokens are made as a constant.
    monkeypatch.setattr("ee.oauth.TOKEN_URI", server.accounts.token_uri)
    assert read_one(server).shape == (1, 4, 4)
    server.accounts.expire_tokens()
    assert read_one(server).shape == (1, 4, 4)


def test_another_s_login_is_refused(
    earth: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server, login = earth(), tmp_path / ".config" / "earthengine" / "credentials"
    login.parent.mkdir(parents=True)
    login.write_text(json.dumps({"refresh_token": "secret-words", "project": server.project}))
    monkeypatch.delenv("TERRASHARD_EARTH_ENGINE_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("ee.oauth.TOKEN_URI", server.accounts.token_uri)
    with pytest.raises(RecipeError, match="earthengine authenticate") as refusal:
        read_one(server)
    assert "secret-words" not in str(refusal.value)


def test_another_s_key_is_refused_and_told_nobody(
    earth: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    other, server = earth(), earth()
    key = json.loads(Path(_key()).read_text())
    other.accounts.write_key(tmp_path / "other.json")
    strange = json.loads((tmp_path / "other.json").read_text())["private_key"]
    (tmp_path / "mixed.json").write_text(json.dumps({**key, "private_key": strange}))
    monkeypatch.setenv("TERRASHARD_EARTH_ENGINE_KEY", str(tmp_path / "mixed.json"))
    with pytest.raises(GiveUp) as refusal:
        read_one(server)
    assert refusal.value.failure == "forbidden"
    secret = strange.split("\n")[1]
    assert secret not in str(refusal.value) + caplog.text


@pytest.mark.parametrize("content", [None, "", "{}", '{"type": "service_account"}', "secret-words"])
def test_what_is_no_key_is_named_and_not_shown(
    earth: Any, content: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server, path = earth(), tmp_path / "no-key.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("TERRASHARD_EARTH_ENGINE_KEY", str(path))
    with pytest.raises(RecipeError, match=r"no-key\.json") as refusal:
        read_one(server)
    assert "secret-words" not in str(refusal.value)


def test_tokens_are_never_logged(earth: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server = earth()
    read_one(server)
    assert server.accounts.tokens
    assert not any(token in caplog.text for token in server.accounts.tokens)


def test_another_project_is_forbidden(earth: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = earth()
    monkeypatch.setenv("TERRASHARD_EARTH_ENGINE_PROJECT", "somebody-elses")
    with pytest.raises(GiveUp, match="somebody-elses") as refusal:
        read_one(server)
    assert refusal.value.failure == "forbidden"


# --- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "error", "failure"),
    [
        ("throttled", TryAgain, "throttled"),
        ("throttled-bare", TryAgain, "throttled"),
        ("server-error", TryAgain, "server-error"),
        ("internal-error", TryAgain, "server-error"),
        ("reset", TryAgain, "connection"),
        ("html", GiveUp, "not-an-image"),
        ("missing", GiveUp, "gone"),
        ("forbidden", GiveUp, "forbidden"),
        ("expired", GiveUp, "forbidden"),
    ],
)
def test_each_fault_has_its_class(
    earth: Any, fault: Any, error: type[GiveUp] | type[TryAgain], failure: str
) -> None:
    server = earth(faults=Faults(permanent={"*": fault}, retry_after_s=7))
    with pytest.raises(error) as found:
        read_one(server, attempts=1)
    assert found.value.failure == failure
    if fault == "throttled":
        assert found.value.retry_after_s == 7


def test_passing_faults_leave_no_trace(earth: Any) -> None:
    kinds = ("throttled", "server-error", "reset")
    server = earth(faults=Faults(rate=0.5, kinds=kinds, seed=1, at_most=2))
    image = image_of(server)
    source = pixels(server)
    for col in range(4):
        source.pixels(address(image), ["B2"], grid_in(image, col=col), fill=0)
    assert server.dice.thrown
    assert source.requests == 4 + server.dice.thrown.total()


def test_another_version_or_band_of_an_image_is_gone(earth: Any) -> None:
    server = earth()
    image = image_of(server)
    source = pixels(server)
    older = earthengine_pixels.address(image.id, image.version - 1)
    for href, band in ((older, "B2"), (address(image), "B99")):
        with pytest.raises(GiveUp) as refusal:
            source.pixels(href, [band], grid_in(image), fill=0)
        assert refusal.value.failure == "gone"


@pytest.mark.parametrize("href", ["ee://a/b", "ee://a/b?version=x", "ee://a b?version=1", "/etc"])
def test_what_is_no_address_is_refused(earth: Any, href: str) -> None:
    server = earth()
    with pytest.raises(GiveUp) as refusal:
        pixels(server).pixels(href, ["B2"], grid_in(image_of(server)), fill=0)
    assert refusal.value.failure == "refused"
    assert not server.asked


RETRIED, SPLIT, GIVEN_UP = 2, 3, 1  # requests, of two attempts, for a window of four rows


@pytest.mark.parametrize(
    ("status", "message", "requests", "failure"),
    [
        (429, "", RETRIED, "throttled"),
        (429, "Too Many Requests: Request was rejected because ...", RETRIED, "throttled"),
        (429, "Too many concurrent aggregations.", RETRIED, "throttled"),
        (400, "Too many concurrent aggregations.", RETRIED, "throttled"),
        (403, "Quota exceeded for quota metric 'requests'.", RETRIED, "throttled"),
        (429, "Quota exceeded for quota metric 'EECU-hours'.", RETRIED, "throttled"),
        (400, "Computation timed out.", RETRIED, "timeout"),
        (400, "Deadline exceeded.", RETRIED, "timeout"),
        (504, "", RETRIED, "timeout"),
        (500, "An internal error has occurred", RETRIED, "server-error"),
        (503, "The service is currently unavailable.", RETRIED, "server-error"),
        (400, "User memory limit exceeded.", SPLIT, "too-large"),
        (400, "Computed value is too large.", SPLIT, "too-large"),
        (400, "Total request size (56623104 bytes) must be less than ...", SPLIT, "too-large"),
        (400, "Image.load: Image asset 'x' not found (does not exist or ...", GIVEN_UP, "gone"),
        (404, "", GIVEN_UP, "gone"),
        (403, "Caller does not have required permission to use ...", GIVEN_UP, "forbidden"),
        (400, "Invalid JSON payload received.", GIVEN_UP, "refused"),
    ],
)
def test_what_a_refusal_leads_to(
    earth: Any,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    message: str,
    requests: int,
    failure: str,
) -> None:
    monkeypatch.setattr("pipeline.sources.limits.FIRST_PAUSE_S", 0.01)
    server = earth()
    image, source = image_of(server), pixels(server, attempts=2)
    server.refusal = EarthEngineRefusal(HTTPStatus(status), "WHATEVER", message)
    with pytest.raises(TryAgain if failure in PASSING else GiveUp) as refusal:
        source.pixels(address(image), ["B2"], grid_in(image), fill=0)
    assert refusal.value.failure == failure
    assert failure in (*PASSING, *FINAL)
    assert source.requests == requests


def test_a_page_that_is_too_much_is_halved(earth: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = earth()
    whole = search(server)
    assert len(whole) >= 4
    monkeypatch.setattr("pipeline.simulate.earthengine.images.MOST_ELEMENTS", 2)
    catalogue = EarthEngineCatalogue(provider(server, page_size=8), SENTINEL)
    assert list(catalogue.search(APRIL)) == whole
    assert catalogue.requests == 2 + len(whole) // 2 + 1  # 8 and 4 are too many, 2 are not


@given(status=st.integers(300, 599), body=st.binary(max_size=60))
def test_no_refusal_is_too_strange(status: int, body: bytes) -> None:
    assert isinstance(failure_of(status, body, what="x"), TryAgain | GiveUp)


def parsed(change: Callable[[bytes], bytes]) -> Any:
    table = np.zeros((3, 2), [("B2", "u2"), ("B3", "u2")])
    file = io.BytesIO()
    np.save(file, table)
    grid = PixelGrid(32633, 0, 0, 10, 2, 3)
    return earthengine_pixels._parse(change(file.getvalue()), ["B2", "B3"], grid, "x")


@pytest.mark.parametrize(
    ("change", "failure"),
    [
        (lambda data: data[:-1], "short-read"),
        (lambda data: data[:30], "short-read"),
        (lambda _: b"<html>", "not-an-image"),
        (lambda data: data.replace(b"B3", b"B4"), "wrong-size"),
        (lambda data: data.replace(b"(3, 2)", b"(2, 3)"), "wrong-size"),
        (lambda data: data.replace(b"'<u2'", b"'|O8'"), "short-read"),
    ],
)
def test_answers_are_hostile_until_checked(change: Callable[[bytes], bytes], failure: str) -> None:
    assert parsed(lambda data: data).shape == (2, 3, 2)
    with pytest.raises((GiveUp, TryAgain)) as refusal:
        parsed(change)
    assert refusal.value.failure == failure


def _key() -> str:
    import os

    return os.environ["TERRASHARD_EARTH_ENGINE_KEY"]


def _file(archive: Path, image: Any, key: str) -> Any:
    """Return a band of the file that an image stands for."""
    providers = json.loads((archive / "archive.json").read_text())["providers"]
    for item in providers["planetary-computer"]["sentinel-2-l2a"]["items"]:
        facts = item["properties"]
        if facts["s2:datatake_id"] == image.properties["DATATAKE_IDENTIFIER"] and (
            facts["s2:mgrs_tile"] == image.properties["MGRS_TILE"]
        ):
            return band_of(archive / item["assets"][key]["href"])
    raise LookupError(image.id)

"""One recipe through Earth Engine and through files: the same pixels, to the count."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.engine.serial import SerialEngine
from pipeline.errors import RecipeError
from pipeline.products.catalogue import load_product
from pipeline.recipe import load_recipe
from pipeline.run.check import check_recipe
from pipeline.run.everything import run_everything
from pipeline.simulate.archive import make_archive
from pipeline.simulate.delivery.orbits import SMALL
from pipeline.simulate.service.server import ArchiveServer
from pipeline.store.objects import open_store
from pipeline.store.reader import open_dataset
from pipeline.watch.progress import Progress

REGION = (15.02, 51.9, 15.05, 51.915)
IMAGES = ("landsat-oli-tirs-toa", "landsat-etm-toa", "landsat-tm-toa")
MAPS = ("esa-worldcover", "nlcd", "cdl", "corine", "cop-dem-glo-30")
#: Where each is found in the simulated archive.
PATHS = {
    **dict.fromkeys(IMAGES, "usgs"),
    **dict.fromkeys(("nlcd", "corine"), "labels"),
    **dict.fromkeys(("esa-worldcover", "cdl", "cop-dem-glo-30"), "planetary-computer"),
}
RECIPE = """
name = "same"
[sample]
strategy = "grid"
region = [15.02, 51.9, 15.05, 51.915]
[cell]
lattice = "{lattice}"
size_px = {size_px}
[slots]
kind = "months"
start = 2023-04-01
end = 2023-05-01
"""
WISH = """
[[product]]
id = "{id}"
provider = "{provider}"
url = "{url}"
allow_unmasked = true
min_valid_fraction = 0.3
"""
#: The panchromatic band, which shares centres and not corners with the others, comes thinned out.
FINE = 'bands = ["B8", "B4", "{thermal}"]\npixel_m = 30\nresampling = "nearest"\n'
THERMAL = {IMAGES[0]: "B10", IMAGES[1]: "B6_VCID_1", IMAGES[2]: "B6"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("same") / "archive"
    size = {"swath_m": 6000, "track_m": 5500, "cycle_days": 12}
    make_archive(
        folder,
        products=[*IMAGES, *MAPS],
        region=REGION,
        start=date(2023, 4, 1),
        end=date(2023, 5, 1),
        orbits={
            key: replace(orbit, **size)
            if orbit.square_m
            else replace(orbit, **size, frame_m=5000, frame_step_m=4500)
            for key, orbit in SMALL.items()
        },
    )
    return folder


def samples(folder: Path, products: tuple[str, ...], provider: str, url: str) -> dict[str, Any]:
    """Run a recipe, and return the pixels of each product by location and time."""
    # Cells of pixels no coarser than the maps': GDAL takes means of more than four otherwise.
    cell = ("landsat30", 20) if products[0] in IMAGES else ("s2r10", 30)
    text = RECIPE.format(lattice=cell[0], size_px=cell[1])
    for name in products:
        path = f"{url}/{PATHS[name]}" if provider == "simulated" else url
        text += WISH.format(id=name, provider=provider, url=path)
        if name in IMAGES:
            bands = FINE.format(thermal=THERMAL[name])
            text += bands if name != IMAGES[2] else 'bands = ["B1", "B4", "B6"]\n'
    (folder / f"{provider}.toml").write_text(text)
    loaded = load_recipe(folder / f"{provider}.toml")
    with Progress(live=False) as progress:
        list(
            run_everything(
                loaded,
                open_store(folder / provider),
                engine=SerialEngine,
                cutoff=datetime(2024, 1, 1, tzinfo=UTC),
                progress=progress,
            )
        )
    data = open_dataset(str(folder / provider))
    index = [(row["product"], row["location"]) for row in data.index.to_pylist()]
    found: dict[str, Any] = {}
    for number, sample in enumerate(data):
        for name in products:
            if name in sample:
                found[f"{number}/{name}"] = (sample[name]["bands"], sample[name]["mask"])
    return {"index": sorted(index), **found}


def both(archive: Path, folder: Path, products: tuple[str, ...], endpoints_of: Any) -> Any:
    with ArchiveServer(archive) as files, endpoints_of(archive, folder) as serve:
        return (
            samples(folder, products, "simulated", files.url),
            samples(folder, products, "earth-engine", serve().url),
        )


@pytest.mark.parametrize("name", IMAGES)
def test_landsat_level_1_is_the_same_to_the_last_bit(
    archive: Path, tmp_path: Path, endpoints_of: Any, name: str
) -> None:
    files, earth = both(archive, tmp_path, (name,), endpoints_of)
    assert files["index"] == earth["index"]
    assert len(files) == 1 + len(files["index"]) > 5
    for key in files.keys() - {"index"}:
        np.testing.assert_array_equal(earth[key][0], files[key][0])
        np.testing.assert_array_equal(earth[key][1], files[key][1])
        assert np.isfinite(files[key][0]).any()


def test_maps_lie_on_the_cells_as_if_warped_here(
    archive: Path, tmp_path: Path, endpoints_of: Any
) -> None:
    files, earth = both(archive, tmp_path, MAPS, endpoints_of)
    assert files["index"] == earth["index"]
    codes: dict[str, set[int]] = {name: set() for name in MAPS}
    other = dict.fromkeys(MAPS, 0.0)
    for key in files.keys() - {"index"}:
        name = key.partition("/")[2]
        found, expected = earth[key][0], files[key][0]
        if name == "cop-dem-glo-30":
            np.testing.assert_allclose(found, expected, atol=0.01)
        else:
            # Of two pixels that are as near as can be, either may come.
            other[name] = max(other[name], float((found != expected).mean()))
            codes[name] |= set(np.unique(found).tolist())
    assert max(other.values()) < 0.001, other
    for name in set(MAPS) - {"cop-dem-glo-30"}:
        assert len(codes[name]) > 1
        assert codes[name] <= {int(code) for code in load_product(name).classes}


MIXED = """
id = "mixed"
title = "Sentinel-1 as it comes"
lattice = "s2r10"
stored_dtype = "float32"
sources = ["made up for this test"]
bands = [{{ name = "VV", pixel_m = 10 }}]
[providers.earth-engine]
collection = "COPERNICUS/S1_GRD{more}"
[providers.earth-engine.assets]
VV = [{{ asset = "VV" }}]
[providers.planetary-computer]
collection = "sentinel-1-grd"
[providers.planetary-computer.assets]
VV = [{{ asset = "vv" }}]
"""


@pytest.mark.parametrize("more", ["", "_FLOAT"])
def test_a_product_that_would_mix_sentinel_1_is_refused(tmp_path: Path, more: str) -> None:
    (tmp_path / "mixed.toml").write_text(MIXED.format(more=more))
    wish = WISH.format(id="mixed.toml", provider="earth-engine", url="http://127.0.0.1:1")
    (tmp_path / "recipe.toml").write_text(RECIPE.format(lattice="s2r10", size_px=30) + wish)
    with pytest.raises(RecipeError, match="must not mix"):
        load_recipe(tmp_path / "recipe.toml")


@pytest.mark.parametrize("name", ["sentinel-1-grd", "sentinel-1-rtc"])
def test_a_recipe_that_would_mix_sentinel_1_is_refused(tmp_path: Path, name: str) -> None:
    text = RECIPE.format(lattice="s2r10", size_px=30) + WISH.format(
        id=name, provider="planetary-computer", url="http://127.0.0.1:1"
    )
    text = text.replace('"planetary-computer"\nurl = "http://127.0.0.1:1"', "PROVIDERS")
    for listed in ('"earth-engine"', '["planetary-computer", "earth-engine"]'):
        (tmp_path / "recipe.toml").write_text(text.replace("PROVIDERS", listed))
        with pytest.raises(RecipeError, match="'earth-engine' does not serve"):
            check_recipe(load_recipe(tmp_path / "recipe.toml"))
    assert set(load_product("sentinel-1-grd-corrected").providers) == {"earth-engine"}

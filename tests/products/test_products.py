"""The product files: complete, consistent with one another, and true to the real products."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import rasterio

from pipeline.errors import RecipeError
from pipeline.products.catalogue import Product, load_product
from pipeline.recipe import load_recipe
from pipeline.sources.providers import providers

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
REAL = Path(__file__).resolve().parents[1] / "real"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="real data (../shared/data) not here")

PRODUCTS = ("sentinel-2-l2a", "enmap-l2a")
SERVED = [
    (name, provider) for name in PRODUCTS for provider in sorted(load_product(name).providers)
]


def recorded_enmap_items() -> list[dict[str, object]]:
    items = {}
    for path in sorted((DATA / "stac" / "dlr").glob("*.json")):
        answer = json.loads(path.read_text())["response"]
        for item in answer.get("features", [answer]):
            if item.get("collection") == "ENMAP_HSI_L2A":
                items[item["id"]] = item
    return list(items.values())


@pytest.mark.parametrize(("name", "provider"), SERVED)
def test_every_band_and_layer_has_a_file_at_every_known_provider(name: str, provider: str) -> None:
    product = load_product(name)
    facts = product.providers[provider]
    assert provider in providers()
    for band in product.bands:
        assert facts.assets.get(band.name) or facts.assets.get("*"), band.name
    for layer in product.mask_layers:
        assert facts.assets[layer.name], layer.name
    assert {"datatake", "tile"} <= set(facts.properties)
    assert set(facts.patterns) <= set(facts.properties)


@pytest.mark.parametrize("name", PRODUCTS)
def test_bands_ascend_in_wavelength_and_names_are_unique(name: str) -> None:
    bands = load_product(name).bands
    centres = [band.wavelength_nm for band in bands]
    assert centres == sorted(centres)  # type: ignore[type-var]
    assert len({band.name for band in bands}) == len(bands)


@pytest.mark.parametrize("name", PRODUCTS)
def test_rules_name_layers_and_packed_layers_do_not_overlap(name: str) -> None:
    product = load_product(name)
    packed = [layer for layer in product.mask_layers if not layer.per_band]
    assert {rule.layer for rule in product.mask_rules} <= {layer.name for layer in packed}
    bits = [
        bit
        for layer in packed
        for bit in range(layer.shift_bits, layer.shift_bits + layer.width_bits)
    ]
    assert len(bits) == len(set(bits))
    assert max(bits) < 32


def test_every_scene_classification_code_has_one_meaning() -> None:
    rules = load_product("sentinel-2-l2a").mask_rules
    decided = [value for rule in rules for value in rule.values or ()]
    assert sorted(decided) == [0, 1, 3, 4, 5, 6, 8, 9, 10, 11]  # 2 and 7 stay `valid`


def test_the_literature_s_202_bands_are_the_default() -> None:
    bands = load_product("enmap-l2a").bands
    assert [band.index for band in bands] == list(range(1, 225))
    left_out = {band.index for band in bands if not band.default}
    assert left_out == {*range(127, 142), *range(161, 168)}


def test_a_provider_that_is_like_another_keeps_its_own_keys() -> None:
    facts = load_product("enmap-l2a").providers
    assert facts["local"].assets == facts["dlr"].assets
    assert facts["local"].collection == "enmap-folder"
    assert facts["dlr"].collection == "ENMAP_HSI_L2A"


def test_a_product_survives_being_written_down() -> None:
    for name in PRODUCTS:
        product = load_product(name)
        assert Product.model_validate(product.model_dump(mode="json")) == product


def test_an_unknown_product_names_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"enmap-l2a.*sentinel-2-l2a"):
        load_product("sentinel-9")


@pytest.mark.parametrize("name", ["enmap", "enmap-potsdam", "sentinel-2"])
def test_recipes_over_real_data_are_sound(name: str) -> None:
    loaded = load_recipe(REAL / f"{name}.toml")
    assert loaded.stages()[0] == "search"
    for product in loaded.products:
        assert loaded.size_px(product) * loaded.pixel_m(product) == loaded.cell_m


@needs_data
def test_enmap_bands_are_those_of_every_recorded_item() -> None:
    bands = load_product("enmap-l2a").bands
    centres = [band.wavelength_nm for band in bands]
    widths = [band.fwhm_nm for band in bands]
    items = recorded_enmap_items()
    assert len(items) == 43
    for item in items:
        table = item["assets"]["image"]["eo:bands"]  # type: ignore[index]
        assert [row["center_wavelength"] for row in table] == pytest.approx(centres, rel=1e-5)
        assert [row["full_width_half_max"] for row in table] == pytest.approx(widths, rel=1e-5)


@needs_data
def test_quality_layers_of_recorded_items_fit_the_packing() -> None:
    product = load_product("enmap-l2a")
    facts = product.providers["dlr"]
    for item in recorded_enmap_items():
        for layer in product.mask_layers:
            entry = item["assets"][facts.assets[layer.name][0].asset]  # type: ignore[index]
            for band in entry.get("raster:bands", []):
                assert band["statistics"]["maximum"] < 2**layer.width_bits


@needs_data
def test_sentinel_2_numbers_are_those_of_the_real_metadata() -> None:
    product = load_product("sentinel-2-l2a")
    root = ET.parse(next((DATA / "sentinel-2" / "T29UNU").glob("*.SAFE/MTD_MSIL2A.xml"))).getroot()
    for entry in root.iter("Spectral_Information"):
        name = f"B{entry.get('physicalBand', '')[1:]:0>2}"
        if name == "B10":  # cirrus: not in level 2A
            continue
        band = product.band(name)
        assert band.wavelength_nm == float(entry.findtext(".//CENTRAL", ""))
        response = [float(word) for word in entry.findtext(".//VALUES", "").split()]
        half = [i for i, value in enumerate(response) if value >= max(response) / 2]
        assert band.fwhm_nm == half[-1] - half[0] + 1
        assert band.pixel_m == float(entry.findtext("RESOLUTION", ""))
    special = {e[0].text: float(e[1].text or "") for e in root.iter("Special_Values")}
    assert special == {"NODATA": product.nodata, "SATURATED": product.saturated}
    assert {int(e.text or "") for e in root.iter("BOA_ADD_OFFSET")} == {product.offsets[0].add}


@needs_data
def test_potsdam_bands_are_where_the_tiles_say() -> None:
    product = load_product(str(REAL / "enmap-potsdam-product.toml"))
    centres = [band.wavelength_nm for band in product.bands]
    assert centres == sorted(centres)  # type: ignore[type-var]
    for path in sorted((DATA / "enmap" / "potsdam" / "images").glob("*.tif")):
        with rasterio.open(path) as tile:
            for band in product.bands:
                assert f"({band.wavelength_nm} Nanometers)" in tile.descriptions[band.index - 1]

"""The product files: complete, consistent with one another, and true to the real products."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import rasterio

from pipeline.errors import RecipeError
from pipeline.products.catalogue import lattice, load_product, product_ids
from pipeline.products.model import LEGEND, Product
from pipeline.raster.masks import decode, pack
from pipeline.recipe import load_recipe
from pipeline.records import Scene, Unusable
from pipeline.sources.providers import providers
from pipeline.stages.search.normalise import normalise

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
REAL = Path(__file__).resolve().parents[1] / "real"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="real data (../shared/data) not here")

PRODUCTS = product_ids()
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
        assert facts.entries(band), band.name
        for word in product.coefficients(band.name):
            assert facts.assets[word], word
    for layer in product.mask_layers:
        assert layer.optional or facts.assets[layer.name], layer.name
    if "*" not in facts.assets:  # else an unknown key may be a band
        known = {band.name for band in product.bands} | {x.name for x in product.mask_layers}
        known |= {word for band in product.bands for word in product.coefficients(band.name)}
        parts = {band.part for band in product.bands if band.part}
        known |= parts | {f"{x.name} {part}" for x in product.mask_layers for part in parts}
        assert set(facts.assets) <= known
    assert {"datatake", "tile"} <= set(facts.properties)
    for pattern in (*facts.patterns.values(), *facts.only.values()):
        re.compile(pattern)
    assert set(facts.patterns) <= set(facts.properties)


@pytest.mark.parametrize("name", PRODUCTS)
def test_every_product_says_under_which_terms_its_data_are(name: str) -> None:
    product = load_product(name)
    assert product.terms
    assert product.attribution or name.startswith("simulated")
    assert product.terms in product.conditions
    assert product.attribution in product.conditions


@pytest.mark.parametrize("name", PRODUCTS)
def test_bands_ascend_in_wavelength_and_names_are_unique(name: str) -> None:
    bands = load_product(name).bands
    centres = [band.wavelength_nm for band in bands if band.wavelength_nm is not None]
    assert centres == sorted(centres)
    assert len(centres) in (0, len(bands)), "all bands or none"
    assert len({band.name for band in bands}) == len(bands)


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_is_whole_and_sourced(name: str) -> None:
    product = load_product(name)
    assert product.id == name
    assert all(len(source) > 20 for source in product.sources)
    if product.kind == "labels":
        codes = {int(code) for code in product.classes}
        assert codes <= set(range(256))
        assert product.ignore_class in codes
        assert (product.scale, product.offset, len(product.bands)) == (1, 0, 1)
        assert set(product.colours) in (set(), set(product.classes))
        assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in product.colours.values())
        assert len(set(product.classes.values())) > 0.9 * len(codes), "names tell classes apart"
    else:
        assert not product.classes
    if product.lattice is not None:
        finest = min(band.pixel_m for band in product.bands)
        assert lattice(product.lattice).pixel_m % finest == 0


#: Centre and width (None: not given) of every band in nm by other hands than our product files'
#: sources. TM and ETM+: where the USGS's measured responses (acolite, data/RSR/L5_TM.txt and
#: L7_ETM.txt) are half their maximum; thermal bands: stactools-packages/landsat, `eo:bands` of its
#: fragments. OLI and TIRS: Sentinel Hub's documentation of Landsat 8 level 2, to half a nanometre.
#: Sentinel-2: ESA's published table of both platforms.
SECOND_TABLE: dict[str, dict[str, tuple[float, float | None]]] = {
    "landsat-tm": {
        "B1": (484.9, 66.2),
        "B2": (569.1, 80.6),
        "B3": (658.7, 68.7),
        "B4": (840.6, 129.1),
        "B5": (1676.1, 216.9),
        "B7": (2222.3, 250.2),
        "B6": (11450, None),
    },
    "landsat-etm": {
        "B1": (477.6, 72.7),
        "B2": (560.0, 81.4),
        "B3": (661.3, 61.4),
        "B8": (705.5, 381.0),
        "B4": (834.8, 126.4),
        "B5": (1647.6, 201.1),
        "B7": (2205.0, 281.2),
        "B6_VCID_1": (11340, None),
        "B6_VCID_2": (11340, None),
    },
    "landsat-oli": {
        "B1": (443, None),
        "B2": (482, None),
        "B3": (561.5, None),
        "B8": (589.5, None),
        "B4": (654.5, None),
        "B5": (865, None),
        "B9": (1373.5, None),
        "B6": (1608.5, None),
        "B7": (2200.5, None),
        "B10": (10895, None),
        "B11": (12005, None),
    },
    "sentinel-2": {
        "B01": (442.7, 21),
        "B02": (492.4, 66),
        "B03": (559.8, 36),
        "B04": (664.6, 31),
        "B05": (704.1, 15),
        "B06": (740.5, 15),
        "B07": (782.8, 20),
        "B08": (832.8, 106),
        "B8A": (864.7, 21),
        "B09": (945.1, 20),
        "B10": (1373.5, 31),
        "B11": (1613.7, 91),
        "B12": (2202.4, 175),
    },
}
SENTINEL_2B_NM = {
    "B01": 442.2,
    "B02": 492.1,
    "B03": 559.0,
    "B04": 664.9,
    "B05": 703.8,
    "B06": 739.1,
    "B07": 779.7,
    "B08": 832.9,
    "B8A": 864.0,
    "B09": 943.2,
    "B10": 1376.9,
    "B11": 1610.4,
    "B12": 2185.7,
}
#: How far the two may be apart in nm, in centre and in width. TM and ETM+ are read off at half a
#: maximum, and Chander's numbers are rounded to 1 nm; ESA's B02 of Sentinel-2A was 492.4 before it
#: was 492.7, and its widths count one step of 1 nm more; EnMAP's channels keep their widths.
WITHIN_NM = {
    "landsat-tm": (2.0, 2.0),
    "landsat-etm": (2.0, 2.0),
    "landsat-oli": (0.5, 0.5),
    "sentinel-2": (0.35, 1.0),
    "enmap": (0.4, 0.001),
}
THERMAL_NM, THERMAL_WITHIN_NM = 3000, 20.0
WITH_WAVELENGTHS = [
    name for name in PRODUCTS if any(band.wavelength_nm for band in load_product(name).bands)
]


def second_table(name: str) -> dict[str, tuple[float, float | None]]:
    """Return another hand's table of a product's bands, by name."""
    if name.startswith("enmap"):
        return by_wavelength(load_product(name), older_enmap_table())
    (family,) = [key for key in SECOND_TABLE if name.startswith(key)]
    return SECOND_TABLE[family]


def older_enmap_table() -> list[tuple[float, float]]:
    """Return centres and widths of a real product of an older processor, in its files' order."""
    if not DATA.is_dir():
        pytest.skip("real data (../shared/data) not here")
    root = ET.parse(DATA / "enmap" / "metadata" / "enmap_wavelength.xml").getroot()
    return [
        (float(row.findtext("wavelengthCenterOfBand", "")), float(row.findtext("FWHMOfBand", "")))
        for row in root.iter("bandID")
    ]


def by_wavelength(
    product: Product, rows: list[tuple[float, float]]
) -> dict[str, tuple[float, float | None]]:
    """Return the row next to each band; none for the three channels that it does not have."""
    nearest = {}
    for band in product.bands:
        own = np.array([band.wavelength_nm, band.fwhm_nm])
        nearest[band.name] = rows[int(np.abs(np.array(rows) - own).sum(axis=1).argmin())]
    return {name: row for name, row in nearest.items() if name not in ("B136", "B165", "B166")}


def unlike(product: Product, table: Mapping[str, tuple[float, float | None]]) -> list[str]:
    """Return the bands that another table puts elsewhere, or makes wider or narrower."""
    (within,) = [value for key, value in WITHIN_NM.items() if product.id.startswith(key)]
    found = []
    for band in product.bands:
        if band.name not in table:
            found += [] if product.id.startswith("enmap") else [band.name]
            continue
        centre, width = table[band.name]
        far = THERMAL_WITHIN_NM if centre > THERMAL_NM else within[0]
        off = abs((band.wavelength_nm or 0) - centre) / far
        if width is not None:
            off = max(off, abs((band.fwhm_nm or 0) - width) / within[1])
        if off > 1:
            found.append(band.name)
    return found


@pytest.mark.parametrize("name", WITH_WAVELENGTHS)
def test_bands_are_those_of_a_second_table(name: str) -> None:
    """A product with wavelengths and without a second table fails: it needs one."""
    assert unlike(load_product(name), second_table(name)) == []


def test_the_bands_of_each_detector_of_enmap_follow_one_another() -> None:
    """A band with the wrong detector would be 0.8 nm wider or narrower than its neighbours."""
    product, merged = load_product("enmap-l1b"), load_product("enmap-l2a")
    described = [(b.name, b.wavelength_nm, b.fwhm_nm) for b in product.bands]
    assert described == [(b.name, b.wavelength_nm, b.fwhm_nm) for b in merged.bands]
    for part, count in (("vnir", 91), ("swir", 133)):
        bands = [band for band in product.bands if band.part == part]
        assert [band.index for band in bands] == list(range(1, count + 1))
        overlap = [band.fwhm_nm for band in bands if 895 < (band.wavelength_nm or 0) < 1005]
        assert len(overlap) > 10
        assert (np.abs(np.diff(np.array(overlap, dtype=float))) < 0.2).all(), part


@pytest.mark.parametrize("name", [n for n in WITH_WAVELENGTHS if n.startswith("sentinel-2")])
def test_the_second_table_tells_sentinel_2a_from_2b(name: str) -> None:
    product = load_product(name)
    assert any("Sentinel-2A" in source for source in product.sources)
    other = {band: (nm, SECOND_TABLE["sentinel-2"][band][1]) for band, nm in SENTINEL_2B_NM.items()}
    alike = {band.name for band in product.bands} - set(unlike(product, other))
    assert alike <= {"B04", "B05", "B08"}  # 0.3, 0.3 and 0.1 nm apart


@pytest.mark.parametrize(
    ("name", "other"),
    [(n, "landsat-etm") for n in WITH_WAVELENGTHS if n.startswith("landsat-tm")]
    + [(n, "landsat-tm") for n in WITH_WAVELENGTHS if n.startswith("landsat-etm")],
)
def test_the_second_table_tells_tm_from_etm(name: str, other: str) -> None:
    product = load_product(name)
    wrong = set(unlike(product, SECOND_TABLE[other]))
    assert wrong >= {band.name for band in product.bands}


#: QA_PIXEL words of real scenes (USGS, Landsat Collection 2 guides, table of frequent values), and
#: what each means.
QA_PIXEL_WORDS = {
    1: "fill",
    21824: "land",  # clear, low confidences
    21952: "water",
    22280: "cloud",
    21826: "cloud",  # dilated
    23888: "cloud-shadow",
    23952: "cloud-shadow",  # over water
    30048: "snow",
    54534: "cloud",
    54596: "thin-cloud",
    55052: "cloud",  # cloud and cirrus
}


@pytest.mark.parametrize("name", [n for n in PRODUCTS if n.startswith("landsat")])
def test_landsat_words_mean_what_the_usgs_says(name: str) -> None:
    product = load_product(name)
    words = QA_PIXEL_WORDS
    pixel = np.array([list(words)], "uint16")
    calm = np.zeros_like(pixel)
    codes = decode({"qa_pixel": pixel, "qa_radsat": calm}, product)
    assert codes.tolist() == [[LEGEND[code] for code in words.values()]]
    # What is fill or cloudy stays so if a pixel was dropped, or terrain hides the ground; clear
    # ground becomes defective.
    lost = 1 << (11 if "oli" in name else 9)
    spoilt = decode({"qa_pixel": pixel, "qa_radsat": calm + lost}, product)
    clear = [code in ("land", "water", "snow") for code in words.values()]
    assert (spoilt == LEGEND["defective"]).tolist() == [clear]
    packed = pack({"qa_pixel": pixel, "qa_radsat": calm + 5}, product)
    assert (packed & 0xFFFF == pixel).all()
    assert (packed >> 16 == 5).all()


#: Bits of QA_RADSAT by band (USGS, Landsat Collection 2 Level 1 data format control books:
#: LSDS-1415 TM, LSDS-1414 ETM+, LSDS-1822 OLI/TIRS). Pan and TIRS have none.
SATURATED_BITS: dict[str, dict[str, int]] = {
    "landsat-tm": {"B1": 0, "B2": 1, "B3": 2, "B4": 3, "B5": 4, "B6": 5, "B7": 6},
    "landsat-etm": {"B1": 0, "B2": 1, "B3": 2, "B4": 3, "B5": 4, "B7": 6}
    | {"B6_VCID_1": 5, "B6_VCID_2": 8},
    "landsat-oli": {"B1": 0, "B2": 1, "B3": 2, "B4": 3, "B5": 4, "B6": 5, "B7": 6, "B9": 8},
}


def spoilt_by(product: Product, bands: tuple[str, ...] | None) -> set[int]:
    """Return the bits of QA_RADSAT that make clear land defective."""
    bits = np.arange(12, dtype="uint16")[None]
    layers = {"qa_pixel": np.full_like(bits, 21824), "qa_radsat": np.uint16(1) << bits}
    return set(bits[decode(layers, product, bands) == LEGEND["defective"]].tolist())


@pytest.mark.parametrize("name", [n for n in PRODUCTS if n.startswith("landsat")])
def test_saturation_counts_in_the_bands_that_are_stored(name: str) -> None:
    product = load_product(name)
    table = next(bits for family, bits in SATURATED_BITS.items() if name.startswith(family))
    always = {11} if "oli" in name else {9}
    names = tuple(band.name for band in product.bands)
    for stored in (*((band,) for band in names), names[1:3], names):
        assert spoilt_by(product, stored) == always | {table[b] for b in stored if b in table}
    assert spoilt_by(product, None) == spoilt_by(product, names)


@needs_data
def test_saturation_bits_are_those_of_recorded_items() -> None:
    path = DATA / "stac" / "planetary-computer" / "item_landsat-c2-l2.json"
    fields = json.loads(path.read_text())["response"]["assets"]["qa_radsat"]
    told = {f"B{f['name'][4:]}": f["offset"] for f in fields["classification:bitfields"][:-1]}
    for name in ("landsat-oli-sr", "landsat-oli-tirs-toa"):
        bands = load_product(name).bands
        own = {b.name: b.saturated_bit for b in bands if b.saturated_bit is not None}
        assert own.items() <= told.items()
        assert own.keys() == told.keys() & {band.name for band in bands}


def test_enmap_layers_have_an_order_of_precedence() -> None:
    product = load_product("enmap-l2a")
    names = ("classes", "cloud", "cloudshadow", "haze", "cirrus", "snow")
    truth = {
        (3, 0, 0, 0, 0, 0): "fill",
        (3, 1, 1, 1, 3, 1): "fill",
        (0, 0, 0, 0, 0, 0): "fill",
        (1, 0, 0, 0, 0, 0): "land",
        (2, 0, 0, 0, 0, 0): "water",
        (1, 0, 0, 0, 1, 0): "land",  # thin cirrus passes
        (1, 0, 0, 0, 2, 0): "thin-cloud",
        (1, 0, 0, 1, 0, 0): "thin-cloud",
        (1, 0, 1, 1, 0, 0): "cloud-shadow",
        (1, 1, 1, 0, 0, 1): "cloud",
        (2, 0, 0, 0, 0, 1): "snow",
    }
    columns = np.array(list(truth), "uint8").T
    layers = {name: column[None] for name, column in zip(names, columns, strict=True)}
    assert decode(layers, product).tolist() == [[LEGEND[code] for code in truth.values()]]


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
    assert max(bits, default=0) < 32


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
        platform = root.findtext(".//SPACECRAFT_NAME")
        (shipped,) = [
            own for own in product.responses if (own.band, own.platform) == (name, platform)
        ]
        assert list(shipped.values) == response
        assert (shipped.start_nm, shipped.step_nm) == (
            float(entry.findtext(".//MIN", "")),
            float(entry.findtext(".//STEP", "")),
        )
        assert shipped.datatake == root.find(".//Datatake").attrib["datatakeIdentifier"][1:5]  # type: ignore[union-attr]
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


#: Products and providers that recorded items are there of.
RECORDED = [
    ("landsat-oli-sr", "planetary-computer"),
    ("landsat-oli-tirs-st", "planetary-computer"),
    ("landsat-oli-sr", "earth-search"),
    ("sentinel-1-rtc", "planetary-computer"),
    ("sentinel-1-grd", "earth-search"),
    ("sentinel-2-l1c", "earth-search"),
]


@needs_data
@pytest.mark.parametrize(("name", "provider"), RECORDED)
def test_recorded_items_have_the_names_of_the_product_file(name: str, provider: str) -> None:
    product = load_product(name)
    facts = product.providers[provider]
    wanted = {band.name for band in product.bands} | {x.name for x in product.mask_layers}
    wanted -= {layer.name for layer in product.mask_layers if layer.optional}
    keys = {file.asset for word in wanted for file in facts.assets[word]}
    scenes = 0
    for path in sorted((DATA / "stac" / provider).glob("*.json")):
        answer = json.loads(path.read_text())["response"]
        for item in answer.get("features", [answer]):
            if item.get("collection") != facts.collection:
                continue
            row = normalise(item, product, provider, None)
            if isinstance(row, Scene):
                scenes += 1
                assert {asset.name for asset in row.assets} >= keys
                assert row.scene == f"{name}/{row.datatake}/{row.tile}"
            else:
                assert row.reason in ("other-product", "no-assets"), row
    assert scenes


@needs_data
def test_a_shared_collection_is_told_apart_by_platform() -> None:
    path = DATA / "stac" / "planetary-computer" / "item_landsat-c2-l2.json"
    item = json.loads(path.read_text())["response"]
    other = normalise(item, load_product("landsat-etm-sr"), "planetary-computer", None)
    assert isinstance(other, Unusable)
    assert other.reason == "other-product"
    own = normalise(item, load_product("landsat-oli-sr"), "planetary-computer", None)
    assert isinstance(own, Scene)
    assert own.scene == "landsat-oli-sr/LC08_202_20220327/033"


#: BigEarthNet's 19 groups by CORINE's three figures (arXiv 2105.07921).
BIGEARTHNET = {
    "Urban fabric": "111 112",
    "Industrial or commercial units": "121",
    "Arable land": "211 212 213",
    "Permanent crops": "221 222 223 241",
    "Pastures": "231",
    "Complex cultivation patterns": "242",
    "Land principally occupied by agriculture, with significant areas of natural vegetation": "243",
    "Agro-forestry areas": "244",
    "Broad-leaved forest": "311",
    "Coniferous forest": "312",
    "Mixed forest": "313",
    "Natural grassland and sparsely vegetated areas": "321 333",
    "Moors, heathland and sclerophyllous vegetation": "322 323",
    "Transitional woodland, shrub": "324",
    "Beaches, dunes, sands": "331",
    "Inland wetlands": "411 412",
    "Coastal wetlands": "421 422",
    "Inland waters": "511 512",
    "Marine waters": "521 522 523",
}


def test_corine_makes_the_groups_of_bigearthnet():
    corine = load_product("corine")
    found = {
        group: " ".join(corine.classes[str(code)][:3] for code in codes)
        for group, codes in corine.class_groups.items()
    }
    assert found == BIGEARTHNET


def test_without_groups_every_class_is_one_but_the_unlabelled():
    nlcd = load_product("nlcd")
    assert set(nlcd.class_groups) == set(nlcd.classes.values()) - {
        nlcd.classes[str(nlcd.ignore_class)]
    }


@pytest.mark.parametrize(
    ("groups", "message"),
    [("a = [1, 9]", "groups.*9.*does not name"), ("a = [1]\nb = [1]", "a code twice")],
)
def test_groups_are_of_known_codes_each_once(tmp_path, groups, message):
    text = (
        'id = "mine"\ntitle = "mine"\nkind = "labels"\nlattice = "s2r10"\n'
        'stored_dtype = "uint8"\nbands = [{ name = "c", pixel_m = 10 }]\nsources = ["a test"]\n'
        f'[classes]\n1 = "one"\n[groups]\n{groups}\n'
    )
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_product("mine.toml", beside=tmp_path)

"""Masks: precedence, packing without loss, and fractions of what was seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.errors import GiveUp
from pipeline.products.model import LEGEND, MaskLayer, MaskRule, Product
from pipeline.raster.masks import decode, fractions, native_dtype, pack

CODES = sorted(LEGEND.values())
MASKS = arrays(np.uint8, (5, 6), elements=st.sampled_from(CODES))


def _product(*layers: MaskLayer, rules: tuple[MaskRule, ...] = (), **facts: object) -> Product:
    values: dict[str, object] = {
        "id": "test",
        "title": "Test",
        "lattice": "enmap30",
        "mask_layers": layers,
        "mask_rules": rules,
        "sources": ("made up",),
    }
    return Product.model_validate(values | facts)


def _layer(name: str, **facts: object) -> MaskLayer:
    return MaskLayer.model_validate({"name": name, "pixel_m": 30} | facts)


SPECTROMETER = _product(
    _layer("classes", width_bits=2),
    _layer("cloud", shift_bits=2, width_bits=1),
    _layer("cirrus", shift_bits=3, width_bits=2, optional=True),
    rules=(
        MaskRule(layer="classes", values=(0, 3), code="fill"),
        MaskRule(layer="cloud", values=(1,), code="cloud"),
        MaskRule(layer="cirrus", values=(2, 3), code="thin-cloud"),
        MaskRule(layer="classes", values=(2,), code="water"),
    ),
    mask_default="land",
)


def _layers(classes: int, cloud: int, cirrus: int | None) -> dict[str, np.ndarray]:
    values = {"classes": classes, "cloud": cloud} | ({} if cirrus is None else {"cirrus": cirrus})
    return {name: np.full((1, 1), value, np.uint8) for name, value in values.items()}


@pytest.mark.parametrize(
    ("classes", "cloud", "cirrus", "expected"),
    [
        (3, 1, 3, "fill"),
        (2, 1, 3, "cloud"),
        (2, 0, 3, "thin-cloud"),
        (2, 0, 1, "water"),
        (1, 0, 0, "land"),
        (2, 0, None, "water"),
    ],
)
def test_the_first_rule_that_matches_decides(
    classes: int, cloud: int, cirrus: int | None, expected: str
) -> None:
    mask = decode(_layers(classes, cloud, cirrus), SPECTROMETER)
    assert mask.dtype == np.uint8
    assert mask[0, 0] == LEGEND[expected]


def test_bits_match_where_any_of_them_is_set() -> None:
    product = _product(
        _layer("qa", width_bits=16),
        rules=(
            MaskRule(layer="qa", bits=0b1, code="fill"),
            MaskRule(layer="qa", bits=0b1100, code="cloud"),
        ),
    )
    qa = np.array([[0b1101, 0b0100, 0b1000, 0b0010]], np.uint16)
    names = {code: name for name, code in LEGEND.items()}
    found = [names[code] for code in decode({"qa": qa}, product)[0]]
    assert found == ["fill", "cloud", "cloud", "valid"]


def test_saturation_matches_in_the_stored_bands_alone() -> None:
    product = _product(
        _layer("qa", width_bits=16),
        rules=(MaskRule(layer="qa", saturated=True, code="defective"),),
        bands=(
            {"name": "a", "pixel_m": 30, "saturated_bit": 0},
            {"name": "b", "pixel_m": 30, "saturated_bit": 3},
            {"name": "c", "pixel_m": 30},
        ),
    )
    qa = np.array([[0b0001, 0b1000, 0b0110]], np.uint16)
    for stored, expected in (
        (None, [True, True, False]),
        (("b", "c"), [False, True, False]),
        (("c",), [False, False, False]),
    ):
        found = decode({"qa": qa}, product, stored) == LEGEND["defective"]
        assert found.tolist() == [expected]


def test_a_rule_of_saturation_needs_a_band_with_a_bit() -> None:
    with pytest.raises(ValueError, match="no band with a `saturated_bit`"):
        _product(
            _layer("qa"),
            rules=(MaskRule(layer="qa", saturated=True, code="defective"),),
            bands=({"name": "a", "pixel_m": 30},),
        )
    with pytest.raises(ValueError, match="`values`, `bits` and `saturated = true`"):
        MaskRule(layer="qa", bits=1, saturated=True, code="defective")


@given(
    arrays(np.uint8, (3, 3), elements=st.integers(0, 3)),
    arrays(np.uint8, (3, 3), elements=st.integers(0, 1)),
    arrays(np.uint8, (3, 3), elements=st.integers(0, 3)),
)
def test_packing_loses_nothing(classes: np.ndarray, cloud: np.ndarray, cirrus: np.ndarray) -> None:
    native = pack({"classes": classes, "cloud": cloud, "cirrus": cirrus}, SPECTROMETER)
    assert native.dtype == native_dtype(SPECTROMETER) == np.uint8
    np.testing.assert_array_equal(native & 0b11, classes)
    np.testing.assert_array_equal(native >> 2 & 0b1, cloud)
    np.testing.assert_array_equal(native >> 3, cirrus)


def test_a_value_that_does_not_fit_its_bits_is_refused() -> None:
    with pytest.raises(GiveUp, match="quality layer cloud holds 2 to 2"):
        pack(_layers(1, 2, 0), SPECTROMETER)


@pytest.mark.parametrize(
    ("shift_bits", "width_bits", "expected"),
    [(0, 8, np.uint8), (1, 8, np.uint16), (0, 16, np.uint16), (8, 24, np.uint32)],
)
def test_the_native_type_is_the_smallest_that_fits(
    shift_bits: int, width_bits: int, expected: type
) -> None:
    product = _product(_layer("a", shift_bits=shift_bits, width_bits=width_bits))
    assert native_dtype(product) == expected


def test_a_product_without_layers_still_has_a_native_type() -> None:
    assert native_dtype(_product()) == np.uint8


def test_a_layer_for_every_band_is_no_part_of_the_mask() -> None:
    product = _product(_layer("classes", width_bits=2), _layer("pixelmask", per_band=True))
    classes = np.array([[1, 2]], np.uint8)
    np.testing.assert_array_equal(pack({"classes": classes}, product), classes)
    assert native_dtype(product) == np.uint8


def test_a_required_layer_is_missed() -> None:
    with pytest.raises(ValueError, match="no quality layer cloud"):
        decode({"classes": np.zeros((1, 1), np.uint8)}, SPECTROMETER)
    with pytest.raises(GiveUp, match="codes and bits are integers"):
        decode({"classes": np.zeros((1, 1)), "cloud": np.zeros((1, 1), np.uint8)}, SPECTROMETER)


@given(MASKS, st.sets(st.sampled_from(sorted(set(LEGEND) - {"fill"}))))
def test_fractions_count_seen_pixels_only(mask: np.ndarray, cloudy: set[str]) -> None:
    found = fractions(mask, cloudy)
    seen = mask[mask != 0]
    assert found.valid == seen.size / mask.size
    if not seen.size:
        assert found.clear is None
        assert found.cloudy is None
        return
    bad = np.isin(seen, [LEGEND[name] for name in cloudy]).mean()
    assert found.cloudy == pytest.approx(bad)
    assert found.clear == pytest.approx(1 - bad)

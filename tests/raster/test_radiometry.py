"""Radiometry: integers stay exact, and what was not seen is set aside before anything else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.errors import GiveUp
from pipeline.products.catalogue import load_product
from pipeline.products.model import Band, Product
from pipeline.raster.radiometry import harmonise, recoded


def _product(**facts: object) -> Product:
    values: dict[str, object] = {
        "id": "test",
        "title": "Test",
        "lattice": "s2r10",
        "bands": (Band(name="B", pixel_m=10),),
        "sources": ("made up",),
    }
    return Product.model_validate(values | facts)


SENTINEL_2 = _product(nodata=0, saturated=65535)
NUMBERS = arrays(np.uint16, (1, 4, 5), elements=st.integers(0, 65535))


@given(NUMBERS, st.sampled_from([0, -1000]))
def test_what_is_stored_is_the_number_plus_the_offset(dn: np.ndarray, offset: int) -> None:
    result = harmonise(dn, product=SENTINEL_2, offset_add=offset)
    assert result.stored.dtype == np.int16
    np.testing.assert_array_equal(result.fill, dn == 0)
    exact = dn.astype(np.int64) + offset
    fits = ~result.fill & (exact <= 32767)
    np.testing.assert_array_equal(result.stored[fits], exact[fits])
    np.testing.assert_array_equal(result.saturated, ~result.fill & (exact > 32767))
    assert (result.stored[result.saturated] == 32767).all()
    assert (result.stored[result.fill] == -32768).all()


def test_dark_water_stays_negative_and_nodata_stays_nodata() -> None:
    dn = np.array([[[0, 1, 999, 1000, 1001]]], np.uint16)
    result = harmonise(dn, product=SENTINEL_2, offset_add=-1000)
    assert result.stored.tolist() == [[[-32768, -999, -1, 0, 1]]]


def test_no_value_is_taken_for_fill() -> None:
    dn = np.array([[[-32768, -32767, -32000]]], np.int16)
    enmap = _product(nodata=-32768)
    kept = harmonise(dn, product=enmap, offset_add=0)
    assert kept.stored.tolist() == [[[-32768, -32767, -32000]]]
    lowered = harmonise(dn, product=enmap, offset_add=-1000)
    assert lowered.stored.tolist() == [[[-32768, -32767, -32767]]]
    assert lowered.saturated.tolist() == [[[False, True, True]]]


@pytest.mark.parametrize("dtype", ["uint32", "int64", "uint64", "float64"])
def test_numbers_of_a_wider_type_saturate_and_never_wrap(dtype: str) -> None:
    dn = np.array([[[0, 1500, 2**32 - 1, 2**32 - 2**31]]]).astype(dtype)
    result = harmonise(dn, product=SENTINEL_2, offset_add=-1000)
    assert result.stored.tolist() == [[[-32768, 500, 32767, 32767]]]
    assert result.saturated.tolist() == [[[False, False, True, True]]]


def test_a_product_without_nodata_sets_nothing_aside() -> None:
    dn = np.array([[[0, 7]]], np.uint8)
    result = harmonise(dn, product=_product(stored_dtype="uint8"), offset_add=0)
    assert result.stored.tolist() == [[[0, 7]]]
    assert not result.fill.any()


def test_floats_are_stored_as_floats_with_nan_for_fill() -> None:
    dn = np.array([[[-32768.0, 12.5, np.nan, np.inf]]], np.float32)
    product = _product(stored_dtype="float32", nodata=-32768)
    result = harmonise(dn, product=product, offset_add=0)
    np.testing.assert_array_equal(result.stored, [[[np.nan, 12.5, np.nan, np.nan]]])
    assert result.fill.tolist() == [[[True, False, True, True]]]


def test_whole_floats_become_integers_and_others_are_refused() -> None:
    product = _product(nodata=-32768)
    dn = np.array([[[-32768.0, 12.0, -3.0, 1e30]]], np.float32)
    result = harmonise(dn, product=product, offset_add=0)
    assert result.stored.tolist() == [[[-32768, 12, -3, 32767]]]
    with pytest.raises(GiveUp, match="not whole numbers") as caught:
        harmonise(np.array([[[0.25]]], np.float32), product=product, offset_add=0)
    assert caught.value.failure == "corrupt"


def test_a_class_code_that_does_not_fit_is_no_saturation() -> None:
    labels = _product(kind="labels", stored_dtype="uint8", ignore_class=0)
    fits = harmonise(np.array([[[0.0, 6.0]]], np.float32), product=labels, offset_add=0)
    assert fits.stored.tolist() == [[[0, 6]]]
    with pytest.raises(GiveUp, match="class code"):
        harmonise(np.array([[[256]]], np.uint16), product=labels, offset_add=0)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_class_that_the_product_does_not_name_is_an_error_that_names_it(dtype: type) -> None:
    nlcd = load_product("nlcd")
    known = np.array([[[11, 51, 95], [0, 0, 0]]], dtype)
    assert not harmonise(known, product=nlcd, offset_add=0).fill[0, 0].any()
    with pytest.raises(GiveUp, match=r"nlcd: class codes .*: 13, 250") as caught:
        harmonise(np.array([[[11, 250, 13], [13, 0, 0]]], dtype), product=nlcd, offset_add=0)
    assert caught.value.failure == "corrupt"
    labels = nlcd.model_copy(update={"nodata": None, "ignore_class": 13})
    unlabelled = harmonise(np.array([[[11, 13]]], dtype), product=labels, offset_add=0)
    assert unlabelled.stored.tolist() == [[[11, 13]]]


def test_the_delivered_array_is_left_alone() -> None:
    dn = np.array([[[0, 40000]]], np.uint16)
    harmonise(dn, product=SENTINEL_2, offset_add=-1000)
    assert dn.tolist() == [[[0, 40000]]]


@given(
    codes=st.dictionaries(st.integers(0, 999), st.integers(0, 255), min_size=1, max_size=20),
    places=st.lists(st.integers(0, 10**6), min_size=1, max_size=20),
)
def test_a_provider_s_codes_become_the_product_s_and_no_data_stays(
    codes: dict[int, int], places: list[int]
) -> None:
    table = {str(code): own for code, own in codes.items()}
    known = [*codes, -128]
    delivered = np.array([[known[place % len(known)] for place in places]])
    expected = [[codes.get(code, -128) for code in delivered[0].tolist()]]
    np.testing.assert_array_equal(recoded(delivered, table, -128, "map"), expected)
    np.testing.assert_array_equal(recoded(delivered, {}, -128, "map"), delivered)
    with pytest.raises(GiveUp, match="1000") as refusal:
        recoded(np.array([1000]), table, -128, "map")
    assert refusal.value.failure == "corrupt"

"""Shards: what is put in comes out of zarr-python and xarray, and the bytes are always the same."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import IntegrityError, RecipeError
from pipeline.products.catalogue import load_product
from pipeline.store import codec
from pipeline.store.objects import open_store
from pipeline.store.shard import (
    NO_TIME,
    ArraySpec,
    ShardWriter,
    band_facts,
    encode_patch,
    image_key,
    pixel_digest,
    store_shard,
)

chunk_lists = st.lists(st.none() | st.binary(min_size=1, max_size=40), min_size=1, max_size=20)
dtypes = st.sampled_from(["int16", "uint16", "uint8", "float32", "uint32"])


def spec(**changes: Any) -> ArraySpec:
    values: dict[str, Any] = {
        "product": "optical",
        "samples": 3,
        "times": 2,
        "bands": ("B1", "B2"),
        "size_px": 16,
        "dtype": "int16",
        "fill": -32768.0,
        "scale": 0.0001,
        "offset": 0.0,
        "unit": "1",
        "wavelength_nm": (443.0, None),
        "pixel_m": 10.0,
        "native_dtype": "uint16",
        "compression_level": 3,
    }
    return ArraySpec(**{**values, **changes})


def patch(of: ArraySpec, seed: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    bands = rng.integers(0, 250, of.shape).astype(of.dtype)
    mask = rng.integers(1, 9, of.shape[1:]).astype("uint8")
    native = None if of.native_dtype is None else mask.astype(of.native_dtype) * 3
    return bands, mask, native


def place(writer: ShardWriter, product: str) -> None:
    of = writer.specs[product]
    writer.set_coordinates(
        product,
        location=[f"cell-é{k}" for k in range(of.samples)],
        epsg=[32633] * of.samples,
        x_origin_m=np.arange(of.samples) * 100.0,
        y_origin_m=np.arange(of.samples) * -100.0,
        scene=[[f"s{k}/{t}" for t in range(of.times)] for k in range(of.samples)],
        acquired=np.full((of.samples, of.times), "2021-07-01T10:00:00", dtype="M8[us]"),
    )


@settings(deadline=None, max_examples=60)
@given(chunk_lists)
def test_the_index_finds_every_chunk_and_no_other(chunks: list[bytes | None]) -> None:
    whole = b"".join(codec.assemble(chunks))
    index = whole[len(whole) - codec.index_bytes(len(chunks)) :]
    found = codec.parse_index(index, len(whole), name="x")
    for chunk, (start, length) in zip(chunks, found.tolist(), strict=True):
        assert chunk == (None if start < 0 else whole[start : start + length])


@settings(deadline=None, max_examples=60)
@given(chunk_lists, st.data())
def test_a_damaged_index_is_noticed(chunks: list[bytes | None], data: st.DataObject) -> None:
    whole = b"".join(codec.assemble(chunks))
    index = bytearray(whole[len(whole) - codec.index_bytes(len(chunks)) :])
    index[data.draw(st.integers(0, len(index) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(IntegrityError, match="does not fit its checksum"):
        codec.parse_index(bytes(index), len(whole), name="x")


def test_an_index_that_points_outside_is_refused_though_its_checksum_fits() -> None:
    for pair in ((0, 2**62), (2**63, 5), (2**64 - 2, 2**64 - 1), (7, 1)):
        forged = codec.assemble([b"1234567"])[-1]
        raw = np.array(pair, dtype="<u8").tobytes()
        import google_crc32c

        forged = raw + google_crc32c.value(raw).to_bytes(4, "little")
        with pytest.raises(IntegrityError, match="points outside"):
            codec.parse_index(forged, 7 + len(forged), name="x")


@settings(deadline=None, max_examples=60)
@given(
    dtypes, st.sampled_from(["zstd", "lz4"]), st.integers(0, 9), st.integers(1, 60), st.integers(0)
)
def test_chunks_decode_to_what_was_encoded(
    dtype: str, name: codec.Codec, level: int, size: int, seed: int
) -> None:
    array = np.random.default_rng(seed).integers(0, 255, (2, size)).astype(dtype)
    out = np.empty_like(array)
    codec.decode_into(codec.encode(array, name, level), out)
    assert (out == array).all()


def test_a_chunk_of_another_size_is_never_half_decoded() -> None:
    small = codec.encode(np.zeros(10, "int16"), "zstd", 3)
    with pytest.raises(IntegrityError, match="for 20 was found"):
        codec.decode_into(small, np.empty(11, "int16"))
    with pytest.raises(IntegrityError, match="compressed bytes"):
        codec.decode_into(small[:-1], np.empty(10, "int16"))
    with pytest.raises(IntegrityError, match="Blosc header"):
        codec.decode_into(b"", np.empty(10, "int16"))


def test_the_digest_is_what_its_docstring_says() -> None:
    bands, mask, _ = patch(spec(), 1)
    text = b"<i2 (2, 16, 16)\n" + bands.astype("<i2").tobytes()
    text += b"|u1 (16, 16)\n" + mask.tobytes()
    assert pixel_digest(bands, mask) == hashlib.sha256(text).hexdigest()
    assert pixel_digest(bands.astype(">i2"), mask) == pixel_digest(bands, mask)
    assert pixel_digest(bands.transpose(0, 2, 1), mask) != pixel_digest(bands, mask)


@pytest.mark.parametrize(
    ("dtype", "name"), [("int16", "zstd"), ("int16", "lz4"), ("uint8", "lz4"), ("float32", "zstd")]
)
def test_zarr_python_reads_what_was_put(tmp_path: Path, dtype: str, name: str) -> None:
    fill = float("nan") if dtype == "float32" else -32768.0 if dtype == "int16" else 0.0
    of = spec(dtype=dtype, fill=fill, codec=name)
    writer = ShardWriter({"optical": of})
    put = {at: patch(of, k) for k, at in enumerate([(2, 1), (0, 0), (1, 1)])}
    for (sample, time), arrays in put.items():
        writer.put("optical", sample, time, encode_patch(of, *arrays))
    place(writer, "optical")
    store_shard(open_store(tmp_path), "r1", writer)
    group = zarr.open_group(tmp_path / "r1", mode="r")["optical"]
    for sample in range(3):
        for time in range(2):
            bands, mask, native = put.get((sample, time), (np.full(of.shape, fill, dtype), 0, 0))
            np.testing.assert_array_equal(group["bands"][sample, time], bands)
            np.testing.assert_array_equal(group["mask"][sample, time], mask)
            np.testing.assert_array_equal(group["mask_native"][sample, time], native)


def test_xarray_opens_a_product_as_it_is(tmp_path: Path) -> None:
    writer = ShardWriter({"optical": spec(), "other": spec(product="other", native_dtype=None)})
    arrays = patch(spec(), 5)
    writer.put("optical", 1, 0, encode_patch(spec(), *arrays))
    place(writer, "optical")
    place(writer, "other")
    store_shard(open_store(tmp_path), "r1", writer)
    ds = xr.open_zarr(tmp_path / "r1", group="optical", consolidated=False)
    assert ds["bands"].dims == ("sample", "time", "band", "y", "x")
    assert ds["bands"].dtype == np.dtype("int16")
    assert ds["bands"].attrs == {"scale": 0.0001, "offset": 0.0, "nodata": -32768, "unit": "1"}
    np.testing.assert_array_equal(ds["bands"][1, 0], arrays[0])
    np.testing.assert_array_equal(ds.sel(band="B2")["bands"][1, 0], arrays[0][1])
    assert (ds["bands"][0] == -32768).all()
    assert set(ds.coords) == {
        *("location", "epsg", "x_origin_m", "y_origin_m", "scene", "acquired"),
        *("band", "wavelength_nm"),
    }
    assert ds["location"].values.tolist() == ["cell-é0", "cell-é1", "cell-é2"]
    assert ds["scene"].values.tolist()[2] == ["s2/0", "s2/1"]
    assert ds["acquired"].dtype == np.dtype("int64")
    assert str(ds["acquired"].values.astype("M8[us]")[0, 0]) == "2021-07-01T10:00:00.000000"
    assert np.isnan(ds["wavelength_nm"].values[1])
    other = xr.open_zarr(tmp_path / "r1", group="other", consolidated=False)
    assert "mask_native" not in other
    assert (other["bands"] == -32768).all()
    assert (other["mask"] == 0).all()


def test_widths_and_units_of_single_bands_stand_beside_them(tmp_path: Path) -> None:
    facts = load_product("landsat-oli-tirs-toa")
    bands = ("B4", "B10")
    of = spec(bands=bands, unit=facts.unit, **band_facts(facts, bands))
    assert of.band_unit == ("1", "K")
    assert ArraySpec.from_json(of.to_json()) == of
    writer = ShardWriter({"optical": of})
    place(writer, "optical")
    store_shard(open_store(tmp_path), "r1", writer)
    ds = xr.open_zarr(tmp_path / "r1", group="optical", consolidated=False)
    assert ds["band_unit"].values.tolist() == ["1", "K"]
    np.testing.assert_array_equal(ds["fwhm_nm"], [facts.band(name).fwhm_nm for name in bands])


def test_a_record_without_widths_is_read_and_written_as_it_was() -> None:
    old = spec().to_json()
    assert not {"fwhm_nm", "band_unit"} & old.keys()
    assert ArraySpec.from_json(old) == spec()
    with pytest.raises(ValueError, match="`fwhm_nm` of 1 values for 2 bands"):
        spec(fwhm_nm=(10.0,))


def test_missing_times_read_as_not_a_time() -> None:
    assert np.isnat(np.array(NO_TIME).view("M8[us]"))


def objects(order: list[int], threads: int) -> dict[str, str]:
    of = spec(samples=8, times=2, size_px=64)
    writer = ShardWriter({"optical": of})
    with ThreadPoolExecutor(threads) as pool:
        encoded = list(pool.map(lambda k: (k, encode_patch(of, *patch(of, k))), order))
    for k, one in encoded:
        writer.put("optical", k // 2, k % 2, one)
    place(writer, "optical")
    return {key: hashlib.sha256(b"".join(parts)).hexdigest() for key, parts in writer.objects()}


def test_bytes_depend_neither_on_order_nor_on_threads_nor_on_the_process() -> None:
    first = objects(list(range(16)), 1)
    for seed in range(3):
        order = list(range(16))
        random.Random(seed).shuffle(order)
        assert objects(order, 4) == first
    of = spec()
    here = encode_patch(of, *patch(of, 3)).bands
    code = (
        "import hashlib, numpy as np\n"
        "from pipeline.store.codec import encode\n"
        "a = np.random.default_rng(3).integers(0, 250, (2, 16, 16)).astype('int16')\n"
        'print(hashlib.sha256(encode(a, "zstd", 3)).hexdigest())'
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert here is not None
    assert there.stdout.strip() == hashlib.sha256(here).hexdigest()


def test_all_fill_chunks_and_arrays_are_absent(tmp_path: Path) -> None:
    of = spec()
    writer = ShardWriter({"optical": of})
    empty = encode_patch(
        of,
        np.full(of.shape, -32768, "int16"),
        np.zeros((16, 16), "uint8"),
        np.zeros((16, 16), "uint16"),
    )
    assert (empty.bands, empty.mask, empty.native) == (None, None, None)
    writer.put("optical", 0, 0, empty)
    place(writer, "optical")
    written = store_shard(open_store(tmp_path), "r1", writer)
    assert image_key("optical", "bands") not in written
    nans = spec(dtype="float32", fill=float("nan"))
    nothing = np.full(nans.shape, np.nan, "float32")
    assert encode_patch(nans, nothing, *patch(nans, 0)[1:]).bands is None


def test_what_store_shard_says_is_what_lies_there(tmp_path: Path) -> None:
    of, store = spec(), open_store(tmp_path)
    writer = ShardWriter({"optical": of})
    writer.put("optical", 0, 0, encode_patch(of, *patch(of, 0)))
    place(writer, "optical")
    written = store_shard(store, "shards/x/r1", writer)
    assert sorted(f"shards/x/r1/{key}" for key in written) == list(store.list())
    for key, (digest, size) in written.items():
        data = store.get(f"shards/x/r1/{key}")
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (digest, size)


def test_arrays_of_another_shape_or_type_are_refused() -> None:
    of = spec()
    bands, mask, native = patch(of, 0)
    with pytest.raises(ValueError, match="bands: int32"):
        encode_patch(of, bands.astype("int32"), mask, native)
    with pytest.raises(ValueError, match="mask: uint8"):
        encode_patch(of, bands, mask[1:], native)
    with pytest.raises(ValueError, match="native mask"):
        encode_patch(of, bands, mask, None)
    with pytest.raises(ValueError, match="no place"):
        ShardWriter({"optical": of}).put("optical", 3, 0, encode_patch(of, bands, mask, native))


def test_a_patch_too_large_for_one_chunk_is_refused_before_any_work() -> None:
    with pytest.raises(RecipeError, match="choose a smaller cell"):
        spec(bands=tuple(f"B{k}" for k in range(224)), size_px=8192, wavelength_nm=(None,) * 224)


@pytest.mark.parametrize("fill", [-32768.0, float("nan")])
def test_specs_survive_json(fill: float) -> None:
    import json

    of = spec(fill=fill, dtype="float32")
    back = ArraySpec.from_json(json.loads(json.dumps(of.to_json(), allow_nan=False)))
    assert back.to_json() == of.to_json()
    assert type(back.bands) is tuple

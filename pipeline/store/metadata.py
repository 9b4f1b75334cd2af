"""The `zarr.json` documents of a shard, and its small uncompressed coordinate arrays.

Written here rather than by zarr-python, which takes 40 to 50 ms for a shard's dozen arrays.
Source of the fields: Zarr v3 core specification; `vlen-utf8` as zarr-python and numcodecs write it
(count, then length and bytes of each text, little-endian uint32).

Attributes are `scale offset nodata unit`. The CF names (`scale_factor`, `units`, ...) would make
xarray return float64 images and decode times, so `acquired` is plain int64: microseconds since
1970-01-01 UTC, which `.astype("datetime64[us]")` reads, its missing value being NaT's.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.store.codec import BLOCK_BYTES, BLOSC, Codec

#: Dimensions of every coordinate a product's group may have. (`band` names a dimension, so xarray
#: makes an index of it; `acquired` is not called `time`: a 2-D coordinate of that name breaks it.)
COORDINATE_DIMENSIONS: dict[str, tuple[str, ...]] = {
    "location": ("sample",),
    "epsg": ("sample",),
    "x_origin_m": ("sample",),
    "y_origin_m": ("sample",),
    "scene": ("sample", "time"),
    "acquired": ("sample", "time"),
    "band": ("band",),
    "wavelength_nm": ("band",),
    "fwhm_nm": ("band",),
    "band_unit": ("band",),
}
_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "x_origin_m": {"unit": "m"},
    "y_origin_m": {"unit": "m"},
    "acquired": {"unit": "us", "epoch": "1970-01-01T00:00:00Z"},
    "wavelength_nm": {"unit": "nm"},
    "fwhm_nm": {"unit": "nm"},
}
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}


def group_metadata(attributes: dict[str, Any]) -> bytes:
    """Return the `zarr.json` of a group."""
    return _dump({"zarr_format": 3, "node_type": "group", "attributes": attributes})


def array_metadata(
    outer: tuple[int, int],
    patch: tuple[int, ...],
    *,
    dtype: str,
    fill: float,
    codec: Codec,
    level: int,
    attributes: dict[str, Any],
) -> bytes:
    """Return the `zarr.json` of a sharded image array.

    Parameters
    ----------
    outer : (int, int)
        Samples and times; one inner chunk is one of each.
    patch : tuple of int
        (band, y, x) or (y, x).
    dtype : str
        numpy name.
    fill : float
        Also told as the attribute `nodata`.
    codec : `zstd` or `lz4`
    level : int
        Of the codec.
    attributes : dict
    """
    itemsize = np.dtype(dtype).itemsize
    name, _, shuffle = BLOSC[codec]
    blosc = {
        "cname": name,
        "clevel": level,
        "shuffle": shuffle,
        "typesize": itemsize,
        "blocksize": BLOCK_BYTES,
    }
    sharding = {
        "chunk_shape": [1, 1, *patch],
        "codecs": [_bytes_codec(itemsize), {"name": "blosc", "configuration": blosc}],
        "index_codecs": [_LITTLE, {"name": "crc32c"}],
        "index_location": "end",
    }
    value = _json_number(fill, dtype)
    dimensions = ("sample", "time", *(("band", "y", "x")[-len(patch) :]))
    return _array(
        (*outer, *patch),
        dimensions,
        dtype,
        value,
        [{"name": "sharding_indexed", "configuration": sharding}],
        {**attributes, "nodata": value},
    )


def plain_metadata(name: str, array: NDArray[Any]) -> bytes:
    """Return the `zarr.json` of a coordinate: one uncompressed chunk."""
    if array.dtype == object:
        codec, dtype, fill = {"name": "vlen-utf8", "configuration": {}}, "string", ""
    else:
        codec, dtype, fill = _bytes_codec(array.dtype.itemsize), array.dtype.name, _missing(array)
    attributes = _ATTRIBUTES.get(name, {})
    return _array(array.shape, COORDINATE_DIMENSIONS[name], dtype, fill, [codec], attributes)


def plain_bytes(array: NDArray[Any]) -> bytes:
    """Return the one chunk of a coordinate."""
    if array.dtype != object:
        return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
    texts = [str(text).encode() for text in array.reshape(-1)]
    return struct.pack("<I", len(texts)) + b"".join(struct.pack("<I", len(t)) + t for t in texts)


def _array(
    shape: tuple[int, ...],
    dimensions: tuple[str, ...],
    dtype: str,
    fill: Any,
    codecs: list[dict[str, Any]],
    attributes: dict[str, Any],
) -> bytes:
    return _dump(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(shape),
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shape)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": fill,
            "codecs": codecs,
            "dimension_names": list(dimensions),
            "attributes": attributes,
        }
    )


def _bytes_codec(itemsize: int) -> dict[str, Any]:
    """Return the `bytes` codec; single bytes have no order, and naming one is refused by some."""
    return _LITTLE if itemsize > 1 else {"name": "bytes"}


def _missing(array: NDArray[Any]) -> Any:
    if array.dtype.kind == "f":
        return "NaN"
    return int(np.iinfo(array.dtype).min) if array.dtype == np.dtype("int64") else 0


def _json_number(value: float, dtype: str) -> Any:
    """Return a fill value as Zarr v3 writes it: integers whole, NaN as text."""
    if math.isnan(value):
        return "NaN"
    return int(value) if np.dtype(dtype).kind in "iu" else float(value)


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

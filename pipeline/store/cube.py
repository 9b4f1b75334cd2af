"""The patches of a product as one lazy xarray data set, across shards and without Dask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.compute as pc
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from pipeline.store.patches import PatchReader
from pipeline.store.shard import NO_TIME


def to_xarray(reader: PatchReader) -> xr.Dataset:
    """Return bands and masks over (sample, time); nothing is read before it is used.

    A sample is a location, in the order of the index; its times are in order of acquisition, and
    locations with fewer times than others end in fill. Coordinates are `location (sample)`,
    `acquired` and `slot` `(sample, time)`, `band` and `wavelength_nm (band)`. Values are stored
    integers; attributes `scale`, `offset`, `nodata`, `unit` say what they mean.
    """
    place = _places(reader)
    rows = reader.rows
    first = rows.take(place[:, 0]) if len(place) else rows.slice(0, 0)
    acquired = pc.cast(rows["acquired"], "int64").to_numpy()
    slots = np.array(rows["slot"].to_pylist(), dtype=object)
    coordinates: dict[str, Any] = {
        "location": ("sample", np.array(first["location"].to_pylist(), dtype=object)),
        "acquired": (("sample", "time"), _spread(acquired, place, NO_TIME).view("M8[us]")),
        "slot": (("sample", "time"), _spread(slots, place, "")),
        "band": ("band", np.array(reader.bands, dtype=object)),
        "wavelength_nm": (
            "band",
            np.array([np.nan if w is None else w for w in reader.wavelength_nm]),
        ),
    }
    bands = indexing.LazilyIndexedArray(_Image(reader, "bands", place))
    mask = indexing.LazilyIndexedArray(_Image(reader, "mask", place))
    told = {
        "scale": reader.scale,
        "offset": reader.offset,
        "nodata": reader.fill,
        "unit": reader.unit,
    }
    return xr.Dataset(
        {
            "bands": (("sample", "time", "band", "y", "x"), bands, told),
            "mask": (("sample", "time", "y", "x"), mask),
        },
        coords=coordinates,
        attrs={"product": reader.product, "pixel_m": reader.pixel_m},
    )


class _Image(BackendArray):
    """One image array over (sample, time), read when it is indexed."""

    def __init__(self, reader: PatchReader, name: str, place: NDArray[np.int64]) -> None:
        self._reader, self._name, self._place = reader, name, place
        patch = reader.shape if name == "bands" else reader.shape[1:]
        self.dtype = reader.dtype if name == "bands" else np.dtype("uint8")
        self.shape = (*place.shape, *patch)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> NDArray[Any]:
        """Read the wanted patches, then cut them; each key is an int, a slice or an int array."""
        numbers = self._place[key[0]]
        numbers = numbers[..., key[1]]
        flat = numbers.reshape(-1)
        fill = self._reader.fill if self._name == "bands" else 0
        result = np.full((len(flat), *self.shape[2:]), fill, self.dtype)
        result[flat >= 0] = self._reader.read_image(self._name, flat[flat >= 0])
        result = result.reshape(*numbers.shape, *self.shape[2:])
        for axis, part in enumerate(key[2:], start=2 - len(key)):
            result = result[(..., part, *[slice(None)] * (-axis - 1))]
        return result


def _places(reader: PatchReader) -> NDArray[np.int64]:
    """Return the patch number at (sample, time); −1 where there is none."""
    acquired = pc.cast(reader.rows["acquired"], "int64").to_numpy()
    order = np.lexsort((acquired, reader.sample_row))
    samples, sample, count = np.unique(
        reader.sample_row[order], return_inverse=True, return_counts=True
    )
    starts = np.cumsum(count) - count
    place = np.full((len(samples), int(count.max(initial=0))), -1, dtype="int64")
    place[sample, np.arange(len(order)) - starts[sample]] = order
    return place


def _spread(values: NDArray[Any], place: NDArray[np.int64], missing: Any) -> NDArray[Any]:
    result = np.full(place.shape, missing, dtype=values.dtype)
    result[place >= 0] = values[place[place >= 0]]
    return result

"""The patches of a product as one lazy xarray data set, across shards and without Dask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from pipeline.products.model import LEGEND
from pipeline.store.patches import PatchReader
from pipeline.store.shard import NO_TIME

#: Where a cell lies, of `pipeline.records.IndexRow`.
_OF_THE_CELL = ("lon_deg", "lat_deg", "epsg", "x_min_m", "y_max_m")


def to_xarray(reader: PatchReader) -> xr.Dataset:
    """Return bands and masks over (sample, time); nothing is read before it is used.

    A sample is a location, in the order of the index; its times are in order of acquisition, and
    locations with fewer times than others end in fill. Coordinates are `location`, `split`,
    `lon_deg`, `lat_deg` (the centre), `epsg`, `x_min_m` and `y_max_m` (the upper left corner)
    `(sample)`, `acquired` and `slot` `(sample, time)`, `band`, and `wavelength_nm`, `fwhm_nm` and
    `band_unit` `(band)`. Values are stored integers; attributes `scale`, `offset`, `nodata`, `unit`
    say what they mean, and `legend` what the codes of the mask do.
    """
    place = _places(reader)
    rows = reader.rows
    first = rows.take(place[:, 0]) if len(place) else rows.slice(0, 0)
    acquired = pc.cast(rows["acquired"], "int64").to_numpy()
    slots = np.array(rows["slot"].to_pylist(), dtype=object)
    coordinates: dict[str, Any] = {
        "location": ("sample", np.array(first["location"].to_pylist(), dtype=object)),
        "split": ("sample", np.array(first["split"].to_pylist(), dtype=object)),
        **{name: ("sample", first[name].to_numpy()) for name in _OF_THE_CELL},
        "acquired": (("sample", "time"), _spread(acquired, place, NO_TIME).view("M8[us]")),
        "slot": (("sample", "time"), _spread(slots, place, "")),
        "band": ("band", np.array(reader.bands, dtype=object)),
        "wavelength_nm": ("band", _lengths(reader.wavelength_nm)),
        "fwhm_nm": ("band", _lengths(reader.fwhm_nm)),
        "band_unit": ("band", np.array(reader.band_unit, dtype=object)),
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
            "mask": (("sample", "time", "y", "x"), mask, {"legend": LEGEND}),
        },
        coords=coordinates,
        attrs={"product": reader.product, "pixel_m": reader.pixel_m},
    )


def to_ssl4eo_s12(reader: PatchReader, *, dn_offset: int = 1000) -> xr.Dataset:
    """Return patches under the names, and with the values, of SSL4EO-S12 v1.1 (Zarr edition).

    For loaders written for that data set: `bands (sample, time, band, y, x)`, `cloud_mask (sample,
    time, y, x)` with SEnSeIv2's seven codes (0 clear, 1 water, 2 snow, 3 thin cloud, 4 thick cloud,
    5 shadow, 6 no data), `center_lat`, `center_lon`, `crs`, `x_`, `y_` of each sample, `file_id`,
    `sample_id` and `time_` of each image. Bands of Sentinel-1 are called `vv` and `vh` there.
    Source: README of SSL4EO-S12-v1.1 (33ac878) and its published metadata; codes of its loaders.

    Parameters
    ----------
    reader : PatchReader
        Of patches at 10 m.
    dn_offset : int
        Added to optical numbers: 1000 in the Zarr edition, whose statistics include it, and 0 in
        the later tar edition.
    """
    place = _places(reader)
    rows = reader.rows
    first = rows.take(place[:, 0]) if len(place) else rows.slice(0, 0)
    radar = all(wavelength is None for wavelength in reader.wavelength_nm)
    steps_m = (np.arange(reader.shape[-1]) + 0.5) * reader.pixel_m
    west_m, north_m = first["x_min_m"].to_numpy(), first["y_max_m"].to_numpy()
    scenes = np.array([" ".join(names) for names in rows["scenes"].to_pylist()], dtype=str)
    acquired = pc.cast(rows["acquired"], "int64").to_numpy()
    times = np.arange(place.shape[1])
    numbers = [[f"{row:07d}_{time}" for time in times] for row in first["row"].to_pylist()]
    images = {
        "bands": _Image(reader, "bands", place, None if radar else _add(dn_offset)),
        "cloud_mask": _Image(reader, "mask", place, lambda codes: _SENSEI[codes]),
    }
    outer = ("sample", "time")
    variables: dict[str, Any] = {
        "bands": ((*outer, "band", "y", "x"), indexing.LazilyIndexedArray(images["bands"])),
        "center_lat": ("sample", first["lat_deg"].to_numpy()),
        "center_lon": ("sample", first["lon_deg"].to_numpy()),
        "crs": ("sample", first["epsg"].to_numpy()),
        "x_": (("sample", "x"), west_m[:, None] + steps_m),
        "y_": (("sample", "y"), north_m[:, None] - steps_m),
        "file_id": (outer, _spread(scenes, place, "")),
        "sample_id": (outer, np.array(numbers, dtype="U9").reshape(place.shape)),
        "time_": (outer, _spread(acquired, place, NO_TIME).view("M8[us]").astype("M8[ns]")),
    }
    if not radar:
        mask = indexing.LazilyIndexedArray(images["cloud_mask"])
        variables["cloud_mask"] = ((*outer, "y", "x"), mask)
    names = [name.lower() for name in reader.bands] if radar else list(reader.bands)
    coordinates = {
        "band": np.array(names),
        "sample": np.array(first["location"].to_pylist(), dtype=str),
        "time": times,
        "y": np.arange(reader.shape[-2]),
        "x": np.arange(reader.shape[-1]),
    }
    return xr.Dataset(variables, coords=coordinates)


#: SEnSeIv2's code for each code of the common legend (`LEGEND`, 0 to 8).
_SENSEI = np.array([6, 0, 1, 2, 3, 4, 5, 6, 0], dtype="uint8")


def _add(offset: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return what adds to int16 numbers without wrapping; fill stays fill."""

    def change(stored: NDArray[Any]) -> NDArray[Any]:
        limits = np.iinfo(stored.dtype)
        moved = np.clip(stored.astype(np.int32) + offset, limits.min + 1, limits.max)
        return np.where(stored == limits.min, stored, moved).astype(stored.dtype)

    return change


class _Image(BackendArray):
    """One image array over (sample, time), read when it is indexed."""

    def __init__(
        self,
        reader: PatchReader,
        name: str,
        place: NDArray[np.int64],
        change: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
    ) -> None:
        self._reader, self._name, self._place, self._change = reader, name, place, change
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
        return result if self._change is None else self._change(result)


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


def _lengths(lengths_nm: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if length is None else length for length in lengths_nm], "float64")


def _spread(values: NDArray[Any], place: NDArray[np.int64], missing: Any) -> NDArray[Any]:
    result = np.full(place.shape, missing, dtype=values.dtype)
    result[place >= 0] = values[place[place >= 0]]
    return result

"""The patches of one product of a version, by number: what a training loop reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import IntegrityError
from pipeline.ports import ObjectStore
from pipeline.store import layout
from pipeline.store.chunks import REQUESTS, ChunkArray, Decoder, Job, ShardObject
from pipeline.store.shard import IMAGES, ArraySpec, image_key
from pipeline.store.version import ShardEntry, Version

Which = Sequence[int] | NDArray[np.integer[Any]] | slice


class PatchReader:
    """Reads patches by their number, many at once, into one array.

    Attributes
    ----------
    rows : pa.Table
        `IndexRow` of each patch: patch number i is row i.
    bands : tuple of str
        Names, in storage order.
    wavelength_nm, fwhm_nm : tuple of float or None
        Band centres, and full widths at half maximum (all None in shards written before they were
        kept).
    band_unit : tuple of str
        Unit of each band's physical value.
    shape : (int, int, int)
        Of a patch: (band, y, x).
    dtype : numpy.dtype
        Of stored values; physical value = stored * scale + offset, in `unit`.
    fill : float
        Stored where nothing was seen; NaN for floats.
    sample_row : int array, shape (patch,)
        Number of the location each patch belongs to.
    """

    def __init__(self, store: ObjectStore, version: Version, product: str, rows: pa.Table) -> None:
        spec = version.specs[product]
        self.product, self.rows = product, rows
        self.bands, self.wavelength_nm, self.shape = spec.bands, spec.wavelength_nm, spec.shape
        self.dtype: np.dtype[Any] = np.dtype(spec.dtype)
        self.scale, self.offset, self.unit = float(spec.scale), float(spec.offset), spec.unit
        self.fwhm_nm = spec.fwhm_nm or (None,) * len(spec.bands)
        self.band_unit = spec.band_unit or (spec.unit,) * len(spec.bands)
        self.fill, self.pixel_m = spec.fill, float(spec.pixel_m)
        self.sample_row: NDArray[np.int64] = rows["row"].to_numpy().astype("int64")
        self._store, self._decoder = store, Decoder()
        self._native_dtype = spec.native_dtype
        entries = {entry.name: entry for entry in version.shards}
        self._place(spec, entries)

    def __len__(self) -> int:
        return len(self.sample_row)

    def read(
        self,
        which: Which,
        *,
        threads: int = 2,
        requests: int = REQUESTS,
        out: NDArray[Any] | None = None,
        mask_out: NDArray[np.uint8] | None = None,
    ) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Read patches in the order asked for.

        Parameters
        ----------
        which : sequence of int, int array or slice
            Patch numbers; any order. One that is repeated is decoded once.
        threads : int
            Decoding threads.
        requests : int
            Of a root in a bucket: requests in flight, over all reads that go on at a time.
        out : array of `dtype`, shape (patch, band, y, x), or None
            Memory to fill, C-contiguous, for example page-locked; None: new memory.
        mask_out : uint8 array, shape (patch, y, x), or None

        Returns
        -------
        (bands, mask)
            `out` and `mask_out`, or new arrays of those shapes. The mask has codes of the common
            legend, 0 where nothing was seen.

        Raises
        ------
        IntegrityError
            A shard is damaged or gone.
        """
        numbers = self._numbers(which)
        out = _memory(out, (len(numbers), *self.shape), self.dtype)
        mask_out = _memory(mask_out, (len(numbers), *self.shape[1:]), np.dtype("uint8"))
        first, where = np.unique(numbers, return_index=True, return_inverse=True)[1:]
        bands = self._jobs("bands", numbers, out, first)
        masks = self._jobs("mask", numbers, mask_out, first)
        # A patch's two chunks are asked for together.
        jobs = [job for pair in zip(bands, masks, strict=True) for job in pair]
        self._decoder.run(jobs, threads=threads, requests=requests)
        for repeat in np.flatnonzero(first[where] != np.arange(len(numbers))):
            out[repeat], mask_out[repeat] = (
                out[first[where[repeat]]],
                mask_out[first[where[repeat]]],
            )
        return out, mask_out

    def read_image(self, name: str, which: Which, *, threads: int = 2) -> NDArray[Any]:
        """Read `bands`, `mask` or `mask_native` alone.

        Returns an array of shape (patch, band, y, x), or (patch, y, x) for a mask.
        """
        dtypes = {"bands": self.dtype.name, "mask": "uint8", "mask_native": self._native_dtype}
        dtype = dtypes.get(name)
        if dtype is None:
            raise KeyError(f"{self.product} has no image {name!r}")
        numbers = self._numbers(which)
        patch = self.shape if name == "bands" else self.shape[1:]
        out = np.empty((len(numbers), *patch), dtype)
        self._decoder.run(self._jobs(name, numbers, out, range(len(numbers))), threads=threads)
        return out

    def slow_read(self, number: int) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Read one patch through zarr-python: the obviously right way, to compare with.

        Returns bands (band, y, x) and mask (y, x).
        """
        import zarr

        place = int(self._chunk[number])
        shard = int(self._shard[number])
        sample, time = divmod(place, int(self._times[shard]))
        group = zarr.open_group(
            zarr_store(self._store),
            path=f"{layout.SHARDS}/{self._names[shard]}/{self.product}",
            mode="r",
        )
        bands: Any = group["bands"]
        mask: Any = group["mask"]
        return bands[sample, time], mask[sample, time]

    def _place(self, spec: ArraySpec, entries: dict[str, ShardEntry]) -> None:
        """Work out, for every patch, its shard and the number of its chunk in it."""
        coded = pc.dictionary_encode(self.rows["shard"]).combine_chunks()
        self._shard: NDArray[np.int64] = np.empty(0, "int64")
        self._names: list[str] = []
        if isinstance(coded, pa.ChunkedArray):
            coded = coded.chunk(0) if coded.num_chunks else None
        if coded is not None:
            self._shard = coded.indices.to_numpy().astype("int64")
            self._names = coded.dictionary.to_pylist()
        unknown = [n for n in self._names if spec.product not in _extents(entries, n)]
        if unknown:
            raise IntegrityError(f"the index names {unknown[0]!r}, which the manifest does not.")
        extents = [entries[name].extents[spec.product] for name in self._names]
        self._times = np.array([extent.times for extent in extents], dtype="int64")
        samples = np.array([extent.samples for extent in extents], dtype="int64")
        sample, time = self.rows["sample"].to_numpy(), self.rows["time"].to_numpy()
        inside = (sample >= 0) & (sample < samples[self._shard])
        inside &= (time >= 0) & (time < self._times[self._shard])
        if not inside.all():
            raise IntegrityError(f"the index names places of {spec.product} outside its shards.")
        self._chunk: NDArray[np.int64] = sample * self._times[self._shard] + time
        self._arrays = {}
        for name in IMAGES:
            objects = [
                ShardObject(
                    f"{layout.SHARDS}/{shard}/{image_key(spec.product, name)}",
                    extent.samples * extent.times,
                    name in extent.images,
                )
                for shard, extent in zip(self._names, extents, strict=True)
            ]
            fill = spec.fill if name == "bands" else 0
            self._arrays[name] = ChunkArray(self._store, objects, fill)

    def _jobs(
        self, name: str, numbers: NDArray[np.int64], out: NDArray[Any], places: Iterable[int]
    ) -> list[Job]:
        """Return the jobs that fill some places of `out`."""
        array = self._arrays[name]
        shards, chunks = self._shard[numbers].tolist(), self._chunk[numbers].tolist()
        return [Job(array, shards[i], chunks[i], out[i]) for i in places]

    def _numbers(self, which: Which) -> NDArray[np.int64]:
        if isinstance(which, slice):
            return np.arange(len(self), dtype="int64")[which]
        numbers = np.asarray(which, dtype="int64").reshape(-1)
        if len(numbers) and not (numbers.min() >= -len(self) and numbers.max() < len(self)):
            raise IndexError(f"patch numbers must be below {len(self)}")
        return numbers


def zarr_store(store: ObjectStore) -> Any:
    """Return zarr-python's own view of a root, read-only."""
    import zarr.storage

    if hasattr(store, "obstore"):
        return zarr.storage.ObjectStore(store.obstore, read_only=True)
    return zarr.storage.LocalStore(store.url, read_only=True)


def _extents(entries: dict[str, ShardEntry], name: str) -> dict[str, Any]:
    return entries[name].extents if name in entries else {}


def _memory(
    given: NDArray[Any] | None, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    if given is None:
        return np.empty(shape, dtype)
    if given.shape != shape or given.dtype != dtype or not given.flags.c_contiguous:
        raise ValueError(f"memory of {given.dtype} {given.shape}, not {dtype} {shape}")
    return given

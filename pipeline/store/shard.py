"""A shard revision as one Zarr v3 group, assembled from patches that are encoded as they come.

Per product one group: `bands (sample, time, band, y, x)`, `mask (sample, time, y, x)`,
`mask_native`, and small coordinates. No dense array of a shard ever exists: the writer keeps only
encoded chunks, and lays them out in C order whatever the order in which they came, so the bytes
depend on the pixels alone. All-fill chunks, and arrays without any chunk, are absent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import TypeAdapter

from pipeline.errors import RecipeError
from pipeline.ports import ObjectStore
from pipeline.products.model import LEGEND, Product
from pipeline.store.codec import MAX_CHUNK_BYTES, Codec, assemble, encode
from pipeline.store.metadata import (
    COORDINATE_DIMENSIONS,
    array_metadata,
    group_metadata,
    plain_bytes,
    plain_metadata,
)

#: Missing time in `acquired`; numpy reads it as NaT.
NO_TIME = np.iinfo("int64").min


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """What the arrays of one product in one shard look like."""

    product: str
    samples: int
    """Locations of the shard."""
    times: int
    """Most slots of one location in the shard."""
    bands: tuple[str, ...]
    size_px: int
    """Edge of a patch in stored pixels."""
    dtype: str
    """numpy name of the stored type: `int16`."""
    fill: float
    """Stored where nothing was seen; NaN for floats."""
    scale: float
    """Physical value = stored * scale + offset."""
    offset: float
    unit: str
    wavelength_nm: tuple[float | None, ...]
    """Centre of each band; None where it has none."""
    pixel_m: float
    native_dtype: str | None
    """numpy name of the type of `mask_native`; None: the product has no mask layers."""
    codec: Codec = "zstd"
    compression_level: int
    fwhm_nm: tuple[float | None, ...] = ()
    """Full width of each band at half maximum, None where none is stated; (): of no band."""
    band_unit: tuple[str, ...] = ()
    """Unit of each band, where not all have `unit`; (): all have it."""

    def __post_init__(self) -> None:
        patch_bytes = len(self.bands) * self.size_px**2 * np.dtype(self.dtype).itemsize
        if patch_bytes > MAX_CHUNK_BYTES:
            raise RecipeError(
                f"a patch of {self.product} ({len(self.bands)} bands of {self.size_px} px) has "
                f"{patch_bytes} bytes; {MAX_CHUNK_BYTES} are allowed: choose a smaller cell."
            )
        for name in ("wavelength_nm", "fwhm_nm", "band_unit"):
            found = len(getattr(self, name))
            if found != len(self.bands) and (found or name == "wavelength_nm"):
                raise ValueError(f"`{name}` of {found} values for {len(self.bands)} bands")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a patch: (band, y, x)."""
        return len(self.bands), self.size_px, self.size_px

    def to_json(self) -> dict[str, Any]:
        """Return JSON values: equal specs give equal text, whether 10 or 10.0 was given."""
        values = asdict(self) | {k: float(getattr(self, k)) for k in ("scale", "offset", "pixel_m")}
        for name in ("wavelength_nm", "fwhm_nm"):
            lengths = getattr(self, name)
            values[name] = [None if length is None else float(length) for length in lengths]
        for name in ("fwhm_nm", "band_unit"):
            if not values[name]:  # as it was before there were such values: equal text again
                del values[name]
        return values | {"fill": "NaN" if np.isnan(self.fill) else float(self.fill)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ArraySpec:
        """Rebuild what `to_json` returned; `ValueError` if it is something else."""
        return TypeAdapter(cls).validate_python(values)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One patch, compressed; an array that holds only its fill value is None."""

    bands: bytes | None
    mask: bytes | None
    native: bytes | None
    digest: str
    """`pixel_digest` of the patch."""


def pixel_digest(bands: NDArray[Any], mask: NDArray[np.uint8]) -> str:
    """Return the sha256 (hex) of a patch: the promise of the plan.

    Over, for bands (band, y, x) and then mask (y, x): a line `<numpy type> <shape>`, and the values
    little-endian in C order. Compression, layout and machine do not enter.
    """
    digest = hashlib.sha256()
    for array in (bands, mask):
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        digest.update(f"{little.dtype.str} {little.shape}\n".encode())
        digest.update(little.data)
    return digest.hexdigest()


def encode_patch(
    spec: ArraySpec, bands: NDArray[Any], mask: NDArray[np.uint8], native: NDArray[Any] | None
) -> Encoded:
    """Compress one patch. Threads may do this side by side; the bytes do not depend on it.

    Parameters
    ----------
    spec : ArraySpec
    bands : array of `spec.dtype`, shape (band, y, x)
    mask : uint8 array, shape (y, x)
        Codes of the common legend, 0 where nothing was seen.
    native : array of `spec.native_dtype`, shape (y, x), or None
        None only if the product has no mask layers.
    """
    flat = spec.shape[1:]
    _expect("bands", bands, spec.dtype, spec.shape)
    _expect("mask", mask, "uint8", flat)
    if (native is None) != (spec.native_dtype is None):
        raise ValueError(f"{spec.product}: native mask given and expected must agree")
    if native is not None:
        _expect("native mask", native, str(spec.native_dtype), flat)
    codec, level = spec.codec, spec.compression_level
    empty = np.isnan(bands).all() if np.isnan(spec.fill) else (bands == spec.fill).all()
    return Encoded(
        bands=None if empty else encode(bands, codec, level),
        mask=encode(mask, codec, level) if mask.any() else None,
        native=encode(native, codec, level) if native is not None and native.any() else None,
        digest=pixel_digest(bands, mask),
    )


class ShardWriter:
    """Collects encoded patches and coordinates; gives the objects of the finished group."""

    def __init__(self, specs: dict[str, ArraySpec]) -> None:
        self.specs = specs
        self._patches: dict[str, dict[int, Encoded]] = {product: {} for product in specs}
        self._coordinates: dict[str, dict[str, NDArray[Any]]] = {}

    def put(self, product: str, sample: int, time: int, encoded: Encoded) -> None:
        """Keep one patch at its place."""
        spec = self.specs[product]
        if not (0 <= sample < spec.samples and 0 <= time < spec.times):
            raise ValueError(f"{product}: no place ({sample}, {time}) in the shard")
        self._patches[product][sample * spec.times + time] = encoded

    def set_coordinates(
        self,
        product: str,
        *,
        location: Sequence[str],
        epsg: ArrayLike,
        x_origin_m: ArrayLike,
        y_origin_m: ArrayLike,
        scene: ArrayLike,
        acquired: ArrayLike,
    ) -> None:
        """Set where and when the patches of a product are.

        Parameters
        ----------
        product : str
        location : sequence of str, length sample
            Cell ids.
        epsg : int array, shape (sample,)
        x_origin_m, y_origin_m : float arrays, shape (sample,)
            Upper left corner of the stored patch, in `epsg`.
        scene : array of str, shape (sample, time)
            Scene id (several joined by a space); empty where there is no patch.
        acquired : datetime64 or int64 array, shape (sample, time)
            UTC; int64 counts microseconds since 1970-01-01, `NO_TIME` where there is no patch.
        """
        spec = self.specs[product]
        times = np.asarray(acquired)
        if times.dtype.kind == "M":
            times = times.astype("datetime64[us]").astype("int64")
        values: dict[str, NDArray[Any]] = {
            "location": np.asarray(location, dtype=object),
            "epsg": np.asarray(epsg, dtype="int32"),
            "x_origin_m": np.asarray(x_origin_m, dtype="float64"),
            "y_origin_m": np.asarray(y_origin_m, dtype="float64"),
            "scene": np.asarray(scene, dtype=object),
            "acquired": times.astype("int64", casting="safe"),
            "band": np.asarray(spec.bands, dtype=object),
            "wavelength_nm": _lengths(spec.wavelength_nm),
        }
        if spec.fwhm_nm:
            values["fwhm_nm"] = _lengths(spec.fwhm_nm)
        if spec.band_unit:
            values["band_unit"] = np.asarray(spec.band_unit, dtype=object)
        sizes = {"sample": spec.samples, "time": spec.times, "band": len(spec.bands)}
        for name, array in values.items():
            shape = tuple(sizes[d] for d in COORDINATE_DIMENSIONS[name])
            if array.shape != shape:
                raise ValueError(f"{product}: `{name}` has shape {array.shape}, not {shape}")
        self._coordinates[product] = values

    def objects(self) -> Iterator[tuple[str, list[bytes]]]:
        """Yield every object of the group: its key below the shard's folder, and its parts.

        The order and the bytes depend on what was put, not on when.
        """
        yield "zarr.json", [group_metadata({"products": sorted(self.specs)})]
        for product in sorted(self.specs):
            spec = self.specs[product]
            yield f"{product}/zarr.json", [_product_group(spec)]
            yield from self._images(spec)
            for name, array in sorted(self._coordinates[product].items()):
                yield f"{product}/{name}/zarr.json", [plain_metadata(name, array)]
                chunk = "/".join(["c", *("0" for _ in array.shape)])
                yield f"{product}/{name}/{chunk}", [plain_bytes(array)]

    def _images(self, spec: ArraySpec) -> Iterator[tuple[str, list[bytes]]]:
        places = range(spec.samples * spec.times)
        patches = self._patches[spec.product]
        for name, attribute in IMAGES.items():
            if name == "mask_native" and spec.native_dtype is None:
                continue
            chunks = [getattr(patches[i], attribute) if i in patches else None for i in places]
            yield f"{spec.product}/{name}/zarr.json", [_image_metadata(spec, name)]
            if any(chunk is not None for chunk in chunks):
                yield image_key(spec.product, name), assemble(chunks)


def image_key(product: str, name: str) -> str:
    """Return the key, below the shard's folder, of the one object of `bands`, `mask`, ..."""
    return f"{product}/{name}/c/" + "/".join("0" * (5 if name == "bands" else 4))


def digests(writer: ShardWriter) -> dict[str, tuple[str, int]]:
    """Return sha256 (hex) and length of every object of a shard, for its commit."""
    found = {}
    for key, parts in writer.objects():
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        found[key] = (digest.hexdigest(), sum(map(len, parts)))
    return found


def store_shard(store: ObjectStore, folder: str, writer: ShardWriter) -> dict[str, tuple[str, int]]:
    """Write all objects of a shard, and return their `digests`."""
    put_shard(store, folder, writer)
    return digests(writer)


def put_shard(store: ObjectStore, folder: str, writer: ShardWriter) -> None:
    """Write all objects of a shard.

    Only the images are flushed to the disk: all else can be made again from the commit record.
    """
    for key, parts in writer.objects():
        durable = key.split("/")[-1] != "zarr.json" and key.split("/")[1] in IMAGES
        store.put(f"{folder}/{key}", parts, durable=durable)


#: Array to the field of `Encoded` that holds its chunk.
IMAGES = {"bands": "bands", "mask": "mask", "mask_native": "native"}


def _expect(what: str, array: NDArray[Any], dtype: str, shape: tuple[int, ...]) -> None:
    if array.dtype != np.dtype(dtype) or array.shape != shape:
        raise ValueError(f"{what}: {array.dtype} {array.shape}, not {dtype} {shape}")


def _lengths(lengths_nm: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if length is None else length for length in lengths_nm], "float64")


def _coordinates(spec: ArraySpec) -> list[str]:
    """Return the names of the coordinates that a product's group has."""
    optional = {"fwhm_nm": spec.fwhm_nm, "band_unit": spec.band_unit}
    return [name for name in COORDINATE_DIMENSIONS if optional.get(name, True)]


def band_facts(product: Product, bands: Sequence[str]) -> dict[str, Any]:
    """Return what an `ArraySpec` says of single bands: a product's facts, in storage order."""
    facts = [product.band(name) for name in bands]
    widths = tuple(band.fwhm_nm for band in facts)
    units = tuple(band.unit or product.unit for band in facts)
    return {
        "wavelength_nm": tuple(band.wavelength_nm for band in facts),
        "fwhm_nm": () if all(width is None for width in widths) else widths,
        "band_unit": () if set(units) <= {product.unit} else units,
    }


def _product_group(spec: ArraySpec) -> bytes:
    return group_metadata(
        {
            # xarray makes coordinates of these names; it is the one attribute it interprets.
            "coordinates": " ".join(sorted(_coordinates(spec))),
            "product": spec.product,
            "pixel_m": float(spec.pixel_m),
        }
    )


def _image_metadata(spec: ArraySpec, name: str) -> bytes:
    outer = (spec.samples, spec.times)
    if name == "bands":
        return array_metadata(
            outer,
            spec.shape,
            dtype=spec.dtype,
            fill=spec.fill,
            codec=spec.codec,
            level=spec.compression_level,
            attributes={
                "scale": float(spec.scale),
                "offset": float(spec.offset),
                "unit": spec.unit,
            },
        )
    return array_metadata(
        outer,
        spec.shape[1:],
        dtype="uint8" if name == "mask" else str(spec.native_dtype),
        fill=0,
        codec=spec.codec,
        level=spec.compression_level,
        attributes={"legend": LEGEND} if name == "mask" else {},
    )

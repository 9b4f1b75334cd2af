"""The door for everyone who uses a data set: `open_dataset`.

>>> from pipeline.store.reader import open_dataset
>>> ds = open_dataset("data/demo")                            # doctest: +SKIP
>>> ds[0]["sentinel-2-l2a"]["bands"].shape                    # doctest: +SKIP
(4, 12, 264, 264)
>>> mean, std, count = ds.statistics("sentinel-2-l2a")        # doctest: +SKIP
>>> train = ds.sel(split="train").patches("sentinel-2-l2a")   # doctest: +SKIP
>>> bands, mask = train.read(range(64))                       # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import IntegrityError, RecipeError
from pipeline.ports import ObjectStore
from pipeline.records import IndexRow
from pipeline.store import layout
from pipeline.store.objects import open_store
from pipeline.store.patches import PatchReader
from pipeline.store.tables import fit, read_table
from pipeline.store.version import Version, read_version

if TYPE_CHECKING:
    import xarray as xr


def open_dataset(root: str | Path | ObjectStore, version: int | None = None) -> Dataset:
    """Open a published version of a data set; without a number the newest.

    Raises
    ------
    RecipeError
        There is no such version.
    IntegrityError
        Its files are damaged.
    """
    store = open_store(root) if isinstance(root, str | Path) else root
    manifest = read_version(store, version)
    key = layout.version_file(manifest.number, "index.parquet")
    return Dataset(store, manifest, fit(read_table(store, key), IndexRow, name=key))


class Dataset:
    """The samples of a version: one per location, whatever shards its patches lie in.

    Attributes
    ----------
    index : pa.Table
        `IndexRow` of every patch, sorted by sample, product and time.
    version : Version
        The manifest.
    """

    def __init__(self, store: ObjectStore, version: Version, index: pa.Table) -> None:
        self._store, self.version, self.index = store, version, index
        row = index["row"].to_numpy()
        if (np.diff(row) < 0).any():
            raise IntegrityError(f"the index of version {version.number} is not sorted by `row`.")
        self._starts = np.flatnonzero(np.diff(row, prepend=-1))
        self._readers: dict[str, PatchReader] = {}

    @property
    def products(self) -> tuple[str, ...]:
        """Products that have patches here, in the order of the recipe."""
        found = set(self.index["product"].unique().to_pylist())
        return tuple(product for product in self.version.specs if product in found)

    def __len__(self) -> int:
        return len(self._starts)

    def __repr__(self) -> str:
        found = self.index["product"].value_counts().to_pylist()
        counts = {row["values"]: row["counts"] for row in found}
        patches = ", ".join(f"{counts[product]:,} of {product}" for product in self.products)
        return (
            f"<Dataset: version {self.version.number} of {self._store.url}, "
            f"{len(self):,} locations, patches: {patches or 'none'}>"
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, item: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, item: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, item: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        """Read one sample, or a slice of them.

        Returns
        -------
        dict
            `location`, `split`, and per product a dict of `bands` (time, band, y, x), `mask`
            (time, y, x), and the lists `acquired` and `slot`, in order of acquisition.
        """
        if isinstance(item, slice):
            return [self[i] for i in range(len(self))[item]]
        try:
            number = range(len(self))[item]
        except IndexError:
            raise IndexError(f"there is no sample {item}: there are {len(self)}.") from None
        ends = [*self._starts[1:], self.index.num_rows]
        rows = self.index.slice(self._starts[number], ends[number] - self._starts[number])
        head = rows.slice(0, 1).to_pylist()[0]
        sample: dict[str, Any] = {"location": head["location"], "split": head["split"]}
        for product in dict.fromkeys(rows["product"].to_pylist()):
            sample[product] = self._times(product, head["row"])
        return sample

    def sel(
        self,
        *,
        product: str | None = None,
        split: str | None = None,
        slot: str | None = None,
        location: str | None = None,
    ) -> Dataset:
        """Return the part of the data set that fits everything given.

        Raises
        ------
        RecipeError
            No patch of the whole has that value; says which there are.
        """
        wanted = {"product": product, "split": split, "slot": slot, "location": location}
        chosen = self.index
        for column, value in wanted.items():
            if value is not None:
                self._expect(column, value)
                chosen = chosen.filter(pc.equal(chosen[column], value))
        return Dataset(self._store, self.version, chosen)

    def patches(self, product: str) -> PatchReader:
        """Return the reader of one product's patches, numbered as they are in the index."""
        if product not in self._readers:
            self._expect("product", product)
            rows = self.index.filter(pc.equal(self.index["product"], product))
            self._readers[product] = PatchReader(self._store, self.version, product, rows)
        return self._readers[product]

    def statistics(
        self, product: str
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Return mean, standard deviation and count of every band, over the training split.

        In stored units, over values that are not fill; NaN, NaN and 0 where nothing was seen.
        Whatever was selected, they are those of the whole version.
        """
        key = layout.version_file(self.version.number, "statistics.json")
        values = layout.read_json(self._store, key)
        if product not in values:
            raise RecipeError(f"there are no statistics of {product!r}; there are: {[*values]}.")
        bands = values[product]["bands"]
        mean, std = (np.array([band[k] for band in bands], "float64") for k in ("mean", "std"))
        return mean, std, np.array([band["count"] for band in bands], "int64")

    def to_xarray(
        self, product: str | None = None, *, names: Literal["own", "ssl4eo-s12"] = "own"
    ) -> xr.Dataset:
        """Return a lazy xarray data set of one product.

        The product may be left out where there is only one. `names = "ssl4eo-s12"` gives it the
        variables and values of SSL4EO-S12 v1.1, for loaders written for that: see
        `pipeline.store.cube`.
        """
        from pipeline.store.cube import to_ssl4eo_s12, to_xarray

        if product is None and len(self.products) != 1:
            raise RecipeError(f"name one product; there are: {', '.join(self.products)}.")
        view = {"own": to_xarray, "ssl4eo-s12": to_ssl4eo_s12}[names]
        return view(self.patches(product or self.products[0]))

    def _times(self, product: str, row: int) -> dict[str, Any]:
        """Read all patches of one product of one location."""
        reader = self.patches(product)
        first, end = np.searchsorted(reader.sample_row, [row, row + 1])
        rows = reader.rows.slice(first, end - first)
        bands, mask = reader.read(slice(int(first), int(end)))
        return {
            "bands": bands,
            "mask": mask,
            "acquired": rows["acquired"].to_pylist(),
            "slot": rows["slot"].to_pylist(),
        }

    def _expect(self, column: str, value: str) -> None:
        if not pc.any(pc.equal(self.index[column], value)).as_py():
            known = self.index[column].unique().to_pylist()
            shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
            raise RecipeError(f"there is no patch of {column} {value!r}; there are: {shown}.")

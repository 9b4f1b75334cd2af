"""A published product as a torch `Dataset`, for training loops other than our own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.errors import RecipeError
from pipeline.store.reader import open_dataset


class Patch(TypedDict):
    """One item of `PatchDataset`."""

    bands: Tensor
    """Stored type, shape (band, y, x)."""
    mask: Tensor
    """uint8, common legend, shape (y, x)."""
    location: str
    slot: str


class PatchDataset(Dataset[Patch]):
    """The patches of one product of a published version, in the order of its index.

    Batches are read in one go (`__getitems__`), with decoding threads instead of worker processes:
    use `DataLoader(..., num_workers=0)`.

    Parameters
    ----------
    root : str
        Folder or URL of the data set.
    product : str
    split : str or None
        `train`, `val`, `test`; None: all of them.
    version : int or None
        Published version; None: the newest.
    threads : int
        Decoding threads.

    Attributes
    ----------
    reader : PatchReader
        Band names, wavelengths, scale, offset and fill of the stored values.
    patches : int array
        Rows of the reader that this data set counts.
    """

    def __init__(
        self,
        root: str,
        product: str,
        *,
        split: str | None = None,
        version: int | None = None,
        threads: int = 2,
    ) -> None:
        self.reader = open_dataset(root, version=version).patches(product)
        self.threads = threads
        splits = np.asarray(self.reader.rows["split"].to_pylist(), dtype=str)
        if split is not None and split not in ("train", "val", "test"):
            raise RecipeError(f"split {split!r} is not one of: train, val, test.")
        chosen = np.ones(len(splits), bool) if split is None else splits == split
        self.patches = np.flatnonzero(chosen)
        self._location = self.reader.rows["location"].to_pylist()
        self._slot = self.reader.rows["slot"].to_pylist()

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, item: int) -> Patch:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int]) -> list[Patch]:
        rows = self.patches[np.asarray(items, dtype=np.int64)]
        bands, mask = self.reader.read(rows, threads=self.threads)
        return [
            Patch(
                bands=torch.from_numpy(bands[k]),
                mask=torch.from_numpy(mask[k]),
                location=self._location[row],
                slot=self._slot[row],
            )
            for k, row in enumerate(rows)
        ]

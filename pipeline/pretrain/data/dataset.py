"""A published product as a torch `Dataset`, for training loops other than our own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset

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
    root : str or Path
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
        Band names, wavelengths, scale, offset and fill of the stored values; row i is item i.
    """

    def __init__(
        self,
        root: str | Path,
        product: str,
        *,
        split: str | None = None,
        version: int | None = None,
        threads: int = 2,
    ) -> None:
        whole = open_dataset(root, version=version)
        self.reader = whole.sel(product=product, split=split).patches(product)
        self.threads = threads
        self._location = self.reader.rows["location"].to_pylist()
        self._slot = self.reader.rows["slot"].to_pylist()

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, item: int) -> Patch:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int]) -> list[Patch]:
        bands, mask = self.reader.read(items, threads=self.threads)
        return [
            Patch(
                bands=torch.from_numpy(bands[k]),
                mask=torch.from_numpy(mask[k]),
                location=self._location[item],
                slot=self._slot[item],
            )
            for k, item in enumerate(items)
        ]

"""Carry the patches of an earlier revision over as they are: compressed, never decoded."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import IntegrityError
from pipeline.ports import ObjectStore
from pipeline.records import LedgerRow
from pipeline.store.codec import index_bytes, parse_index
from pipeline.store.commit import Commit
from pipeline.store.shard import Encoded, ShardWriter, image_key


def copy_patches(
    store: ObjectStore, commit: Commit, rows: Iterable[LedgerRow], writer: ShardWriter
) -> None:
    """Put the written patches among some ledger rows of a commit into a new revision.

    Raises
    ------
    IntegrityError
        An object of the earlier revision is not what its commit says.
    """
    by_product: dict[str, list[LedgerRow]] = {}
    for row in rows:
        if row.state == "written":
            by_product.setdefault(row.product, []).append(row)
    for product, own in by_product.items():
        times = commit.specs[product].times
        places = [row.sample * times + row.time for row in own]
        bands = read_chunks(store, commit, product, "bands", places)
        masks = read_chunks(store, commit, product, "mask", places)
        natives = read_chunks(store, commit, product, "mask_native", places)
        for row, image, mask, native in zip(own, bands, masks, natives, strict=True):
            encoded = Encoded(image, mask, native, row.pixel_digest)
            writer.put(product, row.sample, row.time, encoded)


def read_chunks(
    store: ObjectStore, commit: Commit, product: str, array: str, places: list[int]
) -> list[bytes | None]:
    """Return the compressed chunks of some places of an array; None where one is absent."""
    index = read_index(store, commit, product, array)
    if index is None:
        return [None] * len(places)
    spans = [(int(index[p, 0]), int(index[p, 0] + index[p, 1])) for p in places]
    key = f"{commit.folder}/{image_key(product, array)}"
    found = iter(store.get_ranges(key, [span for span in spans if span[0] >= 0]))
    return [next(found) if start >= 0 else None for start, _ in spans]


def read_index(
    store: ObjectStore, commit: Commit, product: str, array: str
) -> NDArray[np.int64] | None:
    """Return where the chunks of an array lie, as `parse_index` does; None if it has none.

    Raises
    ------
    IntegrityError
        The object is not what its commit says.
    """
    name = image_key(product, array)
    if name not in commit.objects:
        return None
    key, size = f"{commit.folder}/{name}", commit.objects[name][1]
    spec = commit.specs[product]
    tail = index_bytes(spec.samples * spec.times)
    try:
        if store.size(key) != size or size < tail:
            raise IntegrityError(f"{key} in {store.url} is not the {size} bytes of its commit.")
        return parse_index(store.get_ranges(key, [(size - tail, size)])[0], size, name=key)
    except KeyError as error:
        raise IntegrityError(f"{key} in {store.url} is gone, but its commit is there.") from error

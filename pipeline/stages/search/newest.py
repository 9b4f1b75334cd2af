"""One row a scene: of several processings of an acquisition, the newest counts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

import pyarrow as pa

from pipeline.records import Scene, Unusable


class Newest:
    """Which item of each scene is the newest: filled as answers come, asked before they are kept.

    Holds one short entry a scene, so that millions of scenes need not be in memory at once.

    Parameters
    ----------
    known : mapping of str to str
        Scene to baseline of what is in the root already: it gives way to a newer baseline only.
    preferred : mapping of str to sequence of str
        Product to its providers, the preferred one first; a product may be absent.
    """

    def __init__(
        self, known: Mapping[str, str], preferred: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self._known = known
        self._preferred = preferred or {}
        self._best: dict[str, tuple[tuple[int, ...], int, str, str]] = {}

    def __len__(self) -> int:
        """Return how many scenes were seen."""
        return len(self._best)

    def note(self, row: Scene) -> None:
        """Take a row into account. Of equal baselines the preferred provider wins, then the
        greater item id, so that the order of answers is without effect."""
        self._note(row.scene, row.product, row.provider, row.item, row.baseline)

    def note_all(self, scenes: pa.Table) -> None:
        """Take the rows of a table of scenes into account."""
        names = ("scene", "product", "provider", "item", "baseline")
        for values in zip(*(scenes.column(name).to_pylist() for name in names), strict=True):
            self._note(*values)

    def _note(self, scene: str, product: str, provider: str, item: str, baseline: str) -> None:
        providers = self._preferred.get(product, ())
        place = providers.index(provider) if provider in providers else len(providers)
        rank = (version_of(baseline), -place, item, provider)
        self._best[scene] = max(rank, self._best.get(scene, rank))

    def item(self, scene: str) -> str:
        """Return the id of a scene's newest item."""
        return self._best[scene][2]

    def provider(self, scene: str) -> str:
        """Return who serves it."""
        return self._best[scene][3]

    def is_new(self, scene: str) -> bool:
        """Whether the root has no such scene, or only one of an older baseline."""
        return scene not in self._known or self._best[scene][0] > version_of(self._known[scene])


def deduplicate(scenes: pa.Table, newest: Newest | None = None) -> tuple[pa.Table, list[Unusable]]:
    """Keep the newest item of each scene; the others are unusable as `duplicate`.

    Parameters
    ----------
    scenes : table of `Scene` rows
        All rows, or some of them if `newest` has seen all.
    newest : Newest or None
        None: made of these rows.

    Returns
    -------
    pa.Table, list of Unusable
        What is to be added to the root, by time and scene; and what has a better counterpart at
        the same provider. A scene that the root has already is in neither: it was told before.
    """
    if newest is None:
        newest = Newest({})
        newest.note_all(scenes)
    names = ("scene", "product", "provider", "item")
    rows = zip(*(scenes.column(name).to_pylist() for name in names), strict=True)
    kept: dict[str, int] = {}
    duplicates = []
    for number, (scene, product, provider, item) in enumerate(rows):
        if provider != newest.provider(scene):
            continue
        best = newest.item(scene)
        if item != best:
            detail = f"{best} is the newer one of {scene}"[:200]
            duplicates.append(
                Unusable(
                    product=product,
                    provider=provider,
                    item=item,
                    reason="duplicate",
                    detail=detail,
                )
            )
        elif newest.is_new(scene):
            kept[scene] = number
    found = scenes.take(pa.array(kept.values(), pa.int64()))
    return found.sort_by([("acquired", "ascending"), ("scene", "ascending")]), duplicates


@lru_cache(maxsize=1024)
def version_of(baseline: str) -> tuple[int, ...]:
    """Return the numbers of a baseline, to be compared part by part: `04.00` is (4, 0)."""
    return tuple(int(part) for part in re.findall(r"\d{1,9}", baseline))

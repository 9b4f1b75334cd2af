"""One row a scene: of several processings of an acquisition, the newest counts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

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
        providers = self._preferred.get(row.product, ())
        place = providers.index(row.provider) if row.provider in providers else len(providers)
        rank = (version_of(row.baseline), -place, row.item, row.provider)
        self._best[row.scene] = max(rank, self._best.get(row.scene, rank))

    def item(self, scene: str) -> str:
        """Return the id of a scene's newest item."""
        return self._best[scene][2]

    def provider(self, scene: str) -> str:
        """Return who serves it."""
        return self._best[scene][3]

    def is_best(self, row: Scene) -> bool:
        """Whether this row is the one that counts."""
        return (row.item, row.provider) == (self.item(row.scene), self.provider(row.scene))

    def is_new(self, scene: str) -> bool:
        """Whether the root has no such scene, or only one of an older baseline."""
        return scene not in self._known or self._best[scene][0] > version_of(self._known[scene])


def deduplicate(
    rows: Iterable[Scene], newest: Newest | None = None
) -> tuple[list[Scene], list[Unusable]]:
    """Keep the newest item of each scene; the others are unusable as `duplicate`.

    Parameters
    ----------
    rows : iterable of Scene
        All rows, or some of them if `newest` has seen all.
    newest : Newest or None
        None: made of these rows.

    Returns
    -------
    list of Scene, list of Unusable
        What is to be added to the root, by time and scene; and what has a better counterpart at
        the same provider. A scene that the root has already is in neither: it was told before.
    """
    rows = list(rows)
    if newest is None:
        newest = Newest({})
        for row in rows:
            newest.note(row)
    kept = {row.scene: row for row in rows if newest.is_best(row) and newest.is_new(row.scene)}
    duplicates = [
        Unusable(
            product=row.product,
            provider=row.provider,
            item=row.item,
            reason="duplicate",
            detail=f"{newest.item(row.scene)} is the newer one of {row.scene}"[:200],
        )
        for row in rows
        if newest.provider(row.scene) == row.provider and newest.item(row.scene) != row.item
    ]
    return sorted(kept.values(), key=lambda row: (row.acquired, row.scene)), duplicates


def version_of(baseline: str) -> tuple[int, ...]:
    """Return the numbers of a baseline, to be compared part by part: `04.00` is (4, 0)."""
    return tuple(int(part) for part in re.findall(r"\d{1,9}", baseline))

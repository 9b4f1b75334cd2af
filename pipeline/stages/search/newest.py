"""One row a scene: of several processings of an acquisition, the newest counts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import pyarrow as pa

from pipeline.products.model import Product
from pipeline.records import Scene, Unusable


class _Rank(NamedTuple):
    """What a scene has from the providers whose baselines are of one kind: greater is better."""

    first: int
    """Place of the most preferred of these providers, counted downwards from 0."""
    kind: str
    version: tuple[int, ...]
    """Of the best of their items ..."""
    place: int
    """... and the place of who serves it, counted downwards too."""
    item: str
    provider: str

    def with_another(self, other: _Rank) -> _Rank:
        """Return what there is when an item of the same kind comes."""
        better = self if self[2:] >= other[2:] else other
        return better._replace(first=max(self.first, other.first))


class Newest:
    """Which item of each scene is the newest: filled as answers come, asked before they are kept.

    Holds one short entry a scene, so that millions of scenes need not be in memory at once.

    Parameters
    ----------
    known : mapping of str to (str, str)
        Scene to provider and baseline of what is in the root already: it gives way only to a newer
        baseline of the same kind.
    preferred : mapping of str to sequence of str
        Product to its providers, the preferred one first; a product may be absent.
    kinds : mapping of (str, str) to str
        Product and provider to what its baselines count (`baseline_kinds`); one may be absent.
    """

    def __init__(
        self,
        known: Mapping[str, tuple[str, str]],
        preferred: Mapping[str, Sequence[str]] | None = None,
        kinds: Mapping[tuple[str, str], str] | None = None,
    ) -> None:
        self._known = known
        self._preferred = preferred or {}
        self._kinds = kinds or {}
        self._best: dict[str, _Rank] = {}
        #: By scene and kind: what is there beside the best, where baselines are of several kinds.
        self._beside: dict[tuple[str, str], _Rank] = {}

    def __len__(self) -> int:
        """Return how many scenes were seen."""
        return len(self._best)

    def note(self, row: Scene) -> None:
        """Take a row into account. Of equal baselines the preferred provider wins, then the
        greater item id, so that the order of answers is without effect. Where baselines cannot be
        compared the order of the providers decides: the preferred one of those that have the scene,
        or whoever has a newer baseline of the same kind as its."""
        self._note(row.scene, row.product, row.provider, row.item, row.baseline)

    def note_all(self, scenes: pa.Table) -> None:
        """Take the rows of a table of scenes into account."""
        names = ("scene", "product", "provider", "item", "baseline")
        for values in zip(*(scenes.column(name).to_pylist() for name in names), strict=True):
            self._note(*values)

    def _note(self, scene: str, product: str, provider: str, item: str, baseline: str) -> None:
        providers = self._preferred.get(product, ())
        place = -(providers.index(provider) if provider in providers else len(providers))
        kind = self._kinds.get((product, provider), "")
        mine = _Rank(place, kind, version_of(baseline), place, item, provider)
        best = self._best.get(scene)
        if best is None:
            self._best[scene] = mine
            return
        if best.kind == kind:
            self._best[scene] = best.with_another(mine)
            return
        before = self._beside.pop((scene, kind), mine)
        mine = before.with_another(mine)
        self._best[scene], less = max(best, mine), min(best, mine)
        self._beside[scene, less.kind] = less

    def item(self, scene: str) -> str:
        """Return the id of a scene's newest item."""
        return self._best[scene].item

    def provider(self, scene: str) -> str:
        """Return who serves it."""
        return self._best[scene].provider

    def is_new(self, scene: str) -> bool:
        """Whether the root has no such scene, or only one of an older baseline."""
        if scene not in self._known:
            return True
        provider, baseline = self._known[scene]
        kind = self._kinds.get((scene.partition("/")[0], provider), "")
        best = self._best[scene]
        return best.kind == kind and best.version > version_of(baseline)


def baseline_kinds(products: Iterable[Product]) -> dict[tuple[str, str], str]:
    """Return what the baselines of each product's providers count, by product and provider.

    Those who state none are of a kind of their own: nothing says that theirs is older.
    """
    return {
        (product.id, name): facts.baseline_kind if "baseline" in facts.properties else "none"
        for product in products
        for name, facts in product.providers.items()
    }


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

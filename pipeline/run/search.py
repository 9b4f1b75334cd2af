"""Run the stage `search`: ask the catalogues what exists, and add what is new to the root."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from pipeline.errors import GiveUp, RecipeError
from pipeline.ports import ObjectStore, Query
from pipeline.recipe import LoadedRecipe
from pipeline.records import Location, Scene, Unusable
from pipeline.run.spool import Spool
from pipeline.sources.local import local_items
from pipeline.sources.providers import Provider, check_href, load_provider
from pipeline.sources.stac import Catalogue
from pipeline.stages.newest import version_of
from pipeline.stages.search import UNASKED, normalise, queries
from pipeline.store.layout import LOCATIONS, SCENES, claim, is_claimed, numbered
from pipeline.store.tables import append, from_rows, next_number, read_all, write_table

_UNUSABLE = "unusable"


@dataclass(frozen=True, slots=True)
class SearchReport:
    """What a run of `search` did."""

    found: dict[str, int]
    """Usable scenes by product, whether they were in the root already or not."""
    unusable: dict[str, int]
    """Items that cannot be used, by reason."""
    new: int
    """Scenes added to the root (a newer baseline of a known one counts)."""
    requests: int
    """Requests made to catalogues."""


def run_search(loaded: LoadedRecipe, store: ObjectStore) -> SearchReport:
    """Search for every product of the recipe, and append what the root does not have.

    Raises
    ------
    RecipeError
        The root is another recipe's, it has no locations yet, or a provider is not known.
    TryAgain, GiveUp
        A catalogue cannot be asked; nothing is written then, for half an answer looks like a
        year with few scenes.
    """
    is_claimed(store, loaded)
    locations = _locations(loaded, store)
    unusable: list[Unusable] = []
    found: dict[str, int] = {}
    requests = new = 0
    with Spool(_baselines(store)) as spool:
        for product_id in loaded.products:
            before = len(spool.newest)
            questions = queries(loaded, product_id, locations)
            with closing(_Answers(loaded, product_id)) as answers:
                for row in answers.rows(questions):
                    if isinstance(row, Scene):
                        spool.add(row)
                    else:
                        unusable.append(row)
                requests += answers.requests
            found[product_id] = len(spool.newest) - before
        claim(store, loaded)  # only now: a mistake found before leaves the root free
        for scenes, duplicates in spool.chunks():
            unusable += duplicates
            new += len(scenes)
            if scenes:
                append(store, SCENES, from_rows(scenes, Scene), Scene)
    _append_unusable(store, unusable)
    reasons = Counter(row.reason for row in unusable)
    return SearchReport(found, dict(sorted(reasons.items())), new, requests)


class _Answers:
    """What one product's provider answers, each item once, as rows."""

    def __init__(self, loaded: LoadedRecipe, product_id: str) -> None:
        wish = loaded.wishes[product_id]
        self._product = loaded.products[product_id]
        self._bands = loaded.bands(product_id)
        self._folder = None if wish.path is None else loaded.path(wish.path)
        self.provider = _provider(loaded, product_id)
        self._catalogue = None if self.provider.kind == "local" else Catalogue(self.provider)

    @property
    def requests(self) -> int:
        """Requests made so far."""
        return 0 if self._catalogue is None else self._catalogue.requests

    def close(self) -> None:
        """Close the connections."""
        if self._catalogue is not None:
            self._catalogue.close()

    def rows(self, questions: list[Query]) -> Iterator[Scene | Unusable]:
        """Yield a row for each item that answers one of the questions.

        What a search API returns without being asked is unusable and said so; a folder holds what
        it holds, so there the same is passed over.
        """
        searched = self.provider.kind == "stac-api"
        items = None if searched else self._everything(questions)
        seen: set[str] = set()
        unasked: dict[str, Unusable] = {}
        for query in questions:
            for item in self._search(query) if items is None else items:
                name = str(item.get("id"))
                if name in seen:
                    continue
                row = self._row(item, query)
                if isinstance(row, Unusable) and row.reason in UNASKED:
                    unasked[name] = row  # another question may want it
                    continue
                seen.add(name)
                yield row
        yield from (row for name, row in unasked.items() if searched and name not in seen)

    def _search(self, query: Query) -> Iterable[dict[str, Any]]:
        return () if self._catalogue is None else self._catalogue.search(query)

    def _everything(self, questions: list[Query]) -> list[dict[str, Any]]:
        if self._catalogue is not None:
            return list(self._catalogue.search(questions[0])) if questions else []
        if self._folder is None:
            raise RecipeError(f"product {self._product.id}: `path` is missing.")
        return list(local_items(self._folder, self._product))

    def _row(self, item: dict[str, Any], query: Query) -> Scene | Unusable:
        row = normalise(item, self._product, self.provider.name, query, bands=self._bands)
        if isinstance(row, Unusable):
            return row
        try:
            for asset in row.assets:
                check_href(self.provider, asset.href)
        except GiveUp as refusal:
            return Unusable(
                product=row.product,
                provider=row.provider,
                item=row.item,
                reason="refused-href",
                detail=str(refusal)[:200],
            )
        return row


def _provider(loaded: LoadedRecipe, product_id: str) -> Provider:
    wish = loaded.wishes[product_id]
    url = wish.url
    if wish.provider == "static" and url is not None and "://" not in url:
        url = str(loaded.path(url))
    return load_provider(wish.provider, url=url)


def _locations(loaded: LoadedRecipe, store: ObjectStore) -> Any:
    """Return the locations to search around; None where cells are cut from what is found."""
    if loaded.recipe.sample.strategy == "scenes":
        return None
    table = read_all(store, LOCATIONS, Location, columns=["lon_deg", "lat_deg", "geometry"])
    if not table.num_rows:
        raise RecipeError(f"{store.url} has no locations yet; run `terrashard sample` first.")
    return table


def _baselines(store: ObjectStore) -> dict[str, str]:
    """Return the newest baseline of each scene in the root."""
    table = read_all(store, SCENES, Scene, columns=["scene", "baseline"])
    newest: dict[str, str] = {}
    columns = (table.column(name).to_pylist() for name in ("scene", "baseline"))
    for scene, baseline in zip(*columns, strict=True):
        if scene not in newest or version_of(baseline) > version_of(newest[scene]):
            newest[scene] = baseline
    return newest


def _append_unusable(store: ObjectStore, unusable: list[Unusable]) -> None:
    """Append what cannot be used beside the scenes; what was said before is not said again."""
    said = read_all(
        store, SCENES, Unusable, columns=["product", "item", "reason"], suffix=_UNUSABLE
    )
    before = {tuple(row.values()) for row in said.to_pylist()}
    fresh = [row for row in unusable if (row.product, row.item, row.reason) not in before]
    if not fresh:
        return
    fresh.sort(key=lambda row: (row.product, row.item, row.reason))
    key = numbered(SCENES, next_number(store, SCENES), _UNUSABLE)
    write_table(store, key, from_rows(fresh, Unusable))

"""Run the stage `search`: ask the catalogues what exists, and add what is new to the root."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import GiveUp, RecipeError, TryAgain
from pipeline.ports import ObjectStore, Query
from pipeline.products.model import Product
from pipeline.recipe import LoadedRecipe
from pipeline.records import Location, Scene, Unusable
from pipeline.run.spool import Spool
from pipeline.sources.earthengine.items import EarthEngineCatalogue
from pipeline.sources.local.folders import local_items
from pipeline.sources.providers import Provider, check_href, provider_of
from pipeline.sources.stac.catalogue import Catalogue
from pipeline.sources.stac.geoparquet import bulk_items
from pipeline.stages.search.beside import LEADER_COLUMNS
from pipeline.stages.search.newest import baseline_kinds, version_of
from pipeline.stages.search.normalise import UNASKED, normalise
from pipeline.stages.search.questions import queries
from pipeline.store.layout import LOCATIONS, SCENES, claim, is_claimed, numbered
from pipeline.store.tables import append, from_rows, next_number, read_all, write_table

_UNUSABLE = "unusable"
#: New objects after which reference cycles are looked for: a page is about a million.
_COLLECT_EVERY = 10_000_000


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
    unanswered: str | None = None
    """Providers that could not be asked, where others that the recipe lists were, and why."""
    nothing: str | None = None
    """Products of which nothing was found, and what to look at then."""


def run_search(
    loaded: LoadedRecipe, store: ObjectStore, *, newest: int | None = None
) -> SearchReport:
    """Search for every product of the recipe, and append what the root does not have.

    Parameters
    ----------
    newest : int or None
        Ask only around so many locations, those with the highest indices; None: around all.

    Raises
    ------
    RecipeError
        The root is another recipe's, it has no locations yet, or a provider is not known.
    TryAgain, GiveUp
        A product has no provider that can be asked; nothing is written then, for half an answer
        looks like a year with few scenes.
    """
    is_claimed(store, loaded)
    locations = locations_of(loaded, store, newest)
    unusable: list[Unusable] = []
    found: dict[str, int] = {}
    silent: list[str] = []
    requests = new = 0
    preferred = {product: wish.providers for product, wish in loaded.wishes.items()}
    kinds = baseline_kinds(loaded.products.values())
    with _collecting_rarely(), Spool(_known(store), preferred, kinds) as spool:
        for product_id in loaded.leaders_first():
            before = len(spool.newest)
            leaders = _leaders(loaded, product_id, store, spool) if locations is None else None
            asked = _ask_all(loaded, product_id, locations, leaders, spool, unusable)
            requests += asked.requests
            silent += asked.silent
            found[product_id] = len(spool.newest) - before
        claim(store, loaded)  # only now: a mistake found before leaves the root free
        for scenes, duplicates in spool.chunks():
            unusable += duplicates
            new += scenes.num_rows
            if scenes.num_rows:
                append(store, SCENES, scenes, Scene)
    _append_unusable(store, unusable)
    reasons = Counter(row.reason for row in unusable)
    return SearchReport(
        found,
        dict(sorted(reasons.items())),
        new,
        requests,
        "; ".join(silent) or None,
        _nothing(loaded, found),
    )


def _nothing(loaded: LoadedRecipe, found: dict[str, int]) -> str | None:
    """Say where nothing was found: a catalogue that has nothing is no error."""
    empty = [
        f"{product} at {' and '.join(loaded.wishes[product].providers)}"
        for product, number in found.items()
        if not number
    ]
    if not empty:
        return None
    return (
        f"{', '.join(empty)}: do they have the places and times of the recipe? "
        "`search --compare` asks others too"
    )


@contextmanager
def _collecting_rarely() -> Iterator[None]:
    """Look for reference cycles once in a while only: pages are millions of objects without any,
    and looking through them again and again took half of the time of reading them."""
    before = gc.get_threshold()
    gc.set_threshold(_COLLECT_EVERY, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@dataclass(slots=True)
class _Asked:
    """What asking the providers of a product took."""

    requests: int = 0
    silent: list[str] = field(default_factory=list)
    """Who could not be asked, and why."""


def _ask_all(
    loaded: LoadedRecipe,
    product_id: str,
    locations: pa.Table | None,
    leaders: pa.Table | None,
    spool: Spool,
    unusable: list[Unusable],
) -> _Asked:
    """Ask every provider that the recipe lists for a product, and keep what they know.

    One that cannot be asked is passed over if another one can; then nothing is kept of what it
    said before it failed, or what is found would depend on when it failed.
    """
    names, asked = loaded.wishes[product_id].providers, _Asked()
    for name in names:
        questions = queries(loaded, product_id, locations, leaders=leaders, provider=name)
        lost: list[Unusable] = []
        with closing(Answers(loaded, product_id, name)) as answers, Spool({}) as part:
            kept = spool if len(names) == 1 else part
            try:
                for row in answers.rows(questions):
                    if isinstance(row, Scene):
                        kept.add(row)
                    else:
                        lost.append(row)
            except (TryAgain, GiveUp) as error:
                if len(asked.silent) == len(names) - 1:
                    raise
                asked.silent.append(f"{product_id}: {error}")
                continue
            finally:
                asked.requests += answers.requests
            for scenes, duplicates in part.chunks():
                lost += duplicates
                spool.add_all(scenes)
        unusable += lost
    return asked


class Answers:
    """What one provider of a product answers, each item once, as rows."""

    def __init__(self, loaded: LoadedRecipe, product_id: str, provider: str) -> None:
        wish = loaded.wishes[product_id]
        self._product = loaded.products[product_id]
        self._bands = loaded.bands(product_id)
        self._require = wish.require
        self._folder = None if wish.path is None else loaded.path(wish.path)
        self.provider = provider_of(loaded, product_id, provider)
        self._catalogue = _catalogue(self.provider, self._product)

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
        searched = self.provider.kind in ("stac-api", "earth-engine")
        seen: set[str] = set()
        unasked: dict[str, Unusable] = {}
        for item, query in self._answered(questions, searched):
            name = str(item.get("id"))
            if name in seen:
                continue
            row = self._row(item, query)
            if isinstance(row, Unusable) and row.reason in UNASKED:
                if searched:
                    unasked[name] = row  # another question may want it
                continue
            seen.add(name)
            yield row
        yield from (row for name, row in unasked.items() if name not in seen)

    def _answered(
        self, questions: list[Query], searched: bool
    ) -> Iterator[tuple[dict[str, Any], Query]]:
        """Yield items with the questions that they may answer."""
        if self.provider.kind == "stac-geoparquet":
            yield from bulk_items(self.provider, questions)
            return
        items = None if searched else self._everything(questions)
        for query in questions:
            for item in self._search(query) if items is None else items:
                yield item, query

    def _search(self, query: Query) -> Iterable[dict[str, Any]]:
        return () if self._catalogue is None else self._catalogue.search(query)

    def _everything(self, questions: list[Query]) -> list[dict[str, Any]]:
        if self._catalogue is not None:
            return list(self._catalogue.search(questions[0])) if questions else []
        if self._folder is None:
            raise RecipeError(f"product {self._product.id}: `path` is missing.")
        items = list(local_items(self._folder, self._product))
        if not items:  # a catalogue may have nothing; an empty folder is the wrong folder
            kind = self._product.providers["local"].collection
            raise RecipeError(
                f"product {self._product.id}: {self._folder} holds nothing of the kind {kind!r}, "
                "at any depth; is `path` the right folder?"
            )
        return items

    def _row(self, item: dict[str, Any], query: Query) -> Scene | Unusable:
        row = normalise(
            item,
            self._product,
            self.provider.name,
            query,
            bands=self._bands,
            require=self._require,
        )
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


def _catalogue(provider: Provider, product: Product) -> Catalogue | EarthEngineCatalogue | None:
    """Return what answers questions; None for folders, which are read whole."""
    if provider.kind == "local":
        return None
    if provider.kind == "earth-engine":
        return EarthEngineCatalogue(provider, product)
    return Catalogue(provider)


def locations_of(
    loaded: LoadedRecipe, store: ObjectStore, newest: int | None = None
) -> pa.Table | None:
    """Return the locations to search around, all or so many of the newest; None where cells are
    cut from what is found."""
    if loaded.recipe.sample.strategy == "scenes":
        return None
    columns = ["index", "lon_deg", "lat_deg", "geometry"]
    table = read_all(store, LOCATIONS, Location, columns=columns)
    if not table.num_rows:
        raise RecipeError(f"{store.url} has no locations yet; run `terrashard sample` first.")
    return table if newest is None else table.sort_by([("index", "descending")]).slice(0, newest)


def _leaders(
    loaded: LoadedRecipe, product_id: str, store: ObjectStore, spool: Spool
) -> pa.Table | None:
    """Return the scenes of the product that this one follows, in the root and found just now; None
    if it follows none."""
    leader = loaded.leader[product_id]
    if leader == product_id:
        return None
    stored = read_all(store, SCENES, Scene, columns=LEADER_COLUMNS)
    parts = [stored, *(part.cast(stored.schema) for part in spool.scenes(LEADER_COLUMNS))]
    return pa.concat_tables(part.filter(pc.field("product") == leader) for part in parts)


def _known(store: ObjectStore) -> dict[str, tuple[str, str]]:
    """Return who serves each scene in the root, and its newest baseline."""
    table = read_all(store, SCENES, Scene, columns=["scene", "provider", "baseline"])
    newest: dict[str, tuple[str, str]] = {}
    columns = (table.column(name).to_pylist() for name in table.column_names)
    for scene, provider, baseline in zip(*columns, strict=True):
        if scene not in newest or version_of(baseline) > version_of(newest[scene][1]):
            newest[scene] = provider, baseline
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

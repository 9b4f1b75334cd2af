"""What to ask the catalogues: few questions, however many locations. Pure; asks nobody."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from math import ceil

import numpy as np
import pyarrow as pa
import shapely

from pipeline.errors import RecipeError
from pipeline.ports import Query
from pipeline.products.model import Product, ProviderFacts
from pipeline.recipe import Between, LoadedRecipe, Required, Scenes
from pipeline.stages.search.beside import Box, beside
from pipeline.stages.slots import is_wanted, slots_of

#: Edge of the areas by which locations are grouped, in degrees: a year of Sentinel-2 over one is
#: a few thousand items.
_AREA_DEG = 5
#: Longest span of one question around locations: a year, with days beside it for followers. Some
#: catalogues stop after 5,000 or 10,000 items; a year of Sentinel-2 over an area is 3,000 to 7,000,
#: and every cut costs another page that is not full.
_LONGEST_DAYS = 400
#: Edge of the areas in which a region is searched: a month of EnMAP's whole archive is 7,000 items.
_REGION_DEG = 30
_WORLD: Box = (-180.0, -90.0, 180.0, 90.0)
_Span = tuple[datetime | None, datetime | None]
#: Providers without a search of their own.
_READ_WHOLE = ("local", "static")
#: How far above the recipe's cloud limit scenes are still asked for. Our choice.
_CLOUD_MARGIN_PERCENT = 20.0
#: Patterns that stand for a few values: plain text, and choices between letters (`landsat-[89]`).
_SPELT_OUT = re.compile(r"(?:[\w -]|\[\w{1,4}\])+")
_CHOICES = re.compile(r"([\w -])|\[(\w+)\]")


def queries(
    loaded: LoadedRecipe,
    product_id: str,
    locations: pa.Table | None,
    *,
    leaders: pa.Table | None = None,
    provider: str | None = None,
    all_weathers: bool = False,
) -> list[Query]:
    """Return the questions to ask for one product: few, whatever the number of locations.

    Parameters
    ----------
    loaded : LoadedRecipe
    product_id : str
    locations : pa.Table or None
        Location rows. None where scenes come before cells: then the recipe's region is searched.
    leaders : pa.Table or None
        Where scenes come before cells: those found of the product that this one follows, if it
        follows one (`beside.LEADER_COLUMNS`). None: the follower is asked for as any other.
    provider : str or None
        Who is asked; None: the first that the recipe lists.
    all_weathers : bool
        Ask for scenes above the recipe's cloud limit too.

    Returns
    -------
    list of Query
        One for each area of 5 degrees that holds locations (its box shrunk to them) and each
        year or so of the wanted times; where a region is searched, one for each of its areas of
        30 degrees and each calendar month, or for a follower as `beside` puts its leader's scenes
        together. A box never crosses the antimeridian. Folders and
        static catalogues cannot search and are read whole: one for each span of wanted times. A
        product that is not dated is asked for without times.
    """
    product = loaded.products[product_id]
    provider = provider or loaded.wishes[product_id].providers[0]
    facts = facts_of(product, provider)
    require = loaded.wishes[product_id].require
    only = (*_only(facts), *_one_of(facts, require))
    at_most = () if all_weathers else tuple(_at_most(facts, loaded, product_id))
    at_most += tuple(_not_above(facts, require))
    whole, dated = provider in _READ_WHOLE, product.temporal == "dated"
    if dated and not whole and locations is None and leaders is not None:
        pairs = beside(loaded, product_id, leaders)
        return [
            Query(product.id, facts.collection, box, *span, only=only, at_most=at_most)
            for box, span in pairs
        ]
    spans: list[_Span] = _spans(loaded, product_id) if dated else [(None, None)]
    if not whole:
        cut = _months if locations is None else _years
        spans = [
            piece
            for start, end in spans
            for piece in ([(None, None)] if start is None or end is None else cut(start, end))
        ]
    boxes = _boxes(loaded, None if whole else locations, whole=whole)
    return [
        Query(product.id, facts.collection, box, *span, only=only, at_most=at_most)
        for box in boxes
        for span in spans
    ]


def facts_of(product: Product, provider: str) -> ProviderFacts:
    """Return what a provider calls things of a product; `RecipeError` if it does not serve it."""
    if provider not in product.providers:
        raise RecipeError(
            f"provider {provider!r} does not serve {product.id}; "
            f"its product file knows: {', '.join(product.providers)}."
        )
    return product.providers[provider]


def _only(facts: ProviderFacts) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the properties that tell a product from others, where all their values can be named."""
    for source, pattern in facts.only.items():
        if source != "id" and _SPELT_OUT.fullmatch(pattern):
            choices = [letter or letters for letter, letters in _CHOICES.findall(pattern)]
            yield source, tuple("".join(letters) for letters in itertools.product(*choices))


def _at_most(
    facts: ProviderFacts, loaded: LoadedRecipe, product_id: str
) -> Iterator[tuple[str, float]]:
    """Yield the recipe's cloud limit in the provider's words, with some way to go above it.

    A scene's newer processing may find more cloud, and what then exceeds the limit still has to be
    known, or the older one would stand for it.
    """
    limit, source = (
        loaded.wishes[product_id].max_cloud_percent,
        facts.properties.get("cloud_percent", "="),
    )
    if limit + _CLOUD_MARGIN_PERCENT < 100 and not source.startswith("=") and source != "id":
        yield source, limit + _CLOUD_MARGIN_PERCENT


def _one_of(
    facts: ProviderFacts, require: Mapping[str, Required]
) -> Iterator[tuple[str, tuple[int | float | str, ...]]]:
    """Yield the values that the recipe requires of facts, in each way that a catalogue may write
    them: numbers also as text, text also in capitals."""
    for word, wanted in require.items():
        source = _asked_for(facts, word)
        if source is not None and not isinstance(wanted, Between):
            text = [str(value) for value in wanted]
            ways = [*wanted, *text, *(value.upper() for value in text)]
            yield source, tuple(dict.fromkeys(ways))


def _not_above(
    facts: ProviderFacts, require: Mapping[str, Required]
) -> Iterator[tuple[str, float]]:
    """Yield the upper bounds that the recipe requires of facts."""
    for word, wanted in require.items():
        source = _asked_for(facts, word)
        if source is not None and isinstance(wanted, Between) and wanted.at_most is not None:
            yield source, wanted.at_most


def _asked_for(facts: ProviderFacts, word: str) -> str | None:
    """Return the property by which a catalogue can choose a fact; None if only the item tells."""
    source = facts.facts.get(word, "=")
    return None if source.startswith("=") or source == "id" or word in facts.patterns else source


def _spans(loaded: LoadedRecipe, product_id: str) -> list[_Span]:
    """Return when scenes are wanted: the slots, widened for a follower, merged where they meet."""
    margin = timedelta(days=loaded.wishes[product_id].within_days)
    slots = [
        slot
        for slot in slots_of(loaded.recipe.slots, settling_days=0, cutoff=None)
        if is_wanted(slot, loaded, product_id)
    ]
    merged: list[tuple[datetime, datetime]] = []
    for start, end in sorted((slot.start - margin, slot.end + margin) for slot in slots):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return list(merged)


def _months(start: datetime, end: datetime) -> Iterator[_Span]:
    """Cut a span at the ends of calendar months."""
    while start < end:
        first = datetime(start.year, start.month, 1, tzinfo=UTC)
        after = min(end, (first + timedelta(days=31)).replace(day=1))
        yield start, after
        start = after


def _years(start: datetime, end: datetime) -> Iterator[_Span]:
    """Cut a span into as few equal pieces as are not longer than `_LONGEST_DAYS`."""
    count = ceil((end - start) / timedelta(days=_LONGEST_DAYS))
    ends = [start + timedelta(days=(end - start).days * k // count) for k in range(count)]
    yield from itertools.pairwise([*ends, end])


def _boxes(
    loaded: LoadedRecipe, locations: pa.Table | None, *, whole: bool
) -> Iterator[Box | None]:
    if locations is None:
        sample = loaded.recipe.sample
        region = sample.region if isinstance(sample, Scenes) else None
        if whole:
            yield from [None] if region is None else _cut(region)
            return
        for part in _cut(region or _WORLD):
            yield from _areas(part)
        return
    if not locations.num_rows:
        return
    bounds = shapely.bounds(shapely.from_wkb(locations.column("geometry").to_numpy()))
    centres = np.stack([locations.column(name).to_numpy() for name in ("lon_deg", "lat_deg")], 1)
    areas = np.floor((centres + np.array([180, 90])) / _AREA_DEG).astype(np.int64)
    _, group = np.unique(areas @ np.array([1000, 1]), return_inverse=True)
    low = np.full((group.max() + 1, 2), np.inf)
    high = np.full_like(low, -np.inf)
    np.minimum.at(low, group, bounds[:, :2])
    np.maximum.at(high, group, bounds[:, 2:])
    for (west, south), (east, north) in zip(low.tolist(), high.tolist(), strict=True):
        yield from _cut((west, south, east, north))


def _areas(region: Box) -> Iterator[Box]:
    """Cut a region into areas of at most `_REGION_DEG`, from its south-western corner."""
    west, south, east, north = region
    for low in np.arange(south, north, _REGION_DEG).tolist():
        for left in np.arange(west, east, _REGION_DEG).tolist():
            yield left, low, min(left + _REGION_DEG, east), min(low + _REGION_DEG, north)


def _cut(
    region: Box,
) -> Iterator[Box]:
    """Cut a box that crosses the antimeridian (west > east) in two."""
    west, south, east, north = region
    if west <= east:
        yield region
        return
    yield west, south, 180.0, north
    yield -180.0, south, east, north

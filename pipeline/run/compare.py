"""Compare providers: who has which scenes of a recipe's products, month by month."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pyarrow as pa

from pipeline.errors import GiveUp, TryAgain
from pipeline.ports import ObjectStore, Query
from pipeline.recipe import LoadedRecipe
from pipeline.records import Scene
from pipeline.run.search import Answers, locations_of
from pipeline.sources.providers import providers
from pipeline.stages.search.beside import LEADER_COLUMNS
from pipeline.stages.search.gaps import Gap, Tally
from pipeline.stages.search.questions import queries
from pipeline.store.layout import is_claimed
from pipeline.store.tables import from_rows


@dataclass(slots=True)
class Comparison:
    """Scenes by provider and month."""

    gaps: list[Gap] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    """Providers that could not be asked, and why; they are in no row."""
    requests: int = 0

    def __str__(self) -> str:
        parts = [
            _table(self.gaps, product) for product in dict.fromkeys(g.product for g in self.gaps)
        ]
        parts += [f"not asked: {why}" for why in self.silent]
        return "\n\n".join([*parts, f"{self.requests} requests; nothing was written"])


def run_compare(loaded: LoadedRecipe, store: ObjectStore) -> Comparison:
    """Search at several providers, write nothing, and count what each of them has.

    Asked are the providers that the recipe lists for a product or, where it lists one real one, all
    that serve the product and need no more than their entry in providers.toml.

    Raises
    ------
    RecipeError
        The root is another recipe's, it has no locations yet, or a provider is not known.
    TryAgain, GiveUp
        None of them could be asked.
    """
    is_claimed(store, loaded)
    locations = locations_of(loaded, store)
    result, errors = Comparison(), list[TryAgain | GiveUp]()
    leaders: dict[str, pa.Table] = {}
    for product in loaded.leaders_first():
        found: dict[str, list[Scene]] = {}
        months: set[str] = set()
        for name in _asked(loaded, product):
            # All are asked the same, and for all weathers: a scene that one provider finds cloudier
            # than another is missing nowhere.
            questions = queries(
                loaded,
                product,
                locations,
                leaders=leaders.get(loaded.leader[product]),
                provider=name,
                all_weathers=True,
            )
            months |= _months(questions)
            try:
                with closing(Answers(loaded, product, name)) as answers:
                    rows = answers.rows(questions)
                    found[name] = [row for row in rows if isinstance(row, Scene)]
                    result.requests += answers.requests
            except (TryAgain, GiveUp) as error:
                errors.append(error)
                result.silent.append(f"{product}: {error}")
        if locations is None and product in loaded.leader.values():
            scenes = [scene for scenes in found.values() for scene in scenes]
            leaders[product] = from_rows(scenes, Scene).select(list(LEADER_COLUMNS))
        tally = Tally(product, tuple(found))
        for scene in (scene for scenes in found.values() for scene in scenes):
            tally.add(scene)
        result.gaps += tally.gaps(sorted(months))
    if errors and not result.gaps:
        passing = any(isinstance(error, TryAgain) for error in errors)
        why = f"nobody could be asked: {' '.join(result.silent)}"
        raise (TryAgain if passing else GiveUp)(why, failure=errors[0].failure)
    return result


def _asked(loaded: LoadedRecipe, product: str) -> tuple[str, ...]:
    listed = loaded.wishes[product].providers
    if len(listed) > 1 or "simulated" in listed:
        return listed
    known = providers()
    others = (
        name
        for name in loaded.products[product].providers
        if name not in ("simulated", *listed) and known[name].kind == "stac-api" and known[name].url
    )
    return (*listed, *others)


def _months(questions: Iterable[Query]) -> set[str]:
    """Return every month that the questions are about, where they say when they end."""
    found = set()
    for start, end in {(query.start, query.end) for query in questions}:
        if start is None or end is None:
            continue
        for number in range(start.year * 12 + start.month - 1, end.year * 12 + end.month):
            year, month = divmod(number, 12)
            if datetime(year, month + 1, 1, tzinfo=UTC) < end:
                found.add(f"{year}-{month + 1:02d}")
    return found


def _table(gaps: list[Gap], product: str) -> str:
    """Return one product's rows as text; what a provider lacks stands in brackets."""
    rows = [gap for gap in gaps if gap.product == product]
    names = list(dict.fromkeys(gap.provider for gap in rows))
    cells = {(gap.month, gap.provider): gap for gap in rows}
    width = max(16, *(len(name) for name in names)) if names else 16
    lines = [
        f"{product}: scenes (missing)",
        "month    " + "".join(f"{n:>{width + 2}}" for n in names),
    ]
    for month in dict.fromkeys(gap.month for gap in rows):
        texts = (_cell(cells[month, name]) for name in names)
        lines.append(f"{month:<9}" + "".join(f"{text:>{width + 2}}" for text in texts))
    sums = [
        _cell(
            Gap(
                product,
                "",
                name,
                sum(gap.scenes for gap in rows if gap.provider == name),
                sum(gap.missing for gap in rows if gap.provider == name),
            )
        )
        for name in names
    ]
    return "\n".join([*lines, "all      " + "".join(f"{text:>{width + 2}}" for text in sums)])


def _cell(gap: Gap) -> str:
    return f"{gap.scenes:,} ({gap.missing:,})" if gap.missing else f"{gap.scenes:,}"

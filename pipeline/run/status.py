"""How far a data set is: what is planned, what is there, and what became of every patch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.compute as pc

from pipeline.errors import MissingObject
from pipeline.ports import ObjectStore
from pipeline.recipe import LoadedRecipe
from pipeline.records import Location, Scene
from pipeline.stages.sample.complete import Standing, standing, to_complete
from pipeline.store import layout
from pipeline.store.commit import newest, read_ledgers
from pipeline.store.ledger import plan_numbers, states, tally
from pipeline.store.tables import read_all
from pipeline.store.version import numbers
from pipeline.watch.tell import Line, align

#: Characters of an example.
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a root; patches are counted over the newest revisions."""

    url: str
    locations: int
    complete: Standing | None
    """How many of them have every wanted patch; None: the recipe does not ask for that."""
    scenes: int
    plans: int
    shards: int
    """Planned."""
    committed: int
    """Of them, the ones that are there."""
    patches: int
    """Wanted: the sum of the next four."""
    written: int
    rejected: Counter[str]
    """By reason."""
    failed: Counter[str]
    """By failure class."""
    examples: dict[str, str]
    """By failure class: what one patch of it met."""
    pending: int
    versions: int
    """Published."""

    def __str__(self) -> str:
        return align(self._lines())

    def _lines(self) -> Iterator[Line]:
        yield Line("root", self.url)
        yield Line("locations", f"{self.locations:,}")
        if self.complete is not None:
            now = self.complete
            yield Line(
                "complete", f"{len(now.complete):,}", "of all products in all slots", depth=1
            )
            yield Line("incomplete", f"{now.incomplete:,}", "left out of versions", depth=1)
            yield Line("open", f"{now.open:,}", depth=1)
        for label in ("scenes", "plans", "versions"):
            yield Line(label, f"{getattr(self, label):,}")
        yield Line("shards", f"{self.shards:,}", f"planned, {self.committed:,} committed")
        yield Line(
            "patches", f"{self.patches:,}", "planned = the sum of these four" * bool(self.patches)
        )
        for label, hint in (
            ("written", ""),
            ("rejected", "a fact about the data, by reason:"),
            ("failed", "`terrashard retry` tries again, by class:"),
            ("pending", "`terrashard extract` goes on"),
        ):
            value = getattr(self, label)
            parts = value if isinstance(value, Counter) else Counter[str]()
            count = value.total() if isinstance(value, Counter) else value
            notes = [_share(count, self.patches), hint if count else ""]
            yield Line(label, f"{count:,}", "  ".join(filter(None, notes)), depth=1)
            for reason, number in sorted(parts.items()):
                yield Line(reason, f"{number:,}", _share(number, self.patches), depth=2)
        for name, detail in sorted(self.examples.items()):
            yield Line(f"one {name}", " ".join(detail.split())[:_LONGEST])


def _share(count: int, whole: int) -> str:
    return f"{100 * count / whole:5.1f} %" if count else ""


def _examples(store: ObjectStore, revisions: dict[str, int], wanted: set[str]) -> dict[str, str]:
    """Return what one patch of each failure class met; reads no further than it must."""
    found: dict[str, str] = {}
    columns = ["state", "reason", "detail"]
    for _, ledger in read_ledgers(store, revisions, columns) if wanted else ():
        failed = ledger.filter(pc.equal(ledger["state"], "failed"))
        for reason, detail in zip(*(failed[name].to_pylist() for name in columns[1:]), strict=True):
            found.setdefault(reason, detail)
        if found.keys() >= wanted:
            break
    return found


def run_status(loaded: LoadedRecipe, store: ObjectStore) -> Status:
    """Account for a root; a stage that has not run yet counts nothing.

    Raises
    ------
    RecipeError
        The root is another recipe's.
    IntegrityError
        The ledger does not add up.
    MissingObject
        There are commits of a plan that is not there.
    """
    layout.must_be_claimed(store, loaded)
    plans, committed = plan_numbers(store), newest(store)
    if lost := sorted({layout.parse_shard(name)[0] for name in committed} - {*plans}):
        raise MissingObject(layout.plan_header(lost[0]), store.url)
    counts = tally(store)
    locations = read_all(store, layout.LOCATIONS, Location, ["location"])
    return Status(
        url=store.url,
        locations=locations.num_rows,
        complete=standing(loaded, locations, states(store)) if to_complete(loaded) else None,
        scenes=read_all(store, layout.SCENES, Scene, ["scene"]).num_rows,
        plans=len(plans),
        shards=sum(layout.read_json(store, layout.plan_header(p))["shards"] for p in plans),
        committed=len(committed),
        patches=counts.planned,
        written=counts.written,
        rejected=counts.rejected,
        failed=counts.failed,
        examples=_examples(store, committed, set(counts.failed)),
        pending=counts.pending,
        versions=len(numbers(store)),
    )

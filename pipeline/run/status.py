"""How far a data set is: what is planned, what is there, and what became of every patch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pipeline.ports import ObjectStore
from pipeline.records import Location, Scene
from pipeline.store import layout
from pipeline.store.commit import newest
from pipeline.store.ledger import plan_numbers, tally
from pipeline.store.tables import read_all
from pipeline.store.version import numbers


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a root; patches are counted over the newest revisions."""

    locations: int
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
    pending: int
    versions: int
    """Published."""


def run_status(store: ObjectStore) -> Status:
    """Account for a root; a stage that has not run yet counts nothing.

    Raises
    ------
    IntegrityError
        The ledger does not add up.
    """
    plans = plan_numbers(store)
    counts = tally(store)
    return Status(
        locations=read_all(store, layout.LOCATIONS, Location, ["location"]).num_rows,
        scenes=read_all(store, layout.SCENES, Scene, ["scene"]).num_rows,
        plans=len(plans),
        shards=sum(layout.read_json(store, layout.plan_header(p))["shards"] for p in plans),
        committed=len(newest(store)),
        patches=counts.planned,
        written=counts.written,
        rejected=counts.rejected,
        failed=counts.failed,
        pending=counts.pending,
        versions=len(numbers(store)),
    )

"""Run the stage `plan`: lock what is to be done next, as the next numbered plan of the root."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import count

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import RecipeError, TryAgain
from pipeline.ports import ObjectStore
from pipeline.recipe import LoadedRecipe
from pipeline.records import Location, PlannedPatch, Scene
from pipeline.stages.plan.estimate import Estimate, estimate
from pipeline.stages.plan.ground import LOCATION_COLUMNS
from pipeline.stages.plan.growth import DONE_SCHEMA
from pipeline.stages.plan.plan import Plan, plan
from pipeline.stages.plan.shortlist import SCENE_COLUMNS, list_scenes
from pipeline.store import layout
from pipeline.store.commit import newest, read_ledgers
from pipeline.store.ledger import KEY, plan_numbers
from pipeline.store.tables import create_same, encode_table, fit, read_all, read_table
from pipeline.watch.tell import Line, align, duration, lines_of

#: Bandwidth that is assumed where none is given, in megabits per second.
MBIT_PER_S = 100.0


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What a run of `plan` did."""

    number: int | None
    """Of the plan that was written; None if there was nothing new, or in a dry run."""
    estimate: Estimate | None
    """What it will cost; None if there was nothing new."""
    mbit_per_s: float = MBIT_PER_S
    """Bandwidth for its time."""

    def __str__(self) -> str:
        if self.estimate is None:
            return "nothing new: every wanted patch of a closed slot is in a plan already"
        cost = self.estimate
        lines = [*lines_of(cost)]
        hours = cost.hours(self.mbit_per_s)
        lines.append(
            Line(f"hours at {self.mbit_per_s:g} Mbit/s", f"{hours:,.2f}", duration(hours * 3600))
        )
        head = "dry run, nothing was written" if self.number is None else f"plan {self.number}"
        return f"{head}; at most this much, if every first candidate is taken:\n{align(lines)}"


def run_plan(
    loaded: LoadedRecipe,
    store: ObjectStore,
    *,
    cutoff: datetime | None = None,
    dry_run: bool = False,
    mbit_per_s: float = MBIT_PER_S,
) -> PlanReport:
    """Plan what is new since the last plan, and write it as three files, the header last.

    Parameters
    ----------
    cutoff : datetime or None
        What counts as now, for closing slots; None: all are closed.
    dry_run : bool
        Only say what it would cost; nothing is written then.
    mbit_per_s : float
        Bandwidth for the time that the report says.

    Raises
    ------
    RecipeError
        The root is another recipe's, or has no locations or no scenes yet.
    TryAgain
        Another run planned meanwhile.
    """
    layout.is_claimed(store, loaded)
    locations = read_all(store, layout.LOCATIONS, Location, LOCATION_COLUMNS)
    scenes = read_all(store, layout.SCENES, Scene, SCENE_COLUMNS)
    rows = {"sample": locations.num_rows, "search": scenes.num_rows}
    if missing := [stage for stage in loaded.stages() if rows.get(stage) == 0]:
        raise RecipeError(
            f"{store.url} has nothing to plan: run `terrashard {missing[0]}` first (if that found "
            "nothing, the recipe asks for what does not exist)."
        )
    earlier = plan_numbers(store)
    done = _done(store, earlier) if earlier else None
    made = plan(loaded, locations, scenes, cutoff=cutoff, done=done)
    if made.patches.num_rows == 0:
        return PlanReport(None, None)
    made = replace(made, scenes=_whole(store, made.scenes.column("scene")))
    cost = estimate(loaded, made)
    if dry_run:
        return PlanReport(None, cost, mbit_per_s)
    layout.claim(store, loaded)
    return PlanReport(_write(loaded, store, made, cutoff, earlier), cost, mbit_per_s)


def _done(store: ObjectStore, plans: list[int]) -> pa.Table:
    """Return what earlier plans hold, and what became of it."""
    parts = []
    for number in plans:
        planned = read_table(store, layout.plan(number), [*KEY, "candidates"])
        ledgers = [part for _, part in read_ledgers(store, newest(store, number), [*KEY, "state"])]
        states = pa.nulls(planned.num_rows, pa.string())
        if ledgers:
            ledger = pa.concat_tables(ledgers)
            states = ledger.column("state").take(pc.index_in(_keys(planned), _keys(ledger)))
        planned = planned.append_column("state", states)
        planned = planned.append_column("plan", pa.repeat(number, planned.num_rows))
        parts.append(planned.select(DONE_SCHEMA.names).cast(DONE_SCHEMA))
    return pa.concat_tables(parts)


def _keys(table: pa.Table) -> pa.ChunkedArray:
    """Return what patches are known by, as one string each."""
    large = pa.large_string()
    parts = [table.column(name).cast(large) for name in KEY]
    return pc.binary_join_element_wise(*parts, pa.scalar("\t", large))


def _whole(store: ObjectStore, wanted: pa.ChunkedArray) -> pa.Table:
    """Return all columns of some scenes, by id: the newest baseline of each, as planned."""
    parts = []
    for key in _scene_tables(store):
        rows = read_table(store, key, filters=pc.field("scene").isin(wanted.combine_chunks()))
        parts.append(fit(rows, Scene, name=key))
    scenes = pa.concat_tables(parts)
    return scenes.take(pa.array(list_scenes(scenes).row))


def _scene_tables(store: ObjectStore) -> Iterator[str]:
    for key in store.list(layout.SCENES):
        number = layout.number_of(layout.SCENES, key)
        if number is not None and key == layout.numbered(layout.SCENES, number):
            yield key


def _write(
    loaded: LoadedRecipe,
    store: ObjectStore,
    made: Plan,
    cutoff: datetime | None,
    earlier: list[int],
) -> int:
    """Write a plan under the first free number; it exists when its header does.

    A run that was stopped may have left tables without a header: equal ones are used, others are
    left alone, and the next number is taken.
    """
    patches = encode_table(
        fit(made.patches, PlannedPatch, name="plan"), row_groups=made.shard_rows.tolist()
    )
    scenes = encode_table(made.scenes)
    for number in count(max(earlier, default=0) + 1):
        if _same(store, layout.plan(number), patches) and _same(
            store, layout.plan_scenes(number), scenes
        ):
            break
    if plan_numbers(store) != earlier:
        raise TryAgain(
            f"another run planned for {store.url} meanwhile; run this again.", failure="conflict"
        )
    header = {
        "format": layout.FORMAT,
        "number": number,
        "identity": loaded.identity,
        "recipe": loaded.dump(),
        "cutoff": None if cutoff is None else cutoff.isoformat(),
        "shards": len(made.shard_rows),
        "patches": made.patches.num_rows,
        "scenes": made.scenes.num_rows,
        "bytes": int(made.shard_bytes.sum()),
        "patches_sha256": hashlib.sha256(patches).hexdigest(),
        "scenes_sha256": hashlib.sha256(scenes).hexdigest(),
    }
    create_same(store, layout.plan_header(number), layout.dump_json(header))
    return number


def _same(store: ObjectStore, key: str, data: bytes) -> bool:
    """Create an object, unless there is one; return whether it now has these bytes."""
    return store.create(key, data) or store.get(key) == data

"""What became of every wanted patch, over the newest revisions of all shards.

A patch may stand in several plans: one that was rejected is planned again when its candidates
change. The newest plan that names it speaks for it, also while its shard is still pending.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import IntegrityError
from pipeline.ports import ObjectStore
from pipeline.store import layout
from pipeline.store.commit import newest, read_ledgers
from pipeline.store.tables import read_table

#: What a wanted patch is known by.
KEY = ["location", "product", "slot"]


@dataclass(slots=True)
class Tally:
    """Counts of wanted patches; `planned` is the sum of all others."""

    planned: int = 0
    written: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """By reason."""
    failed: Counter[str] = field(default_factory=Counter)
    """By class."""
    pending: int = 0
    """Of shards that are not committed."""


def plan_numbers(store: ObjectStore) -> list[int]:
    """Return the numbers of all plans, ascending; a plan exists when its header does."""
    keys = list(store.list(layout.PLANS))
    found = {layout.number_of(layout.PLANS, key) for key in keys}
    return sorted(n for n in found if n is not None and layout.plan_header(n) in keys)


def tally(store: ObjectStore) -> Tally:
    """Count what became of every wanted patch.

    Raises
    ------
    IntegrityError
        A ledger names a patch that its plan does not, names one twice, or leaves one out.
    """
    result = Tally()
    for planned, ledger in _latest(store):
        _count(result, planned.num_rows, ledger)
    return result


def states(store: ObjectStore) -> pa.Table:
    """Return what became of every wanted patch: columns of `KEY` and `state`, null if pending.

    Raises
    ------
    IntegrityError
        As for `tally`.
    """
    schema = pa.schema([(name, pa.string()) for name in (*KEY, "state")])
    parts = [schema.empty_table()]
    for planned, ledger in _latest(store):
        parts.append(ledger.select(schema.names).cast(schema))
        pending = planned.select(KEY).join(ledger.select(KEY), KEY, join_type="left anti")
        rows = pending.append_column("state", pa.nulls(pending.num_rows, pa.string()))
        parts.append(rows.cast(schema))
    return pa.concat_tables(parts)


def _latest(store: ObjectStore) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yield each plan's patches that no later plan names, and the ledger of those committed."""
    revisions = newest(store)
    plans = plan_numbers(store)
    later: pa.Table | None = None
    for number in reversed(plans):
        planned = read_table(store, layout.plan(number), [*KEY, "shard"])
        mine = {s: r for s, r in revisions.items() if layout.parse_shard(s)[0] == number}
        ledger = _ledger(store, mine)
        check_adds_up(planned, ledger, mine, plan=number)
        keys = planned.select(KEY)
        if later is not None:
            planned = planned.join(later, KEY, join_type="left anti")
            ledger = ledger.join(later, KEY, join_type="left anti")
        yield planned, ledger
        if number != plans[0]:
            later = keys if later is None else pa.concat_tables([later, keys])


def check_adds_up(
    planned: pa.Table, ledger: pa.Table, revisions: Iterable[str], *, plan: int
) -> None:
    """Make sure that the ledgers of a plan's committed shards say of each patch one thing.

    Parameters
    ----------
    planned : pa.Table
        Columns of `KEY` and `shard` of the whole plan.
    ledger : pa.Table
        Columns of `KEY` of all its committed shards.
    revisions : iterable of str
        Names of those shards.
    plan : int
        Its number, for the message.

    Raises
    ------
    IntegrityError
        They do not: the message names the first patch.
    """
    shards = pa.array([layout.parse_shard(name)[1] for name in revisions], "int64")
    due = planned.filter(pc.is_in(planned["shard"], shards)).select(KEY)
    found = ledger.select(KEY)
    for one, other, what in (
        (due, found, "is in the plan but in no ledger of its committed shards"),
        (found, due, "is in a ledger but not in the plan"),
    ):
        odd = one.join(other, KEY, join_type="left anti")
        if odd.num_rows:
            _raise(plan, odd.slice(0, 1), what)
    if found.num_rows != due.num_rows:
        counted = found.append_column("n", pa.array([1] * found.num_rows, "int64"))
        sums = counted.group_by(KEY).aggregate([("n", "sum")])
        _raise(plan, sums.filter(pc.greater(sums["n_sum"], 1)), "has several ledger rows")


def dataset_digest(store: ObjectStore, revisions: dict[str, int] | None = None) -> str:
    """Return the sha256 (hex) of what a data set holds, however it came about.

    Over the written patches of the newest revisions (or those given), sorted as bytes: one line
    `<location>\\t<product>\\t<slot>\\t<scenes, joined by spaces>\\t<pixel digest>\\n` each. Shards,
    plans, revisions, workers and time do not enter.
    """
    revisions = newest(store) if revisions is None else revisions
    columns = [*KEY, "scenes", "pixel_digest", "state"]
    lines = []
    for _, ledger in read_ledgers(store, revisions, columns):
        rows = ledger.filter(pc.equal(ledger["state"], "written"))
        scenes = pc.binary_join(rows["scenes"], " ")
        parts = [rows[name] for name in KEY] + [scenes, rows["pixel_digest"]]
        lines.append(pc.binary_join_element_wise(*parts, "\t"))
    return digest_lines(lines)


def digest_lines(lines: list[pa.ChunkedArray]) -> str:
    """Return the sha256 (hex) of lines, sorted as bytes, each ended by a newline."""
    digest = hashlib.sha256()
    chunks = [chunk.cast(pa.large_string()) for part in lines for chunk in part.chunks]
    whole = pa.chunked_array(chunks, pa.large_string())
    ordered = whole.take(pc.array_sort_indices(whole.combine_chunks()))
    for start in range(0, len(ordered), 65_536):
        part = ordered.slice(start, 65_536).to_pylist()
        digest.update("".join(f"{line}\n" for line in part).encode())
    return digest.hexdigest()


def _ledger(store: ObjectStore, revisions: dict[str, int]) -> pa.Table:
    columns = [*KEY, "state", "reason"]
    schema = pa.schema([pa.field(name, pa.string(), nullable=False) for name in columns])
    parts = [table.cast(schema) for _, table in read_ledgers(store, revisions, columns)]
    return pa.concat_tables([schema.empty_table(), *parts])


def _count(result: Tally, planned: int, ledger: pa.Table) -> None:
    result.planned += planned
    result.pending += planned - ledger.num_rows
    for row in ledger.group_by(["state", "reason"]).aggregate([([], "count_all")]).to_pylist():
        state, reason, count = row["state"], row["reason"], row["count_all"]
        if state == "written":
            result.written += count
        elif state == "rejected":
            result.rejected[reason] += count
        else:
            result.failed[reason] += count


def _raise(plan: int, rows: pa.Table, what: str) -> None:
    row = rows.slice(0, 1).to_pylist()[0]
    raise IntegrityError(
        f"plan {plan}: the patch {row['location']} {row['product']} {row['slot']} {what}."
    )

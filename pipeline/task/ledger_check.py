"""Does the ledger of a shard revision say what its plan and its arrays say?"""

from __future__ import annotations

import numpy as np

from pipeline.ports import ObjectStore
from pipeline.records import LedgerRow
from pipeline.store import layout
from pipeline.store.commit import Commit
from pipeline.store.tables import read_table, to_rows
from pipeline.task.copy import read_index

_PLACE = ("product", "sample", "time", "location", "slot")


def contradictions(store: ObjectStore, commit: Commit) -> list[str]:
    """Return what a commit's ledger says otherwise than its plan or its arrays, in words.

    Whether a patch is written is told twice: by its row, and by its chunk of the mask, which is
    never all fill.
    """
    name = layout.commit(commit.shard, commit.revision)
    plan, shard = layout.parse_shard(commit.shard)
    digest = layout.read_json(store, layout.plan_header(plan)).get("patches_sha256")
    wrong = [] if commit.plan_digest == digest else [f"{name} fulfils another plan {plan}"]
    planned = read_table(store, layout.plan(plan), _PLACE, [("shard", "=", shard)])
    due = sorted(tuple(row.values()) for row in planned.to_pylist())
    found = sorted(tuple(row.values()) for row in commit.ledger.select(_PLACE).to_pylist())
    if due != found:
        return [*wrong, f"{name} places its patches otherwise than plan {plan}"]
    rows = [row for row in to_rows(commit.ledger, LedgerRow) if row.state == "written"]
    for product, spec in commit.specs.items():
        index = read_index(store, commit, product, "mask")
        there = set() if index is None else set(np.flatnonzero(index[:, 0] >= 0).tolist())
        if there != {r.sample * spec.times + r.time for r in rows if r.product == product}:
            wrong.append(f"{name} calls other patches of {product} written than are there")
    return wrong

"""The commit record is one atomic fact, and the ledger adds up."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.errors import IntegrityError
from pipeline.records import LedgerRow, PlannedPatch
from pipeline.store import layout
from pipeline.store.commit import encode_commit, newest, read_commit, write_commit
from pipeline.store.ledger import check_adds_up, dataset_digest, tally
from pipeline.store.tables import create_same, from_rows, read_table, to_rows, write_table

FIRST = "p000001-s00000"


def test_a_commit_comes_back_whole(small) -> None:
    commit = read_commit(small.store, FIRST, 1)
    assert commit.folder == "shards/p000001-s00000/r1"
    assert commit.specs["optical"].times == 2
    key = layout.commit(FIRST, 1)
    assert encode_commit(commit) == small.store.get(key)
    for name, (digest, size) in commit.objects.items():
        data = small.store.get(f"{commit.folder}/{name}")
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (digest, size)


def test_rows_may_come_in_any_order(small) -> None:
    commit = read_commit(small.store, FIRST, 1)
    turned = replace(commit, ledger=commit.ledger.take(list(range(commit.ledger.num_rows))[::-1]))
    assert encode_commit(turned) == encode_commit(commit)


def test_writing_it_again_is_fine_and_writing_another_is_not(small) -> None:
    commit = read_commit(small.store, FIRST, 1)
    write_commit(small.store, commit)
    with pytest.raises(IntegrityError, match="holds something else"):
        write_commit(small.store, replace(commit, plan_digest="other"))
    assert read_commit(small.store, FIRST, 1).plan_digest == ""


def test_newest_revisions_count(small) -> None:
    commit = read_commit(small.store, FIRST, 1)
    write_commit(small.store, replace(commit, revision=2))
    write_commit(small.store, replace(commit, revision=10))
    assert newest(small.store) == {FIRST: 10, "p000001-s00001": 1}
    assert newest(small.store, plan=2) == {}
    assert read_commit(small.store, FIRST, 10).revision == 10


def test_a_record_under_a_wrong_name_is_noticed(small) -> None:
    small.store.put(layout.commit(FIRST, 3), small.store.get(layout.commit(FIRST, 1)))
    with pytest.raises(IntegrityError, match="is a record of"):
        read_commit(small.store, FIRST, 3)
    table = read_table(small.store, layout.commit(FIRST, 1)).replace_schema_metadata(None)
    write_table(small.store, layout.commit(FIRST, 4), table)
    with pytest.raises(IntegrityError, match="no commit record"):
        read_commit(small.store, FIRST, 4)
    with pytest.raises(KeyError):
        read_commit(small.store, FIRST, 5)


def test_planned_is_written_plus_rejected_plus_failed(small) -> None:
    found = tally(small.store)
    assert found.planned == len(small.states) == 24
    assert found.written == small.states.count("written")
    assert found.rejected == {"cloudy": small.states.count("rejected")}
    assert found.failed == {"truncated": 1}
    assert found.pending == 0


def test_shards_without_a_commit_are_pending(small) -> None:
    small.store.delete(layout.commit(FIRST, 1))
    found = tally(small.store)
    assert found.pending == 12
    assert found.planned == 24 == found.written + found.pending + sum(found.failed.values())


def test_a_later_plan_speaks_for_its_patches(small) -> None:
    rows = to_rows(read_table(small.store, layout.plan(1)), PlannedPatch)
    again = [replace(r, shard=0) for r in rows if r.location.endswith("00002-00007")]
    assert len(again) == 4
    write_table(small.store, layout.plan(2), from_rows(again, PlannedPatch))
    assert tally(small.store).planned == 24, "a plan without a header does not exist"
    create_same(small.store, layout.plan_header(2), b"{}")
    found = tally(small.store)
    assert (found.planned, found.pending, found.rejected) == (24, 4, {})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.slice(1), "in no ledger"),
        (lambda t: pa.concat_tables([t, t.slice(0, 1)]), "several ledger rows"),
        (
            lambda t: t.set_column(2, "slot", pc.replace_substring(t["slot"], "2021-01", "1999")),
            "in no ledger",
        ),
    ],
)
def test_a_ledger_that_does_not_add_up_is_refused(small, change, text: str) -> None:
    planned = read_table(small.store, layout.plan(1), ["location", "product", "slot", "shard"])
    columns = ["location", "product", "slot"]
    ledger = read_table(small.store, layout.commit(FIRST, 1), columns)
    check_adds_up(planned, ledger, [FIRST], plan=1)
    with pytest.raises(IntegrityError, match=text):
        check_adds_up(planned, change(ledger), [FIRST], plan=1)


def test_a_ledger_row_that_nobody_planned_is_refused(small) -> None:
    planned = read_table(small.store, layout.plan(1), ["location", "product", "slot", "shard"])
    ledger = read_table(small.store, layout.commit(FIRST, 1), ["location", "product", "slot"])
    odd = ledger.slice(0, 1).set_column(2, "slot", pa.array(["never"]))
    extra = pa.concat_tables([ledger, odd.cast(ledger.schema)])
    with pytest.raises(IntegrityError, match="but not in the plan"):
        check_adds_up(planned, extra, [FIRST], plan=1)


def test_the_dataset_digest_is_what_its_docstring_says(small) -> None:
    lines = []
    for shard, revision in newest(small.store).items():
        for row in to_rows(read_commit(small.store, shard, revision).ledger, LedgerRow):
            if row.state == "written":
                fields = (row.location, row.product, row.slot, " ".join(row.scenes))
                lines.append("\t".join((*fields, row.pixel_digest)).encode())
    text = b"".join(line + b"\n" for line in sorted(lines))
    assert dataset_digest(small.store) == hashlib.sha256(text).hexdigest()


def test_the_dataset_digest_knows_neither_shards_nor_revisions(small) -> None:
    before = dataset_digest(small.store)
    commit = read_commit(small.store, FIRST, 1)
    moved = replace(commit, shard="p000002-s00007", plan=2, revision=1)
    write_commit(small.store, replace(moved, ledger=commit.ledger.slice(3)))
    rest = replace(commit, shard="p000003-s00000", ledger=commit.ledger.slice(0, 3))
    write_commit(small.store, rest)
    small.store.delete(layout.commit(FIRST, 1))
    assert dataset_digest(small.store) == before
    small.store.delete(layout.commit("p000003-s00000", 1))
    assert dataset_digest(small.store) != before

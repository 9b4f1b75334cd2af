"""Slots: whole months and seasons, never overlapping, never changed by a longer period."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.recipe import All, Months, Seasons, Window, Windows, midnight
from pipeline.stages.slots import slots_of

DAYS = st.dates(date(2014, 1, 1), date(2030, 12, 31))
LENGTHS = st.integers(1, 6000).map(lambda days: timedelta(days=days))
KINDS = st.sampled_from([(Months, "months"), (Seasons, "seasons")])


@given(kind=KINDS, start=DAYS, length=LENGTHS)
def test_slots_tile_the_whole_units_of_a_period(
    kind: tuple[type, str], start: date, length: timedelta
) -> None:
    end = start + length
    slots = slots_of(kind[0](kind=kind[1], start=start, end=end), settling_days=0, cutoff=None)
    assert len({slot.id for slot in slots}) == len(slots)
    for slot, after in pairwise(slots):
        assert slot.end == after.start
    if slots:
        unit = timedelta(days=31 if kind[1] == "months" else 92)
        assert midnight(start) <= slots[0].start < midnight(start) + unit
        assert midnight(end) - unit < slots[-1].end <= midnight(end)
    else:
        assert end - start < timedelta(days=62 if kind[1] == "months" else 184)


@given(kind=KINDS, start=DAYS, length=LENGTHS, more_days=st.integers(0, 900))
def test_a_longer_period_only_adds(
    kind: tuple[type, str], start: date, length: timedelta, more_days: int
) -> None:
    end = start + length
    later = end + timedelta(days=more_days)
    short = slots_of(kind[0](kind=kind[1], start=start, end=end), settling_days=0, cutoff=None)
    long = slots_of(kind[0](kind=kind[1], start=start, end=later), settling_days=0, cutoff=None)
    assert long[: len(short)] == short


@given(start=DAYS, cutoff=DAYS, settling=st.floats(0, 60), later=st.integers(0, 400))
def test_a_later_cutoff_only_closes_more(
    start: date, cutoff: date, settling: float, later: int
) -> None:
    months = Months(kind="months", start=start, end=start + timedelta(days=800))
    now = midnight(cutoff)
    closed = slots_of(months, settling_days=settling, cutoff=now)
    assert all(slot.end + timedelta(days=settling) <= now for slot in closed)
    more = slots_of(months, settling_days=settling, cutoff=now + timedelta(days=later))
    assert more[: len(closed)] == closed


def test_december_begins_the_winter_of_the_next_year() -> None:
    seasons = Seasons(kind="seasons", start=date(2020, 11, 15), end=date(2022, 1, 31))
    slots = slots_of(seasons, settling_days=0, cutoff=None)
    assert [slot.id for slot in slots] == ["2021-DJF", "2021-MAM", "2021-JJA", "2021-SON"]
    assert slots[0].start == datetime(2020, 12, 1, tzinfo=UTC)
    assert slots[0].end == datetime(2021, 3, 1, tzinfo=UTC)
    assert slots[0].holds(datetime(2021, 2, 28, 23, 59, tzinfo=UTC))
    assert not slots[0].holds(slots[0].end)


def test_windows_keep_their_names_and_order() -> None:
    windows = Windows(
        kind="windows",
        windows=(
            Window(name="late", start=date(2021, 7, 1), end=date(2021, 9, 1)),
            Window(name="early", start=date(2021, 4, 1), end=date(2021, 8, 1)),
        ),
    )
    slots = slots_of(windows, settling_days=0, cutoff=None)
    assert [slot.id for slot in slots] == ["late", "early"]
    assert slots[0].middle == datetime(2021, 8, 1, tzinfo=UTC)
    now = datetime(2021, 8, 11, tzinfo=UTC)
    assert [slot.id for slot in slots_of(windows, settling_days=10, cutoff=now)] == ["early"]


@pytest.mark.parametrize(
    ("cutoff", "end"), [(None, 31), (datetime(2021, 3, 20, tzinfo=UTC), 15), (date.min, None)]
)
def test_all_closes_day_by_day(cutoff: datetime | None, end: int | None) -> None:
    period = All(kind="all", start=date(2021, 3, 1), end=date(2021, 3, 31))
    if end is None:
        assert slots_of(period, settling_days=5, cutoff=datetime(2021, 3, 6, tzinfo=UTC)) == ()
        return
    (slot,) = slots_of(period, settling_days=5, cutoff=cutoff)
    assert slot.id == ""
    assert (slot.start.day, slot.end.day) == (1, end)

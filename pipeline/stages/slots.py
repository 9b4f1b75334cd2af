"""Slots: the wanted times of a data set, as spans of UTC."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from pipeline.recipe import All, LoadedRecipe, Months, Seasons, Slots, Windows, midnight

_SEASON_STARTS = {12: "DJF", 3: "MAM", 6: "JJA", 9: "SON"}


@dataclass(frozen=True, slots=True)
class Slot:
    """One wanted time: scenes acquired in [start, end) may fill it."""

    id: str
    start: datetime
    end: datetime

    def holds(self, when: datetime) -> bool:
        """Whether that moment belongs to the slot."""
        return self.start <= when < self.end

    @property
    def middle(self) -> datetime:
        """What `choice = "nearest"` is near to."""
        return self.start + (self.end - self.start) / 2


def slots_of(slots: Slots, *, settling_days: float, cutoff: datetime | None) -> tuple[Slot, ...]:
    """Return the closed slots of a recipe, in time order (windows: in the recipe's order).

    A slot is closed when nothing more can arrive for it: its end and the product's settling time
    lie at or before `cutoff`, which is an argument so that a plan never depends on the clock. Only
    whole months and seasons inside the period are slots, so a period that grows never changes one.

    Parameters
    ----------
    slots : Slots
        The recipe's `[slots]`.
    settling_days : float
        How long after its end a window may still gain scenes (`Product.settling_days`).
    cutoff : datetime or None
        The run's cut-off (UTC); None: every slot counts as closed.

    Returns
    -------
    tuple of Slot
        For `all`: one slot with the id "" for the part of the period that is closed (none if it is
        empty); the planner makes a slot of each acquisition in it, named by its datatake.
    """
    settling = timedelta(days=settling_days)
    if isinstance(slots, All):
        end = midnight(slots.end) if cutoff is None else min(midnight(slots.end), cutoff - settling)
        start = midnight(slots.start)
        return (Slot("", start, end),) if start < end else ()
    return tuple(s for s in _every(slots) if cutoff is None or s.end + settling <= cutoff)


def is_wanted(slot: Slot, loaded: LoadedRecipe, product: str) -> bool:
    """Return whether a product is wanted in a slot: a follower is where its leader is."""
    names = loaded.wishes[loaded.leader[product]].slots
    return names is None or slot.id in names


def _every(slots: Windows | Seasons | Months) -> Iterator[Slot]:
    if isinstance(slots, Windows):
        for window in slots.windows:
            yield Slot(window.name, midnight(window.start), midnight(window.end))
        return
    length = 3 if isinstance(slots, Seasons) else 1
    first = _next_start(slots.start, seasons=length == 3)
    while (after := _plus_months(first, length)) <= slots.end:
        yield Slot(_name(first, seasons=length == 3), midnight(first), midnight(after))
        first = after


def _next_start(day: date, *, seasons: bool) -> date:
    """Return the first day of the first month or season that starts on or after a day."""
    month = day if day.day == 1 else _plus_months(day.replace(day=1), 1)
    while seasons and month.month not in _SEASON_STARTS:
        month = _plus_months(month, 1)
    return month


def _plus_months(first: date, count: int) -> date:
    years, month = divmod(first.month - 1 + count, 12)
    return first.replace(year=first.year + years, month=month + 1)


def _name(first: date, *, seasons: bool) -> str:
    """Return `2021-07` or `2021-JJA`; DJF belongs to the year of its January."""
    if not seasons:
        return f"{first.year:04d}-{first.month:02d}"
    year = first.year + 1 if first.month == 12 else first.year
    return f"{year:04d}-{_SEASON_STARTS[first.month]}"

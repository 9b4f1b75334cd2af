"""Reports are printed aligned, with units, and say nothing twice."""

from collections import Counter
from dataclasses import dataclass, field

import pytest

from pipeline.watch.tell import duration, size, tell


@dataclass
class Report:
    written: int = 1200
    rejected: Counter[str] = field(default_factory=lambda: Counter(cloudy=3, invalid=40))
    failed: Counter[str] = field(default_factory=Counter)
    bytes_on_disk: int = 21_080_411_224
    new: bool = True
    number: int | None = None
    digest: str = "abc"
    seconds: float = 3.26


def test_numbers_are_right_aligned_with_their_parts_below_and_units_beside():
    assert tell(Report()).splitlines() == [
        "written                 1,200",
        "rejected                   43",
        "  cloudy                    3",
        "  invalid                  40",
        "failed                      0",
        "bytes on disk  21,080,411,224  21.1 GB",
        "new            yes",
        "digest         abc",
        "time                    3.3 s",
    ]


def test_a_report_with_words_of_its_own_uses_them():
    class Wordy:
        def __str__(self) -> str:
            return "own words"

    assert tell(Wordy()) == "own words"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (6_110_916, "6.11 MB"), (2.5e15, "2.5 PB")],
)
def test_sizes_are_decimal(count, text):
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.00033, "0.0 s"), (59.6, "60 s"), (1680, "28 min"), (18_720, "5.2 h"), (1e6, "11.6 d")],
)
def test_durations_are_in_the_unit_people_use(seconds, text):
    assert duration(seconds) == text

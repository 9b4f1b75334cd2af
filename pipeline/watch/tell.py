"""Print a report for people: one aligned line for each fact, with its unit beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

#: A number, perhaps in exponential form, perhaps with a unit (a digest is none).
_NUMBER = re.compile(r"-?[\d,.]+(e[+-]?\d+)?( [a-z]{1,3})?")


@dataclass(frozen=True, slots=True)
class Line:
    """One fact of a report."""

    label: str
    value: str
    """Numbers are aligned to the right; words to the left."""
    note: str = ""
    """Said beside a number: the same in another unit, a share, a hint."""
    depth: int = 0
    """How far the label is indented: parts of a sum stand below it."""


def tell(report: Any) -> str:
    """Return a report as text: in its own words if it has any, else a line for each field.

    Examples
    --------
    >>> print(tell({"written": 1200, "failed": {"gone": 3, "timeout": 4}}))
    written    1,200
    failed         7
      gone         3
      timeout      4
    """
    if "__str__" in vars(type(report)):
        return str(report)
    return align(lines_of(report))


def align(lines: Iterable[Line]) -> str:
    """Return lines as text with one column of labels and one of values."""
    rows = [("  " * line.depth + line.label, line) for line in lines]
    left = max((len(label) for label, _ in rows), default=0)
    right = max((len(line.value) for _, line in rows if _NUMBER.fullmatch(line.value)), default=0)
    text = []
    for label, line in rows:
        value = line.value.rjust(right) if _NUMBER.fullmatch(line.value) else line.value
        note = f"  {line.note}" if line.note else ""
        text.append(f"{label:<{left}}  {value}{note}".rstrip())
    return "\n".join(text)


def lines_of(report: Any, depth: int = 0) -> Iterator[Line]:
    """Yield the fields of a report or the entries of a mapping; what is None is left out."""
    if isinstance(report, Mapping):
        pairs = list(report.items())
    else:
        pairs = [(field.name, getattr(report, field.name)) for field in fields(report)]
    for name, value in pairs:
        if value is not None:
            yield from _lines(str(name).replace("_", " "), value, depth)


def _lines(label: str, value: Any, depth: int) -> Iterator[Line]:
    if isinstance(value, Mapping):
        yield Line(label, f"{_total(value):,}", depth=depth)
        yield from lines_of(value, depth + 1)
    elif isinstance(value, bool):
        yield Line(label, "yes" if value else "no", depth=depth)
    elif isinstance(value, int):
        note = size(value) if "bytes" in label.split() and value >= 1000 else ""
        yield Line(label, f"{value:,}", note, depth)
    elif isinstance(value, float):
        text = duration(value) if label == "seconds" else f"{value:,.4g}"
        yield Line("time" if label == "seconds" else label, text, depth=depth)
    else:
        yield Line(label, str(value), depth=depth)


def _total(counts: Mapping[str, Any]) -> int:
    return sum(_total(c) if isinstance(c, Mapping) else int(c) for c in counts.values())


def size(count: float) -> str:
    """Return a number of bytes in decimal units: `21.1 GB`."""
    units = ["bytes", "kB", "MB", "GB", "TB", "PB"]
    while count >= 999.5 and len(units) > 1:
        count /= 1000
        units.pop(0)
    return f"{count:.3g} {units[0]}"


def duration(seconds: float) -> str:
    """Return a time span in the unit that people would use: `3.3 s`, `28 min`, `5.2 h`, `12 d`."""
    for unit, length, above in (("d", 86_400, 259_200), ("h", 3600, 7200), ("min", 60, 120)):
        if seconds >= above:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"

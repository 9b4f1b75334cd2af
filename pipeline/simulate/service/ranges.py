"""Byte ranges of an HTTP request (RFC 9110, section 14.1.2)."""

from __future__ import annotations

import re

_ONE = re.compile(r"(\d*)-(\d*)")


class Unsatisfiable(Exception):
    """No wanted byte exists: answer 416."""


def parse_ranges(header: str, size: int) -> list[tuple[int, int]] | None:
    """Return the wanted bytes [start, stop) in the order asked for.

    Parameters
    ----------
    header : str
        Value of `Range`, e.g. `bytes=0-99,-50`.
    size : int
        Length of the file.

    Returns
    -------
    list of (int, int), or None
        None: the header is malformed or of another unit and must be ignored.

    Raises
    ------
    Unsatisfiable
        Well-formed, but every range lies beyond the end.

    Examples
    --------
    >>> parse_ranges("bytes=0-1,-3", 10)
    [(0, 2), (7, 10)]
    """
    unit, _, text = header.partition("=")
    if unit.strip().lower() != "bytes":
        return None
    wanted = []
    for part in text.split(","):
        match = _ONE.fullmatch(part.strip())
        if match is None or not any(match.groups()):
            return None
        first, last = match.groups()
        start = int(first) if first else max(0, size - int(last))
        stop = min(size, int(last) + 1) if first and last else size
        if first and last and int(last) < int(first):
            return None
        if start < stop:
            wanted.append((start, stop))
    if not wanted:
        raise Unsatisfiable(header)
    return wanted

"""Many byte ranges in few requests: near ones are joined, long ones are divided."""

from __future__ import annotations

from collections.abc import Sequence

Span = tuple[int, int]


def spans_for(ranges: Sequence[Span], *, gap_bytes: int, most_bytes: int) -> list[Span]:
    """Return the spans [start, stop) to ask for, in order, so that every range is covered.

    Parameters
    ----------
    ranges : sequence of (start, stop)
        In any order; may overlap.
    gap_bytes : int
        Bytes that may be fetched in vain to save a request.
    most_bytes : int
        Longest span: longer ones are divided, so that they come in parallel.
    """
    joined: list[Span] = []
    for start, stop in sorted(ranges):
        if joined and start - joined[-1][1] <= gap_bytes:
            joined[-1] = (joined[-1][0], max(joined[-1][1], stop))
        else:
            joined.append((start, stop))
    return [
        (place, min(place + most_bytes, stop))
        for start, stop in joined
        for place in range(start, stop, most_bytes)
    ]


def cut(ranges: Sequence[Span], spans: Sequence[Span], chunks: Sequence[bytes]) -> list[bytes]:
    """Return the bytes of each range, from the fetched spans in order of their starts."""
    return [_cut_one(start, stop, spans, chunks) for start, stop in ranges]


def _cut_one(start: int, stop: int, spans: Sequence[Span], chunks: Sequence[bytes]) -> bytes:
    parts = [
        chunk[max(start - first, 0) : stop - first]
        for (first, last), chunk in zip(spans, chunks, strict=True)
        if first < stop and start < last
    ]
    return parts[0] if len(parts) == 1 else b"".join(parts)

"""What Earth Engine's refusals mean to us.

Its status alone does not say: a memory limit, a missing image and a busy project have all been seen
as 400. So known words in the message decide first, then the status.
"""

from __future__ import annotations

import json

from pipeline.errors import GiveUp, TryAgain

_MOST_LETTERS = 200

#: Failure class by words of the message. Sources: error messages in the Earth Engine guides
#: ("Debugging", "Quotas") and in the issue trackers of Xee, geedim and geemap.
_PASSING = {
    "too many concurrent aggregations": "throttled",
    "too many requests": "throttled",
    "rate or concurrency limit": "throttled",
    "quota exceeded": "throttled",
    "capacity exceeded": "throttled",
    "computation timed out": "timeout",
    "deadline exceeded": "timeout",
}
_FINAL = {
    "memory limit exceeded": "too-large",
    "computed value is too large": "too-large",
    "collection query aborted after accumulating over": "too-large",
    "response size exceeds limit": "too-large",
    "total request size": "too-large",
    "pixel grid dimensions": "too-large",
    "number of bands": "too-large",
    "did not match any bands": "gone",
    "not found": "gone",
    "does not exist": "gone",
    "permission": "forbidden",
    "not registered": "forbidden",
    "has not been used in project": "forbidden",
}
_BY_STATUS = {401: "forbidden", 403: "forbidden", 404: "gone", 410: "gone"}


def failure_of(
    status: int, body: bytes, *, what: str, retry_after_s: float | None = None
) -> TryAgain | GiveUp:
    """Return the error that an answer other than a success stands for.

    Parameters
    ----------
    status : int
        HTTP status, 300 or more.
    body : bytes
        `{"error": {"code": ..., "message": ..., "status": ...}}`, or anything else.
    what : str
        What was asked for, for the message.
    retry_after_s : float or None
        The pause that was asked for.
    """
    said = _message(body)
    text = f"Earth Engine, {what}: status {status}: {said or 'no reason given'}"
    words = said.lower()
    for needle, failure in _PASSING.items():
        if needle in words:
            return TryAgain(text, failure=failure, retry_after_s=retry_after_s)
    for needle, failure in _FINAL.items():
        if needle in words:
            return GiveUp(text, failure=failure)
    if status == 429:
        return TryAgain(text, failure="throttled", retry_after_s=retry_after_s)
    if status in (408, 504):
        return TryAgain(text, failure="timeout", retry_after_s=retry_after_s)
    if status >= 500:
        return TryAgain(text, failure="server-error", retry_after_s=retry_after_s)
    return GiveUp(text, failure=_BY_STATUS.get(status, "refused"))


def _message(body: bytes) -> str:
    try:
        said = json.loads(body)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        return ""
    return " ".join(str(said).split())[:_MOST_LETTERS]

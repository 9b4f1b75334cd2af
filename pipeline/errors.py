"""What can go wrong, grouped by what the handler does about it.

::

    TerrashardError
    ├── RecipeError      a person must edit something          exit 2
    ├── TryAgain         passing: retry with backoff           exit 75
    ├── GiveUp           final for this thing: ledger, go on   exit 69
    └── IntegrityError   what is stored contradicts itself     exit 65

An unsuitable scene or patch is no error: it is a value, `pipeline.records.Rejected`.
"""

from __future__ import annotations

from typing import ClassVar

#: What the ledger calls a failure that may pass, and one that stays until the source changes.
PASSING = ("throttled", "server-error", "connection", "timeout", "short-read", "circuit-open")
FINAL = (
    *("gone", "forbidden", "refused", "changed", "truncated", "corrupt"),
    *("not-an-image", "wrong-size", "wrong-grid", "too-large"),
)


class TerrashardError(Exception):
    """Every error this project raises on purpose; its text is one paragraph for a person."""

    exit_code: ClassVar[int] = 1


class RecipeError(TerrashardError):
    """The recipe, an argument or an input file must be changed by a person.

    The message names the thing (file and key), the value found, and what is allowed.
    """

    exit_code = 2


class TryAgain(TerrashardError):
    """A passing failure: throttled, a server error, a reset connection, a time-out.

    Parameters
    ----------
    message : str
        What happened, without secrets.
    failure : str
        Class for the ledger, one of `PASSING`; or the name of what ended a whole command.
    retry_after_s : float or None
        What the server asked for, in seconds, if it did.
    """

    exit_code = 75

    def __init__(self, message: str, *, failure: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.failure = failure
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), str(self), self.failure, self.retry_after_s)


class GiveUp(TerrashardError):
    """A final failure of one thing: trying again cannot help until the source changes.

    Parameters
    ----------
    message : str
        What happened, without secrets.
    failure : str
        Class for the ledger, one of `FINAL`. `refused` is an href that is not allowed,
        `too-large` a request that Earth Engine has not the memory for, however small it is made.
    """

    exit_code = 69

    def __init__(self, message: str, *, failure: str) -> None:
        super().__init__(message)
        self.failure = failure

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), str(self), self.failure)


class IntegrityError(TerrashardError):
    """Stored facts contradict one another (digests, ledger sums, lock): stop and look."""

    exit_code = 65


class MissingObject(KeyError):
    """A root has no such object. Whoever looks for what may be absent expects this; where it is
    not expected, something else of the root names the object, and part of it was deleted.

    Parameters
    ----------
    key, url : str
        Of the object and of the root.
    """

    exit_code: ClassVar[int] = IntegrityError.exit_code

    def __init__(self, key: str, url: str) -> None:
        super().__init__(key, url)

    def __str__(self) -> str:
        key, url = self.args
        return (
            f"{url} has no {key}, though other files there name it: part of the root was deleted. "
            "Bring it back from a copy, or build the data set again in a new root."
        )


def _rebuild(
    kind: type[TryAgain] | type[GiveUp],
    message: str,
    failure: str,
    retry_after_s: float | None = None,
) -> TerrashardError:
    """Rebuild an error that crossed a process border (exceptions pickle by position)."""
    if issubclass(kind, TryAgain):
        return kind(message, failure=failure, retry_after_s=retry_after_s)
    return kind(message, failure=failure)

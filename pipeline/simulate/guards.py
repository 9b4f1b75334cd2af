"""Who may read: DLR's login and the Planetary Computer's signatures, as a client meets them.

DLR answers a file request without credentials with a login page and status 200. Azure answers one
without a valid signature with status 403; a signature is got without an account, for a
container, and holds for a while.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Literal
from urllib.parse import quote

from pipeline.simulate.wishes import Refused

#: What lets a client in at the simulated DLR.
LOGIN = ("user", "secret")
#: Path at which signatures are given away, before `/<account>/<container>`.
TOKENS = "planetary-computer/sas/v1/token"

Verdict = Literal["html", "expired"]


def verdict(path: str, query: Mapping[str, str], authorization: str | None) -> Verdict | None:
    """Return why a file must not be read, or None if it may be.

    Parameters
    ----------
    path : str
        Below `files/`; its first folder is the provider.
    query : dict of str to str
        Of the address: holds a signature, if there is one.
    authorization : str or None
        Header of the request.
    """
    provider = path.partition("/")[0]
    if provider == "dlr":
        expected = base64.b64encode(":".join(LOGIN).encode()).decode()
        return None if authorization == f"Basic {expected}" else "html"
    if provider == "planetary-computer":
        return None if _is_valid(query) else "expired"
    return None


def token(account: str, container: str, holds_s: float) -> dict[str, str]:
    """Return a signature as the Planetary Computer gives it; it holds for so many seconds."""
    if not account or not container:
        raise Refused(HTTPStatus.NOT_FOUND, "a token is for an account and a container")
    expiry = f"{datetime.fromtimestamp(time.time() + holds_s, UTC):%Y-%m-%dT%H:%M:%SZ}"
    return {
        "msft:expiry": expiry,
        "token": f"se={quote(expiry, safe='')}&sp=rl&sr=c&sig={_signature(expiry)}",
    }


def _is_valid(query: Mapping[str, str]) -> bool:
    expiry = query.get("se", "")
    if query.get("sig") != _signature(expiry):
        return False
    return datetime.fromisoformat(expiry) > datetime.now(UTC)


def _signature(expiry: str) -> str:
    return hashlib.sha256(f"simulated\n{expiry}".encode()).hexdigest()

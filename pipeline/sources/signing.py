"""Who may read: signatures and credentials, made at the moment of reading and kept nowhere."""

from __future__ import annotations

import netrc
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from threading import Lock
from urllib.parse import urlsplit

import httpx

from pipeline.errors import GiveUp, RecipeError
from pipeline.sources.providers import Provider

#: Answers {"token": ..., "msft:expiry": ...} for a storage account and container.
#: Source: planetarycomputer.microsoft.com/docs/concepts/sas
PLANETARY_COMPUTER_TOKENS = "https://planetarycomputer.microsoft.com/api/sas/v1/token"
#: A token is renewed so long before it expires.
_AHEAD_S = 300

#: Makes one GET of an address on behalf of the signer, with the caller's error classes.
Get = Callable[[str], httpx.Response]


class PlanetaryComputer:
    """Signs addresses of Azure blobs with a token per container, renewed before it expires."""

    def __init__(self, get: Get, *, tokens_url: str = PLANETARY_COMPUTER_TOKENS) -> None:
        self._get = get
        self._url = tokens_url
        self._tokens: dict[str, tuple[str, float]] = {}
        self._lock = Lock()

    def sign(self, href: str) -> str:
        """Return the address with a signature in its query."""
        parts = urlsplit(href)
        account = (parts.hostname or "").split(".")[0]
        container = parts.path.lstrip("/").split("/")[0]
        place = f"{account}/{container}"
        with self._lock:
            token, expires = self._tokens.get(place, ("", 0.0))
            if time.time() > expires - _AHEAD_S:
                token, expires = self._renew(place)
                self._tokens[place] = (token, expires)
        return f"{href}{'&' if parts.query else '?'}{token}"

    def _renew(self, place: str) -> tuple[str, float]:
        answer = self._get(f"{self._url}/{place}")
        try:
            values = answer.json()
            expiry = datetime.fromisoformat(values["msft:expiry"])
            token = str(values["token"])
        except (ValueError, KeyError, TypeError) as error:
            raise GiveUp(f"no token for {place} in the answer.", failure="forbidden") from error
        zoned = expiry if expiry.tzinfo else expiry.replace(tzinfo=UTC)
        return token, zoned.timestamp()


def credentials(provider: Provider, host: str) -> tuple[str, str] | None:
    """Return user and password of a provider from the environment, or from netrc for that host."""
    user, password = (os.environ.get(name) for name in provider.credentials)
    if user and password:
        return user, password
    try:
        found = netrc.netrc().authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return None
    return (found[0] or found[1] or "", found[2] or "") if found else None


def required_credentials(provider: Provider) -> tuple[str, str]:
    """Return key id and secret of a provider from the environment, or say which are missing."""
    user, password = (os.environ.get(name) for name in provider.credentials)
    if not user or not password:
        named = " and ".join(provider.credentials)
        raise RecipeError(f"provider {provider.name} needs {named} in the environment.")
    return user, password

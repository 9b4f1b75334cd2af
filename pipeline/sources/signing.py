"""Who may read: signatures and credentials, made at the moment of reading and kept nowhere."""

from __future__ import annotations

import netrc
import os
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from threading import Lock
from urllib.parse import urlsplit

import httpx

from pipeline.errors import RecipeError, TryAgain
from pipeline.sources.providers import Provider

#: A token is renewed so long before it expires.
_AHEAD_S = 300

#: Makes one GET of an address with these headers, with the caller's limits and error classes.
Get = Callable[[str, dict[str, str]], httpx.Response]


class PlanetaryComputer:
    """Signs addresses of Azure blobs with a token per container, renewed before it expires.

    Where tokens come from and with which account is up to the `planetary-computer` package: its
    settings are the user's (PC_SDK_SUBSCRIPTION_KEY, ~/.planetarycomputer/settings.env). Its own
    client is not used: its requests would pass by the limits, and their failures have no class.
    """

    def __init__(self, get: Get) -> None:
        # The package takes half a second to import, and most workers sign nothing. It defines its
        # models in a way that pydantic 2 warns of.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            from planetary_computer.settings import Settings

        self._get = get
        self._settings = Settings()
        self._tokens: dict[str, tuple[str, float]] = {}
        self._lock = Lock()

    def sign(self, href: str) -> str:
        """Return the address with a signature in its query."""
        place = _place(href)
        with self._lock:
            token, expires = self._tokens.get(place, ("", 0.0))
            if time.time() > expires - _AHEAD_S:
                token, expires = self._renew(place)
                self._tokens[place] = (token, expires)
        return f"{href}{'&' if urlsplit(href).query else '?'}{token}"

    def forget(self, href: str, signed: str) -> None:
        """Drop the token by which an address was signed, unless another one has come meanwhile:
        of all the threads that read with one that is no longer good, one asks for the next."""
        place = _place(href)
        with self._lock:
            token, _ = self._tokens.get(place, ("", 0.0))
            if token and signed.endswith(token):
                del self._tokens[place]

    def _renew(self, place: str) -> tuple[str, float]:
        key = self._settings.subscription_key
        headers = {"Ocp-Apim-Subscription-Key": key} if key else {}
        answer = self._get(f"{self._settings.sas_url}/{place}", headers)
        try:
            values = answer.json()
            expiry = datetime.fromisoformat(values["msft:expiry"])
            token = str(values["token"])
        except (ValueError, KeyError, TypeError) as error:
            raise TryAgain(
                f"{self._settings.sas_url}/{place}: an answer came, and no signature in it.",
                failure="server-error",
            ) from error
        zoned = expiry if expiry.tzinfo else expiry.replace(tzinfo=UTC)
        return token, zoned.timestamp()


def _place(href: str) -> str:
    """Return account and container of a blob: what a token is for."""
    parts = urlsplit(href)
    account = (parts.hostname or "").split(".")[0]
    return f"{account}/{parts.path.lstrip('/').split('/')[0]}"


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


def how_to_get_in(provider: Provider, host: str) -> str:
    """Return what a person can do where a host or bucket refuses to be read: a sentence."""
    user, password = provider.credentials
    if provider.auth == "basic" and credentials(provider, host) is None:
        return f"set {user} and {password}, or add {host} to netrc."
    if provider.auth in ("basic", "s3-keys"):
        return f"is the login in {user} and {password} right (or in netrc), and may it read this?"
    if host in provider.requester_pays:
        return "may the account of AWS_ACCESS_KEY_ID read it, and does it pay?"
    if provider.sign:
        return "some data need the key of an account, in PC_SDK_SUBSCRIPTION_KEY."
    return "it is asked without a login; does it allow that?"


def required_credentials(provider: Provider) -> tuple[str, str]:
    """Return key id and secret of a provider from the environment, or say which are missing."""
    user, password = (os.environ.get(name) for name in provider.credentials)
    if not user or not password:
        named = " and ".join(provider.credentials)
        raise RecipeError(f"provider {provider.name} needs {named} in the environment.")
    return user, password


def aws_credentials(provider: Provider, bucket: str) -> dict[str, str]:
    """Return the keys of whoever pays for a bucket's traffic, or say that there are none."""
    names = {
        "access_key_id": "AWS_ACCESS_KEY_ID",
        "secret_access_key": "AWS_SECRET_ACCESS_KEY",
        "session_token": "AWS_SESSION_TOKEN",
    }
    found = {key: os.environ[name] for key, name in names.items() if os.environ.get(name)}
    if not {"access_key_id", "secret_access_key"} <= set(found):
        raise RecipeError(
            f"provider {provider.name}: who reads the bucket {bucket} pays for its traffic; that "
            "needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment."
        )
    return found

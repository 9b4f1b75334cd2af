"""Who may ask a simulated Earth Engine: one service account, one user, and tokens for them."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path
from threading import Lock
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import jwt

_TOKEN_S = 3600
#: What google-auth signs assertions for, whatever the key file says.
_AUDIENCE = "https://oauth2.googleapis.com/token"


class BadGrant(Exception):
    """A token was asked for with another key or login than an account's."""


class Accounts:
    """The accounts of one endpoint, and the tokens they were given.

    Parameters
    ----------
    project : str
        What their projects are.
    token_uri : str
        Where tokens are made.
    """

    def __init__(self, project: str, token_uri: str) -> None:
        self.token_uri = token_uri
        self._project = project
        self._key = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
        self._login = secrets.token_urlsafe(32)
        self._tokens: dict[str, float] = {}
        self._lock = Lock()

    def write_key(self, path: Path) -> None:
        """Write the key file of the service account."""
        private = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        values = {
            "type": "service_account",
            "project_id": self._project,
            "private_key_id": "simulated",
            "private_key": private.decode(),
            "client_email": f"simulated@{self._project}.iam.gserviceaccount.com",
            "client_id": "1",
            "token_uri": self.token_uri,
        }
        _write(path, values)

    def write_login(self, path: Path) -> None:
        """Write what `earthengine authenticate` leaves of the user."""
        _write(path, {"refresh_token": self._login, "project": self._project})

    def token(self, form: dict[str, list[str]]) -> dict[str, Any]:
        """Return a token for an assertion signed with the key, or for the user's login.

        Raises
        ------
        BadGrant
            It is neither.
        """
        if form.get("grant_type") == ["refresh_token"]:
            if form.get("refresh_token") != [self._login]:
                raise BadGrant
        else:
            self._check_assertion(form)
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._tokens[token] = time.monotonic() + _TOKEN_S
        return {"access_token": token, "expires_in": _TOKEN_S, "token_type": "Bearer"}

    def _check_assertion(self, form: dict[str, list[str]]) -> None:
        public = self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        try:
            jwt.decode(  # type: ignore[no-untyped-call]
                form["assertion"][0], certs=[public], audience=_AUDIENCE
            )
        except (KeyError, ValueError) as error:
            raise BadGrant from error

    @property
    def tokens(self) -> tuple[str, ...]:
        """Return the tokens that are good now."""
        return tuple(self._tokens)

    def expire_tokens(self) -> None:
        """Make every token so far worthless."""
        with self._lock:
            self._tokens.clear()

    def knows(self, authorization: str) -> bool:
        """Return whether a request's header has a token that is good."""
        return self._tokens.get(authorization.removeprefix("Bearer "), 0.0) >= time.monotonic()


def _write(path: Path, values: dict[str, Any]) -> None:
    path.touch(mode=0o600)
    path.write_text(json.dumps(values))

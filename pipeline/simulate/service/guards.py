"""Who may read: logins, signatures and buckets, as a client meets them.

DLR answers a file request without credentials with a login page and status 200. Azure answers one
without a valid signature with status 403; a signature is got without an account, for a
container, and holds for a while. S3 answers with status 403 where keys are missing, or where the
reader of a bucket has to pay and does not say so (Amazon S3 User Guide, "Requester Pays").
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Literal
from urllib.parse import quote

from pipeline.simulate.service.wishes import Refused

#: What lets a client in at the simulated DLR.
LOGIN = ("user", "secret")
#: Path at which signatures are given away, before `/<account>/<container>`.
TOKENS = "planetary-computer/sas/v1/token"

#: Path of the S3 service, before `/<bucket>/files/<provider>/...`.
BUCKETS_PATH = "s3"
#: Buckets, by whose shelves are in them; keys are those of `LOGIN`.
BUCKETS = {"copernicus": "eodata", "usgs": "usgs-landsat"}
_REQUESTER_PAYS = ("usgs-landsat",)

Verdict = Literal["html", "expired", "denied"]


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


def bucket_verdict(path: str, headers: Mapping[str, str]) -> Verdict | None:
    """Return why an object must not be read, or None if it may be.

    Parameters
    ----------
    path : str
        Bucket, then key.
    headers : mapping of str to str
        Of the request; names in lower case.

    Raises
    ------
    Refused
        No such object.
    """
    bucket, _, key = path.partition("/")
    provider = key.removeprefix("files/").partition("/")[0]
    if not key.startswith("files/") or BUCKETS.get(provider) != bucket:
        raise Refused(HTTPStatus.NOT_FOUND, f"no object {path}")
    signed = f"AWS4-HMAC-SHA256 Credential={LOGIN[0]}/"
    if not headers.get("authorization", "").startswith(signed):
        return "denied"
    pays = headers.get("x-amz-request-payer") == "requester"
    return None if pays or bucket not in _REQUESTER_PAYS else "denied"


def placed(asset: Mapping[str, Any], base: str, provider: str) -> dict[str, Any]:
    """Return an asset with the address that its provider gives: Copernicus that of an object in its
    bucket, the USGS such a one beside that of a file.

    Parameters
    ----------
    asset : dict
        Its `href` is a path below the server's URL `base`.
    """
    path = asset["href"]
    in_bucket = f"s3://{BUCKETS.get(provider, '')}/{path}"
    if provider == "copernicus":
        return {**asset, "href": in_bucket}
    file = {**asset, "href": f"{base}/{path}"}
    if provider == "usgs":
        other = {"storage:platform": "AWS", "storage:requester_pays": True, "href": in_bucket}
        file["alternate"] = {"s3": other}
    return file


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

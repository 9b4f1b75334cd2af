"""Files of scenes in S3 buckets, through obstore."""

from __future__ import annotations

import re
from threading import Lock
from typing import Any
from urllib.parse import unquote, urlsplit

from obstore import get
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from pipeline.errors import GiveUp, TryAgain
from pipeline.ports import Stat
from pipeline.sources.bytes.remote import Answer, named
from pipeline.sources.providers import Provider
from pipeline.sources.signing import aws_credentials, how_to_get_in, required_credentials

#: How obstore words an answer's status; and how S3 names an error.
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,40})</Code>")


class BucketDoor:
    """Makes one request of an S3 service at a time of asking; retries are not its business."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._stores: dict[str, S3Store] = {}
        self._lock = Lock()

    def fetch(self, href: str, start: int, stop: int) -> Answer:
        """Make one request for the bytes [start, stop) of `s3://bucket/key`."""
        parts = urlsplit(href)
        store = self._store(parts.netloc)
        try:
            result = get(store, unquote(parts.path.lstrip("/")), options={"range": (start, stop)})
            data = bytes(result.bytes())
        except FileNotFoundError as error:
            raise GiveUp(
                f"{named(href)} is gone: the catalogue names it, the bucket does not have it; "
                "`retry` asks again.",
                failure="gone",
            ) from error
        except (PermissionDeniedError, UnauthenticatedError) as error:
            cure = how_to_get_in(self._provider, parts.netloc)
            said = _said(str(error))
            raise GiveUp(
                f"{named(href)} may not be read{said}: {cure}", failure="forbidden"
            ) from error
        except BaseError as error:
            raise _explained(href, error) from error
        meta = result.meta
        return Answer(data, Stat(int(meta["size"]), meta["e_tag"]))

    def kept(self, href: str, start: int, stop: int) -> None:
        """Return nothing: a bucket always serves parts."""

    def _store(self, bucket: str) -> S3Store:
        with self._lock:
            if bucket not in self._stores:
                self._stores[bucket] = self._open(bucket)
            return self._stores[bucket]

    def _open(self, bucket: str) -> S3Store:
        provider = self._provider
        region = provider.s3_regions.get(bucket, provider.s3_region or "us-east-1")
        options: dict[str, Any] = {"region": region}
        if provider.s3_endpoint:
            options["endpoint"] = provider.s3_endpoint
        if provider.auth == "s3-keys":
            key, secret = required_credentials(provider)
            options |= {"access_key_id": key, "secret_access_key": secret}
        elif bucket in provider.requester_pays:
            options |= {**aws_credentials(provider, bucket), "request_payer": True}
        else:
            options["skip_signature"] = True
        plain = (provider.s3_endpoint or "").startswith("http://")
        return S3Store(
            bucket,
            client_options={"timeout": f"{provider.timeout_s:g}s", "allow_http": plain},
            retry_config={"max_retries": 0},
            **options,
        )


def _explained(href: str, error: BaseError) -> TryAgain | GiveUp:
    """Return what a failure is that obstore tells in words only: those of its first line, and below
    them, for what went wrong on the way, those of the HTTP client."""
    line, _, below = str(error).partition("\n\nDebug source")
    what = f"{named(href)}{_said(line)}:"
    if found := _STATUS.search(line):
        return _of_status(what, int(found.group(1)))
    if "without LOCATION" in line:
        return GiveUp(
            f"{named(href)}: the bucket is in another region than providers.toml says.",
            failure="forbidden",
        )
    if "non-partial" in line:
        return GiveUp(f"{named(href)}: a part was due, the whole came.", failure="corrupt")
    if "body error" in line:
        return TryAgain(f"{named(href)}: the answer was cut off.", failure="short-read")
    if "timedout" in below.lower().replace(" ", ""):
        return TryAgain(f"{named(href)}: no answer in time.", failure="timeout")
    return TryAgain(f"{named(href)}: the connection failed.", failure="connection")


def _of_status(what: str, status: int) -> TryAgain | GiveUp:
    """Return what a status means that is neither a success nor a class of obstore's own."""
    if status == 416:
        return GiveUp(f"{what} is shorter than it was.", failure="changed")
    if status in (408, 429) or status >= 500:
        slow = status == 429 or "SlowDown" in what
        failure = "throttled" if slow else "timeout" if status == 408 else "server-error"
        return TryAgain(f"{what} status {status}.", failure=failure)
    cure = "; the session of the keys is over: get new ones" if "ExpiredToken" in what else ""
    return GiveUp(f"{what} status {status}{cure}.", failure="forbidden")


def _said(line: str) -> str:
    """Return the S3 code in an error's text, in brackets, or nothing."""
    found = _CODE.search(line)
    return f" ({found.group(1)})" if found else ""

"""Files of scenes in S3 buckets, through obstore."""

from __future__ import annotations

from threading import Lock
from typing import Any
from urllib.parse import unquote, urlsplit

from obstore import get
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from pipeline.errors import GiveUp, TryAgain
from pipeline.ports import Stat
from pipeline.sources.providers import Provider
from pipeline.sources.remote import Answer, named
from pipeline.sources.signing import aws_credentials, how_to_get_in, required_credentials


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
            raise GiveUp(f"{named(href)} may not be read: {cure}", failure="forbidden") from error
        except BaseError as error:
            raise _passing(href, error) from error
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


def _passing(href: str, error: BaseError) -> TryAgain:
    """Return the class of a failure that obstore tells in words only."""
    text = str(error).lower()
    if "429" in text or "slowdown" in text or "too many requests" in text:
        failure = "throttled"
    elif "timed out" in text or "timeout" in text:
        failure = "timeout"
    elif "connect" in text or "dns" in text:
        failure = "connection"
    else:
        failure = "server-error"
    return TryAgain(f"{named(href)}: the bucket failed ({failure}).", failure=failure)

"""A bucket prefix behind the same port as a folder, through obstore (imported when one is opened).

A PUT of a bucket is atomic, and `create` is a PUT with `If-None-Match: *`. obstore retries
throttling and server errors itself; what still fails is `TryAgain`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from pipeline.errors import GiveUp, IntegrityError, MissingObject, RecipeError, TryAgain
from pipeline.store.layout import checked

T = TypeVar("T")

#: Bytes of one part of a multipart upload; 10,000 parts are allowed, so objects up to 160 GB.
_PART_BYTES = 16 * 2**20


#: Address at which machines in a cloud get credentials: asked only when there are no others.
_METADATA_SERVICE = "169.254.169.254"


class RemoteStore:
    """A bucket prefix. See `pipeline.ports.ObjectStore` for what each method promises."""

    def __init__(self, url: str) -> None:
        from obstore.exceptions import BaseError
        from obstore.store import from_url

        self.url = url.rstrip("/")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
        plain: Any = {"allow_http": True} if endpoint.startswith("http://") else None
        try:
            self.obstore: Any = from_url(self.url, config=None, client_options=plain)
        except (BaseError, ValueError) as error:
            raise RecipeError(f"root {url!r} cannot be opened: {_short(error)}") from error

    def __reduce__(self) -> tuple[type[RemoteStore], tuple[str]]:
        return RemoteStore, (self.url,)

    def get(self, key: str) -> bytes:
        import obstore

        return self._call(key, lambda: bytes(obstore.get(self.obstore, key).bytes()))

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        import obstore

        wanted = [(start, stop) for start, stop in ranges if stop > start]
        starts, ends = [r[0] for r in wanted], [r[1] for r in wanted]
        if not wanted:
            return [b"" for _ in ranges]
        answer = self._call(
            key, lambda: obstore.get_ranges(self.obstore, key, starts=starts, ends=ends)
        )
        parts = iter(answer)
        found = [bytes(next(parts)) if stop > start else b"" for start, stop in ranges]
        for part, (start, stop) in zip(found, ranges, strict=True):
            if len(part) != max(stop - start, 0):
                raise IntegrityError(f"{self.url}/{key} ends before byte {stop}.")
        return found

    def size(self, key: str) -> int:
        import obstore

        return self._call(key, lambda: int(obstore.head(self.obstore, key)["size"]))

    def put(self, key: str, data: bytes | Iterable[bytes], *, durable: bool = True) -> None:  # noqa: ARG002
        import obstore

        body: Any = data if isinstance(data, bytes) else _parts(data)
        self._call(key, lambda: obstore.put(self.obstore, key, body, chunk_size=_PART_BYTES))

    def create(self, key: str, data: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            self._call(
                key,
                lambda: obstore.put(
                    self.obstore, key, bytes(data), mode="create", use_multipart=False
                ),
            )
        except AlreadyExistsError:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[str]:
        import obstore

        start = checked(prefix.rstrip("/")) if prefix.strip("/") else None
        pages = obstore.list(self.obstore, start, chunk_size=1000)
        keys = self._call(start, lambda: [item["path"] for page in pages for item in page])
        yield from sorted(keys)

    def delete(self, key: str) -> None:
        import obstore

        try:
            self._call(key, lambda: obstore.delete(self.obstore, key))
        except KeyError:
            return

    def _call(self, key: str | None, action: Callable[[], T]) -> T:
        """Run one request about an object, or about the root; make obstore's errors ours."""
        from obstore import exceptions

        name = self.url if key is None else f"{self.url}/{checked(key)}"
        try:
            return action()
        except (exceptions.NotFoundError, FileNotFoundError):
            raise MissingObject(str(key), self.url) from None
        except exceptions.AlreadyExistsError:
            raise
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            text = f"{name} is not ours to use: {type(error).__name__}."
            raise GiveUp(text, failure="forbidden") from error
        except exceptions.GenericError as error:
            if _METADATA_SERVICE in str(error):
                raise RecipeError(
                    f"{name}: no credentials in the environment; set AWS_ACCESS_KEY_ID and "
                    "AWS_SECRET_ACCESS_KEY (for gs:// GOOGLE_APPLICATION_CREDENTIALS, for az:// "
                    "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY)."
                ) from error
            raise TryAgain(f"{name}: {_short(error)}", failure="connection") from error


def _short(error: Exception) -> str:
    """Return the first line of obstore's message; a dump of its state follows."""
    return str(error).strip().split("\n")[0][:300]


def _parts(data: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in parts as large as an upload's, so that small chunks cost nothing."""
    batch: list[bytes] = []
    length = 0
    for part in data:
        batch.append(part)
        length += len(part)
        if length >= _PART_BYTES:
            yield b"".join(batch)
            batch, length = [], 0
    yield b"".join(batch)

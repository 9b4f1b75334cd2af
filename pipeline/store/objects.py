"""The door to the disk: a folder, or a bucket prefix, as a flat space of whole objects.

`LocalStore` is our own because obstore's never flushes: here an object appears by `rename`, after
its bytes are on the disk, and `create` appears by `link`, which refuses an existing name. So a
process killed at any moment leaves whole objects and, at worst, a temporary file that the next
writer of that key removes. `RemoteStore` leaves all of that to the service's own atomic PUT.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from pipeline.errors import IntegrityError, MissingObject, RecipeError
from pipeline.ports import ObjectStore
from pipeline.store.layout import TEMPORARY, checked

_HOST = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())
#: How many buffers one `writev` may get (IOV_MAX of Linux is 1024).
_VECTOR = 512

#: An address of a bucket with a slash too few, which would be a folder's name.
_ONE_SLASH = re.compile(r"(s3|gs|az):/(?!/)")


def open_store(url: str | Path) -> ObjectStore:
    """Open a root: a path, `file://`, `s3://`, `gs://` or `az://`.

    Credentials, region and endpoint of a bucket come from the environment, as its own tools have
    them (`AWS_...`, `GOOGLE_...`, `AZURE_...`).

    Raises
    ------
    RecipeError
        The scheme is none of these, or the path leads to a file.
    """
    text = str(url)
    if not text.strip():
        raise RecipeError("the root is empty; name a folder, s3://, gs:// or az://.")
    if slipped := _ONE_SLASH.match(text):
        raise RecipeError(
            f"root {text!r} is no folder's name; was {slipped[1]}://{text[slipped.end() :]} meant?"
        )
    scheme, separator, rest = text.partition("://")
    if not separator or scheme == "file":
        return _open_folder(rest if separator else text)
    if scheme in ("s3", "gs", "az"):
        from pipeline.store.remote import RemoteStore

        return RemoteStore(text)
    raise RecipeError(
        f"root {text!r}: unknown scheme {scheme!r}; allowed are a path, file://, s3://, gs://, az://."
    )


def _open_folder(path: str) -> LocalStore:
    store = LocalStore(path)
    folder = Path(store.url)
    inside = next(place for place in (folder, *folder.parents) if place.exists())
    if not inside.is_dir():
        raise RecipeError(f"root {path!r}: {inside} is a file, not a folder.")
    return store


class LocalStore:
    """A folder. See `pipeline.ports.ObjectStore` for what each method promises."""

    def __init__(self, folder: str | Path) -> None:
        self._root = Path(folder).expanduser().absolute()
        self.url = str(self._root)

    def path(self, key: str) -> Path:
        """Return where an object lies, for readers that map or pread files themselves."""
        return self._root / checked(key)

    def get(self, key: str) -> bytes:
        try:
            return self.path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise MissingObject(key, self.url) from None

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        try:
            handle = os.open(self.path(key), os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            raise MissingObject(key, self.url) from None
        try:
            return [_pread(handle, start, stop, f"{self.url}/{key}") for start, stop in ranges]
        finally:
            os.close(handle)

    def size(self, key: str) -> int:
        path = self.path(key)
        if not path.is_file():
            raise MissingObject(key, self.url)
        return path.stat().st_size

    def put(self, key: str, data: bytes | Iterable[bytes], *, durable: bool = True) -> None:
        path = self.path(key)
        temporary = self._write_beside(path, data, durable=durable)
        temporary.replace(path)
        if durable:
            _flush_folder(path.parent)

    def create(self, key: str, data: bytes) -> bool:
        path = self.path(key)
        if path.exists():
            return False
        temporary = self._write_beside(path, data, durable=True)
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        _flush_folder(path.parent)
        return True

    def list(self, prefix: str = "") -> Iterator[str]:
        top = self._root / checked(prefix.rstrip("/")) if prefix.strip("/") else self._root
        found = []
        for folder, _, names in os.walk(top):
            inside = Path(folder).relative_to(self._root).as_posix()
            start = "" if inside == "." else inside + "/"
            found += [start + name for name in names if not name.startswith(TEMPORARY)]
        yield from sorted(found)

    def delete(self, key: str) -> None:
        self.path(key).unlink(missing_ok=True)

    def _write_beside(self, path: Path, data: bytes | Iterable[bytes], *, durable: bool) -> Path:
        """Write to a temporary file in the final folder (a rename stays on one file system)."""
        _make_folder(path.parent, durable=durable)
        _sweep(path)
        name = f"{TEMPORARY}{path.name}~{_HOST}~{os.getpid()}~{secrets.token_hex(4)}"
        temporary = path.with_name(name)
        try:
            with temporary.open("xb", buffering=0) as file:
                _write_all(file, data)
                if durable:
                    os.fsync(file.fileno())
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno and error.filename is None:
                error.filename = str(path)  # a write names no file
            raise
        return temporary


def _write_all(file: IO[bytes], data: bytes | Iterable[bytes]) -> None:
    parts = (data,) if isinstance(data, bytes) else data
    batch: list[memoryview] = []
    for part in parts:
        view = memoryview(part).cast("B")
        if len(view):
            batch.append(view)
        if len(batch) == _VECTOR:
            _write_vector(file.fileno(), batch)
            batch = []
    _write_vector(file.fileno(), batch)


def _write_vector(handle: int, views: list[memoryview]) -> None:
    """Write many buffers with few system calls; the kernel may take only a part of them."""
    while views:
        done = os.writev(handle, views)
        while views and done >= len(views[0]):
            done -= len(views[0])
            views = views[1:]
        if done:
            views = [views[0][done:], *views[1:]]


def _pread(handle: int, start: int, stop: int, name: str) -> bytes:
    parts = []
    while start < stop:
        part = os.pread(handle, stop - start, start)
        if not part:
            raise IntegrityError(f"{name} ends before byte {stop}.")
        parts.append(part)
        start += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _make_folder(folder: Path, *, durable: bool) -> None:
    if folder.is_dir():
        return
    missing = [folder, *(f for f in folder.parents if not f.exists())]
    folder.mkdir(parents=True, exist_ok=True)
    if durable:
        for made in reversed(missing):
            _flush_folder(made.parent)


def _flush_folder(folder: Path) -> None:
    """Flush the names in a folder: a rename is on the disk only after that."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(path: Path) -> None:
    """Remove what killed writers of this key on this machine left behind."""
    start = f"{TEMPORARY}{path.name}~{_HOST}~"
    with os.scandir(path.parent) as entries:
        leftovers = [entry.path for entry in entries if entry.name.startswith(start)]
    for leftover in leftovers:
        pid = Path(leftover).name.removeprefix(start).split("~")[0]
        if pid.isdecimal() and not _alive(int(pid)):
            Path(leftover).unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

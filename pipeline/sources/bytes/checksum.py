"""Hold a whole file to the checksum that its catalogue states (STAC extension `file`).

`file:checksum` is a multihash in hexadecimal: the number of the algorithm and the length of the
digest, each as an unsigned varint, then the digest. TIFF has no checksum of its own, so this is all
that can tell damage inside a block that decodes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from pipeline.errors import GiveUp
from pipeline.ports import ByteSource
from pipeline.sources.bytes.remote import named

#: Numbers of the multicodec table (github.com/multiformats/multicodec, table.csv) that `hashlib`
#: knows, with the length of their digests in bytes.
_ALGORITHMS = {
    0x11: ("sha1", 20),
    0x12: ("sha256", 32),
    0x13: ("sha512", 64),
    0x14: ("sha3_512", 64),
    0x16: ("sha3_256", 32),
    0x20: ("sha384", 48),
    0xD5: ("md5", 16),
}
#: So much of a file is fetched and hashed at once.
_PIECE_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Checksum:
    """What a file's bytes must come to."""

    algorithm: str
    """As `hashlib` calls it."""
    digest: bytes

    def hasher(self) -> Any:
        """Return an object of `hashlib` for it."""
        return hashlib.new(self.algorithm, usedforsecurity=False)


def parse_checksum(text: str | None) -> Checksum | None:
    """Read a multihash; None if there is none, or none of an algorithm that is known here.

    Catalogues write what they like: a digest cut short or without its prefix proves nothing.

    Examples
    --------
    >>> parse_checksum("d50110d41d8cd98f00b204e9800998ecf8427e").algorithm
    'md5'
    """
    try:
        data = bytes.fromhex(text or "")
        code, rest = _varint(data)
        length, digest = _varint(rest)
    except (ValueError, IndexError):
        return None
    name, size = _ALGORITHMS.get(code, ("", -1))
    return Checksum(name, digest) if length == len(digest) == size else None


def check_bytes(href: str, data: bytes, stated: str | None) -> None:
    """Raise `GiveUp` (`corrupt`) if a whole file is not what its catalogue states, if it does."""
    if (checksum := parse_checksum(stated)) is not None:
        hasher = checksum.hasher()
        hasher.update(data)
        _compare(href, checksum, hasher.digest())


def check_file(source: ByteSource, href: str, stated: str | None) -> bool:
    """Fetch a whole file piece by piece and hold it to its checksum.

    Returns
    -------
    bool
        Whether there is a checksum to hold it to; without one nothing is fetched.

    Raises
    ------
    TryAgain, GiveUp
        As `ByteSource`; `corrupt` if the file is another.
    """
    checksum = parse_checksum(stated)
    if checksum is None:
        return False
    hasher, size = checksum.hasher(), source.stat(href).size_bytes
    for start in range(0, size, _PIECE_BYTES):
        (piece,) = source.ranges(href, [(start, min(start + _PIECE_BYTES, size))])
        hasher.update(piece)
    _compare(href, checksum, hasher.digest())
    return True


def _compare(href: str, checksum: Checksum, found: bytes) -> None:
    if found != checksum.digest:
        raise GiveUp(
            f"{named(href)} has the {checksum.algorithm} {found.hex()}; its catalogue states "
            f"{checksum.digest.hex()}: the file is damaged, or the catalogue describes another.",
            failure="corrupt",
        )


def _varint(data: bytes) -> tuple[int, bytes]:
    """Return an unsigned varint of up to nine bytes and what follows it."""
    value = 0
    for place in range(9):
        value |= (data[place] & 0x7F) << (7 * place)
        if data[place] < 0x80:
            return value, data[place + 1 :]
    raise ValueError("a varint without end")

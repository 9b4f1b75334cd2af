"""A published version: an immutable list of shard revisions, and what all of them have in common.

The manifest is JSON under `versions/000001.json`. It repeats from the commits the little that a
reader needs to find every chunk, so that opening a version costs two requests, not one per shard.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.errors import IntegrityError, RecipeError
from pipeline.ports import ObjectStore
from pipeline.store import layout
from pipeline.store.commit import Commit
from pipeline.store.shard import IMAGES, ArraySpec, image_key

_MANIFEST = re.compile(layout.VERSIONS + r"/(\d{6,})\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How large one product's arrays are in one shard, and which of them hold any chunk."""

    samples: int
    times: int
    images: tuple[str, ...]
    """Of `bands`, `mask`, `mask_native`: the others hold only fill, and have no object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One shard revision of a version."""

    shard: str
    revision: int
    attempt: int = 1
    """`Commit.attempt`."""
    commit_digest: str
    """sha256 (hex) of the commit record."""
    extents: dict[str, Extent]
    """By product."""

    @property
    def name(self) -> str:
        """Shard and revision as the index has them, its folder: `p000001-s00042/r1`."""
        folder = layout.shard_folder(self.shard, self.revision, self.attempt)
        return folder.removeprefix(f"{layout.SHARDS}/")

    @classmethod
    def of(cls, commit: Commit, commit_digest: str) -> ShardEntry:
        """Take from a commit what a reader needs."""
        extents = {}
        for product, spec in commit.specs.items():
            images = tuple(n for n in IMAGES if image_key(product, n) in commit.objects)
            extents[product] = Extent(samples=spec.samples, times=spec.times, images=images)
        return cls(
            shard=commit.shard,
            revision=commit.revision,
            attempt=commit.attempt,
            commit_digest=commit_digest,
            extents=extents,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """The manifest."""

    number: int
    name: str
    """Of the data set."""
    identity: str
    dataset_digest: str
    """`pipeline.store.ledger.dataset_digest` of these shard revisions."""
    counts: dict[str, Any]
    """Locations, and patches by product, split, rejection and failure."""
    specs: dict[str, ArraySpec]
    """By product, in the order of the recipe; samples and times are 0 here, since they differ
    between shards."""
    shards: tuple[ShardEntry, ...]
    files: dict[str, str]
    """Name below `versions/<number>/` to sha256 (hex)."""
    recipe: dict[str, Any]
    """`LoadedRecipe.dump`, without the folder it was read from."""
    terms: dict[str, str] = field(default_factory=dict)
    """By product: terms of its data, and what is to be said beside what is made of them."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        specs = [spec.to_json() for spec in self.specs.values()]
        return {**asdict(self), "specs": specs, "format": layout.FORMAT}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Version:
        """Rebuild what `to_json` returned; `ValueError` if it is something else."""
        specs = TypeAdapter(list[ArraySpec]).validate_python(values.get("specs"))
        whole = {**values, "specs": {spec.product: spec for spec in specs}}
        return TypeAdapter(cls).validate_python(whole)


def numbers(store: ObjectStore) -> list[int]:
    """Return the numbers of all published versions, ascending."""
    found = (_MANIFEST.fullmatch(key) for key in store.list(layout.VERSIONS))
    return sorted(int(match[1]) for match in found if match)


def read_version(store: ObjectStore, number: int | None = None) -> Version:
    """Read a manifest; without a number the newest.

    Raises
    ------
    RecipeError
        There is no such version, or none at all.
    IntegrityError
        It is not a manifest.
    """
    known = numbers(store)
    if not known:
        raise RecipeError(f"{store.url} has no published version; `terrashard publish` makes one.")
    number = known[-1] if number is None else number
    if number not in known:
        listed = ", ".join(str(n) for n in known)
        raise RecipeError(f"{store.url} has no version {number}; published are: {listed}.")
    key = layout.version(number)
    values = layout.read_json(store, key)
    if values.get("format") != layout.FORMAT or values.get("number") != number:
        raise IntegrityError(
            f"{key} in {store.url} has format {values.get('format')!r} and number "
            f"{values.get('number')!r}; due are {layout.FORMAT} and {number}."
        )
    try:
        return Version.from_json(values)
    except ValidationError as error:
        text = str(error).splitlines()[0]
        raise IntegrityError(f"{key} in {store.url} is no manifest: {text}.") from error

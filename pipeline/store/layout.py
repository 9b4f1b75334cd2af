"""Where everything lies in a root: names of keys, and who the root belongs to.

::

    dataset.json                              name and identity, written by the first stage
    locations/000001.parquet                  Location
    scenes/000001.parquet                     Scene; beside it 000001.unusable.parquet (Unusable)
    plans/000001.parquet                      PlannedPatch; beside it 000001.scenes.parquet (Scene)
    plans/000001.json                         the lock's header, written last
    shards/p000001-s00042/r1/<product>/...    one Zarr group per revision (r1.2 if another outcome
                                              was begun in r1); beside it r1.outcome
    commits/p000001-s00042/r1.parquet         the shard exists when this does
    versions/000001.json                      a published version; beside it versions/000001/
    models/<name>/...                         what was trained on a version
"""

from __future__ import annotations

import json
import re
from typing import Any

from pipeline.errors import IntegrityError, MissingObject, RecipeError
from pipeline.ports import ObjectStore
from pipeline.recipe import LoadedRecipe

DATASET = "dataset.json"
LOCATIONS = "locations"
SCENES = "scenes"
PLANS = "plans"
SHARDS = "shards"
COMMITS = "commits"
VERSIONS = "versions"
MODELS = "models"

#: Version of this layout, kept in `dataset.json`.
FORMAT = 1
#: Temporary files start so, then `<final name>~<host>~<pid>~<random>`; no listing shows them.
TEMPORARY = ".tmp-"

_SHARD = re.compile(r"p(\d{6})-s(\d{5,})")
_NUMBER = re.compile(r"(\d{6,})(?:\..+)?")
_COMMIT = re.compile(COMMITS + r"/(p\d{6}-s\d{5,})/r([1-9]\d*)\.parquet")


def checked(key: str) -> str:
    """Return the key, or raise `IntegrityError`: keys may come from files that others wrote."""
    parts = key.split("/")
    bad = any(part in ("", ".", "..") or part.startswith(TEMPORARY) for part in parts)
    if bad or "\\" in key or not key.isprintable():
        raise IntegrityError(
            f"{key!r} is not the key of an object: keys are relative, with `/` between plain names."
        )
    return key


def numbered(folder: str, number: int, suffix: str = "") -> str:
    """Return the key of a numbered table: `locations/000001.parquet`, with a suffix
    `scenes/000001.unusable.parquet`."""
    return f"{folder}/{number:06d}{'.' + suffix if suffix else ''}.parquet"


def number_of(folder: str, key: str) -> int | None:
    """Return the number of a key that lies directly in a folder of numbered things, else None."""
    name = key.removeprefix(folder + "/").split("/")[0]
    match = _NUMBER.fullmatch(name)
    return int(match[1]) if match else None


def plan(number: int) -> str:
    """Return the key of a plan's patches."""
    return numbered(PLANS, number)


def plan_scenes(number: int) -> str:
    """Return the key of the scenes a plan names."""
    return numbered(PLANS, number, "scenes")


def plan_header(number: int) -> str:
    """Return the key of a plan's header: the plan exists when this does."""
    return f"{PLANS}/{number:06d}.json"


def shard_name(plan_number: int, shard: int) -> str:
    """Return the name of a shard: `p000001-s00042`."""
    return f"p{plan_number:06d}-s{shard:05d}"


def parse_shard(name: str) -> tuple[int, int]:
    """Return plan and shard number of a shard's name.

    Raises
    ------
    IntegrityError
        It is no such name.
    """
    match = _SHARD.fullmatch(name)
    if match is None:
        raise IntegrityError(f"{name!r} is not the name of a shard, such as `p000001-s00042`.")
    return int(match[1]), int(match[2])


def shard_folder(name: str, revision: int, attempt: int = 1) -> str:
    """Return the folder of a shard revision: `shards/p000001-s00042/r1`.

    Workers that came to different outcomes (one of them taken for dead, in a bad hour of the
    network) write into different folders: the second outcome into `r1.2`.
    """
    return f"{SHARDS}/{name}/r{revision}" + (f".{attempt}" if attempt > 1 else "")


def outcome(name: str, revision: int, attempt: int) -> str:
    """Return the key of the digest of what is written into a folder: whose it is."""
    return f"{shard_folder(name, revision, attempt)}.outcome"


def commit(name: str, revision: int) -> str:
    """Return the key of a commit record."""
    return f"{COMMITS}/{name}/r{revision}.parquet"


def parse_commit(key: str) -> tuple[str, int] | None:
    """Return shard and revision of a commit's key; None if it is no such key."""
    match = _COMMIT.fullmatch(key)
    return (match[1], int(match[2])) if match else None


def version(number: int) -> str:
    """Return the key of a version's manifest: the version exists when this does."""
    return f"{VERSIONS}/{number:06d}.json"


def version_file(number: int, name: str) -> str:
    """Return the key of a file of a version: `versions/000001/index.parquet`."""
    return f"{VERSIONS}/{number:06d}/{name}"


def model(name: str, file: str) -> str:
    """Return the key of a model's file."""
    return f"{MODELS}/{name}/{file}"


def dump_json(value: Any) -> bytes:
    """Return JSON as bytes that depend on the value alone."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def read_json(store: ObjectStore, key: str) -> dict[str, Any]:
    """Return a JSON object of the root.

    Raises
    ------
    KeyError
        There is no such object.
    IntegrityError
        It is not a JSON object.
    """
    try:
        value = json.loads(store.get(key))
    except ValueError as error:
        raise IntegrityError(f"{key} in {store.url} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise IntegrityError(f"{key} in {store.url} holds no JSON object.")
    return value


def claim(store: ObjectStore, loaded: LoadedRecipe) -> None:
    """Make the root this recipe's, or make sure that it is.

    The first stage writes `dataset.json`; every later one compares. Fields that may grow are not
    part of the identity, so asking for more is fine, and asking for something else is not.

    Raises
    ------
    RecipeError
        The root belongs to another recipe, or to another format of this program.
    """
    mine = {
        "name": loaded.name,
        "identity": loaded.identity,
        "format": FORMAT,
        "recipe": loaded.frozen(),
    }
    if not is_claimed(store, loaded) and not store.create(DATASET, dump_json(mine)):
        is_claimed(store, loaded)


def is_claimed(store: ObjectStore, loaded: LoadedRecipe) -> bool:
    """Return whether the root is this recipe's; False if it is nobody's yet.

    Raises
    ------
    RecipeError
        The root belongs to another recipe, or to another format of this program.
    """
    try:
        found = read_json(store, DATASET)
    except KeyError:
        return False
    if found.get("format") != FORMAT:
        raise RecipeError(
            f"{store.url} has format {found.get('format')!r}; this program reads {FORMAT}."
        )
    if found.get("identity") != loaded.identity:
        differences = _differences(found.get("recipe"), json.loads(dump_json(loaded.frozen())))
        what = "; ".join(differences[:5])
        raise RecipeError(
            f"{store.url} belongs to the data set {found.get('name')!r}, which is not what recipe "
            f"{loaded.name!r} describes: {what}. Products, cell, lattice, seed, split and rules "
            "are frozen for a root; counts, periods and limits may grow. Choose another root, or "
            "restore them."
        )
    return True


def must_be_claimed(store: ObjectStore, loaded: LoadedRecipe) -> None:
    """Make sure that a root is this recipe's, for what goes on from earlier stages.

    Raises
    ------
    RecipeError
        There is nothing, or it is another recipe's.
    MissingObject
        `dataset.json` is gone, but something else is there.
    """
    if is_claimed(store, loaded):
        return
    folders = (LOCATIONS, SCENES, PLANS, COMMITS, VERSIONS)
    if any(next(iter(store.list(folder)), None) for folder in folders):
        raise MissingObject(DATASET, store.url)
    raise RecipeError(
        f"{store.url} holds no data set. Is `--root` right? `terrashard run` makes it there."
    )


def _differences(there: Any, here: Any, key: str = "") -> list[str]:
    """Name the keys in which two JSON values differ, with both values."""
    if isinstance(there, dict) and isinstance(here, dict):
        names = sorted({*there, *here})
        pairs = [(f"{key}.{name}".lstrip("."), there.get(name), here.get(name)) for name in names]
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        both = enumerate(zip(there, here, strict=True))
        pairs = [(f"{key}.{number}", one, other) for number, (one, other) in both]
    elif there == here:
        return []
    else:
        return [f"`{key}` is {_short(here)} in the recipe and {_short(there)} there"]
    return [line for name, one, other in pairs for line in _differences(one, other, name)]


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = "not given" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."

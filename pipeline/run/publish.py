"""Publish: freeze the newest revision of every committed shard as a version."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import IntegrityError, RecipeError
from pipeline.ports import ObjectStore
from pipeline.raster.response import described
from pipeline.raster.statistics import Moments, merge
from pipeline.recipe import LoadedRecipe
from pipeline.records import IndexRow, Location, Scene
from pipeline.stages.publish.index import PARTS, Places, describe, make_index, sum_moments
from pipeline.stages.sample.complete import published, standing, to_complete
from pipeline.store import layout
from pipeline.store.commit import newest, read_commit
from pipeline.store.ledger import dataset_digest, states, tally
from pipeline.store.shard import ArraySpec
from pipeline.store.tables import create_same, encode_table, fit, read_all
from pipeline.store.version import ShardEntry, Version, numbers, read_version
from pipeline.watch.tell import align, lines_of

_LISTS = ("count", "mean", "m2", "minimum", "maximum", "sources")
_INDEX, _STATISTICS = "index.parquet", "statistics.json"


@dataclass(frozen=True, slots=True)
class PublishReport:
    """What was published."""

    version: int
    new: bool
    """False: the newest version already says all this."""
    locations: int
    """Of all parts."""
    parts: dict[str, int]
    """Part of the split to number of locations."""
    patches: dict[str, dict[str, int]]
    """Product to part of the split to number of patches."""
    rejected: dict[str, int]
    """Patches that are not in the version because the data are so, by reason."""
    failed: dict[str, int]
    """The same because they could not be read, by class: `terrashard retry` tries again."""
    pending: int
    """Wanted patches whose shards were never built: they are not in the version."""
    left_out: int
    """Locations that are not in the version because the recipe wants complete ones, and so many."""
    dataset_digest: str

    def __str__(self) -> str:
        empty = [part for part, count in self.parts.items() if not count]
        text = align(lines_of(self))
        if not empty:
            return text
        return (
            f"{text}\n\nNo location is in the part {' or '.join(empty)} of the split: `evaluate` "
            "needs all three. More locations or, in a new root, smaller `split.block_km` or other "
            "shares help; a root's split is frozen."
        )


@dataclass(slots=True)
class _Gathered:
    """What is kept of the commits while they go by, one at a time."""

    shards: list[ShardEntry] = field(default_factory=list)
    specs: dict[str, ArraySpec] = field(default_factory=dict)
    written: list[pa.Table] = field(default_factory=list)
    moments: dict[str, Moments] = field(default_factory=dict)
    """By product, of the training split."""
    patches: Counter[str] = field(default_factory=Counter)
    """Patches that entered `moments`, by product."""


def run_publish(loaded: LoadedRecipe, store: ObjectStore) -> PublishReport:
    """Publish what is committed; return the newest version if nothing is new.

    Old versions stay as they are. Statistics are those of the training split alone.

    Raises
    ------
    RecipeError
        The root is another recipe's, or nothing is committed yet.
    IntegrityError
        Commits and plans contradict one another.
    """
    layout.is_claimed(store, loaded)
    revisions = newest(store)
    if not revisions:
        raise RecipeError(f"{store.url} has no committed shard; `terrashard extract` makes them.")
    layout.claim(store, loaded)
    locations = read_all(store, layout.LOCATIONS, Location)
    places = Places(locations, loaded.recipe.split, loaded.recipe.seed)
    kept = _complete(loaded, store, locations)
    gathered = _gather(loaded, store, revisions, places, kept)
    written = pa.concat_tables(gathered.written)
    written = written.append_column("facts", _facts(store, written["scenes"].to_pylist()))
    index = make_index(written, places, [*loaded.products])
    files = {
        _INDEX: encode_table(fit(index, IndexRow, name=_INDEX), metadata=_compared(loaded)),
        _STATISTICS: layout.dump_json(_statistics(gathered)),
    }
    version = Version(
        number=0,
        name=loaded.name,
        identity=loaded.identity,
        dataset_digest=dataset_digest(store, revisions),
        counts=_counts(store, index)
        | {"left_out": 0 if kept is None else locations.num_rows - len(kept)},
        specs={p: gathered.specs[p] for p in loaded.products if p in gathered.specs},
        shards=tuple(gathered.shards),
        files={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        recipe={**loaded.dump(), "folder": "."},
        terms={product: facts.conditions for product, facts in loaded.products.items()},
    )
    number, new = _write(store, version, files)
    return PublishReport(
        version=number,
        new=new,
        locations=version.counts["locations"],
        parts=version.counts["parts"],
        patches=version.counts["patches"],
        rejected=version.counts["rejected"],
        failed=version.counts["failed"],
        pending=version.counts["pending"],
        left_out=version.counts["left_out"],
        dataset_digest=version.dataset_digest,
    )


def _facts(store: ObjectStore, scenes: list[list[str]]) -> pa.Array:
    """Return what the catalogue states of the scenes of each patch: of a scene that was found in
    several processings, of the newest, which comes last."""
    table = read_all(store, layout.SCENES, Scene, columns=["scene", "facts"])
    found = dict(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))
    stated = [[found.get(scene, "{}") for scene in of_patch] for of_patch in scenes]
    return pa.array(stated, pa.list_(pa.string()))


def _complete(loaded: LoadedRecipe, store: ObjectStore, locations: pa.Table) -> pa.Array | None:
    """Return the locations that a recipe of complete ones publishes; None of another recipe.

    Raises
    ------
    RecipeError
        None is complete yet.
    """
    strategy = to_complete(loaded)
    if strategy is None:
        return None
    now = standing(loaded, locations, states(store))
    if not len(now.complete):
        raise RecipeError(
            f"{store.url} has no complete location: of {locations.num_rows}, {now.incomplete} lack "
            f"a patch and {now.open} are not done; recipe {loaded.name} has "
            "`sample.complete = true`. `terrashard status` says why patches were rejected."
        )
    return published(now, locations, strategy.count)


def _gather(
    loaded: LoadedRecipe,
    store: ObjectStore,
    revisions: dict[str, int],
    places: Places,
    kept: pa.Array | None,
) -> _Gathered:
    """Go through all commits; of locations that are not `kept` (None: all are) nothing is kept."""
    gathered = _Gathered()
    for shard, revision in sorted(revisions.items()):
        commit = read_commit(store, shard, revision)
        if commit.identity != loaded.identity:
            raise IntegrityError(f"the commit of {shard} belongs to another recipe.")
        record = hashlib.sha256(store.get(layout.commit(shard, revision))).hexdigest()
        entry = ShardEntry.of(commit, record)
        gathered.shards.append(entry)
        rows = commit.ledger.filter(pc.equal(commit.ledger["state"], "written"))
        if kept is not None:
            rows = rows.filter(pc.is_in(rows["location"], kept))
        names = pa.array([entry.name] * rows.num_rows, "string")
        gathered.written.append(rows.drop_columns([*_LISTS]).append_column("shard", names))
        for product, spec in commit.specs.items():
            _add_spec(gathered, product, spec)
            _add_moments(gathered, product, rows, places)
    return gathered


def _compared(loaded: LoadedRecipe) -> dict[str, str]:
    """Return what the index says of its residuals: of what kind each band's response is."""
    kinds = {}
    for product, reference in loaded.compared.items():
        facts = loaded.products[product]
        bands = [facts.band(name) for name in loaded.bands(product)]
        kinds[product] = {"spectrometer": reference, "responses": described(bands, facts.responses)}
    return {"terrashard:residual": json.dumps(kinds, sort_keys=True)} if kinds else {}


def _add_spec(gathered: _Gathered, product: str, spec: ArraySpec) -> None:
    """Keep what all shards share of a product's arrays; their extents are in `ShardEntry`."""
    shared = replace(spec, samples=0, times=0)
    known = gathered.specs.get(product, shared)
    # Shards written before widths and units of bands were kept differ in nothing else.
    known, shared = (
        replace(
            one,
            fwhm_nm=one.fwhm_nm or other.fwhm_nm,
            band_unit=one.band_unit or other.band_unit,
        )
        for one, other in ((known, shared), (shared, known))
    )
    if known.to_json() != shared.to_json():
        raise IntegrityError(f"shards differ in what the arrays of {product} look like.")
    gathered.specs[product] = known


def _add_moments(gathered: _Gathered, product: str, rows: pa.Table, places: Places) -> None:
    rows = rows.filter(pc.equal(rows["product"], product))
    if not rows.num_rows:
        return
    train = places.parts[places.find(rows["location"].to_pylist())] == "train"
    rows = rows.filter(pa.array(train))
    found = sum_moments(rows, len(gathered.specs[product].bands))
    before = gathered.moments.get(product)
    gathered.moments[product] = found if before is None else merge(before, found)
    gathered.patches[product] += rows.num_rows


def _statistics(gathered: _Gathered) -> dict[str, Any]:
    return {
        product: {
            "split": "train",
            "patches": gathered.patches[product],
            "bands": describe(moments, gathered.specs[product].bands),
        }
        for product, moments in gathered.moments.items()
    }


def _counts(store: ObjectStore, index: pa.Table) -> dict[str, Any]:
    total = tally(store)
    patches: dict[str, dict[str, int]] = {}
    groups = index.group_by(["product", "split"]).aggregate([([], "count_all")])
    for row in groups.sort_by("product").to_pylist():
        parts = patches.setdefault(row["product"], dict.fromkeys(PARTS, 0))
        parts[row["split"]] = row["count_all"]
    places = index.group_by("split").aggregate([("row", "count_distinct")]).to_pylist()
    return {
        "locations": pc.count_distinct(index["row"]).as_py(),
        "parts": dict.fromkeys(PARTS, 0)
        | {row["split"]: row["row_count_distinct"] for row in places},
        "patches": patches,
        "rejected": dict(sorted(total.rejected.items())),
        "failed": dict(sorted(total.failed.items())),
        "pending": total.pending,
    }


def _write(store: ObjectStore, version: Version, files: dict[str, bytes]) -> tuple[int, bool]:
    """Write the files and then the manifest; return number, and whether it is a new one.

    All are create-only. Where a run that was killed, or another one, left other files under the
    next number, that number is passed over: a gap harms nobody, an overwritten index would.
    """
    known = numbers(store)
    if known and _content(read_version(store, known[-1])) == _content(version):
        return known[-1], False
    number = (known[-1] if known else 0) + 1
    while True:
        values = {**version.to_json(), "number": number}
        try:
            for name, data in files.items():
                create_same(store, layout.version_file(number, name), data)
            create_same(store, layout.version(number), layout.dump_json(values))
        except IntegrityError:
            number += 1
            continue
        return number, True


def _content(version: Version) -> dict[str, Any]:
    """Return what makes two versions the same: not their number, nor how they were asked for."""
    without = ("number", "recipe", "terms")
    return {key: value for key, value in version.to_json().items() if key not in without}

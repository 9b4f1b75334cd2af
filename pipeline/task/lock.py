"""What a task knows before it reads: its part of the plan, the scenes named there, the recipe."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import pyarrow.compute as pc

from pipeline.errors import IntegrityError
from pipeline.ports import ObjectStore
from pipeline.raster.masks import native_dtype
from pipeline.recipe import LoadedRecipe
from pipeline.records import PlannedPatch, Scene
from pipeline.store import layout
from pipeline.store.objects import open_store
from pipeline.store.shard import ArraySpec, band_facts
from pipeline.store.tables import read_table, to_rows


@dataclass(frozen=True, slots=True)
class Lock:
    """A shard's part of a plan."""

    loaded: LoadedRecipe
    plan_digest: str
    """sha256 (hex) that the plan's header gives for its table."""
    patches: tuple[PlannedPatch, ...]
    scenes: dict[str, Scene]
    """Every scene that a candidate of these patches names, by id."""


def read_lock(store: ObjectStore, plan: int, shard: int) -> Lock:
    """Read a shard's part of a plan; row groups of other shards are not read.

    Raises
    ------
    IntegrityError
        The plan has no such shard, or its patches name scenes that it does not hold.
    """
    loaded, digest = _header(store.url, plan)
    table = read_table(store, layout.plan(plan), filters=[("shard", "=", shard)])
    patches = to_rows(table, PlannedPatch)
    if not patches:
        raise IntegrityError(f"{layout.plan(plan)} in {store.url} has no shard {shard}.")
    patches.sort(key=lambda p: (p.product, p.sample, p.time))
    wanted = sorted({s for p in patches for candidate in p.candidates for s in candidate})
    return Lock(loaded, digest, tuple(patches), _scenes(store, plan, wanted))


def array_specs(lock: Lock) -> dict[str, ArraySpec]:
    """Return what the shard's arrays look like: they have room for every planned patch."""
    specs = {}
    for product in sorted({patch.product for patch in lock.patches}):
        facts = lock.loaded.products[product]
        own = [patch for patch in lock.patches if patch.product == product]
        bands = lock.loaded.bands(product)
        specs[product] = ArraySpec(
            product=product,
            samples=max(patch.sample for patch in own) + 1,
            times=max(patch.time for patch in own) + 1,
            bands=bands,
            size_px=lock.loaded.size_px(product),
            dtype=facts.stored_dtype,
            fill=facts.fill,
            scale=facts.scale,
            offset=facts.offset,
            unit=facts.unit,
            **band_facts(facts, bands),
            pixel_m=lock.loaded.pixel_m(product),
            native_dtype=native_dtype(facts).name if facts.mask_layers else None,
            codec=lock.loaded.recipe.shards.codec,
            compression_level=lock.loaded.recipe.shards.compression_level,
        )
    return specs


def _scenes(store: ObjectStore, plan: int, wanted: list[str]) -> dict[str, Scene]:
    if not wanted:
        return {}
    table = read_table(store, layout.plan_scenes(plan), filters=pc.field("scene").isin(wanted))
    scenes = {scene.scene: scene for scene in to_rows(table, Scene)}
    missing = [name for name in wanted if name not in scenes]
    if missing:
        raise IntegrityError(
            f"{layout.plan_scenes(plan)} in {store.url} lacks {len(missing)} scenes that the plan "
            f"names, the first being {missing[0]}."
        )
    return scenes


@lru_cache(maxsize=8)
def _header(root: str, plan: int) -> tuple[LoadedRecipe, str]:
    """Read a plan's header once for each process: it never changes."""
    values = layout.read_json(open_store(root), layout.plan_header(plan))
    return LoadedRecipe.restore(values["recipe"]), str(values["patches_sha256"])

"""The scenes table that `search` would write of the world's catalogue, without the items.

For plans of full size: millions of items are 30 GB of JSON, and an hour or two of reading it.
`tests/simulate/test_world.py` holds it to what `search` writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from pipeline.ports import Query
from pipeline.raster.zones import Floats, Ints
from pipeline.recipe import LoadedRecipe
from pipeline.records import Scene
from pipeline.simulate.service.catalogue import HABITS, PLAIN
from pipeline.simulate.world.items import Collection, Items, identity, still_scene, survey_of
from pipeline.simulate.world.survey import EPOCH
from pipeline.stages.search.normalise import normalise
from pipeline.stages.search.questions import facts_of
from pipeline.store.tables import schema_of

_CHUNK_ROWS = 200_000


def scene_tables(
    loaded: LoadedRecipe, product: str, provider: str, asked: Sequence[Query]
) -> Iterator[pa.Table]:
    """Yield the scenes that answer some questions, in tables of `Scene` rows.

    Addresses of assets and facts are left empty, and ids of items are the processor's, whatever the
    provider makes of them: planning reads none of these.
    """
    collection = Collection(provider, facts_of(loaded.products[product], provider).collection)
    if not HABITS.get(provider, PLAIN).filters:
        asked = [replace(query, only=(), at_most=()) for query in asked]
    parts = [_answer(collection, query) for query in asked]
    found = Items(
        np.concatenate([part.place for part in parts]),
        np.concatenate([part.satellite for part in parts]),
        np.concatenate([part.when_s for part in parts]),
        np.concatenate([part.cloud_percent for part in parts]),
    )
    # Neighbouring questions have items in common.
    _, first = np.unique(found.place << 32 | found.when_s, return_index=True)
    found = found.take(first)
    examples = _examples(loaded, product, provider, collection, found)
    found = found.take(np.isin(found.satellite, list(examples)))
    for start in range(0, len(found), _CHUNK_ROWS):
        yield _table(collection, examples, found.take(slice(start, start + _CHUNK_ROWS)))


def _answer(collection: Collection, query: Query) -> Items:
    last = None if query.end is None else query.end - timedelta(seconds=1)
    ends = (None if query.start is None else query.start, last)
    wanted: dict[str, Any] = {name: {"in": list(values)} for name, values in query.only}
    wanted |= {name: {"lte": most} for name, most in query.at_most}
    span = "/".join(".." if end is None else end.astimezone(UTC).isoformat() for end in ends)
    return collection.matching(
        json.dumps({"bbox": query.bbox, "datetime": span, "query": wanted}, sort_keys=True)
    )


def _examples(
    loaded: LoadedRecipe, product: str, provider: str, collection: Collection, found: Items
) -> dict[int, Scene]:
    """Return a scene of each satellite whose items are of the product."""
    examples = {}
    for satellite in np.unique(found.satellite).tolist():
        which = int(np.flatnonzero(found.satellite == satellite)[0])
        (text,) = collection.texts(found, range(which, which + 1))
        row = normalise(json.loads(text), loaded.products[product], provider, None)
        if isinstance(row, Scene):
            examples[satellite] = row
    return examples


def _table(collection: Collection, examples: dict[int, Scene], items: Items) -> pa.Table:
    like = next(iter(examples.values()))
    seen, _ = survey_of(collection.mission)
    places, which = np.unique(items.place, return_inverse=True)
    product = collection.products[collection.names[items.satellite[0]]]
    still = [still_scene(collection.mission, product, place)[0] for place in places.tolist()]
    outline = seen.outline[places]
    if like.epsg == 4326:
        bounds, epsg = shapely.bounds(outline), np.full(len(places), 4326)
    else:
        corners = [
            (s.x_min_m, s.y_max_m - s.height_m, s.x_min_m + s.width_m, s.y_max_m) for s in still
        ]
        bounds, epsg = np.array(corners, dtype=np.float64), np.array([s.epsg for s in still])
    names = [
        identity(collection.names[satellite], still[place], EPOCH + timedelta(seconds=when))
        for satellite, place, when in zip(
            items.satellite.tolist(), which.tolist(), items.when_s.tolist(), strict=True
        )
    ]
    takes = [_datatake(collection.mission, name) for name in names]
    tiles = [name.get("tile", still[p].tile) for name, p in zip(names, which.tolist(), strict=True)]
    tiles = [tile.lstrip("0") if collection.mission == "enmap" else tile for tile in tiles]
    middle = np.array([s.n_max_m - s.height_m / 2 for s in still])[which]
    sun = _sun_deg(np.array([s.zone for s in still])[which], middle, items.when_s)
    clear = like.cloud_percent is not None
    count, assets = len(names), like.assets
    columns: dict[str, Any] = {
        "scene": [f"{like.product}/{d}/{t}" for d, t in zip(takes, tiles, strict=True)],
        "product": pa.repeat(like.product, count),
        "provider": pa.repeat(like.provider, count),
        "item": [name["item"] for name in names],
        "datatake": takes,
        "tile": tiles,
        "acquired": pa.array(items.when_s * 1_000_000 + round(EPOCH.timestamp() * 1e6)),
        "baseline": [name["baseline"] for name in names],
        "offset_add": pa.repeat(like.offset_add, count),
        "cloud_percent": pa.array(items.cloud_percent, mask=(sun <= 0) | (not clear)),
        "sun_elevation_deg": pa.array(sun, mask=np.full(count, like.sun_elevation_deg is None)),
        "epsg": epsg[which],
        "geometry": pa.array(shapely.to_wkb(outline), pa.binary()).take(pa.array(which)),
        "facts": pa.repeat("{}", count),
        "assets": pa.ListArray.from_arrays(
            pa.array(np.arange(count + 1) * len(assets), pa.int32()),
            pa.StructArray.from_arrays(
                [
                    pa.array([asset.name for asset in assets] * count),
                    pa.array([asset.href.partition("://")[0] + "://" for asset in assets] * count),
                    pa.nulls(count * len(assets), pa.int64()),
                    pa.nulls(count * len(assets), pa.string()),
                ],
                names=["name", "href", "size_bytes", "checksum"],
            ),
        ),
    }
    columns["band_indexes"] = pa.array([like.band_indexes] * count, pa.list_(pa.int64()))
    columns |= {
        f"{side}_m": bounds[which, k] for k, side in enumerate(("x_min", "y_min", "x_max", "y_max"))
    }
    schema = schema_of(Scene)
    arrays = [pa.array(columns[field.name]) for field in schema]
    return pa.Table.from_arrays(
        [array.cast(field.type) for array, field in zip(arrays, schema, strict=True)], schema=schema
    )


def _datatake(mission: str, name: dict[str, Any]) -> str:
    """Return the datatake as the product files cut it out."""
    text = str(name["datatake"])
    if mission == "sentinel-1":
        satellite, *_, take = str(name["item"]).split("_")
        return f"{satellite}_{take}"
    return "_".join(text[1:].split("_")[:2]) if mission == "sentinel-2" else text


def _sun_deg(zone: Ints, n_m: Floats, when_s: Ints) -> Floats:
    """Return the sun's elevation, as `pipeline.simulate.truth.clouds.sun` has it."""
    when = np.datetime64(EPOCH.replace(tzinfo=None), "s") + when_s.astype("timedelta64[s]")
    day = (when.astype("datetime64[D]") - when.astype("datetime64[Y]")).astype(np.int64) + 1
    declination = np.radians(-23.45 * np.cos(2 * np.pi * (day + 10) / 365))
    clock = when_s % 86_400 // 60 / 60 + (6 * zone - 183) / 15
    latitude, turn = np.radians(n_m / 111_000), np.radians(15 * (clock - 12))
    height = np.sin(latitude) * np.sin(declination)
    height += np.cos(latitude) * np.cos(declination) * np.cos(turn)
    return np.asarray(np.degrees(np.arcsin(height)))

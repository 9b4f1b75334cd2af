"""Search stac-geoparquet: catalogues as tables, so that a whole archive is searched with no API.

One pass over the rows answers any number of questions. What lies outside of all of them is left
out by Parquet's own statistics where the files have them, so a file that is sorted by time or
place is read in part only. Columns are those of the stac-geoparquet specification 1.0: the
properties stand beside `id`, `collection`, `geometry` (WKB), `bbox` and `assets`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import shapely

from pipeline.errors import GiveUp
from pipeline.ports import ByteSource, Query
from pipeline.sources.bytes.http import open_source
from pipeline.sources.providers import Provider
from pipeline.sources.stac.table_file import RemoteFile

#: Rows read at once: an item with its assets has some ten kilobytes.
_BATCH_ROWS = 1024
#: Columns that are not properties.
_OF_THE_ITEM = frozenset(
    {"type", "stac_version", "stac_extensions", "id", "collection", "geometry", "bbox", "assets"}
    | {"links"}
)
#: Not read: nothing asks for them.
_LEFT_OUT = frozenset({"links", "stac_extensions", "proj:geometry"})
_BOX = ("xmin", "ymin", "xmax", "ymax")


def bulk_items(
    provider: Provider, questions: Sequence[Query]
) -> Iterator[tuple[dict[str, Any], Query]]:
    """Yield each item with every question that it may answer, as a STAC API would write it.

    Parameters
    ----------
    provider : Provider
        Of the kind `stac-geoparquet`; its URL names a file, or a folder of files.
    questions : sequence of Query
        About one collection.

    Raises
    ------
    GiveUp
        `gone`, or `corrupt`: it is no Parquet, or lacks `id`, `collection` or `assets`.
    TryAgain
        A remote file could not be read now.
    """
    if not questions:
        return
    try:
        for fragment in _fragments(provider):
            yield from _of_fragment(provider, fragment, questions)
    except pa.ArrowException as error:
        raise _corrupt(provider, str(error)) from error
    except OSError as error:
        raise GiveUp(
            f"provider {provider.name}: cannot read {provider.url}: {str(error)[:200]}.",
            failure="gone",
        ) from error


def _fragments(provider: Provider) -> Iterator[ds.Fragment]:
    url, kind = provider.url or "", ds.ParquetFileFormat()
    if "://" in url:
        yield kind.make_fragment(pa.PythonFile(RemoteFile(_door(provider), url), mode="r"))
        return
    path = Path(url)
    for file in sorted(path.rglob("*.parquet")) if path.is_dir() else [path]:
        yield kind.make_fragment(str(file), filesystem=pa.fs.LocalFileSystem())


def _door(provider: Provider) -> ByteSource:
    """Return what reads the table: from its own host alone, without the provider's login."""
    scheme, _, rest = (provider.url or "").partition("://")
    host = rest.partition("/")[0]
    own = {"hosts": (host,), "schemes": (scheme,), "auth": None}
    return open_source(provider.model_copy(update=own))


def _of_fragment(
    provider: Provider, fragment: ds.Fragment, questions: Sequence[Query]
) -> Iterator[tuple[dict[str, Any], Query]]:
    schema = fragment.physical_schema
    if missing := {"id", "collection", "assets"} - set(schema.names):
        raise _corrupt(provider, f"no column {', '.join(sorted(missing))}")
    columns = [name for name in schema.names if name not in _LEFT_OUT]
    scanner = ds.Scanner.from_fragment(
        fragment, columns=columns, filter=_filter(schema, questions), batch_size=_BATCH_ROWS
    )
    asked = _Asked(questions)
    for batch in scanner.to_batches():
        items = _items(batch)
        for number, query in asked.answered_by(batch):
            yield items[number], query


def _filter(schema: pa.Schema, questions: Sequence[Query]) -> pc.Expression:
    """Return what every wanted row meets: its collection, and the span and box of all questions."""
    wanted = pc.field("collection") == questions[0].collection
    starts, ends = [q.start for q in questions], [q.end for q in questions]
    moments = [n for n in ("datetime", "start_datetime") if _is_time(schema, n)]
    if moments and all(starts) and all(ends):
        first, last = min(s for s in starts if s), max(e for e in ends if e)
        wanted &= _any(
            pc.field(name).is_null() | ((pc.field(name) >= first) & (pc.field(name) < last))
            for name in moments
        )
    boxes = [q.bbox for q in questions]
    if _has_box(schema) and all(boxes):
        edges = np.array([box for box in boxes if box])
        west, south = edges[:, :2].min(axis=0).tolist()
        east, north = edges[:, 2:].max(axis=0).tolist()
        x_min, y_min, x_max, y_max = (pc.field("bbox", name) for name in _BOX)
        # Across the antimeridian the western edge is the greater one.
        wanted &= ((x_min <= east) & (x_max >= west)) | (x_min > x_max)
        wanted &= (y_min <= north) & (y_max >= south)
    return wanted


def _any(parts: Iterator[pc.Expression]) -> pc.Expression:
    whole = next(parts)
    for part in parts:
        whole |= part
    return whole


def _is_time(schema: pa.Schema, name: str) -> bool:
    place = schema.get_field_index(name)
    return (
        place >= 0
        and pa.types.is_timestamp(schema.field(place).type)
        and bool(schema.field(place).type.tz)
    )


def _has_box(schema: pa.Schema) -> bool:
    place = schema.get_field_index("bbox")
    if place < 0 or not pa.types.is_struct(schema.field(place).type):
        return False
    kind = schema.field(place).type
    return all(kind.get_field_index(name) >= 0 for name in _BOX)


class _Asked:
    """Which questions a row may answer, by the box of its footprint alone."""

    def __init__(self, questions: Sequence[Query]) -> None:
        self._by_box: dict[tuple[float, float, float, float], list[Query]] = {}
        self._anywhere: list[Query] = []
        for query in questions:
            if query.bbox is None:
                self._anywhere.append(query)
            else:
                self._by_box.setdefault(query.bbox, []).append(query)
        self._boxes = list(self._by_box)
        self._tree = shapely.STRtree([shapely.box(*box) for box in self._boxes])

    def answered_by(self, batch: pa.RecordBatch) -> Iterator[tuple[int, Query]]:
        """Yield the number of a row and a question, rows in order."""
        pairs = [(n, query) for n in range(batch.num_rows) for query in self._anywhere]
        if self._boxes:
            rows, boxes = self._tree.query(_outlines(batch), predicate="intersects")
            pairs += [
                (row, query)
                for row, box in zip(rows.tolist(), boxes.tolist(), strict=True)
                for query in self._by_box[self._boxes[box]]
            ]
        yield from sorted(pairs, key=lambda pair: pair[0])


def _outlines(batch: pa.RecordBatch) -> Any:
    """Return the box of each row's footprint; the world for one that crosses the antimeridian, or
    cannot be read: then the item itself is looked at."""
    shapes = _shapes(batch)
    bounds = shapely.bounds(shapes)
    lost = ~np.isfinite(bounds).all(axis=1)
    # Two halves at both ends of the world have bounds that go round it: that is wide, not wrong.
    bounds[lost] = (-180, -90, 180, 90)
    wide = bounds[:, 2] - bounds[:, 0] > 180
    bounds[wide, 0], bounds[wide, 2] = -180, 180
    return shapely.box(*bounds.T)


def _shapes(batch: pa.RecordBatch) -> Any:
    place = batch.schema.get_field_index("geometry")
    if place < 0 or not _is_bytes(batch.schema.field(place).type):
        return np.full(batch.num_rows, None, dtype=object)
    values = batch.column(place).to_numpy(zero_copy_only=False)
    return shapely.from_wkb(values, on_invalid="ignore")


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _items(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return rows as items: nulls are keys that are not there, times are text."""
    shapes = _shapes(batch)
    geometry = batch.schema.get_field_index("geometry")
    if geometry >= 0:
        batch = batch.remove_column(geometry)
    items = []
    for row, shape in zip(batch.to_pylist(), shapes, strict=True):
        properties = {
            key: _plain(value)
            for key, value in row.items()
            if key not in _OF_THE_ITEM and value is not None
        }
        items.append(
            {
                "type": "Feature",
                "id": row["id"],
                "collection": row["collection"],
                "geometry": None if shape is None else shapely.geometry.mapping(shape),
                "properties": properties,
                "assets": _assets(row["assets"]),
            }
        )
    return items


def _assets(value: Any) -> Any:
    """Return assets as an item has them; some writers keep them as text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return _plain(value)


def _plain(value: Any) -> Any:
    """Return a value of a table as JSON would have it, keys without a value left out."""
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value


def _corrupt(provider: Provider, why: str) -> GiveUp:
    return GiveUp(
        f"provider {provider.name}: {provider.url} is no stac-geoparquet: {why[:200]}.",
        failure="corrupt",
    )

"""Tables of the root: Parquet files whose rows are the record types of `pipeline.records`.

One definition of the columns: the dataclass. Its Arrow schema, its JSON Schema and its rows are
made here. Tables are append-only, one numbered file per run; an existing file is never changed.
"""

from __future__ import annotations

import io
import itertools
import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from datetime import UTC, datetime
from functools import cache
from operator import attrgetter
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import IntegrityError, TryAgain
from pipeline.ports import ObjectStore
from pipeline.records import TABLES
from pipeline.store.layout import number_of, numbered
from pipeline.store.objects import LocalStore

T = TypeVar("T")

#: Rows of a row group where the writer does not say otherwise.
_GROUP_ROWS = 65_536
_SCALARS: dict[type, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    bytes: pa.binary(),
    datetime: pa.timestamp("us", tz="UTC"),
}
#: GeoParquet 1.1: WKB in longitude, latitude (OGC:CRS84 is the default); types not enumerated.
_GEO = {
    "version": "1.1.0",
    "primary_column": "geometry",
    "columns": {"geometry": {"encoding": "WKB", "geometry_types": [], "edges": "planar"}},
}


@cache
def schema_of(cls: type) -> pa.Schema:
    """Return the Arrow schema of a record type.

    A column of `X | None` is nullable, every other is not (inside lists Arrow's default holds, so
    that tables of any origin fit); a list of records is a list of structs; times are microseconds
    in UTC; a `geometry` column makes it a GeoParquet table.
    """
    schema = pa.schema(_fields(cls))
    if "geometry" in schema.names:
        return schema.with_metadata({"geo": json.dumps(_GEO, sort_keys=True)})
    return schema


def json_schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schema of one row of every table, by the name of its schema file."""
    from pydantic import TypeAdapter

    return {name: TypeAdapter(cls).json_schema() for name, cls in TABLES.items()}


def from_rows(rows: Iterable[Any], cls: type) -> pa.Table:
    """Make a table of records."""
    rows, schema, hints = list(rows), schema_of(cls), _hints(cls)
    columns = [_column([*map(attrgetter(name), rows)], hints[name]) for name in schema.names]
    return pa.Table.from_arrays(columns, schema=schema)


def to_rows(table: pa.Table, cls: type[T]) -> list[T]:
    """Make records of a table; columns that are not the record's are left out."""
    names = [field.name for field in fields(typing.cast(Any, cls))]
    return [_record(values, cls) for values in _completed(table, cls).select(names).to_pylist()]


def fit(table: pa.Table, cls: type, *, name: str) -> pa.Table:
    """Return the table with exactly the columns of the record type, in their order.

    A column with a default is younger than the others, and may be missing.

    Raises
    ------
    IntegrityError
        A column is missing, has another type, or holds nulls where none are allowed. `name` says
        which table it is.
    """
    schema, table = schema_of(cls), _completed(table, cls)
    missing = [column for column in schema.names if column not in table.column_names]
    if missing:
        raise IntegrityError(f"{name} lacks the columns {', '.join(missing)} of {cls.__name__}.")
    table = table.select(schema.names)
    for field in schema:
        column = table.column(field.name)
        if column.type != field.type:
            raise IntegrityError(f"{name}: `{field.name}` is {column.type}, not {field.type}.")
        if column.null_count and not field.nullable:
            raise IntegrityError(f"{name}: `{field.name}` has {column.null_count} missing values.")
    return table.cast(schema).replace_schema_metadata(schema.metadata)


def encode_table(
    table: pa.Table,
    *,
    row_groups: Sequence[int] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Return a table as the bytes of a Parquet file; equal tables give equal bytes.

    Parameters
    ----------
    table : pa.Table
    row_groups : sequence of int or None
        Number of rows of each row group, in order; their sum is the table's. None: 65,536 each.
    metadata : mapping of str to str or None
        Key-value metadata of the file, added to the schema's own.
    """
    groups = [_GROUP_ROWS] * -(-table.num_rows // _GROUP_ROWS) if row_groups is None else row_groups
    if row_groups is not None and sum(row_groups) != table.num_rows:
        raise ValueError(f"row groups of {sum(row_groups)} rows for {table.num_rows} rows")
    kept = dict(table.schema.metadata or {})
    kept.update({key.encode(): value.encode() for key, value in (metadata or {}).items()})
    table = table.replace_schema_metadata(kept or None)
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        start = 0
        for rows in groups:
            if rows:
                writer.write_table(table.slice(start, rows), row_group_size=rows)
            start += rows
    return sink.getvalue()


def write_table(
    store: ObjectStore,
    key: str,
    table: pa.Table,
    *,
    row_groups: Sequence[int] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Write a table under a new key and return its bytes; see `encode_table`.

    Raises
    ------
    IntegrityError
        The key exists with other bytes. With the same bytes it was ours: an answer was lost.
    """
    data = encode_table(table, row_groups=row_groups, metadata=metadata)
    create_same(store, key, data)
    return data


def create_same(store: ObjectStore, key: str, data: bytes) -> None:
    """Create an object, or make sure that the one there has these bytes, else `IntegrityError`."""
    if not store.create(key, data) and store.get(key) != data:
        raise IntegrityError(f"{key} in {store.url} exists and holds something else; it was kept.")


def read_table(
    store: ObjectStore,
    key: str,
    columns: Sequence[str] | None = None,
    filters: Any = None,
) -> pa.Table:
    """Read a table, or some columns and rows of it.

    `filters` is pyarrow's (`[("shard", "=", 42)]`); row groups that cannot match are not read.

    Raises
    ------
    KeyError
        There is no such object.
    IntegrityError
        It is not a Parquet file, or lacks a column.
    """
    size = store.size(key)
    source: Any = store.path(key) if isinstance(store, LocalStore) else _Remote(store, key, size)
    try:
        return pq.read_table(
            source,
            columns=None if columns is None else list(columns),
            filters=filters,
            partitioning=None,
        )
    except (pa.ArrowException, OSError) as error:
        raise IntegrityError(f"{key} in {store.url} is no sound table: {error}.") from error


def next_number(store: ObjectStore, folder: str) -> int:
    """Return the number after the highest in a folder of numbered things; 1 in an empty one."""
    return max((number_of(folder, key) or 0 for key in store.list(folder)), default=0) + 1


def append(store: ObjectStore, folder: str, table: pa.Table, cls: type) -> int:
    """Write a table as the next numbered file of a folder; return its number.

    Raises
    ------
    TryAgain
        Another run took that number meanwhile: what this one worked out rests on an older state.
    """
    number = next_number(store, folder)
    key = numbered(folder, number)
    if not store.create(key, encode_table(fit(table, cls, name=key))):
        raise TryAgain(
            f"{key} in {store.url} was written by another run meanwhile; run this again.",
            failure="conflict",
        )
    return number


def read_all(
    store: ObjectStore,
    folder: str,
    cls: type,
    columns: Sequence[str] | None = None,
    *,
    suffix: str = "",
) -> pa.Table:
    """Return the rows of all numbered tables of a folder, in order; no files, no rows.

    `suffix` chooses among tables beside one another: `unusable` reads `000001.unusable.parquet`.
    """
    wanted = schema_of(cls)
    if columns is not None:
        wanted = pa.schema([wanted.field(name) for name in columns])
    parts = [wanted.empty_table()]
    for key in store.list(folder):
        number = number_of(folder, key)
        if number is None or key != numbered(folder, number, suffix):
            continue
        younger = _younger(cls).keys() & set(wanted.names)
        part = read_table(store, key, None if younger else wanted.names)
        if columns is None:
            part = fit(part, cls, name=key)
        part = _completed(part, cls).select(wanted.names)
        parts.append(part.cast(wanted).replace_schema_metadata(wanted.metadata))
    return pa.concat_tables(parts)


def _completed(table: pa.Table, cls: type) -> pa.Table:
    """Return a table with the columns that are younger than it, which hold their default."""
    for name, default in _younger(cls).items():
        if name not in table.column_names:
            column = pa.array([default] * table.num_rows, schema_of(cls).field(name).type)
            table = table.append_column(schema_of(cls).field(name), column)
    return table


def _younger(cls: type) -> dict[str, Any]:
    """Return the columns of a record type that have a default."""
    found: dict[str, Any] = {}
    for field in fields(typing.cast(Any, cls)):
        if field.default is not MISSING:
            found[field.name] = field.default
        elif field.default_factory is not MISSING:
            found[field.name] = field.default_factory()
    return found


class _Remote(io.RawIOBase):
    """An object of a bucket as a seekable file, so that only the wanted row groups are fetched."""

    def __init__(self, store: ObjectStore, key: str, size: int) -> None:
        super().__init__()
        self._store, self._key, self._size, self._at = store, key, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def size(self) -> int:
        return self._size

    def read(self, size: int = -1) -> bytes:
        stop = self._size if size is None or size < 0 else min(self._size, self._at + size)
        start, self._at = self._at, max(stop, self._at)
        return self._store.get_ranges(self._key, [(start, stop)])[0] if stop > start else b""


def _column(values: list[Any], hint: Any) -> pa.Array:
    """Return one field of many records as an array: records in it field by field, never by row."""
    kind = _type(hint)
    if is_dataclass(hint):
        hints = _hints(typing.cast(Any, hint))
        parts = [_column([*map(attrgetter(name), values)], hints[name]) for name in kind.names]
        return pa.StructArray.from_arrays(parts, fields=list(kind))
    if pa.types.is_list(kind) and pa.types.is_struct(kind.value_type):
        ends = [0, *itertools.accumulate(map(len, values))]
        inner = _column([*itertools.chain.from_iterable(values)], typing.get_args(hint)[0])
        return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), inner)
    return pa.array(values, kind)


def _fields(cls: type) -> list[pa.Field]:
    hints = _hints(cls)
    return [_field(field.name, hints[field.name]) for field in fields(typing.cast(Any, cls))]


def _field(name: str, hint: Any) -> pa.Field:
    return pa.field(name, _type(hint), nullable=isinstance(hint, types.UnionType))


def _type(hint: Any) -> pa.DataType:
    origin = typing.get_origin(hint)
    if isinstance(hint, types.UnionType):
        return _type(next(a for a in typing.get_args(hint) if a is not type(None)))
    if origin is list:
        return pa.list_(_type(typing.get_args(hint)[0]))
    if origin is Literal:
        return pa.string()
    if is_dataclass(hint):
        hints = _hints(typing.cast(Any, hint))
        return pa.struct([(field.name, _type(hints[field.name])) for field in fields(hint)])
    return _SCALARS[hint]


def _record(values: Any, hint: Any) -> Any:
    """Turn what pyarrow gives back into the value the hint promises."""
    arguments = typing.get_args(hint)
    if values is None:
        return None
    if isinstance(hint, types.UnionType):
        return _record(values, next(a for a in arguments if a is not type(None)))
    if typing.get_origin(hint) is list:
        return [_record(value, arguments[0]) for value in values]
    if is_dataclass(hint):
        hints = _hints(typing.cast(Any, hint))
        return typing.cast(Any, hint)(**{k: _record(v, hints[k]) for k, v in values.items()})
    if isinstance(values, datetime):
        return values.astimezone(UTC)
    return values


@cache
def _hints(cls: Any) -> dict[str, Any]:
    """Return what a record's fields are; working it out compiles every annotation."""
    return typing.get_type_hints(cls)

"""Tables: one definition of the columns, and rows that come back as they went in."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import IntegrityError, TryAgain
from pipeline.ports import ObjectStore
from pipeline.records import TABLES, Asset, Location, PlannedPatch, Scene, Unusable
from pipeline.store import layout
from pipeline.store.objects import LocalStore, open_store
from pipeline.store.tables import (
    append,
    encode_table,
    fit,
    from_rows,
    json_schemas,
    next_number,
    read_all,
    read_table,
    schema_of,
    to_rows,
    write_table,
)

number = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
when = st.datetimes(datetime(1980, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
assets = st.builds(
    Asset,
    name=text,
    href=text,
    size_bytes=st.none() | st.integers(0, 2**60),
    checksum=st.none() | text,
)
scenes = st.builds(
    Scene,
    scene=text,
    product=text,
    provider=text,
    item=text,
    datatake=text,
    tile=text,
    acquired=when,
    baseline=text,
    offset_add=st.integers(-(2**31), 2**31),
    cloud_percent=st.none() | number,
    sun_elevation_deg=st.none() | number,
    epsg=st.integers(1, 99999),
    x_min_m=number,
    y_min_m=number,
    x_max_m=number,
    y_max_m=number,
    geometry=st.binary(max_size=30),
    assets=st.lists(assets, max_size=3),
    band_indexes=st.lists(st.integers(0, 300), max_size=3),
)
patches = st.builds(
    PlannedPatch,
    shard=st.integers(0, 5),
    sample=st.integers(0, 9),
    time=st.integers(0, 9),
    location=text,
    product=text,
    slot=text,
    group=text,
    candidates=st.lists(st.lists(text, max_size=2), max_size=3),
    epsg=st.integers(1, 99999),
    x_min_m=number,
    y_max_m=number,
    size_m=number,
    lon_deg=number,
    lat_deg=number,
)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(tmp_path)


def location(index: int) -> Location:
    values = {f.name: 0.0 for f in fields(Location)}
    names = {"location": f"c{index}", "zone": "33N", "stratum": "", "index": index, "epsg": 32633}
    return Location(**{**values, **names, "geometry": b""})


@settings(deadline=None, max_examples=40)
@given(st.lists(scenes, max_size=4))
def test_scenes_survive_a_table_and_a_file(rows: list[Scene]) -> None:
    table = from_rows(rows, Scene)
    assert to_rows(table, Scene) == rows
    read = pq.read_table(pa.BufferReader(encode_table(fit(table, Scene, name="t"))))
    assert to_rows(read, Scene) == rows


@settings(deadline=None, max_examples=40)
@given(st.lists(patches, max_size=4))
def test_planned_patches_survive_nested_lists(rows: list[PlannedPatch]) -> None:
    assert to_rows(from_rows(rows, PlannedPatch), PlannedPatch) == rows


@pytest.mark.parametrize("cls", TABLES.values(), ids=TABLES)
def test_every_record_type_has_a_schema_that_parquet_keeps(cls: type) -> None:
    schema = schema_of(cls)
    assert schema.names == [field.name for field in fields(cls)]
    data = encode_table(schema.empty_table())
    back = pq.read_schema(pa.BufferReader(data))
    assert back.equals(schema)
    assert [field.nullable for field in back] == [field.nullable for field in schema]


def test_optional_fields_alone_are_nullable() -> None:
    schema = schema_of(Scene)
    assert schema.field("cloud_percent").nullable
    assert not schema.field("acquired").nullable
    assert schema.field("acquired").type == pa.timestamp("us", tz="UTC")


def test_tables_with_an_outline_are_geoparquet(store: ObjectStore) -> None:
    write_table(store, "locations/000001.parquet", from_rows([location(1)], Location))
    metadata = pq.read_schema(pa.BufferReader(store.get("locations/000001.parquet"))).metadata
    geo = json.loads(metadata[b"geo"])
    assert geo["columns"]["geometry"]["encoding"] == "WKB"
    assert geo["primary_column"] == "geometry"
    assert b"geo" not in (schema_of(Unusable).metadata or {})


def test_json_schemas_cover_every_table_and_tell_what_fields_mean() -> None:
    schemas = json_schemas()
    assert set(schemas) == set(TABLES)
    assert "Northing" in schemas["location"]["properties"]["y_max_m"]["description"]


def test_equal_tables_give_equal_bytes() -> None:
    table = from_rows([location(k) for k in range(500)], Location)
    again = pa.concat_tables([table.slice(0, 77), table.slice(77)])
    assert encode_table(table) == encode_table(again)


def test_row_groups_are_cut_where_asked_and_others_are_not_read(store: ObjectStore) -> None:
    table = from_rows([location(k) for k in range(10)], Location)
    write_table(store, "t.parquet", table, row_groups=[3, 0, 7])
    metadata = pq.read_metadata(pa.BufferReader(store.get("t.parquet")))
    assert [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)] == [3, 7]
    found = read_table(store, "t.parquet", ["index"], filters=[("index", "=", 2)])
    assert found["index"].to_pylist() == [2]
    with pytest.raises(ValueError, match="row groups of 4 rows for 10"):
        encode_table(table, row_groups=[4])


class Counting:
    """A bucket in a folder, which counts the bytes that were asked for."""

    def __init__(self, folder: Path) -> None:
        self.inside, self.url, self.fetched = LocalStore(folder), str(folder), 0

    def size(self, key: str) -> int:
        return self.inside.size(key)

    def get_ranges(self, key: str, ranges: list[tuple[int, int]]) -> list[bytes]:
        self.fetched += sum(stop - start for start, stop in ranges)
        return self.inside.get_ranges(key, ranges)


def test_a_remote_reader_fetches_only_the_row_groups_it_needs(tmp_path: Path) -> None:
    rows = 100_000
    table = from_rows([location(1)], Location).take([0] * rows)
    noise = pa.array(np.random.default_rng(0).random(rows))
    table = table.set_column(1, "index", pa.array(range(rows))).set_column(7, "lon_deg", noise)
    write_table(LocalStore(tmp_path), "t.parquet", table, row_groups=[rows // 20] * 20)
    store = Counting(tmp_path)
    found = read_table(store, "t.parquet", filters=[("index", "=", 12_345)])
    assert found["lon_deg"].to_pylist() == [noise[12_345].as_py()]
    assert store.fetched < store.size("t.parquet") / 4


def test_append_numbers_files_and_read_all_keeps_their_order(store: ObjectStore) -> None:
    assert next_number(store, layout.LOCATIONS) == 1
    assert read_all(store, layout.LOCATIONS, Location).num_rows == 0
    for k in range(3):
        assert (
            append(store, layout.LOCATIONS, from_rows([location(k)], Location), Location) == k + 1
        )
    assert [row.index for row in to_rows(read_all(store, "locations", Location), Location)] == [
        0,
        1,
        2,
    ]
    assert read_all(store, "locations", Location, ["index"]).column_names == ["index"]


def test_columns_that_are_younger_than_a_table_hold_their_default(store: ObjectStore) -> None:
    old, new = (
        Scene(
            **{f.name: 0 for f in fields(Scene) if f.name in ("offset_add", "epsg")},
            **dict.fromkeys(("scene", "product", "provider", "item", "datatake", "tile"), name),
            acquired=datetime(2021, 1, 1, tzinfo=UTC),
            baseline="",
            cloud_percent=None,
            sun_elevation_deg=None,
            **dict.fromkeys(("x_min_m", "y_min_m", "x_max_m", "y_max_m"), 0.0),
            geometry=b"",
            assets=[],
            facts=facts,
        )
        for name, facts in (("old", "{}"), ("new", '{"a":1}'))
    )
    before = from_rows([old], Scene).drop_columns("facts")
    write_table(store, layout.numbered(layout.SCENES, 1), before)
    append(store, layout.SCENES, from_rows([new], Scene), Scene)
    assert to_rows(read_all(store, layout.SCENES, Scene), Scene) == [old, new]
    some = read_all(store, layout.SCENES, Scene, ["facts", "scene"])
    assert some.to_pylist() == [
        {"facts": "{}", "scene": "old"},
        {"facts": '{"a":1}', "scene": "new"},
    ]
    assert to_rows(before, Scene) == [old]
    assert fit(before, Scene, name="t").column_names == schema_of(Scene).names


def test_tables_beside_one_another_are_told_apart(store: ObjectStore) -> None:
    odd = Unusable(product="p", provider="q", item="i", reason="no-crs", detail="")
    append(store, layout.SCENES, schema_of(Scene).empty_table(), Scene)
    write_table(store, layout.numbered("scenes", 1, "unusable"), from_rows([odd], Unusable))
    assert next_number(store, layout.SCENES) == 2
    assert read_all(store, layout.SCENES, Scene).num_rows == 0
    assert to_rows(read_all(store, layout.SCENES, Unusable, suffix="unusable"), Unusable) == [odd]


def test_a_written_table_is_never_changed(store: ObjectStore) -> None:
    one, other = (from_rows([location(k)], Location) for k in (1, 2))
    write_table(store, "t.parquet", one)
    write_table(store, "t.parquet", one)
    with pytest.raises(IntegrityError, match="holds something else"):
        write_table(store, "t.parquet", other)
    assert to_rows(read_table(store, "t.parquet"), Location) == [location(1)]


def test_losing_the_race_for_a_number_says_to_run_again(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = from_rows([location(1)], Location)
    append(store, "locations", table, Location)
    monkeypatch.setattr("pipeline.store.tables.next_number", lambda *_: 1)
    with pytest.raises(TryAgain, match="run this again"):
        append(store, "locations", table, Location)


def test_columns_that_do_not_fit_are_named(store: ObjectStore) -> None:
    table = from_rows([location(1)], Location)
    with pytest.raises(IntegrityError, match="lacks the columns epsg"):
        fit(table.drop_columns("epsg"), Location, name="t")
    text = table.set_column(3, "epsg", pa.array(["32633"]))
    with pytest.raises(IntegrityError, match="`epsg` is string, not int64"):
        fit(text, Location, name="t")
    nulls = table.set_column(3, "epsg", pa.array([None], pa.int64()))
    with pytest.raises(IntegrityError, match="`epsg` has 1 missing"):
        fit(nulls, Location, name="t")
    extra = table.append_column("more", pa.array([1]))
    assert fit(extra, Location, name="t").column_names == schema_of(Location).names


def test_a_file_that_is_no_table_is_an_integrity_error(store: ObjectStore) -> None:
    store.put("t.parquet", b"not Parquet at all")
    with pytest.raises(IntegrityError, match="no sound table"):
        read_table(store, "t.parquet")
    with pytest.raises(KeyError):
        read_table(store, "nothing.parquet")


def test_folders_with_equals_signs_add_no_columns(tmp_path: Path) -> None:
    store = open_store(tmp_path / "year=2021")
    write_table(store, "t.parquet", from_rows([location(1)], Location))
    assert read_table(store, "t.parquet").column_names == schema_of(Location).names


def test_nan_survives(store: ObjectStore) -> None:
    odd = Location(
        **{**{f.name: getattr(location(1), f.name) for f in fields(Location)}, "lon_deg": math.nan}
    )
    assert math.isnan(to_rows(from_rows([odd], Location), Location)[0].lon_deg)

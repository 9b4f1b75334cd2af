"""Bulk search: stac-geoparquet tables give the items that a search API would have given."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from pipeline.errors import GiveUp, RecipeError
from pipeline.ports import Query
from pipeline.products.catalogue import load_product
from pipeline.records import Scene
from pipeline.sources.providers import check_href, load_provider
from pipeline.sources.stac.geoparquet import bulk_items
from pipeline.stages.search.normalise import normalise

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "stac"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="real data (../shared/data) not here")


def item(number: int, *, lon: float = 9.0, day: int = 5, collection: str = "c") -> dict[str, Any]:
    ring = [[lon, 47.0], [lon + 1, 47.0], [lon + 1, 48.0], [lon, 48.0], [lon, 47.0]]
    return {
        "type": "Feature",
        "id": f"i{number}",
        "collection": collection,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"datetime": f"2020-03-{day:02d}T10:00:00Z", "eo:cloud_cover": number},
        "assets": {"a": {"href": f"https://files.example/{number}.tif"}},
    }


def table_of(items: list[dict[str, Any]]) -> pa.Table:
    """Lay items out as the stac-geoparquet specification has it."""
    rows = []
    for entry in items:
        shape = shapely.geometry.shape(entry["geometry"])
        west, south, east, north = shape.bounds
        properties = {
            key: datetime.fromisoformat(value) if key.endswith("datetime") else value
            for key, value in entry["properties"].items()
        }
        rows.append(
            {
                "type": "Feature",
                "stac_version": "1.0.0",
                "id": entry["id"],
                "collection": entry.get("collection"),
                "geometry": shapely.to_wkb(shape),
                "bbox": {"xmin": west, "ymin": south, "xmax": east, "ymax": north},
                "assets": entry["assets"],
                "links": [],
                **properties,
            }
        )
    return pa.Table.from_pylist(rows)


def ask(path: Path, *questions: Query, provider: str = "stac") -> list[str]:
    found = bulk_items(load_provider(provider, url=str(path)), questions)
    return list(dict.fromkeys(str(entry["id"]) for entry, _ in found))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "items.parquet"


def march(first: int, last: int, bbox: tuple[float, float, float, float] | None = None) -> Query:
    start, end = (datetime(2020, 3, day, tzinfo=UTC) for day in (first, last))
    return Query("p", "c", bbox, start, end)


def test_place_time_and_collection_are_asked_of_the_table(path: Path) -> None:
    items = [
        item(0),
        item(1, lon=20.0),
        item(2, day=25),
        item(3, collection="other"),
        item(4, lon=9.5, day=7),
    ]
    pq.write_table(table_of(items), path)
    box = (9.2, 47.2, 9.4, 47.4)
    assert ask(path, march(1, 10)) == ["i0", "i1", "i4"]
    assert ask(path, march(1, 10, box)) == ["i0"]
    assert ask(path, march(1, 10, box), march(1, 10, (20.5, 47.0, 20.6, 47.1))) == ["i0", "i1"]
    assert ask(path, Query("p", "c")) == ["i0", "i1", "i2", "i4"]
    assert ask(path) == []


def test_rows_that_are_far_from_every_question_are_not_read(path: Path) -> None:
    """The pages of what lies outside are spoilt: whoever reads them fails."""
    near, far = [item(n) for n in range(50)], [item(n, lon=100.0, day=20) for n in range(50, 100)]
    pq.write_table(table_of([*near, *far]), path, row_group_size=50)
    group = pq.ParquetFile(path).metadata.row_group(1)
    data = bytearray(path.read_bytes())
    for column in map(group.column, range(group.num_columns)):
        start = column.dictionary_page_offset or column.data_page_offset
        data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(bytes(data))
    assert len(ask(path, march(1, 10, (9.0, 47.0, 10.0, 48.0)))) == 50
    with pytest.raises(GiveUp):
        ask(path, march(1, 28))


def test_a_folder_of_files_is_one_catalogue(tmp_path: Path) -> None:
    folder = tmp_path / "year=2020"
    folder.mkdir()
    for number in range(3):
        pq.write_table(table_of([item(number)]), folder / f"{number}.parquet")
    assert ask(folder, march(1, 10)) == ["i0", "i1", "i2"]


def test_items_across_the_antimeridian_answer_on_both_sides(path: Path) -> None:
    table = table_of([item(0, lon=179.5)])
    halves = shapely.union(shapely.box(179.5, 47, 180, 48), shapely.box(-180, 47, -179.5, 48))
    row = table.to_pylist()[0]
    row["geometry"] = shapely.to_wkb(halves)
    row["bbox"] = {"xmin": 179.5, "ymin": 47.0, "xmax": -179.5, "ymax": 48.0}
    pq.write_table(pa.Table.from_pylist([row]), path)
    for west in (179.6, -179.8):
        assert ask(path, march(1, 10, (west, 47.1, west + 0.1, 47.2))) == ["i0"]


@needs_data
@pytest.mark.parametrize(
    ("service", "product", "name"),
    [
        ("earth-search", "sentinel-2-l2a", "search-post_s2-l2a_2020-03_page1"),
        ("dlr", "enmap-l2a", "items-get_enmap-l2a_2024-06_page1"),
    ],
)
def test_a_recorded_answer_reads_the_same_as_a_table(
    path: Path, service: str, product: str, name: str
) -> None:
    answer = json.loads((DATA / service / f"{name}.json").read_text())["response"]
    pq.write_table(table_of(answer["features"]), path)
    facts = load_product(product)
    provider = load_provider(service, url=str(path))
    query = Query(product, facts.providers[service].collection)
    wanted = {
        row.item: row
        for row in (normalise(entry, facts, service, query) for entry in answer["features"])
        if isinstance(row, Scene)
    }
    found = [
        normalise(entry, facts, service, asked) for entry, asked in bulk_items(provider, [query])
    ]
    assert len(found) == len(wanted) > 0
    for row in found:
        assert isinstance(row, Scene)
        for asset in row.assets:
            check_href(provider, asset.href)  # the provider's own hosts, wherever the table is
        expected = wanted[row.item]
        assert shapely.equals(shapely.from_wkb(row.geometry), shapely.from_wkb(expected.geometry))
        for field in set(Scene.__slots__) - {"geometry"}:
            assert getattr(row, field) == getattr(expected, field), field


def test_a_table_of_one_s_own_lists_files_beside_it_only(path: Path, tmp_path: Path) -> None:
    pq.write_table(table_of([item(0)]), path)
    provider = load_provider("stac", url=str(path))
    check_href(provider, str(tmp_path / "scene.tif"))
    for href in ("https://files.example/0.tif", "/etc/passwd"):
        with pytest.raises(GiveUp, match="refused"):
            check_href(provider, href)
    with pytest.raises(RecipeError, match="does not exist"):
        load_provider("earth-search", url=str(tmp_path / "none.parquet"))


def no_parquet(path: Path) -> None:
    path.write_bytes(b"<html>Please log in</html>")


def cut_short(path: Path) -> None:
    pq.write_table(table_of([item(0)]), path)
    path.write_bytes(path.read_bytes()[:-20])


def without_assets(path: Path) -> None:
    pq.write_table(table_of([item(0)]).drop_columns(["assets"]), path)


def numbers_for_ids(path: Path) -> None:
    table = table_of([item(0)]).drop_columns(["collection"])
    pq.write_table(table.append_column("collection", pa.array([1])), path)


@pytest.mark.parametrize("spoil", [no_parquet, cut_short, without_assets, numbers_for_ids])
def test_what_is_no_stac_geoparquet_says_so(path: Path, spoil: Callable[[Path], None]) -> None:
    spoil(path)
    with pytest.raises(GiveUp) as error:
        ask(path, march(1, 10))
    assert error.value.failure in ("corrupt", "gone")


def test_odd_values_in_a_table_end_as_named_rejections(path: Path) -> None:
    rows = table_of([item(n) for n in range(4)]).to_pylist()
    rows[0]["geometry"] = b"\x00"
    rows[1]["id"] = None
    rows[2]["assets"] = None
    rows[3]["datetime"] = None
    pq.write_table(pa.Table.from_pylist(rows), path)
    provider = load_provider("stac", url=str(path))
    facts = load_product("sentinel-2-l2a")
    facts = facts.model_copy(
        update={
            "providers": {"stac": facts.providers["stac"].model_copy(update={"collection": "c"})}
        }
    )
    found = bulk_items(provider, [march(1, 10, (9.0, 47.0, 10.0, 48.0))])
    reasons = [
        getattr(normalise(entry, facts, "stac", asked), "reason", "") for entry, asked in found
    ]
    assert reasons == ["no-geometry", "bad-value", "bad-value", "no-datetime"]


def test_a_large_table_answers_many_questions_in_one_pass(path: Path) -> None:
    rng = np.random.default_rng(0)
    items = [item(n, lon=float(rng.uniform(-170, 170)), day=1 + n % 28) for n in range(3000)]
    pq.write_table(table_of(items), path)
    boxes = [(lon, 46.0, lon + 0.2, 49.0) for lon in rng.uniform(-170, 170, 40).tolist()]
    questions = [march(1, 15, box) for box in boxes] + [march(15, 29, box) for box in boxes]
    expected = {
        entry["id"]
        for entry in items
        for box in boxes
        if entry["geometry"]["coordinates"][0][0][0] <= box[2]
        and entry["geometry"]["coordinates"][0][1][0] >= box[0]
    }
    assert set(ask(path, *questions)) == expected

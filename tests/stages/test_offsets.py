"""Sentinel-2's offset: the truth table of every processing baseline at every provider."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.products.catalogue import load_product
from pipeline.records import Scene, Unusable
from pipeline.stages.search.normalise import normalise

SENTINEL = load_product("sentinel-2-l2a")

#: Which have the offset of -1000 by ESA's processing: from 04.00 on, whenever it was acquired.
BASELINES = {
    **{"00.01": 0, "02.14": 0, "03.01": 0, "3.9": 0},
    **{"04.00": -1000, "05.00": -1000, "05.11": -1000, "10.00": -1000},
}
#: Words of providers that say nothing of the offset themselves, and what each does with it.
AS_DELIVERED = ("planetary-computer", "copernicus", "simulated", "stac", "static")


def item(provider: str, baseline: str | None, **properties: Any) -> dict[str, Any]:
    facts = SENTINEL.providers[provider]
    grid = {"proj:shape": [1830, 1830], "proj:transform": [60, 0, 499980, 0, -60, 5900040]}
    ring = [[-9, 53.2], [-9, 52.3], [-7.7, 52.3], [-7.7, 53.2], [-9, 53.2]]
    return {
        "id": "S2A_MSIL2A_20180105T115411_N0500_R023_T29UNU_20230605T164454",
        "collection": facts.collection,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "datetime": "2018-01-05T11:54:11Z",
            "proj:epsg": 32629,
            "s2:datatake_id": "GS2A_20180105T115411_038058_N04.00",
            "s2:mgrs_tile": "29UNU",
            "grid:code": "MGRS-29UNU",
            "s2:processing_baseline": baseline,
            "processing:version": baseline,
            **properties,
        },
        "assets": {
            file.asset: {"href": f"https://files.example/{file.asset}.tif", **grid}
            for files in facts.assets.values()
            for file in files
        },
    }


def outcome(provider: str, baseline: str | None, **properties: Any) -> int | str:
    row = normalise(item(provider, baseline, **properties), SENTINEL, provider, None)
    return row.reason if isinstance(row, Unusable) else row.offset_add


def test_every_provider_is_in_the_table() -> None:
    others = {"earth-search", "local", "earth-engine"}
    assert set(SENTINEL.providers) == {*AS_DELIVERED, *others}
    assert SENTINEL.providers["earth-engine"].offset_applied is True, "*_HARMONIZED"


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("provider", AS_DELIVERED)
def test_where_values_come_as_delivered_the_baseline_decides(provider: str, baseline: str) -> None:
    assert outcome(provider, baseline) == BASELINES[baseline]


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize(("flag", "removed"), [(True, True), (False, False), (None, None)])
def test_earth_search_says_for_each_item_whether_it_removed_it(
    baseline: str, flag: bool | None, removed: bool | None
) -> None:
    """`raster:bands` offsets of -0.1 beside a flag `true` would subtract it twice."""
    known = {} if flag is None else {"earthsearch:boa_offset_applied": flag}
    expected: int | str = BASELINES[baseline]
    if removed is True:
        expected = 0 if expected else "offset-contradiction"
    if removed is None and expected:
        expected = "offset-unknown"
    assert outcome("earth-search", baseline, **known) == expected


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("stated", [None, 0, -1000, -1])
def test_metadata_of_a_folder_must_agree_with_its_baseline(
    baseline: str, stated: int | None
) -> None:
    known = {} if stated is None else {"terrashard:offset_add": stated}
    agrees = stated in (None, BASELINES[baseline])
    expected = BASELINES[baseline] if agrees else "offset-contradiction"
    assert outcome("local", baseline, **known) == expected


@pytest.mark.parametrize("provider", [*AS_DELIVERED, "earth-search", "local"])
@pytest.mark.parametrize("baseline", [None, "", "unknown"])
def test_without_a_baseline_nobody_can_tell(provider: str, baseline: str | None) -> None:
    known = {"earthsearch:boa_offset_applied": False}
    assert outcome(provider, baseline, **known) == "no-baseline"


def test_a_scene_row_carries_what_was_decided() -> None:
    row = normalise(item("planetary-computer", "05.00"), SENTINEL, "planetary-computer", None)
    assert isinstance(row, Scene)
    assert (row.baseline, row.offset_add) == ("05.00", -1000)

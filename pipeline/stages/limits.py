"""Limits: what the recipe demands of a scene before any of its pixels is read."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.recipe import LoadedRecipe

#: Columns of `pipeline.records.Scene` that `may_serve` looks at.
LIMITED_COLUMNS = ("product", "cloud_percent", "sun_elevation_deg")


def may_serve(loaded: LoadedRecipe, product: str) -> pc.Expression:
    """Return the filter of a table of scenes that keeps those of a product that can be candidates.

    A cloud cover that the catalogue does not state counts as 100 %, an unknown sun as high.
    """
    wish = loaded.wishes[product]
    return (
        (pc.field("product") == product)
        & (_known("cloud_percent", 100.0) <= wish.max_cloud_percent)
        & (_known("sun_elevation_deg", 90.0) >= wish.min_sun_elevation_deg)
    )


def _known(column: str, otherwise: float) -> pc.Expression:
    return pc.coalesce(pc.field(column), pa.scalar(otherwise))

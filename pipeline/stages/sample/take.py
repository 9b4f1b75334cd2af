"""Sample: which cells of ground the data set is about.

A location is a cell, and its id is its position, so nothing has to be compared in pairs: a draw is
snapped to its cell, a cell is taken once, by the first draw that hits it, and a cell that crosses
the edge of its zone is nobody's. Everything is a function of (seed, index): asking for more
locations continues where the last run stopped.

Free cells (`snap = "scene"`) are aligned to pixels only. Each is taken once too, but they may
overlap: two points side by side get a patch each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from pipeline.errors import RecipeError
from pipeline.raster.lattice import Cells, cells_at, cells_from_corners
from pipeline.raster.zones import Bools, Ints
from pipeline.recipe import Cities, Grid, LoadedRecipe, Points, Scenes, Uniform
from pipeline.stages.limits import may_serve
from pipeline.stages.sample.draws import Draws, drawer_of, in_region
from pipeline.stages.sample.points import read_points
from pipeline.stages.sample.tilings import Tiling, tile_region, tile_scenes

#: Draws made at a time: bounds memory, decides nothing.
_BATCH = 1 << 18

#: Draws after which no more new cells are expected: per wanted location, and at least.
_PATIENCE = 100
_LEAST_PATIENCE = 200_000

#: Columns of `pipeline.records.Location`.
_SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in (
            ("location", pa.string()),
            ("index", pa.int64()),
            ("zone", pa.string()),
            ("epsg", pa.int64()),
            ("x_min_m", pa.float64()),
            ("y_max_m", pa.float64()),
            ("size_m", pa.float64()),
            ("lon_deg", pa.float64()),
            ("lat_deg", pa.float64()),
            ("stratum", pa.string()),
            ("geometry", pa.binary()),
        )
    ]
)


@dataclass(frozen=True, slots=True)
class Sampled:
    """New locations and what it took to find them."""

    table: pa.Table
    """Rows of `Location`, in the order of their indices."""
    draws: int
    """Draws made, points read or cells listed, in this call."""
    lost_at_zone_edges: int
    """Those of them whose cell crosses the edge of its zone or hemisphere."""


@dataclass(frozen=True, slots=True)
class _Taken:
    """Cells taken one after another, each with its index and stratum."""

    cells: Cells
    index: Ints
    stratum: list[str]


def sample(
    loaded: LoadedRecipe, *, scenes: pa.Table | None = None, known: pa.Table | None = None
) -> pa.Table:
    """Return the new locations of a recipe, rows of `Location`; see `take`."""
    return take(loaded, scenes=scenes, known=known).table


def take(
    loaded: LoadedRecipe,
    *,
    scenes: pa.Table | None = None,
    known: pa.Table | None = None,
    count: int | None = None,
) -> Sampled:
    """Find the locations of a recipe that are not known yet.

    Location k of a strategy that draws is the same whatever the count. The listing strategies
    (`grid`, `scenes`, `points`) take every cell there is.

    Parameters
    ----------
    loaded : LoadedRecipe
    scenes : pa.Table or None
        Rows of `Scene`; the strategy `scenes` tiles them, the others do not look at them.
    known : pa.Table or None
        The locations that the root has already: all rows that earlier calls returned.
    count : int or None
        How many locations there shall be, known ones included, of a strategy that draws; None: the
        recipe's `count`. Fewer are found where the recipe's `max_draws` ends the search.

    Raises
    ------
    RecipeError
        The recipe asks for what does not exist: more cells than a region has, a file that is not
        there, a tiling of scenes before any search.
    """
    strategy = loaded.recipe.sample
    before, last = _known_keys(known, loaded)
    match strategy:
        case Cities() | Uniform():
            return _draw(strategy, loaded, before, last, strategy.count if count is None else count)
        case Points():
            return _snap_points(strategy, loaded, before)
        case Grid():
            tiling = _tile_grid(strategy, loaded)
        case Scenes():
            tiling = _tile_scenes(strategy, loaded, scenes)
    return _take_tiling(tiling, before, last)


# --- strategies that draw --------------------------------------------------------------------


def _draw(
    strategy: Cities | Uniform, loaded: LoadedRecipe, before: Ints, last: int, count: int
) -> Sampled:
    """Draw until `count` cells are taken, known ones included, or `max_draws` are made."""
    taken, missing = before, count - len(before)
    start, lost, parts, made = last + 1, 0, [], 0
    for first, draws in _batches(strategy, loaded, start, missing):
        cells = _snap(draws.lon_deg, draws.lat_deg, loaded)
        usable = cells.admissible()
        new = _first_of_each(cells.keys(), usable & draws.wanted, taken)[:missing]
        missing -= len(new)
        stop = len(cells) if missing else int(new[-1]) + 1
        lost += _edge_losses(cells, usable, draws.wanted, stop)
        names = [draws.names[k] for k in draws.stratum[new].tolist()]
        parts.append(_Taken(cells[new], first + new, names))
        taken = np.union1d(taken, cells.keys()[new])
        made = first + stop - start
        if not missing:
            break
    if missing > 0 and not strategy.complete:
        raise RecipeError(
            f"recipe {loaded.name}: `sample.count` is {count}, but {len(taken)} different "
            f"cells are all that {_patience(count):,} draws found; ask for fewer, or "
            "widen the region or the spread."
        )
    return Sampled(_table(parts), made, lost)


def _batches(
    strategy: Cities | Uniform, loaded: LoadedRecipe, start: int, missing: int
) -> Iterator[tuple[int, Draws]]:
    """Yield batches of draws with the index of their first, until patience or `max_draws` ends."""
    if missing <= 0:
        return
    draw = drawer_of(strategy, loaded.recipe.seed)
    size = min(_BATCH, 2 * missing + 1024)
    stop = start + _patience(strategy.count)
    if strategy.complete:
        stop = min(stop, strategy.draws_allowed())
    for first in range(start, stop, size):
        yield first, draw(first, min(size, stop - first))


def _patience(count: int) -> int:
    return max(_LEAST_PATIENCE, _PATIENCE * count)


# --- strategies that list --------------------------------------------------------------------


def _snap_points(strategy: Points, loaded: LoadedRecipe, before: Ints) -> Sampled:
    """Take the cell of each point; the index is the point's position in the file."""
    points = read_points(loaded.path(strategy.path))
    cells = _snap(points.lon_deg, points.lat_deg, loaded)
    usable = cells.admissible()
    new = _first_of_each(cells.keys(), usable, before)
    part = _Taken(cells[new], new, [points.names[k] for k in new.tolist()])
    lost = _edge_losses(cells, usable, np.ones(len(cells), dtype=bool), len(cells))
    return Sampled(_table([part]), len(cells), lost)


def _tile_grid(strategy: Grid, loaded: LoadedRecipe) -> Tiling:
    if loaded.recipe.cell.snap != "lattice":
        raise RecipeError(
            f'recipe {loaded.name}: `sample.strategy = "grid"` lists the fixed tiling, so '
            '`cell.snap` must be "lattice".'
        )
    return tile_region(strategy.region, loaded.lattice, loaded.recipe.cell.size_px)


def _tile_scenes(strategy: Scenes, loaded: LoadedRecipe, scenes: pa.Table | None) -> Tiling:
    """Tile the scenes that can be candidates at all: not too cloudy, not in the dark."""
    key = next(key for key, wish in loaded.wishes.items() if wish.id == strategy.product)
    if scenes is None:
        raise RecipeError(
            f'recipe {loaded.name}: `sample.strategy = "scenes"` tiles what was found; run the '
            "stage `search` first."
        )
    tiling = tile_scenes(
        scenes.filter(may_serve(loaded, key)),
        loaded.lattice,
        loaded.recipe.cell.size_px,
        tolerance_m=loaded.pixel_m(key) / 2,
        min_cover_fraction=strategy.min_cover_fraction,
        own_corner=loaded.recipe.cell.snap == "scene",
    )
    if strategy.region is None:
        return tiling
    inside = in_region(*tiling.cells.centres(), strategy.region)
    return Tiling(tiling.cells[inside], [tiling.stratum[k] for k in np.flatnonzero(inside)])


def _take_tiling(tiling: Tiling, before: Ints, last: int) -> Sampled:
    """Take the listed cells that are not known, numbered on from the last index."""
    cells = tiling.cells
    new = np.flatnonzero(~np.isin(cells.keys(), before))
    index = last + 1 + np.arange(len(new))
    part = _Taken(cells[new], index, [tiling.stratum[k] for k in new.tolist()])
    return Sampled(_table([part]), len(cells), 0)


# --- what they share -------------------------------------------------------------------------


def _snap(lon_deg: Any, lat_deg: Any, loaded: LoadedRecipe) -> Cells:
    cell = loaded.recipe.cell
    return cells_at(lon_deg, lat_deg, loaded.lattice, cell.size_px, free=cell.snap == "scene")


def _known_keys(known: pa.Table | None, loaded: LoadedRecipe) -> tuple[Ints, int]:
    """Return the keys of the known cells and their last index, -1 if there are none."""
    if known is None or not known.num_rows:
        return np.empty(0, dtype=np.int64), -1
    epsg, x, y = (known.column(name).to_numpy() for name in ("epsg", "x_min_m", "y_max_m"))
    cell = loaded.recipe.cell
    cells = cells_from_corners(epsg, x, y, loaded.lattice, cell.size_px, free=cell.snap == "scene")
    return cells.keys(), int(known.column("index").to_numpy().max())


def _first_of_each(keys: Ints, usable: Bools, taken: Ints) -> Ints:
    """Return the positions, ascending, where a usable key that is not taken comes first."""
    position = np.flatnonzero(usable)
    _, first = np.unique(keys[position], return_index=True)
    position = np.sort(position[first])
    return position[~np.isin(keys[position], taken)]


def _edge_losses(cells: Cells, usable: Bools, wanted: Bools, stop: int) -> int:
    """Count the wanted draws before `stop` in some zone whose cell is in none."""
    return int(((cells.number > 0) & wanted & ~usable)[:stop].sum())


def _table(parts: list[_Taken]) -> pa.Table:
    """Return rows of `Location`."""
    return pa.concat_tables([_SCHEMA.empty_table(), *map(_rows, parts)])


def _rows(part: _Taken) -> pa.Table:
    cells = part.cells
    lon, lat = cells.centres()
    columns = {
        "location": cells.ids(),
        "index": part.index,
        "zone": cells.zones(),
        "epsg": cells.epsg,
        "x_min_m": cells.x_min_m,
        "y_max_m": cells.y_max_m,
        "size_m": np.full(len(cells), cells.size_m),
        "lon_deg": lon,
        "lat_deg": lat,
        "stratum": part.stratum,
        "geometry": shapely.to_wkb(cells.outlines()),
    }
    return pa.table(columns, schema=_SCHEMA)

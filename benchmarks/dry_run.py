"""Draw, search and plan the built-in recipes against a catalogue of the size of the real ones.

    python benchmarks/dry_run.py [RECIPE ...] [--folder DIR] [--count N] [--end DATE]

The catalogue (`pipeline.simulate.world.catalogue`) has every scene of the land that the satellites
could have taken and is asked over loopback HTTP, in a process of its own, page by page, at the
rates that the recipes' providers are asked at. Each command runs in a process of its own too. Maps
of land cover are files of the right size without content.

A recipe runs at its full size unless an option cuts it. With `--calls` only the calls are counted:
the client asks and pages as ever, but pages hold little more than the ids of items. With `--table`
the plan is made of a scenes table that is written at once, without a catalogue in between.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import rasterio

from pipeline.recipe import LoadedRecipe, load_recipe
from pipeline.records import Scene
from pipeline.run.search import Answers, locations_of
from pipeline.simulate.world.catalogue import WorldServer
from pipeline.simulate.world.scenes import scene_tables
from pipeline.sources.providers import provider_of
from pipeline.sources.stac.catalogue import Catalogue
from pipeline.stages.search.beside import LEADER_COLUMNS
from pipeline.stages.search.questions import queries
from pipeline.store.layout import SCENES
from pipeline.store.objects import open_store
from pipeline.store.tables import append, from_rows, read_all

RECIPES = (
    "ssl4eo-s12",
    "ssl4eo-l",
    "ssl4eo-l-benchmark",
    "spectralearth",
    "spectralearth-labels",
    "triplets",
)
_COMMAND = "from pipeline.cli import main; main()"
#: File name, EPSG, pixel, western and northern edge, columns, rows of the maps (their product files
#: and the agencies' own files).
MAPS = [
    (f"Annual_NLCD_LndCov_{year}_CU_C1V0.tif", 5070, 30, -2415585, 3314805, 160_000, 105_000)
    for year in (2011, 2019, 2022, 2023)
]
MAPS += [
    (f"{year}_30m_cdls.tif", 5070, 30, -2356095, 3172605, 153_811, 96_523)
    for year in (2011, 2019, 2022, 2023)
]
MAPS += [("U2018_CLC2018_V2020_20u1.tif", 3035, 100, 900_000, 5_500_000, 65_000, 46_000)]


@dataclass(frozen=True, slots=True)
class Spent:
    """What a command took."""

    wall_s: float
    cpu_s: float
    peak_gb: float
    said: str


def write_maps(folder: Path) -> None:
    """Write maps without content: their blocks are absent, and fill."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, epsg, pixel, west, north, columns, rows in MAPS:
        with rasterio.open(
            folder / name,
            "w",
            driver="GTiff",
            width=columns,
            height=rows,
            count=1,
            dtype="uint8",
            crs=f"EPSG:{epsg}",
            transform=rasterio.Affine(pixel, 0, west, 0, -pixel, north),
            tiled=True,
            blockxsize=512,
            blockysize=512,
            compress="deflate",
            SPARSE_OK=True,
        ):
            pass


@dataclass(frozen=True, slots=True)
class Cut:
    """What a recipe is cut to; None: not."""

    count: int | None = None
    end: str | None = None
    region: str | None = None


def recipe_text(name: str, url: str, cut: Cut = Cut()) -> str:
    """Return a built-in recipe that asks the catalogue at `url`, cut where something is given."""
    text = files("pipeline.recipes").joinpath(f"{name}.toml").read_text()

    def asked_here(found: re.Match[str]) -> str:
        names = re.findall(r'"([a-z0-9-]+)"', found[1])
        urls = ", ".join(f'{provider} = "{url}/{provider}"' for provider in names)
        return f"{found[0]}\nurl = {{ {urls} }}"

    text = re.sub(r"^provider = (.+)$", asked_here, text, flags=re.MULTILINE)
    if cut.count:
        text = re.sub(r"^count = \d+", f"count = {cut.count}", text, flags=re.MULTILINE)
    if cut.end:
        text = re.sub(r"^end = [\d-]+", f"end = {cut.end}", text, flags=re.MULTILINE)
    if cut.region:
        text = text.replace("[sample]", f"[sample]\nregion = [{cut.region}]", 1)
    return text


def spend(command: list[str]) -> Spent:
    """Run a command of terrashard in a process of its own."""
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, *command], stdout=out, stderr=subprocess.STDOUT
        )
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        wall_s = time.perf_counter() - begun
        out.seek(0)
        said = out.read().decode()
    if child.returncode:
        raise SystemExit(f"`terrashard {' '.join(command)}` ended with {child.returncode}:\n{said}")
    return Spent(wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9, said)


def rows_of(root: Path, table: str) -> int:
    """Return the rows of all numbered files of a table."""
    paths = (root / table).glob("[0-9]*[0-9].parquet")
    return sum(pq.read_metadata(path).num_rows for path in paths)


def counts(url: str) -> dict[str, dict[str, int]]:
    """Return what the catalogue has answered so far."""
    with urllib.request.urlopen(f"{url}/counts") as answer:
        return dict(json.load(answer))


def measure(name: str, url: str, folder: Path, cut: Cut) -> None:
    """Run the stages of a recipe up to the dry run, and print what it took."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe, root = folder / f"{name}.toml", folder / "root"
    recipe.write_text(recipe_text(name, url, cut))
    if 'path = "labels"' in recipe.read_text() and not (folder / "labels").exists():
        write_maps(folder / "labels")
    stages = [stage for stage in load_recipe(recipe).stages() if stage in ("sample", "search")]
    before, spent = counts(url), {}
    for stage in stages:
        spent[stage] = spend([stage, str(recipe), "--root", str(root)])
        print(f"<!-- {name} {stage}: {spent[stage].wall_s:.0f} s -->", flush=True)
    after = counts(url)
    plan = spend(["plan", str(recipe), "--root", str(root), "--dry-run"])
    asked = {
        kind: {key: after[kind][key] - before[kind].get(key, 0) for key in after[kind]}
        for kind in after
    }
    locations, calls = rows_of(root, "locations"), sum(asked["calls"].values())
    search = spent["search"]
    print(f"\n### {name}\n\n| what | figure |\n|---|---|")
    for what, figure in (
        ("locations", f"{locations:,}"),
        ("items returned", f"{sum(asked['items'].values()):,}"),
        ("bytes returned", f"{sum(asked['bytes'].values()) / 1e9:.1f} GB"),
        ("scenes", f"{rows_of(root, 'scenes'):,}"),
        ("calls", f"{calls:,}"),
        ("calls per 1,000 locations", f"{1000 * calls / locations:.1f}"),
        ("sample", f"{spent['sample'].wall_s:.0f} s, {spent['sample'].peak_gb:.1f} GB"),
        ("search", f"{search.wall_s:.0f} s, of processor {search.cpu_s:.0f} s"),
        ("search, peak memory", f"{search.peak_gb:.1f} GB"),
        ("plan --dry-run", f"{plan.wall_s:.0f} s, of processor {plan.cpu_s:.0f} s"),
        ("plan --dry-run, peak memory", f"{plan.peak_gb:.1f} GB"),
    ):
        print(f"| {what} | {figure} |")
    print("\n| collection | calls | items | bytes an item |\n|---|---|---|---|")
    for key, number in asked["calls"].items():
        if number:
            items = asked["items"][key]
            size = asked["bytes"][key] / max(items, 1)
            print(f"| {key} | {number:,} | {items:,} | {size:,.0f} |")
    print(f"\n```\n{search.said.strip()}\n{plan.said.strip()}\n```", flush=True)


def count_calls(name: str, url: str, folder: Path, cut: Cut) -> None:
    """Ask what `search` asks, read ids only, and print how many calls that took."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe, root = folder / f"{name}.toml", folder / "root"
    recipe.write_text(recipe_text(name, url, cut))
    loaded, locations = load_recipe(recipe), None
    if "search" not in loaded.stages()[:1]:
        if not (root / "locations").exists():
            spend(["sample", str(recipe), "--root", str(root)])
        locations = locations_of(loaded, open_store(str(root)))
    print(f"\n### {name}, calls\n\n| product | provider | questions | items | calls |")
    print("|---|---|---|---|---|", flush=True)
    total, leaders = 0, dict[str, pa.Table]()
    for product in loaded.leaders_first():
        wish = loaded.wishes[product]
        for provider in wish.providers:
            if wish.path is not None:
                continue
            there = provider_of(loaded, product, provider)
            asked = queries(
                loaded,
                product,
                locations,
                leaders=leaders.get(loaded.leader[product]),
                provider=provider,
            )
            there = there.model_copy(update={"requests_per_s": 1e6})
            with Catalogue(there) as catalogue:
                items = sum(1 for query in asked for _ in catalogue.search(query))
                calls = catalogue.requests
            total += calls
            print(
                f"| {product} | {provider} | {len(asked):,} | {items:,} | {calls:,} |", flush=True
            )
        if locations is None and product in {wish.follows for wish in loaded.wishes.values()}:
            leaders[product] = leading_scenes(loaded, product)
    each = (
        ""
        if locations is None
        else f", {1000 * total / locations.num_rows:.1f} per 1,000 locations"
    )
    print(f"\n{total:,} calls{each}", flush=True)


def leading_scenes(loaded: LoadedRecipe, product: str) -> pa.Table:
    """Return the scenes that `search` would find of a product that others follow."""
    provider = loaded.wishes[product].providers[0]
    asked = queries(loaded, product, None, provider=provider)
    tables = scene_tables(loaded, product, provider, asked)
    return pa.concat_tables(table.select(list(LEADER_COLUMNS)) for table in tables)


def plan_table(name: str, url: str, folder: Path, cut: Cut) -> None:
    """Write the scenes that `search` would find, plan, and print what that took."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe, root = folder / f"{name}.toml", folder / "root"
    recipe.write_text(recipe_text(name, url, cut))
    loaded, store = load_recipe(recipe), open_store(str(root))
    if 'path = "labels"' in recipe.read_text() and not (folder / "labels").exists():
        write_maps(folder / "labels")
    sample = ["sample", str(recipe), "--root", str(root)]
    after_search = loaded.stages()[0] == "search"
    if not after_search and not (root / "locations").exists():
        spend(sample)
    locations = locations_of(loaded, store)
    leaders = None
    for product in loaded.leaders_first():
        wish = loaded.wishes[product]
        provider = wish.providers[0]
        if locations is None and loaded.leader[product] != product:
            found = read_all(store, SCENES, Scene, columns=LEADER_COLUMNS)
            leaders = found.filter(pc.field("product") == loaded.leader[product])
        asked = queries(loaded, product, locations, leaders=leaders, provider=provider)
        if wish.path is None:
            for table in scene_tables(loaded, product, provider, asked):
                append(store, SCENES, table, Scene)
        else:
            rows = Answers(loaded, product, provider).rows(asked)
            maps = [row for row in rows if isinstance(row, Scene)]
            append(store, SCENES, from_rows(maps, Scene), Scene)
    if after_search:
        spend(sample)
    plan = spend(["plan", str(recipe), "--root", str(root), "--dry-run"])
    print(f"\n### {name}, plan\n\n| what | figure |\n|---|---|")
    print(f"| locations | {rows_of(root, 'locations'):,} |")
    print(f"| scenes | {rows_of(root, 'scenes'):,} |")
    print(f"| plan --dry-run | {plan.wall_s:.0f} s, of processor {plan.cpu_s:.0f} s |")
    print(f"| peak memory | {plan.peak_gb:.1f} GB |")
    print(f"\n```\n{plan.said.strip()}\n```", flush=True)


def serve(folder: Path, *, hollow: bool) -> None:
    """Serve the catalogue, and say where, until the process is ended."""
    with WorldServer(folder, hollow=hollow) as server:
        print(server.url, flush=True)
        server.wait()


def main() -> None:
    """Start the catalogue, then measure one recipe after another."""
    parser = argparse.ArgumentParser(description="Dry runs of full recipes.")
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--folder", type=Path, help="keep recipes and roots here")
    parser.add_argument("--count", type=int, help="locations to draw in place of the recipe's")
    parser.add_argument("--end", help="last day in place of the recipe's")
    parser.add_argument("--region", help="of recipes whose cells are cut from scenes")
    parser.add_argument("--calls", action="store_true", help="count calls only")
    parser.add_argument("--table", action="store_true", help="plan without a search")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    cut = Cut(options.count, options.end, options.region)
    run = count_calls if options.calls else plan_table if options.table else measure
    if options.serve:
        serve(options.serve, hollow=options.calls)
        return
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, __file__, "--serve", temporary]
        command += ["--calls"] * options.calls
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            for name in options.recipes:
                folder = options.folder or Path(temporary)
                run(name, url, folder / name, cut)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()

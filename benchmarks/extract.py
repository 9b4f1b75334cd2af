"""Extraction against what people do otherwise: same archive, same patches, two cores, one run.

Two archives on local disk: an EnMAP-like cube (1200 x 1200 x 224 int16, blocks of 512 pixels with
all bands in one) tiled into patches of 128 px, and a Sentinel-2 tile (10,980 px, one file a band,
blocks of 1024) with scattered cells of 264 px. Beside Terrashard's whole task (read, decide, mask,
encode, hash, write, commit):

* a rasterio loop that opens each file, reads the patch's window and closes it; nothing else;
* `odc.stac.load` for single locations, which is timed for a few of them and scaled;
* the bound: every touched block decoded once by GDAL, every patch encoded once; nothing else.

Each method gets the same two processes. `--quick` makes both archives smaller.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _extract_archives import Case, enmap_case, sentinel_case
from _extract_rivals import bound, by_odc_stac, by_rasterio

from pipeline.engine.dask import DaskEngine
from pipeline.run.extract import ExtractReport, run_extract
from pipeline.store.objects import open_store
from pipeline.watch.progress import Progress

PROCESSES = 2


@dataclass(frozen=True)
class Timed:
    """How long a method took for how many patches."""

    name: str
    patches: float
    seconds: float
    note: str = ""

    @property
    def rate(self) -> float:
        """Patches per second."""
        return self.patches / self.seconds


def main() -> None:
    """Make the archives, run every method on each, and print one table a case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--case", choices=["enmap", "sentinel-2"])
    options = parser.parse_args()
    makers = {"enmap": enmap_case, "sentinel-2": sentinel_case}
    for name, make in makers.items():
        if options.case in (None, name):
            folder = Path(tempfile.mkdtemp(prefix=f"terrashard-{name}-"))
            try:
                report(name, run(make(folder, quick=options.quick)))
            finally:
                shutil.rmtree(folder)


def run(case: Case) -> list[Timed]:
    """Time every method on one archive; the page cache holds it for all of them."""
    for path in case.files():
        path.read_bytes()
    with ProcessPoolExecutor(PROCESSES) as pool:
        list(pool.map(time.sleep, [0.5] * PROCESSES))  # the processes are there before the clock
        bounded = timed("bound", case.count, pool, bound, case.shares())
        loop = timed("rasterio loop", case.count, pool, by_rasterio, case.shares())
        few = case.few(PROCESSES)
        odc = timed("odc-stac, each location", len(few), pool, by_odc_stac, [[p] for p in few])
    ours = extract(case)
    return [bounded, ours, loop, odc]


def timed(
    name: str,
    patches: int,
    pool: ProcessPoolExecutor,
    method: Callable[[Any], None],
    shares: Iterable[Any],
) -> Timed:
    """Run a method over its shares in the pool."""
    began_s = time.perf_counter()
    list(pool.map(method, shares))
    return Timed(name, patches, time.perf_counter() - began_s)


def extract(case: Case) -> Timed:
    """Run the real thing on a cluster that is already there."""
    with DaskEngine(workers=PROCESSES) as engine, Progress(live=False) as progress:
        list(engine.run(_warm, range(4 * PROCESSES)))
        began_s = time.perf_counter()
        done: ExtractReport = run_extract(
            case.loaded(), open_store(case.root), engine, progress=progress
        )
        seconds = time.perf_counter() - began_s
    if done.written != case.count:
        raise SystemExit(f"only {done.written} of {case.count} patches were written: {done}")
    ratio = done.blocks_decoded / done.blocks_touched
    note = f"blocks decoded / touched: {done.blocks_decoded} / {done.blocks_touched} = {ratio:.2f}"
    return Timed("Terrashard extract", case.count, seconds, note)


def _warm(_: int) -> None:
    import pipeline.task.shard  # noqa: F401 - a worker that lives on has imported it

    time.sleep(0.3)


def report(name: str, rows: list[Timed]) -> None:
    """Print one table."""
    ours = next(row for row in rows if row.name.startswith("Terrashard"))
    print(f"\n### {name}: {ours.patches:.0f} patches, {PROCESSES} processes\n")
    print("| method | patches timed | seconds | patches/s | Terrashard is | |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.name} | {row.patches:.0f} | {row.seconds:.2f} | {row.rate:.3g} "
            f"| {ours.rate / row.rate:.2f} x | {row.note} |"
        )


if __name__ == "__main__":
    main()

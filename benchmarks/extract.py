"""Extraction against what people do otherwise: same archive, same patches, two cores, one run.

Two archives on local disk: an EnMAP-like cube (1200 x 1200 x 224 int16, blocks of 512 pixels with
all bands in one) tiled into patches of 128 px, and Sentinel-2 tiles (10,980 px, one file a band,
blocks of 1024) with 96 scattered cells of 264 px each. Beside Terrashard's whole task (read,
decide, mask, encode, hash, write, commit):

* a rasterio loop that opens each file, reads the patch's window and closes it; nothing else;
* `odc.stac.load` for single locations, which is timed for a few of them and scaled;
* the bound: every touched block decoded once by GDAL, every patch encoded once; nothing else.

Each method gets the same two processes. `--quick` makes both archives smaller.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from _extract_archives import Case, enmap_case, sentinel_case
from _extract_rivals import bound, by_odc_stac, by_rasterio

from pipeline.engine.dask import DaskEngine
from pipeline.run.extract import ExtractReport, run_extract
from pipeline.store.objects import open_store
from pipeline.watch.progress import Progress

PROCESSES = 2
ODC = "odc-stac, location by location"


@dataclass(frozen=True)
class Timed:
    """How long a method took for how many patches."""

    name: str
    patches: int
    seconds: float
    core_seconds: float
    """Processor time of the processes that did it; unlike `seconds`, other load hardly enters."""
    note: str = ""

    @property
    def rate(self) -> float:
        """Patches per second."""
        return self.patches / self.seconds

    @property
    def core_rate(self) -> float:
        """Patches per second of processor time."""
        return self.patches / self.core_seconds


def main() -> None:
    """Make the archives, run every method on each, and print one table a case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--skip-odc", action="store_true", help="it takes minutes a patch")
    parser.add_argument("--case", choices=["enmap", "sentinel-2"])
    options = parser.parse_args()
    makers = {"enmap": enmap_case, "sentinel-2": sentinel_case}
    for name, make in makers.items():
        if options.case in (None, name):
            folder = Path(tempfile.mkdtemp(prefix=f"terrashard-{name}-"))
            try:
                report(name, run(make(folder, quick=options.quick), skip_odc=options.skip_odc))
            finally:
                shutil.rmtree(folder)


def run(case: Case, *, skip_odc: bool) -> list[Timed]:
    """Time every method on one archive; the page cache holds it for all of them."""
    for path in case.files():
        path.read_bytes()
    with ProcessPoolExecutor(PROCESSES) as pool:
        # The processes are there, and have imported what they need, before the clock starts.
        list(pool.map(time.sleep, [0.5] * PROCESSES))
        bounded = timed("bound", case.count, pool, bound, case.shares())
        loop = timed("rasterio loop", case.count, pool, by_rasterio, case.shares())
        ours = extract(case)
        few = [[patch] for patch in case.few(PROCESSES)]
        odc = [] if skip_odc else [timed(ODC, len(few), pool, by_odc_stac, few)]
    return [bounded, ours, loop, *odc]


def timed(
    name: str,
    patches: int,
    pool: ProcessPoolExecutor,
    method: Callable[[Any], None],
    shares: Iterable[Any],
) -> Timed:
    """Run a method over its shares in the pool."""
    pids = [process.pid for process in multiprocessing.active_children()]
    before_s, began_s = core_seconds(pids), time.perf_counter()
    list(pool.map(method, shares))
    seconds = time.perf_counter() - began_s
    return Timed(name, patches, seconds, core_seconds(pids) - before_s)


def core_seconds(pids: Iterable[int]) -> float:
    """Return the processor time that some processes have used so far."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(spent.user + spent.system for spent in times)


def extract(case: Case) -> Timed:
    """Run the real thing on a cluster that is already there."""
    with DaskEngine(workers=PROCESSES) as engine, Progress(live=False) as progress:
        list(engine.run(_warm, range(4 * PROCESSES)))
        pids = engine.worker_pids()
        before_s, began_s = core_seconds(pids), time.perf_counter()
        done: ExtractReport = run_extract(
            case.loaded(), open_store(case.root), engine, progress=progress
        )
        seconds = time.perf_counter() - began_s
        spent_s = core_seconds(pids) - before_s
    if done.written != case.count:
        raise SystemExit(f"only {done.written} of {case.count} patches were written: {done}")
    ratio = done.blocks_decoded / done.blocks_touched
    note = f"blocks decoded / touched: {done.blocks_decoded} / {done.blocks_touched} = {ratio:.2f}"
    return Timed("Terrashard extract", case.count, seconds, spent_s, note)


def _warm(_: int) -> None:
    # What a worker imports once in its life is no part of a shard's cost.
    import pyarrow.dataset  # noqa: F401

    import pipeline.task.shard  # noqa: F401

    time.sleep(0.3)


def report(name: str, rows: list[Timed]) -> None:
    """Print one table."""
    ours = next(row for row in rows if row.name.startswith("Terrashard"))
    print(f"\n### {name}: {ours.patches} patches, {PROCESSES} processes\n")
    print(
        "| method | patches | seconds | patches/s | core-s a patch | Terrashard is | by core-s | |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.name} | {row.patches} | {row.seconds:.2f} | {row.rate:.3g} "
            f"| {1 / row.core_rate:.3g} | {ours.rate / row.rate:.2f} x "
            f"| {ours.core_rate / row.core_rate:.2f} x | {row.note} |"
        )


if __name__ == "__main__":
    main()

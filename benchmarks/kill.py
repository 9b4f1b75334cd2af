"""Kill test: SIGKILL to workers and to the driver at random moments, and the same bytes at the end.

An archive is simulated and planned once. Undisturbed, its extraction gives the reference; then it
is extracted again and again into new roots while processes are killed, and resumed each time,
until so many kills have been dealt. Every root must end with the same data set digest, and the same
bytes in every shard object and commit record.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil

from pipeline.store import layout
from pipeline.store.ledger import dataset_digest
from pipeline.store.objects import open_store

#: The command line, from this interpreter.
CLI = "from pipeline.cli import main; main()"
#: Longest wait before a kill, in seconds: about as long as a shard or two take.
LONGEST_S = 2.0
#: How long the workers of a dead driver may take to notice.
ORPHANS_S = 30.0


def survive(
    command: Sequence[str],
    root: Path,
    rng: np.random.Generator,
    *,
    kills: int,
    longest_s: float = LONGEST_S,
) -> tuple[int, int]:
    """Run a command until it ends well, killing it and its workers up to `kills` times.

    Returns
    -------
    workers, drivers : int
        How many of each were killed.
    """
    workers = drivers = 0
    while True:
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while workers + drivers < kills and _moment(driver, root, rng, longest_s):
            found = workers_of(driver.pid)
            if found and rng.random() < 0.5:
                _kill(int(rng.choice(found)))
                workers += 1
            else:
                _bury(driver)
                drivers += 1
                break
        _, error = driver.communicate()
        if driver.returncode == 0:
            return workers, drivers
        if driver.returncode != -signal.SIGKILL:
            raise SystemExit(f"ended with {driver.returncode}: {error.decode()[-2000:]}")


def _moment(
    driver: subprocess.Popen[bytes], root: Path, rng: np.random.Generator, longest_s: float
) -> bool:
    """Wait for a random moment; return whether the driver still runs then.

    Four times in five it is counted from the next commit, so that work is under way; else from now,
    which also finds drivers and workers that are only starting.
    """
    before, patient = _commits(root), rng.random() < 0.8
    while patient and _commits(root) == before:
        if driver.poll() is not None:
            return False
        time.sleep(0.02)
    try:
        driver.wait(rng.uniform(0, longest_s))
    except subprocess.TimeoutExpired:
        return True
    return False


def _commits(root: Path) -> int:
    return sum(1 for _ in (root / layout.COMMITS).rglob("*.parquet"))


def workers_of(pid: int) -> list[int]:
    """Return the worker processes of a driver (its resource tracker is none)."""
    try:
        children = psutil.Process(pid).children(recursive=True)
        lines = {child.pid: " ".join(child.cmdline()) for child in children}
    except psutil.Error:
        return []
    return sorted(pid for pid, line in lines.items() if "resource_tracker" not in line)


def fingerprint(root: Path) -> str:
    """Return the sha256 (hex) over every shard object and commit record, by key."""
    store, digest = open_store(root), hashlib.sha256()
    for folder in (layout.SHARDS, layout.COMMITS):
        for key in store.list(folder):
            digest.update(f"{key} {hashlib.sha256(store.get(key)).hexdigest()}\n".encode())
    return digest.hexdigest()


def disturb(
    planned: Path,
    command: Callable[[Path], Sequence[str]],
    *,
    calmly: Callable[[Path], object],
    kills: int,
    seed: int,
    at_most: int | None = None,
    longest_s: float = LONGEST_S,
) -> tuple[int, int, int]:
    """Extract copies of a planned root until so many kills were dealt; compare each with another.

    Parameters
    ----------
    planned : Path
        Root with a plan and nothing extracted.
    command : callable
        Returns the command that extracts into a root.
    calmly : callable
        Extracts into a root undisturbed: the reference.
    at_most : int or None
        Kills in one extraction; None: drawn between 8 and 15 for each.

    Returns
    -------
    workers, drivers, roots : int
        Processes killed, and roots they were killed in.

    Raises
    ------
    SystemExit
        A disturbed root differs from the undisturbed one.
    """
    rng = np.random.default_rng(seed)
    calm = planned.with_name(f"{planned.name}-undisturbed")
    shutil.copytree(planned, calm)
    calmly(calm)
    expected = fingerprint(calm), dataset_digest(open_store(calm))
    dealt = [0, 0]
    roots = 0
    while sum(dealt) < kills:
        root = planned.with_name(f"{planned.name}-{roots}")
        shutil.copytree(planned, root)
        some = min(kills - sum(dealt), at_most or int(rng.integers(8, 16)))
        workers, drivers = survive(command(root), root, rng, kills=some, longest_s=longest_s)
        if (fingerprint(root), dataset_digest(open_store(root))) != expected:
            raise SystemExit(f"{root} differs from the undisturbed {calm}")
        dealt[0] += workers
        dealt[1] += drivers
        roots += 1
        shutil.rmtree(root)
    shutil.rmtree(calm)
    return dealt[0], dealt[1], roots


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _bury(driver: subprocess.Popen[bytes]) -> None:
    """Kill the driver, and wait until its workers have noticed."""
    orphans = [psutil.Process(pid) for pid in workers_of(driver.pid)]
    driver.kill()
    driver.wait()
    _, alive = psutil.wait_procs(orphans, timeout=ORPHANS_S)
    if alive:
        raise SystemExit(f"workers outlive their driver: {alive}")


def main() -> None:
    """Run the kill test with one and with two workers, and print a table."""
    from _kill_archive import demo_root

    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="terrashard-kill-"))
    print("| workers | worker kills | driver kills | roots | digest and bytes equal | seconds |")
    print("|---|---|---|---|---|---|")
    with demo_root(folder) as (planned, recipe):

        def serial(root: Path) -> list[str]:
            return [
                sys.executable,
                "-c",
                CLI,
                "extract",
                str(recipe),
                "--root",
                str(root),
                "--serial",
            ]

        for workers in options.workers:

            def command(root: Path, workers: int = workers) -> list[str]:
                terrashard = [sys.executable, "-c", CLI, "extract", str(recipe)]
                return [*terrashard, "--root", str(root), "--workers", str(workers)]

            began_s = time.monotonic()
            killed, drivers, roots = disturb(
                planned,
                command,
                calmly=lambda root: subprocess.run(serial(root), check=True, capture_output=True),
                kills=options.kills,
                seed=workers,
            )
            seconds = time.monotonic() - began_s
            print(
                f"| {workers} | {killed} | {drivers} | {roots} | yes | {seconds:.0f} |", flush=True
            )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()

"""By the command line alone: a simulated archive, served as Earth Engine, becomes a data set."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.store.reader import open_dataset

RECIPE = """
name = "earth"
[sample]
strategy = "grid"
region = [15.02, 51.9, 15.035, 51.91]
[cell]
lattice = "s2r10"
size_px = 30
[slots]
kind = "months"
start = 2023-04-01
end = 2023-05-01
[[product]]
id = "sentinel-2-l2a"
provider = "earth-engine"
url = "{url}"
bands = ["B02", "B11"]
"""


@contextmanager
def served(archive: Path, *options: str) -> Iterator[tuple[str, str]]:
    """Yield the address of an archive's Earth Engine and the path of its key, as `serve` says."""
    command = [sys.executable, "-m", "pipeline", "serve", str(archive), "--port", "0"]
    with subprocess.Popen(
        [*command, "--earth-engine", "0", *options], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            server.stdout.readline()
            said = server.stdout.readline()
            found = re.search(r"at (http://127\.0\.0\.1:\d+); .*export (\w+)=(\S+)", said)
            assert found, said
            assert found.group(2) == "TERRASHARD_EARTH_ENGINE_KEY"
            yield found.group(1), found.group(3)
        finally:
            server.send_signal(signal.SIGINT)
            assert server.wait(timeout=30) == 0


def digest(recipe: Path, root: Path, key: str) -> str:
    """Run a recipe to its version, and return the digest that is told of it."""
    command = [sys.executable, "-m", "pipeline", "run", str(recipe), "--root", str(root)]
    done = subprocess.run(
        [*command, "--serial", "--until", "publish"],
        env={**os.environ, "TERRASHARD_EARTH_ENGINE_KEY": key},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"dataset digest +(\w{64})", done.stdout)
    assert found, done.stdout
    return found.group(1)


def test_a_recipe_runs_against_a_served_archive_whatever_fails_in_passing(
    small_archive: Path, tmp_path: Path
) -> None:
    recipe, digests = tmp_path / "earth.toml", []
    for root, faults in (("plain", ()), ("faulty", ("--faults", "0.2", "--seed", "3"))):
        with served(small_archive, *faults) as (url, key):
            assert Path(key).stat().st_mode & 0o077 == 0
            recipe.write_text(RECIPE.format(url=url))
            digests.append(digest(recipe, tmp_path / root, key))
        assert len(open_dataset(str(tmp_path / root))) > 5
    assert digests[0] == digests[1]

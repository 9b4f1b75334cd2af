"""The GPU benchmark needs no geospatial library: it makes its shards and trains on them without."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.features import paired, shuffled
from benchmarks.gpu import LAST_END_S, NEEDS, limited, methods
from pipeline.pretrain.data.batches import Stored

REPO = Path(__file__).resolve().parents[2]
BLOCKED = (
    *("rasterio", "shapely", "pyproj", "geopandas", "dask", "distributed", "odc", "hydra"),
    *("onnx", "onnxruntime", "tensorboard", "wandb", "pystac_client"),
)
SCRIPT = """
import sys, tempfile, torch
from dataclasses import replace
from pathlib import Path
sys.modules.update(dict.fromkeys({blocked!r}))
from benchmarks import gpu
size = replace(gpu.SMALL, locations=4, cell_px=32, models=())
gpu.methods = lambda: ["mae"]
with tempfile.TemporaryDirectory() as folder:
    for row in gpu.measure(size, Path(folder), torch.device("cpu")):
        print(row)
"""


@pytest.mark.slow
def test_it_runs_where_geospatial_libraries_are_missing():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(blocked=BLOCKED)],
        capture_output=True,
        text=True,
        cwd=REPO,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split("|")[1].split(",")[0].strip() for line in lines] == [
        *("making shards", "adapter", "mae", "all")
    ]
    assert "failed" not in done.stdout
    assert "not run" not in done.stdout


def test_every_method_of_the_recipe_is_measured():
    assert {"moco", "dino", "mae", "barlow", "decur", "paws"} <= set(methods())
    assert set(NEEDS) <= set(methods())


def test_what_takes_too_long_is_broken_off_and_nothing_else():
    began_s = time.monotonic()
    with pytest.raises(TimeoutError, match="out of time"), limited(0.05):
        time.sleep(20)
    assert time.monotonic() - began_s < 10
    with limited(60):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert LAST_END_S < 9 * 60


def test_shuffling_keeps_every_spectrum_and_moves_it_with_its_mask():
    bands = torch.arange(2 * 3 * 16, dtype=torch.int16).view(2, 3, 4, 4)
    stored = Stored(bands, (bands[:, 0] % 7).to(torch.uint8), "image")
    ((one, other),) = shuffled([(stored, stored)], seed=0)
    assert one is other
    assert not torch.equal(one.bands, bands)
    before = torch.cat([bands, stored.mask.unsqueeze(1)], dim=1).flatten(2)
    after = torch.cat([one.bands, one.mask.unsqueeze(1)], dim=1).flatten(2)
    for item in range(2):
        spectra = [sorted(map(tuple, values[item].T.tolist())) for values in (before, after)]
        assert spectra[0] == spectra[1]


def test_paired_differences_are_told_with_their_interval():
    assert paired([0.02, 0.04]) == "+3.0 (-9.7 to +15.7), 2 of 2"

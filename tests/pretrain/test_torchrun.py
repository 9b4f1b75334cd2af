"""Through the command line and torch's own launcher: two processes do what one does, once."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from pipeline.errors import RecipeError
from pipeline.pretrain import checkpoint
from pipeline.pretrain.data.order import times_or_views
from pipeline.pretrain.encoders.norms import RankBatchNorm, share_norms
from pipeline.recipe import load_recipe
from pipeline.run.pretrain import run_pretrain
from pipeline.store import codec
from pipeline.store.reader import open_dataset

#: Its projector has batch norms, whose moments must be those of both ranks.
RECIPE = """
name = "patterns"
seed = 1
sample = { strategy = "grid", region = [0, 0, 1, 1] }
cell = { lattice = "s2r10", size_px = 16 }
slots = { kind = "months", start = 2021-01-01, end = 2021-03-01 }
split = { block_km = 0.16, train = 0.5, val = 0.2, test = 0.3 }

[[product]]
id = "image.toml"
path = "."

[[product]]
id = "labels.toml"
path = "."

[[product]]
id = "radar.toml"
path = "."

[pretrain]
method = "barlow"
backbone = "vit_tiny"
optimizer = "sgd"
learning_rate = 1e-3
pairs = "views"
batch_size = 4
crop_px = 8
projector_width = 8
steps = 3
health_every = 1
"""


def torchrun(published, processes, *more):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += ["--standalone", "-m", "--", "pipeline"]
    recipe = str(published.folder / "recipe.toml")
    command += ["pretrain", recipe, "--root", str(published.folder / "root"), "--device", "cpu"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        [*command, *more], env=env, capture_output=True, text=True, timeout=150, check=False
    )


@pytest.fixture
def recipe(published):
    path = published.folder / "recipe.toml"
    path.write_text(RECIPE)
    return load_recipe(path)


def rows(published, model):
    log = published.store.get(f"models/{model}/step-00000003/log.csv").decode()
    return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(io.StringIO(log))]


def test_two_processes_learn_what_one_does_and_write_and_say_it_once(published, recipe):
    run_pretrain(recipe, published.store, name="one", device="cpu")
    logs = published.folder / "logs"
    done = torchrun(published, 2, "--name", "two", "--log", "csv", "--log-folder", str(logs))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("effective rank") == done.stderr.count("pretrain 3/3") == 1
    assert len((logs / "two.csv").read_text().splitlines()) == 4
    alone, shared = rows(published, "one"), rows(published, "two")
    for one, two in zip(alone, shared, strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-5, nan_ok=True)
    states = [
        checkpoint.load_encoder(published.store, checkpoint.load(published.store, name))
        for name in ("one", "two")
    ]
    one, two = (torch.cat([p.flatten() for p in state.parameters()]) for state in states)
    assert (one - two).norm() < 1e-5 * one.norm()


def spoil(store, reader, *, number):
    """Let a patch say of itself that it is empty."""
    row = reader.rows.slice(number, 1).to_pylist()[0]
    key = f"shards/{row['shard']}/image/bands/c/0/0/0/0/0"
    data = bytearray(store.get(key))
    index = codec.parse_index(bytes(data[-codec.index_bytes(48) :]), len(data), name=key)
    start = index[2 * row["sample"] + row["time"], 0]
    data[start + 4 : start + 8] = bytes(4)
    store.put(key, bytes(data))


def test_a_process_that_fails_ends_all_and_says_why(published, recipe):
    reader = open_dataset(published.store).sel(split="train").patches("image")
    order = times_or_views({"image": reader}, views=2, times=False, batch_size=4, seed=0)
    spoil(published.store, reader, number=order.picks(0)[0].numbers[3])
    done = torchrun(published, 2, "--name", "bad")
    assert done.returncode != 0
    assert "(process 1 of 2): a chunk of" in done.stderr
    assert "fault of the program" not in done.stderr
    assert checkpoint.steps(published.store, "bad") == []


def test_a_batch_that_its_processes_cannot_share_is_refused_before_they_meet(
    published, recipe, monkeypatch
):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RecipeError, match=r"is 4, .* 3 equal parts .3 processes"):
        run_pretrain(recipe, published.store, device="cpu")


@pytest.mark.parametrize("affine", [True, False])
def test_a_shared_norm_of_one_process_is_torchs_own_in_state_and_result(affine):
    torch.manual_seed(0)
    own = nn.Sequential(nn.BatchNorm2d(3, affine=affine))
    shared = nn.Sequential(nn.BatchNorm2d(3, affine=affine))
    share_norms(shared, torch.device("cpu"))
    assert isinstance(shared[0], RankBatchNorm)
    assert shared.state_dict().keys() == own.state_dict().keys()
    for _ in range(2):
        values = torch.randn(4, 3, 5, 5) * 3 + 1
        assert torch.equal(own(values), shared(values))
    torch.testing.assert_close(own.state_dict(), shared.state_dict(), rtol=0, atol=0)
    assert torch.equal(own.eval()(values), shared.eval()(values))

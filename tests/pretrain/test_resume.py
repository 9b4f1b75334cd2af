"""A run that was killed and resumed ends with the same bits as one that was not."""

from __future__ import annotations

import io
from typing import get_args

import pytest
import torch

from pipeline.errors import IntegrityError, RecipeError
from pipeline.pretrain import checkpoint
from pipeline.pretrain.train import last_health
from pipeline.recipe import Pretrain
from pipeline.run.pretrain import run_pretrain

RECIPE = {
    "method": "moco",
    "backbone": "small",
    "steps": 6,
    "batch_size": 4,
    "crop_px": 8,
    "queue": 12,
    "checkpoint_every": 2,
}


class Killed(Exception):
    """What a killed process would not even raise."""


class Killer:
    """Progress that dies after some steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def start(self, label, total):
        self.label = label

    def advance(self):
        self.left -= 1
        if not self.left:
            raise Killed

    def note(self, text):
        raise AssertionError(text)


def same(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.mark.parametrize("method", get_args(Pretrain.model_fields["method"].annotation))
def test_four_steps_and_four_resumed_end_with_the_bits_of_eight(method, tiny_run):
    # An odd method is trained in bfloat16, or in two parts, so that these are held to it too.
    more = {"checkpoint_every": 3, "precision": "bf16" if len(method) % 2 else "fp32"}
    more["accumulate"] = 2 if method in ("moco", "swav", "mae") else 1
    straight = tiny_run(method, **more)
    straight.go_on(8)
    assert straight.kept == [3, 6, 8]

    first = tiny_run(method, **more)
    first.go_on(4)
    buffer = io.BytesIO()
    torch.save(first.run.state(), buffer)
    buffer.seek(0)
    torch.manual_seed(999)
    torch.rand(5)  # a new process has other global random numbers
    second = tiny_run(method, **more)
    second.run.restore(torch.load(buffer, weights_only=True), first.run.log_csv())
    second.go_on(4)
    assert same(straight.run.state(), second.run.state())
    assert straight.run.log_csv() == second.run.log_csv()


def test_training_leaves_the_global_random_numbers_alone(tiny_run):
    torch.manual_seed(4)
    wanted = torch.rand(1)
    tiny = tiny_run("moco")
    torch.manual_seed(4)
    tiny.go_on(2)
    assert torch.rand(1) == wanted


def test_a_loss_that_is_no_number_stops_the_run(tiny_run):
    tiny = tiny_run("moco")
    with torch.no_grad():
        next(tiny.run.method.encoder.parameters()).fill_(float("nan"))
    with pytest.raises(RecipeError, match="learning_rate"):
        tiny.go_on(1)


def test_killed_and_run_again_a_model_has_the_same_weights_and_log(published):
    loaded = published.recipe(pretrain=RECIPE)
    wanted = run_pretrain(loaded, published.store, name="undisturbed", device="cpu")
    for after in (3, 2):
        with pytest.raises(Killed):
            run_pretrain(loaded, published.store, name="killed", progress=Killer(after))
    found = run_pretrain(loaded, published.store, name="killed", device="cpu")
    assert found.resumed_from == 4
    assert (found.loss, found.embedding_std) == (wanted.loss, wanted.embedding_std)
    models = [checkpoint.load(published.store, name) for name in ("undisturbed", "killed")]
    assert models[0].weights_sha256 == models[1].weights_sha256
    states = [checkpoint.load_state(published.store, model) for model in models]
    assert same(states[0], states[1])
    assert checkpoint.steps(published.store, "killed") == [4, 6]

    again = run_pretrain(loaded, published.store, name="killed")
    assert again.resumed_from == again.steps == 6
    assert again.loss == wanted.loss


def test_a_name_belongs_to_one_run_unless_it_is_begun_anew(published):
    short = {**RECIPE, "steps": 1, "checkpoint_every": 1}
    run_pretrain(published.recipe(pretrain=short), published.store, name="mine")
    other = published.recipe(pretrain={**short, "temperature": 0.1})
    with pytest.raises(RecipeError, match=r"another `pretrain.temperature`"):
        run_pretrain(other, published.store, name="mine")
    anew = run_pretrain(other, published.store, name="mine", resume=False)
    assert anew.resumed_from == 0
    # How it is read changes nothing of what is learned.
    threads = published.recipe(pretrain={**short, "temperature": 0.1, "threads": 1})
    assert run_pretrain(threads, published.store, name="mine").resumed_from == 1


def test_damaged_weights_and_state_are_noticed(published):
    short = {**RECIPE, "steps": 1}
    run_pretrain(published.recipe(pretrain=short), published.store, name="mine")
    model = checkpoint.load(published.store, "mine")
    key = "models/mine/step-00000001/"
    checkpoint.load_encoder(published.store, model)
    for file, load in (
        ("weights.safetensors", checkpoint.load_encoder),
        ("state.pt", checkpoint.load_state),
    ):
        data = bytearray(published.store.get(key + file))
        data[-9] ^= 1
        published.store.put(key + file, bytes(data))
        with pytest.raises(IntegrityError, match="digest"):
            load(published.store, model)
        published.store.delete(key + file)
        with pytest.raises(IntegrityError, match="missing"):
            load(published.store, model)


def test_a_checkpoint_without_its_description_does_not_exist(published):
    short = {**RECIPE, "steps": 2, "checkpoint_every": 1}
    run_pretrain(published.recipe(pretrain=short), published.store, name="mine")
    published.store.delete("models/mine/step-00000002/model.json")
    assert checkpoint.steps(published.store, "mine") == [1]
    report = run_pretrain(published.recipe(pretrain=short), published.store, name="mine")
    assert report.resumed_from == 1


def test_the_log_says_how_healthy_each_step_was(published):
    short = {**RECIPE, "steps": 2}
    report = run_pretrain(published.recipe(pretrain=short), published.store, name="mine")
    log = published.store.get("models/mine/step-00000002/log.csv").decode().splitlines()
    assert log[0].startswith("step,loss,learning_rate,embedding_std,mean_cosine,effective_rank")
    assert [line.split(",")[0] for line in log[1:]] == ["1", "2"]
    assert float(log[2].split(",")[1]) == report.loss


def test_health_is_that_of_the_last_logged_step(tiny_run):
    tiny = tiny_run("mae", steps=3)
    tiny.go_on(3)
    assert [row["step"] for row in tiny.run.log] == [1, 3]
    assert last_health(tiny.run).rank == tiny.run.log[-1]["effective_rank"]


@pytest.mark.parametrize("name", ["../up", "", "UP", "a/b", ".hidden"])
def test_a_model_name_cannot_leave_its_folder(published, name):
    with pytest.raises(RecipeError, match="not allowed"):
        checkpoint.steps(published.store, name)

"""A run that was killed and resumed ends with the same bits as one that was not."""

from __future__ import annotations

import itertools

import pytest
import torch

from pipeline.errors import IntegrityError, RecipeError
from pipeline.pretrain import checkpoint
from pipeline.pretrain.backbones import EncoderShape
from pipeline.pretrain.batches import Batch
from pipeline.pretrain.methods.barlow import BarlowTwins
from pipeline.pretrain.methods.dino import DINO, Schedule
from pipeline.pretrain.methods.mae import MAE
from pipeline.pretrain.methods.moco import MoCo
from pipeline.pretrain.normalise import Normaliser
from pipeline.pretrain.train import Run, last_health, train
from pipeline.recipe import Pretrain
from pipeline.run.pretrain import run_pretrain

SHAPE = EncoderShape("tiny", 3, 8, 2)
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


def batches(start, stop, views):
    for step in range(start, stop):
        random = torch.Generator().manual_seed(step)
        bands = torch.randint(0, 100, (views, 4, 3, 12, 12), generator=random).short()
        yield Batch(bands, torch.ones(views, 4, 12, 12, dtype=torch.uint8))


def tiny_run(method, tiny_net, tiny_vit):
    if method == "moco":
        net = tiny_net(3)
        torch.manual_seed(0)
        built = MoCo(net, 6, queue=10, momentum=0.9, temperature=0.2, seed=0)
    elif method == "barlow":
        net = tiny_net(3)
        torch.manual_seed(0)
        built = BarlowTwins(net, 6, projector_width=8, off_diagonal=0.0051)
    elif method == "dino":
        net = tiny_net(3)
        torch.manual_seed(0)
        plan = Schedule(7, 0.5, 0.04, 0.07, 3, frozen_steps=1)
        built = DINO(
            net, 6, prototypes=8, schedule=plan, student_temperature=0.1, centre_momentum=0.9
        )
    else:
        vit = tiny_vit(3)
        torch.manual_seed(0)
        built = MAE(vit, bands=3, mask_fraction=0.5)
    return Run(built, torch.optim.AdamW(built.parameters(), lr=1e-3))


def go_on(run, steps, settings, keep=None):
    train(
        run,
        itertools.islice(batches(run.step, settings.steps, run.method.views), steps),
        settings=settings,
        shape=SHAPE,
        normaliser=Normaliser([50.0] * 3, [30.0] * 3, -32768),
        checkpoint=lambda run: keep.append(run.step) if keep is not None else None,
        after_step=lambda _: None,
    )


def same(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.mark.parametrize("method", ["moco", "mae", "barlow", "dino"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_from_a_saved_state_ends_with_the_same_bits(method, precision, tiny_net, tiny_vit):
    settings = Pretrain(method=method, steps=7, checkpoint_every=3, precision=precision)
    straight = tiny_run(method, tiny_net, tiny_vit)
    kept: list[int] = []
    go_on(straight, 7, settings, kept)
    assert kept == [3, 6, 7]

    first = tiny_run(method, tiny_net, tiny_vit)
    go_on(first, 4, settings)
    state, log = first.state(), first.log_csv()
    torch.manual_seed(999)
    torch.rand(5)  # a new process has other global random numbers
    second = tiny_run(method, tiny_net, tiny_vit)
    second.restore(state, log)
    go_on(second, 3, settings)
    assert same(straight.state(), second.state())
    assert straight.log_csv() == second.log_csv()


def test_training_leaves_the_global_random_numbers_alone(tiny_net, tiny_vit):
    torch.manual_seed(4)
    wanted = torch.rand(1)
    run = tiny_run("moco", tiny_net, tiny_vit)
    torch.manual_seed(4)
    go_on(run, 2, Pretrain(steps=2))
    assert torch.rand(1) == wanted


def test_a_loss_that_is_no_number_stops_the_run(tiny_net, tiny_vit):
    run = tiny_run("moco", tiny_net, tiny_vit)
    with torch.no_grad():
        next(run.method.encoder.parameters()).fill_(float("nan"))
    with pytest.raises(RecipeError, match="learning_rate"):
        go_on(run, 1, Pretrain(steps=2))


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
    with pytest.raises(RecipeError, match="another settings"):
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
    assert log[0] == "step,loss,learning_rate,embedding_std,mean_cosine,effective_rank"
    assert [line.split(",")[0] for line in log[1:]] == ["1", "2"]
    assert float(log[2].split(",")[1]) == report.loss


def test_health_is_that_of_the_last_logged_step(tiny_net, tiny_vit):
    run = tiny_run("mae", tiny_net, tiny_vit)
    go_on(run, 3, Pretrain(method="mae", steps=3))
    assert [row[0] for row in run.log] == [1, 3]
    assert last_health(run).rank == run.log[-1][5]


@pytest.mark.parametrize("name", ["../up", "", "UP", "a/b", ".hidden"])
def test_a_model_name_cannot_leave_its_folder(published, name):
    with pytest.raises(RecipeError, match="not allowed"):
        checkpoint.steps(published.store, name)

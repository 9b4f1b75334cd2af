"""What a method trains with where the recipe says nothing, and what its optimiser makes of it."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from pipeline.pretrain.choice import build_method
from pipeline.pretrain.encoders.backbones import EncoderShape
from pipeline.pretrain.methods.barlow import BarlowTwins
from pipeline.pretrain.methods.method import View
from pipeline.pretrain.optimise import build_optimizer, set_rates
from pipeline.recipe import Pretrain

METHODS = get_args(Pretrain.model_fields["method"].annotation)

#: For 256 items and 1000 steps: optimiser, learning rate, weight decay, the same at the end, and
#: warm-up; then for 1024 items the rate. The sources are beside `pipeline.recipe.training.USUAL`,
#: what differs from a paper in `docs/pretraining.md`.
EFFECTIVE = {
    "moco": ("sgd", 0.03, 1e-4, None, 0, 0.12),
    "mocov3": ("adamw", 1.5e-4, 0.1, None, 100, 6e-4),
    "simclr": ("lars", 0.3, 1e-6, None, 100, 1.2),
    "simsiam": ("sgd", 0.05, 1e-4, None, 0, 0.2),
    "swav": ("lars", 0.3, 1e-6, None, 100, 1.2),
    "barlow": ("lars", 0.2, 1e-6, None, 100, 0.8),
    "barlow_pixels": ("adamw", 1e-3, 1e-4, None, 0, 1e-3),
    "dino": ("adamw", 1.5e-4, 0.04, 0.4, 100, 6e-4),
    "mae": ("adamw", 1.5e-4, 0.05, None, 100, 6e-4),
    "data2vec": ("adamw", 1e-3, 0.05, None, 100, 4e-3),
    "decur": ("lars", 0.2, 1e-6, None, 100, 0.8),
    "paws": ("lars", 0.4, 1e-6, None, 100, 1.6),
}
#: With another optimiser, where its settings are published.
OTHERWISE = {
    ("dino", "sgd"): (0.03, 1e-4, None, 100),
    ("mocov3", "lars"): (0.3, 1e-6, None, 100),
    ("decur", "adamw"): (1e-4, 0.01, None, 100),
}
#: And what else is not as its field says.
MORE = {
    "moco": {"momentum": 0.999, "temperature": 0.2, "queue": 4096},
    "mocov3": {"teacher_momentum": 0.99, "temperature": 0.2, "projector_width": 4096},
    "simclr": {"temperature": 0.1, "projector_width": 2048},
    "simsiam": {"projector_width": 2048},
    "swav": {"temperature": 0.1, "prototypes": 500, "queue": 1280, "local_crops": 6},
    "barlow": {"projector_width": 2048, "off_diagonal": 0.0051},
    "barlow_pixels": {"projector_width": 2048, "off_diagonal": 0.0051, "windows": 16},
    "dino": {"prototypes": 4096, "teacher_momentum": 0.996, "teacher_temperature": 0.04}
    | {"clip": 3.0, "drop_path": 0.1, "local_crops": 8, "student_temperature": 0.1},
    "mae": {"mask_fraction": 0.75, "decoder_width": 256, "decoder_blocks": 4, "decoder_heads": 8},
    "data2vec": {"mask_fraction": 0.6, "teacher_momentum": 0.999, "clip": 3.0, "drop_path": 0.25},
    "decur": {"projector_width": 2048, "common_fraction": 0.875, "pairs": "products"},
    "paws": {"temperature": 0.1, "support_per_class": 4, "local_crops": 6},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_as_its_paper_does_unless_the_recipe_says_otherwise(method):
    small, large = (Pretrain(method=method, batch_size=n, steps=1000) for n in (256, 1024))
    found = (
        *(small.optimizer, small.learning_rate, small.weight_decay, small.weight_decay_end),
        *(small.warmup_steps, large.learning_rate),
    )
    assert found == EFFECTIVE[method]
    for name, wanted in MORE[method].items():
        assert getattr(small, name) == wanted, name


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
@pytest.mark.parametrize("method", METHODS)
def test_another_optimiser_never_gets_the_rate_of_the_methods_own(method, optimizer):
    asked = {"method": method, "optimizer": optimizer, "batch_size": 512, "steps": 1000}
    own, rate, decay, *_ = EFFECTIVE[method]
    if optimizer == own:
        assert Pretrain(**asked).weight_decay == decay
    elif (method, optimizer) in OTHERWISE:
        made = Pretrain(**asked)
        wanted = OTHERWISE[method, optimizer]
        found = (made.learning_rate / 2, made.weight_decay, made.weight_decay_end)
        assert (*found, made.warmup_steps) == wanted
    else:
        with pytest.raises(ValidationError, match=rf"'{optimizer}', and for `{method}` .*'{own}'"):
            Pretrain(**asked)
    given = Pretrain(**asked, learning_rate=rate)
    assert given.learning_rate == rate
    if optimizer != own:
        # Nor its weight decay, which is another thing under another optimiser.
        assert given.weight_decay == OTHERWISE.get((method, optimizer), (0, 1e-4))[1]
        assert given.weight_decay_end is None


def test_an_optimiser_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(ValidationError, match="'adamw', 'sgd' or 'lars'"):
        Pretrain(method="simclr", optimizer="adam")


@pytest.mark.parametrize(("width", "heads"), [(30, 2), (24, 5)])
def test_a_decoder_whose_heads_do_not_share_its_width_is_refused(width, heads):
    with pytest.raises(ValidationError, match=rf"`decoder_width` is {width}, .* {heads}"):
        Pretrain(method="mae", decoder_width=width, decoder_heads=heads)


def test_a_recipe_shapes_the_decoder():
    shape = EncoderShape("vit_tiny", 3, 16, 4)
    asked = {"decoder_width": 512, "decoder_blocks": 8, "decoder_heads": 16}
    method = build_method(Pretrain(method="mae", **asked), shape)
    *blocks, _ = method.decoder
    assert [block.attn.num_heads for block in blocks] == [16] * 8
    assert blocks[0].attn.qkv.in_features == method.embed.out_features == 512
    plain = build_method(Pretrain(method="mae"), shape)
    assert (len(plain.decoder) - 1, plain.embed.out_features) == (4, 256)


def step(settings, scale=1.0):
    """Return how far each parameter of Barlow Twins goes in a first step at a loss so many times
    itself, and how long it was."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6))
    method = BarlowTwins(net, 6, projector_width=8, off_diagonal=0.0051)
    random = torch.Generator().manual_seed(0)
    first = torch.randn(32, 3, 2, 2, generator=random)
    second = first + 0.3 * torch.randn(first.shape, generator=random)
    seen = torch.ones_like(first, dtype=torch.bool)
    optimizer = build_optimizer(method, settings)
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    (scale * method([View(first, seen), View(second, seen)], random).loss).backward()
    set_rates(optimizer, settings, 0)
    optimizer.step()
    return {
        name: ((p - before[name]).norm().item(), before[name].norm().item(), p.grad.norm().item())
        for name, p in method.named_parameters()
    }


def lars(method, **more):
    given = {"learning_rate": 0.2, "warmup_steps": 0, "steps": 10, **more}
    return Pretrain(method=method, optimizer="lars", **given)


@pytest.mark.parametrize("method", ["barlow", "decur", "barlow_pixels"])
def test_biases_and_norms_have_the_rate_of_the_released_code_under_lars(method):
    moved = step(lars(method))
    for name in ("encoder.2.weight", "encoder.2.bias", "projector.1.weight", "projector.4.bias"):
        length, _, gradient = moved[name]
        assert length == pytest.approx(0.0048 * gradient, rel=1e-3)
    length, _, gradient = step(lars("simclr"))["encoder.2.bias"]
    assert length == pytest.approx(0.2 * gradient, rel=1e-3)


@pytest.mark.parametrize("decay", [0.0, 1e-6])
def test_lars_adapts_the_rate_of_every_weight_whether_it_decays_or_not(decay):
    settings = lars("simclr", weight_decay=decay)
    one, other = step(settings), step(settings, scale=0.01)
    for name in ("encoder.1.weight", "projector.0.weight", "projector.6.weight"):
        moved, length, _ = one[name]
        # The trust coefficient of LARS is 0.001; momentum is of no effect in a first step.
        assert moved == pytest.approx(0.2 * 0.001 * length, rel=1e-3)
        assert other[name][0] == pytest.approx(moved, rel=1e-2)

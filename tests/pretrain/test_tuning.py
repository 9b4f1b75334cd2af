"""What is for a GPU alone stays off a CPU, and changes no result but by rounding."""

from __future__ import annotations

import copy
import os
import shutil

import pytest
import torch
from torch import nn

from pipeline.pretrain.encoders.backbones import EncoderShape, build_encoder
from pipeline.pretrain.methods.mae import MAE, Decoder
from pipeline.pretrain.methods.method import follow
from pipeline.pretrain.optimise import build_optimizer
from pipeline.pretrain.tuning import (
    channels_last,
    compile_encoders,
    fused,
    in_bf16,
    lay_out_state,
    tensor_cores,
)
from pipeline.recipe import Pretrain

GPU, CPU = torch.device("cuda"), torch.device("cpu")


def flags():
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


def test_tensor_cores_are_used_on_a_gpu_alone_and_while_it_learns_alone():
    before = flags()
    with tensor_cores(CPU):
        assert flags() == before
    with tensor_cores(GPU):
        assert flags() == ("high", True)
    assert flags() == before


def test_auto_is_bfloat16_where_a_gpu_has_units_for_it(monkeypatch):
    for has in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda h=has, **_: h)
        assert in_bf16("auto", GPU) is has
        assert not in_bf16("auto", CPU)
        assert in_bf16("bf16", CPU)
        assert not in_bf16("fp32", GPU)


@pytest.mark.parametrize("method", ["moco", "mae"])
def test_on_a_cpu_auto_is_float32_to_the_bit(method, tiny_run):
    runs = [tiny_run(method, **more) for more in ({}, {"precision": "fp32"})]
    assert runs[0].settings.precision == "auto"
    for tiny in runs:
        tiny.go_on(2)
    first, second = (tiny.run.method.state_dict() for tiny in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_follower_moves_as_it_did_one_parameter_at_a_time(tiny_net):
    leader, follower, wanted = tiny_net(3), tiny_net(3), tiny_net(3)
    with torch.no_grad():
        for parameter in leader.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
        for one, other in zip(leader.parameters(), wanted.parameters(), strict=True):
            other.lerp_(one, 1 - 0.99)
    follow(leader, follower, 0.99)
    assert all(map(torch.equal, follower.parameters(), wanted.parameters()))
    follow(nn.ReLU(), nn.ReLU(), 0.5)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_optimisers_are_fused_on_a_gpu_alone(name, tiny_run):
    assert fused(GPU) is True
    tiny = tiny_run("simsiam", optimizer=name, learning_rate=0.1)
    groups = build_optimizer(tiny.run.method, tiny.settings).param_groups
    assert all(group.get("fused") is None for group in groups)


@pytest.mark.parametrize("backbone", ["resnet18", "spec_resnet18", "vit_tiny"])
def test_kernels_of_resnets_lie_channels_last_and_give_the_same(backbone):
    shape = EncoderShape(backbone, 75, 16, 4)
    image = torch.randn(2, 75, 16, 16, generator=torch.Generator().manual_seed(0))
    encoder = build_encoder(shape, seed=0).eval()
    with torch.no_grad():
        before = encoder(image)
        channels_last(nn.ModuleList([encoder]))
        torch.testing.assert_close(encoder(image), before, rtol=1e-4, atol=1e-5)
    kernels = [p for p in encoder.parameters() if p.ndim == 4 and p.shape[2] > 1]
    changed = {p.is_contiguous(memory_format=torch.channels_last) for p in kernels}
    assert changed == {backbone != "vit_tiny"}


@pytest.mark.parametrize("make", [torch.optim.AdamW, lambda p, **k: torch.optim.SGD(p, **k)])
def test_an_optimisers_state_lies_as_its_parameters_wherever_it_was_saved(make):
    def begin(*, last):
        torch.manual_seed(0)
        net = nn.Conv2d(3, 4, 3)
        if last:
            net.weight.data = net.weight.data.contiguous(memory_format=torch.channels_last)
        more = {} if make is torch.optim.AdamW else {"momentum": 0.9}
        return net, make(net.parameters(), lr=0.1, fused=True, **more)

    def step(net, optimizer):
        net(torch.ones(2, 3, 5, 5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    plain, first = begin(last=False)
    step(plain, first)
    other, second = begin(last=True)
    other.load_state_dict(plain.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    lay_out_state(second)
    for parameter, kept in second.state.items():
        same = [v for v in kept.values() if torch.is_tensor(v) and v.shape == parameter.shape]
        assert same
        assert all(value.stride() == parameter.stride() for value in same)
    for net, optimizer in ((plain, first), (other, second)):
        step(net, optimizer)
    torch.testing.assert_close(other.weight, plain.weight)


def learned(method, view):
    loss = method([view(2, 3)], torch.Generator().manual_seed(0)).loss
    names = {name: p for name, p in method.named_parameters() if p.requires_grad}
    return [loss, *torch.autograd.grad(loss, list(names.values()))]


@pytest.mark.filterwarnings("ignore")  # of torch about itself
def test_compiled_blocks_learn_the_same_under_the_same_names(tiny_vit, view):
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("torch's inductor needs a C++ compiler on a CPU, and there is none")
    method = MAE(tiny_vit(3), bands=3, mask_fraction=0.5, decoder=Decoder(16, 1, 2))
    names, wanted = list(method.state_dict()), learned(method, view)
    torch.compiler.reset()
    compile_encoders(method)
    torch.testing.assert_close(learned(method, view), wanted, rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert list(method.state_dict()) == names


def test_a_recipe_may_ask_for_a_compiled_encoder(tiny_run, monkeypatch):
    asked = []
    monkeypatch.setattr("pipeline.pretrain.train.compile_encoders", asked.append)
    tiny_run("moco")
    assert not asked
    tiny = tiny_run("moco", compile=True)
    assert asked == [tiny.run.method]
    assert not Pretrain().compile


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_adapter_is_left_as_it_is():
    encoder = build_encoder(EncoderShape("spec_resnet18", 75, 16, 4), seed=0).eval()
    image = torch.randn(2, 75, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = encoder(image)
        torch.compiler.reset()
        compile_encoders(nn.ModuleList([encoder]), backend="eager")
        torch.testing.assert_close(encoder(image), wanted)

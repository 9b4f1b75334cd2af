"""What a step draws reaches the device in one copy, and nothing asks the device for a number.

torch's `meta` device stands in for a GPU: its tensors have no values, so whatever would wait for
one (a number, a branch, a mask that selects) fails there.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.pretrain.data.augment import Augmentation, resize
from pipeline.pretrain.data.batches import WHOLE, Stored
from pipeline.pretrain.data.joint import Joint
from pipeline.pretrain.data.windows import cut_alike
from pipeline.pretrain.encoders import spectra
from pipeline.pretrain.encoders.wavelength import Sensor
from pipeline.pretrain.methods.barlow import barlow_loss
from pipeline.pretrain.methods.data2vec import Data2Vec
from pipeline.pretrain.methods.dino import DINO, Schedule
from pipeline.pretrain.methods.mae import MAE, Decoder
from pipeline.pretrain.methods.method import View
from pipeline.pretrain.methods.paws import paws_loss
from pipeline.pretrain.methods.swav import SwAV
from pipeline.pretrain.sending import pack, send, unpack

AWAY = torch.device("meta")
KINDS = [torch.bool, torch.uint8, torch.int16, torch.float32, torch.int64, torch.float64]


class Copies(TorchDispatchMode):
    """Counts the tensors with values that are copied to where there are none."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].device != out.device:
            self.count += 1
        return out


@pytest.fixture
def no_autocast(monkeypatch):
    """The stand-in has no types of lower precision to cast to."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def away(count=4, bands=3, size_px=8):
    image = torch.zeros(count, bands, size_px, size_px, device=AWAY)
    return View(image, torch.zeros_like(image, dtype=torch.bool))


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.lists(st.integers(0, 4), max_size=3))))
def test_what_is_packed_comes_out_as_it_was(wanted):
    parts = [(torch.rand(shape, generator=random()) * 3).to(kind) for kind, shape in wanted]
    for found, part in zip(unpack(pack(parts), parts), parts, strict=True):
        assert found.dtype == part.dtype
        assert torch.equal(found, part)


def test_a_view_of_a_tensor_is_packed_in_its_own_order():
    part = torch.arange(12).view(3, 4).T
    assert torch.equal(unpack(pack([part]), [part])[0], part)


def test_on_the_cpu_nothing_is_copied():
    parts = [torch.zeros(3), torch.ones(2)]
    assert all(a is b for a, b in zip(send(parts, torch.device("cpu")), parts, strict=True))


def test_a_view_takes_one_copy_and_waits_for_nothing():
    with Copies() as copies:
        Augmentation(6, blur=0.0)(away(), random())
        Augmentation(40, blur=1.0)(away(size_px=48), random())
    assert copies.count == 2
    with Copies() as copies:
        resize(away(), 6)
    assert copies.count == 0


def test_hidden_products_take_one_copy():
    sensors = [Sensor(name, ("a", "b"), (500.0, 600.0), (10.0, 10.0)) for name in ("one", "two")]
    with Copies() as copies:
        seen, scale = Joint(tuple(sensors), 8, 0.5)._hide(away(bands=4), random(), WHOLE)
    assert copies.count == 1
    assert (seen.image.shape, scale.shape) == ((4, 4, 8, 8), (4, 1, 1, 1))


@pytest.mark.parametrize(
    "change",
    [
        spectra.turn,
        spectra.average_bands,
        lambda view, generator: spectra.leave_out(view, (1, 0, 0), generator),
        lambda view, generator: cut_alike(
            (Stored(view.image, torch.zeros(4, 8, 8, device=AWAY), "image"),) * 2, 5, generator
        ),
    ],
)
def test_each_change_of_a_window_takes_one_copy(change):
    with Copies() as copies:
        change(away(), random())
    assert copies.count == 1


@pytest.mark.parametrize("kind", ["mae", "data2vec"])
def test_what_is_hidden_takes_one_copy(kind, tiny_vit, no_autocast):
    vit = tiny_vit(3)
    method = (
        MAE(vit, bands=3, mask_fraction=0.5, decoder=Decoder(16, 1, 2))
        if kind == "mae"
        else Data2Vec(vit, mask_fraction=0.5, steps=9, first_momentum=0.9, drop_path=0.0)
    )
    method.to(AWAY)
    with Copies() as copies:
        method([away()], random())
    assert copies.count == 1


def small_net(size_px=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size_px**2, 6)).to(AWAY)


def test_losses_copy_nothing(no_autocast):
    plan = Schedule(9, 0.9, 0.04, 0.04, 0, 1)
    settings = {"prototypes": 5, "student_temperature": 0.1, "centre_momentum": 0.5}
    dino = DINO(small_net(), 6, schedule=plan, **settings).to(AWAY)
    sizes = {"hidden_width": 8, "prototypes": 5, "queue": 12}
    swav = SwAV(small_net(), 6, **sizes, steps=1, frozen_steps=0, temperature=0.1).to(AWAY)
    vectors = [torch.zeros(4, 5, device=AWAY) for _ in range(2)]
    with Copies() as copies:
        dino([away(), away()], random())
        swav.begin(0)
        for _ in range(2):
            swav([away(), away()], random())
        barlow_loss(*vectors, 0.005)
        paws_loss(*vectors)
    assert copies.count == 0
    assert swav.remembered == [8]

"""MoCo v3: its loss by hand, its keys, its momentum, the projection that stays."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from pipeline.pretrain.encoders.backbones import EncoderShape, build_encoder
from pipeline.pretrain.encoders.wavelength import Sensor
from pipeline.pretrain.methods.mocov3 import MoCoV3, info_nce_in_batch


def mocov3(net, **more):
    torch.manual_seed(0)
    settings = {"hidden_width": 8, "steps": 11, "first_momentum": 0.9, "temperature": 0.5, **more}
    return MoCoV3(net, 6, **settings)


def test_the_loss_of_a_case_done_by_hand():
    query, key = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    # First query: own 1, other 1. Second: own 0, other 0. So half is guessed either way.
    assert info_nce_in_batch(query, key, 0.5).item() == pytest.approx(2 * 0.5 * math.log(2))
    apart = -math.log(math.exp(2) / (math.exp(2) + 1))
    assert info_nce_in_batch(query, query, 0.5).item() == pytest.approx(apart)


def test_the_loss_is_that_of_both_views_in_both_roles(tiny_net, view):
    method = mocov3(tiny_net(3))
    views = [view(4, 3, seed=0), view(4, 3, seed=1)]
    learned = method(views, torch.Generator())
    with torch.no_grad():
        q1, q2 = (
            F.normalize(method.predictor(method.projector(method.encoder(v.image))), dim=1)
            for v in views
        )
        k1, k2 = (
            F.normalize(method.key_projector(method.key_encoder(v.image)), dim=1) for v in views
        )
    own = torch.arange(4)
    wanted = F.cross_entropy(q1 @ k2.T / 0.5, own) + F.cross_entropy(q2 @ k1.T / 0.5, own)
    assert learned.loss.item() == pytest.approx(wanted.item(), rel=1e-5)  # 2 * 0.5 = 1
    learned.loss.backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    assert all(p.grad is None for p in method.key_encoder.parameters())


def test_keys_follow_on_a_cosine_over_all_steps(tiny_net):
    method = mocov3(tiny_net(3))
    with torch.no_grad():
        next(method.encoder.parameters()).add_(1.0)
    online = next(method.encoder.parameters()).detach()
    for step, kept in ((0, 0.9), (5, 0.95), (10, 1.0)):
        before = next(method.key_encoder.parameters()).clone()
        method.begin(step)
        after = next(method.key_encoder.parameters())
        torch.testing.assert_close(after, kept * before + (1 - kept) * online)


def test_a_vits_first_projection_stays_and_the_rest_learns(tiny_vit, view):
    vit = tiny_vit(3)
    method = MoCoV3(vit, 24, hidden_width=8, steps=2, first_momentum=0.9, temperature=0.2)
    method([view(4, 3, seed=0), view(4, 3, seed=1)], torch.Generator()).loss.backward()
    still = [name for name, p in method.encoder.named_parameters() if p.grad is None]
    assert still == ["patch_embed.proj.weight", "patch_embed.proj.bias"]


def test_a_first_projection_that_goes_by_wavelengths_learns():
    sensor = Sensor("image", ("red", "nir"), (650.0, 850.0), (30.0, 30.0))
    shape = EncoderShape("wave_vit_tiny", 2, 8, 4, (sensor,))
    net = build_encoder(shape, seed=0)
    MoCoV3(net, 192, hidden_width=8, steps=9, first_momentum=0.9, temperature=0.2)
    assert all(p.requires_grad for p in net.patch_embed.proj.parameters())
    assert not net.pos_embed.requires_grad

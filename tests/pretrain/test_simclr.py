"""SimCLR: its loss by hand and by lightly's implementation."""

from __future__ import annotations

import math

import pytest
import torch
from lightly.loss import NTXentLoss
from torch.nn import functional as F

from pipeline.pretrain.methods.simclr import SimCLR, nt_xent


def unit(rows, seed):
    random = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, 5, generator=random, dtype=torch.float64), dim=1)


def test_the_loss_of_a_case_done_by_hand():
    # Two items; each view meets its partner (cosine 1) and twice the other item (0), temperature 1.
    first = torch.eye(2)
    wanted = -math.log(math.e / (math.e + 2))
    assert nt_xent(first, first, 1.0).item() == pytest.approx(wanted)


def test_loss_and_gradient_equal_lightlys():
    ours, theirs = ([unit(6, k).requires_grad_() for k in range(2)] for _ in range(2))
    mine, other = nt_xent(*ours, 0.1), NTXentLoss(temperature=0.1)(*theirs)
    assert mine.item() == pytest.approx(other.item(), rel=1e-12)
    # lightly normalises once more, so only the part of its gradient on the sphere is comparable.
    for found, at, wanted in zip(
        torch.autograd.grad(mine, ours), ours, torch.autograd.grad(other, theirs), strict=True
    ):
        flat = found - (found * at).sum(dim=1, keepdim=True) * at
        torch.testing.assert_close(flat, wanted, rtol=1e-9, atol=1e-12)


def test_the_loss_is_that_of_both_views_together(tiny_net, view):
    torch.manual_seed(0)
    method = SimCLR(tiny_net(3), 6, hidden_width=8, temperature=0.1)
    views = [view(4, 3, seed=0), view(4, 3, seed=1)]
    learned = method(views, torch.Generator())
    with torch.no_grad():
        both = method.head(method.encoder(torch.cat([v.image for v in views])))
    wanted = nt_xent(*F.normalize(both, dim=1).chunk(2), 0.1)
    assert learned.loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    learned.loss.backward()
    assert all(p.grad is not None for p in method.parameters())

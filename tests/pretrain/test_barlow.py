"""Barlow Twins: its loss by hand, by lightly's implementation, and over two ranks."""

from __future__ import annotations

import pytest
import torch
from lightly.loss import BarlowTwinsLoss

from pipeline.pretrain.methods.barlow import BarlowTwins, barlow_loss, cross_correlation

LAMBDA = 0.0051


def barlow(net):
    return BarlowTwins(net(3), 6, projector_width=8, off_diagonal=LAMBDA)


def projections(rows, seed, width=7):
    """Correlated views with means and deviations of their own."""
    random = torch.Generator().manual_seed(seed)
    shared, *own = torch.randn(3, rows, width, generator=random, dtype=torch.float64)
    scale = torch.linspace(0.5, 3, width, dtype=torch.float64)
    return [(shared + 0.3 * part) * scale + k for k, part in enumerate(own)]


def test_the_loss_of_a_case_done_by_hand():
    # Both dimensions of both views are +-1 times a factor, plus a mean. Dimension 1 agrees with
    # both of the other view, dimension 2 contradicts both: correlations (1, 1) and (-1, -1).
    first = torch.tensor([[1.0, -2.0], [-1.0, 2.0]])
    second = torch.tensor([[8.0, 4.0], [2.0, 2.0]])
    wanted = (1 - 1) ** 2 + (1 + 1) ** 2 + LAMBDA * (1 + 1)
    torch.testing.assert_close(
        cross_correlation(first, second),
        torch.tensor([[1.0, 1.0], [-1.0, -1.0]]),
        rtol=2e-5,
        atol=0,
    )
    assert barlow_loss(first, second, LAMBDA).item() == pytest.approx(wanted, rel=2e-5)


def test_loss_and_gradient_equal_lightlys():
    ours, theirs = ([p.requires_grad_() for p in projections(16, 0)] for _ in range(2))
    mine = barlow_loss(*ours, LAMBDA)
    other = BarlowTwinsLoss(lambda_param=LAMBDA)(*theirs)
    assert mine.item() == pytest.approx(other.item(), rel=1e-12)
    wanted = torch.autograd.grad(other, theirs)
    torch.testing.assert_close(torch.autograd.grad(mine, ours), wanted, rtol=1e-9, atol=1e-12)


def test_views_that_agree_in_independent_dimensions_cost_nothing():
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert barlow_loss(signs, 5 * signs + 2, LAMBDA).item() == pytest.approx(0, abs=1e-8)


def test_scale_and_mean_of_a_projection_do_not_matter():
    first, second = projections(16, 1)
    moved = first * torch.linspace(1, 9, 7, dtype=torch.float64) - 40
    assert barlow_loss(moved, second, LAMBDA).item() == pytest.approx(
        barlow_loss(first, second, LAMBDA).item(), rel=1e-4
    )


def test_collapsed_projections_have_a_finite_loss_and_gradient():
    first, second = torch.ones(4, 3, requires_grad=True), torch.ones(4, 3)
    loss = barlow_loss(first, second, LAMBDA)
    (gradient,) = torch.autograd.grad(loss, first)
    assert loss.item() == pytest.approx(3)
    assert torch.isfinite(gradient).all()


def test_the_loss_is_that_of_the_projected_views(tiny_net, view):
    method = barlow(tiny_net)
    views = [view(4, 3, seed=0), view(4, 3, seed=1)]
    learned = method(views, torch.Generator())
    with torch.no_grad():
        first, second = (method.projector(method.encoder(v.image)) for v in views)
    assert learned.loss.item() == pytest.approx(barlow_loss(first, second, LAMBDA).item())
    assert learned.embedding.shape == (4, 6)
    learned.loss.backward()
    assert all(p.grad is not None for p in method.parameters())


def test_the_loss_is_float32_inside_autocast(tiny_net, view):
    method = barlow(tiny_net)
    with torch.autocast("cpu", torch.bfloat16):
        learned = method([view(4, 3), view(4, 3, seed=1)], torch.Generator())
    assert learned.loss.dtype == learned.embedding.dtype == torch.float32

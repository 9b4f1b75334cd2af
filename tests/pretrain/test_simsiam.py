"""SimSiam: its loss by hand and by lightly's, the stopped gradient, the steady predictor."""

from __future__ import annotations

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity

from pipeline.pretrain.methods.simsiam import SimSiam, simsiam_loss
from pipeline.pretrain.optimise import set_rates


def vectors(seed):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(5, 4, generator=random, dtype=torch.float64)


def test_the_loss_of_a_case_done_by_hand():
    predicted = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])]
    projected = [torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 1.0]])]
    # cos((1, 0), (1, 1)) = 0.7071, cos((0, 2), (0, 3)) = 1
    assert simsiam_loss(predicted, projected).item() == pytest.approx(-(0.5**0.5 + 1) / 2)


def test_loss_and_gradient_equal_lightlys_with_the_gradient_stopped():
    parts = [vectors(k).requires_grad_() for k in range(4)]
    predicted, projected = parts[:2], parts[2:]
    theirs = NegativeCosineSimilarity()
    mine = simsiam_loss(predicted, projected)
    other = theirs(predicted[0], projected[1].detach()) / 2
    other = other + theirs(predicted[1], projected[0].detach()) / 2
    assert mine.item() == pytest.approx(other.item(), rel=1e-12)
    found = torch.autograd.grad(mine, parts, allow_unused=True)
    torch.testing.assert_close(found[:2], torch.autograd.grad(other, predicted))
    assert found[2:] == (None, None)


def test_all_weights_learn_and_the_projections_are_standardised(tiny_net, view):
    torch.manual_seed(0)
    method = SimSiam(tiny_net(3), 6, projector_width=8)
    learned = method([view(6, 3, seed=0), view(6, 3, seed=1)], torch.Generator())
    learned.loss.backward()
    assert all(p.grad is not None for p in method.parameters())
    assert learned.compared.mean(dim=0).abs().max() < 1e-5


def test_the_predictors_rate_does_not_fall(tiny_run):
    run = tiny_run("simsiam", steps=10, warmup_steps=0, learning_rate=0.5).run
    set_rates(run.optimizer, tiny_run("simsiam", steps=10, learning_rate=0.5).settings, 9)
    rates = {group["steady"]: group["lr"] for group in run.optimizer.param_groups}
    assert rates[True] == 0.5
    assert rates[False] < 0.05
    steady = {id(p) for g in run.optimizer.param_groups if g["steady"] for p in g["params"]}
    assert steady == {id(p) for p in run.method.predictor.parameters()}

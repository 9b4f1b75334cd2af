"""DeCUR: its loss by hand and by batch norm, two projectors, common and unique dimensions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.pretrain.methods.decur import DeCUR, cross_terms, decur_loss

LAMBDA = 0.0051


def projections(count, rows=16, width=6, seed=0):
    random = torch.Generator().manual_seed(seed)
    shared = torch.randn(rows, width, generator=random, dtype=torch.float64)
    own = torch.randn(count, rows, width, generator=random, dtype=torch.float64)
    return list(shared + 0.5 * own)


def decur(tiny_net, **more):
    torch.manual_seed(1)
    settings = {"projector_width": 8, "common": 6, "off_diagonal": LAMBDA, **more}
    return DeCUR((tiny_net(3), tiny_net(2)), (6, 6), **settings)


def test_the_terms_of_a_case_done_by_hand():
    # Correlations of one modality's dimensions (rows) with the other's, all +-1 or 0:
    # first = (a, b, c), second = (a, -b, c), of orthogonal signs.
    a, b, c = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]])
    first, second = torch.stack([a, b, c], dim=1), torch.stack([a, -b, c], dim=1)
    shared, unique = cross_terms(first, second, 2, LAMBDA)
    assert shared.item() == pytest.approx((1 - 1) ** 2 + (1 + 1) ** 2, abs=1e-4)
    assert unique.item() == pytest.approx(1.0, abs=1e-4)
    # Dimensions that agree across the border between the blocks cost nothing.
    shared, unique = cross_terms(torch.stack([a, b], 1), torch.stack([b, a], 1), 1, LAMBDA)
    assert (shared.item(), unique.item()) == pytest.approx((1.0, 0.0), abs=1e-4)


def test_the_loss_equals_the_papers_by_batch_norm():
    views = [part.requires_grad_() for part in projections(4)]
    common, norm = 4, nn.BatchNorm1d(6, affine=False).double()

    def correlate(one, other):
        return norm(one).T @ norm(other) / len(one)

    def off(block):
        return LAMBDA * (block - torch.diag(block.diagonal())).square().sum()

    cross = correlate(views[0], views[2])
    inner = cross[:common, :common]
    outer = cross[common:, common:]
    wanted = (1 - inner.diagonal()).square().sum() + off(inner)
    wanted = wanted + outer.diagonal().square().sum() + off(outer)
    for one, other in (views[:2], views[2:]):
        within = correlate(one, other)
        wanted = wanted + (1 - within.diagonal()).square().sum() + off(within)
    found = torch.stack(decur_loss(views[:2], views[2:], common, LAMBDA)).sum()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)
    mine, theirs = torch.autograd.grad(found, views), torch.autograd.grad(wanted, views)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_the_loss_does_not_depend_on_a_number_of_devices():
    # The released code divides by four times the batch: agreement could then never be reached.
    first, second = projections(2)
    same = decur_loss((first, first), (first, first), 6, LAMBDA)
    assert same.first.item() == pytest.approx(same.common.item())
    assert same.common < decur_loss((first, first), (second, second), 6, LAMBDA).common


def test_projectors_and_encoders_share_no_weights(tiny_net):
    method = decur(tiny_net)
    for one, other in (
        (method.encoder, method.second_encoder),
        (method.projector, method.second_projector),
    ):
        mine = {p.data_ptr() for p in one.parameters()}
        assert mine.isdisjoint(p.data_ptr() for p in other.parameters())


def test_modalities_have_their_own_bands_and_sizes_and_all_weights_learn(tiny_net, view):
    method = decur(tiny_net)
    views = [view(5, 3, seed=0), view(5, 3, seed=1)]
    views += [view(5, 2, size_px=12, seed=2), view(5, 2, size_px=12, seed=3)]
    learned = method(views, torch.Generator())
    learned.loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in method.parameters() if p.ndim > 1)
    assert set(learned.measures) == set(method.measures)
    assert learned.embedding.shape == (5, 6)


def test_the_first_view_alone_meets_the_other_modality():
    first, again, second, third = projections(4)
    one = decur_loss((first, again), (second, third), 4, LAMBDA)
    other = decur_loss((first, third), (second, again), 4, LAMBDA)
    assert (one.common, one.unique) == (other.common, other.unique)


def test_the_recipe_says_which_optimiser_is_used(tiny_run):
    # The released code used AdamW whatever it was asked for.
    for name, kind in (("sgd", "SGD"), ("lars", "Lars"), ("adamw", "AdamW")):
        assert (
            type(tiny_run("decur", optimizer=name, learning_rate=0.1).run.optimizer).__name__
            == kind
        )


def test_the_loss_is_float32_inside_autocast(tiny_net, view):
    method = decur(tiny_net)
    with torch.autocast("cpu", torch.bfloat16):
        views = [view(4, bands, seed=k) for k, bands in enumerate((3, 3, 2, 2))]
        learned = method(views, torch.Generator())
    assert learned.loss.dtype == learned.embedding.dtype == torch.float32

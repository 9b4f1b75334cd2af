"""SwAV: assignments and loss by hand and by lightly's, the queue, the prototypes."""

from __future__ import annotations

import math

import pytest
import torch
from lightly.loss import SwaVLoss
from lightly.loss.swav_loss import sinkhorn
from torch.nn import functional as F

from pipeline.pretrain.encoders.wavelength import aim
from pipeline.pretrain.methods.swav import SwAV, balance, swapped_loss


def swav(net, **more):
    torch.manual_seed(0)
    settings = {"queue": 6, "steps": 10, "frozen_steps": 1, "temperature": 0.1, **more}
    return SwAV(net(3), 6, hidden_width=8, prototypes=5, **settings)


def cosines(rows, seed, columns=5):
    random = torch.Generator().manual_seed(seed)
    return torch.rand(rows, columns, generator=random, dtype=torch.float64) * 2 - 1


def test_assignments_equal_lightlys_and_are_balanced():
    scores = cosines(20, 0)
    torch.testing.assert_close(balance(scores), sinkhorn(scores), rtol=1e-9, atol=1e-12)
    many = balance(scores, iterations=300)
    torch.testing.assert_close(many.sum(dim=1), torch.ones(20, dtype=torch.float64))
    torch.testing.assert_close(many.sum(dim=0), torch.full((5,), 4.0).double(), rtol=1e-4, atol=0)


def test_the_loss_of_a_case_done_by_hand():
    scores = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])]
    assigned = [torch.tensor([[0.75, 0.25]]), torch.tensor([[0.0, 1.0]])]
    first = math.log(math.exp(2) + 1)  # says (2, 0) of what is the second prototype's
    assert swapped_loss(scores, assigned, 0.5).item() == pytest.approx((first + math.log(2)) / 2)


def test_loss_and_gradient_equal_lightlys():
    ours, theirs = ([cosines(8, k).requires_grad_() for k in range(2)] for _ in range(2))
    mine = swapped_loss(ours, [balance(part.detach()) for part in ours], 0.1)
    other = SwaVLoss()(theirs, [])
    assert mine.item() == pytest.approx(other.item(), rel=1e-9)
    wanted = torch.autograd.grad(other, theirs)
    torch.testing.assert_close(torch.autograd.grad(mine, ours), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("small", [1, 3])
def test_with_small_crops_loss_and_gradient_equal_lightlys(small):
    ours, theirs = ([cosines(8, k).requires_grad_() for k in range(2 + small)] for _ in range(2))
    mine = swapped_loss(ours, [balance(part.detach()) for part in ours[:2]], 0.1)
    other = SwaVLoss()(theirs[:2], theirs[2:])
    assert mine.item() == pytest.approx(other.item(), rel=1e-9)
    wanted = torch.autograd.grad(other, theirs)
    torch.testing.assert_close(torch.autograd.grad(mine, ours), wanted, rtol=1e-9, atol=1e-12)


def test_the_loss_with_a_small_crop_done_by_hand():
    scores = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
    assigned = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
    low, high = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    # First large: said by the second (even) and the small one (wrong); second: by the first
    # (wrong) and the small one (right).
    wanted = (math.log(2) + high + high + low) / 4
    assert swapped_loss(scores, assigned, 0.5).item() == pytest.approx(wanted)


def test_large_crops_alone_are_assigned_and_remembered(tiny_net, view):
    methods = [swav(tiny_net) for _ in range(2)]
    large = [view(4, 3, seed=k) for k in range(2)]
    for method, size_px in zip(methods, (4, 6), strict=True):
        method.eval()  # batch statistics would let every crop see every other
        method.begin(0)
        learned = method(
            [*large, *[view(4, 3, size_px, seed=9) for _ in range(3)]], torch.Generator()
        )
        assert int(method.filled) == 4
        assert learned.embedding.shape == (4, 6)
    torch.testing.assert_close(methods[0].queue, methods[1].queue)
    alone = swav(tiny_net).eval()
    alone.begin(0)
    alone(large, torch.Generator())
    torch.testing.assert_close(alone.queue, methods[0].queue)


def test_all_items_alike_are_still_spread_over_the_prototypes():
    assert balance(torch.tensor([[0.9, 0.1, 0.0]]).repeat(6, 1)).sum(dim=0).min() > 1


def test_the_queue_keeps_the_newest_of_each_view_and_helps_later(tiny_net, view):
    method = swav(tiny_net)
    kept = []
    for step in range(3):
        method.begin(step)
        views = [view(4, 3, seed=2 * step), view(4, 3, seed=2 * step + 1)]
        learned = method(views, torch.Generator())
        kept.insert(0, learned.compared)
        assert int(method.filled) == min(4 * (step + 1), 6)
        torch.testing.assert_close(method.queue[0, 0, : int(method.filled)], torch.cat(kept)[:6])
    assert not torch.equal(method.queue[0, 0], method.queue[0, 1])
    assert method.queue_from == 2
    scores = F.normalize(cosines(4, 9).float(), dim=1)
    early, late = swav(tiny_net), swav(tiny_net)
    for one, step in ((early, 0), (late, 5)):
        one.load_state_dict(method.state_dict())
        assert one.remembered == method.remembered == [6]
        one.step = step
    torch.testing.assert_close(early._assign(scores, 0), balance(scores))
    together = torch.cat([scores, method.queue[0, 0] @ method.prototypes.T])
    torch.testing.assert_close(late._assign(scores, 0), balance(together)[:4])


def test_prototypes_are_unit_vectors_and_stand_still_at_first(tiny_net):
    method = swav(tiny_net)
    with torch.no_grad():
        method.prototypes.mul_(3)
    method.begin(0)
    torch.testing.assert_close(method.prototypes.norm(dim=1), torch.ones(5))
    assert list(method.still()) == [method.prototypes]
    method.begin(1)
    assert not list(method.still())


def test_each_product_has_a_queue_of_its_own(tiny_net, view):
    method = swav(tiny_net, products=("enmap", "landsat"))
    for product, filled in (("landsat", [0, 4]), ("enmap", [4, 4]), ("landsat", [4, 6])):
        aim(method, product)
        before = method.queue.clone()
        method.begin(0)
        method([view(4, 3, seed=0), view(4, 3, seed=1)], torch.Generator())
        other = int(product == "enmap")
        assert torch.equal(method.queue[other], before[other])
        assert not torch.equal(method.queue[1 - other], before[1 - other])
        assert method.filled.tolist() == filled


def test_queue_and_its_length_are_part_of_the_state(tiny_net):
    assert {"queue", "filled", "prototypes"} <= set(swav(tiny_net).state_dict())

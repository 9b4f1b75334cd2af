"""MoCo v2: its loss by hand and by lightly's implementation, its queue, its key encoder."""

from __future__ import annotations

import math

import pytest
import torch
from lightly.loss import NTXentLoss
from torch.nn import functional as F

from pipeline.pretrain.encoders.wavelength import aim
from pipeline.pretrain.methods.moco import EMBEDDING_WIDTH, MoCo, info_nce


def moco(net, *, queue=8, momentum=0.9, bands=3, products=("",)):
    more = {"momentum": momentum, "temperature": 0.2, "seed": 1, "products": products}
    return MoCo(net(bands), 6, queue=queue, **more)


def test_parts_of_keys_have_moments_of_their_own_and_keep_their_places(tiny_net, view):
    """By hand: the same random order, each part alone through the key encoder."""
    whole, parted = moco(tiny_net), moco(tiny_net)
    parted.key_parts = 2
    parted.load_state_dict(whole.state_dict())
    views = [view(8, 3, seed=0), view(8, 3, seed=1)]
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    parted.forward(views, torch.Generator().manual_seed(3))
    with torch.no_grad():
        keys = torch.empty(8, EMBEDDING_WIDTH)
        for part in (order[:4], order[4:]):
            seen = whole.key_encoder(views[1].image[part])
            keys[part] = F.normalize(whole.key_head(seen), dim=1)
    torch.testing.assert_close(parted.queue[0, :8], keys)
    whole.forward(views, torch.Generator().manual_seed(3))
    assert not torch.allclose(whole.queue[0, :8], keys, atol=1e-4), "moments of all"


def test_a_key_is_not_told_by_moments_that_it_shares_with_its_query(tiny_net, view):
    """With whole moments a query and its key agree on what their batch is like, and no key of the
    queue does; with parts, the two differ by their moments even where the images are the same."""

    def told(key_parts):
        method = moco(tiny_net)
        method.key_parts = key_parts
        same = view(8, 3, seed=0)  # both views alike: query and key differ by moments alone
        method.key_head.load_state_dict(method.head.state_dict())
        method.forward([same, same], torch.Generator().manual_seed(3))
        with torch.no_grad():
            query = F.normalize(method.head(method.encoder(same.image)), dim=1)
        return (query * method.queue[0, :8]).sum(dim=1).min().item()

    assert told(1) == pytest.approx(1, abs=1e-5)
    assert told(2) < 0.9999


def unit(rows, seed):
    random = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, 5, generator=random, dtype=torch.float64), dim=1)


def test_the_loss_of_a_case_done_by_hand():
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    key = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    queue = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    # First query: cosines 1 (own), 0 and -1. Second: 0 (own), 1 and 0. Temperature 1/2 doubles.
    first = -math.log(math.exp(2) / (math.exp(2) + 1 + math.exp(-2)))
    second = -math.log(1 / (1 + math.exp(2) + 1))
    assert info_nce(query, key, queue, 0.5).item() == pytest.approx((first + second) / 2)


def test_the_loss_equals_lightlys_with_its_memory_bank():
    query, key, queue = unit(4, 0), unit(4, 1), unit(16, 2)
    theirs = NTXentLoss(temperature=0.07, memory_bank_size=(16, 5))
    theirs.memory_bank.bank = queue.clone()
    theirs.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
    query.requires_grad_()
    ours = info_nce(query, key, queue, 0.07)
    (mine,) = torch.autograd.grad(ours, query)
    other = theirs(query, key)
    (wanted,) = torch.autograd.grad(other, query)
    assert ours.item() == pytest.approx(other.item(), rel=1e-12)
    # lightly normalises once more, so only the part of its gradient on the sphere is comparable.
    flat = mine - (mine * query).sum(dim=1, keepdim=True) * query
    torch.testing.assert_close(flat, wanted, rtol=1e-9, atol=1e-12)


def test_the_queue_holds_unit_keys_moves_once_a_step_and_forgets_the_oldest(tiny_net, view):
    method = moco(tiny_net, queue=8)
    before = method.queue[0].clone()
    method([view(3, 3, seed=0), view(3, 3, seed=1)], torch.Generator())
    assert int(method.position) == 3
    torch.testing.assert_close(method.queue[0, 3:], before[3:])
    assert not torch.equal(method.queue[0, :3], before[:3])
    for seed in range(2):
        method([view(3, 3, seed=seed), view(3, 3, seed=9)], torch.Generator())
    assert int(method.position) == 1
    torch.testing.assert_close(method.queue[0].norm(dim=1), torch.ones(8))


def test_the_loss_sees_the_queue_of_earlier_steps_only(tiny_net, view):
    method = moco(tiny_net)
    views = [view(4, 3, seed=0), view(4, 3, seed=1)]
    before = method.queue[0].clone()
    loss = method(views, torch.Generator()).loss
    with torch.no_grad():
        query = F.normalize(method.head(method.encoder(views[0].image)), dim=1)
    keys = method.queue[0, :4]
    assert loss.item() == pytest.approx(info_nce(query, keys, before, 0.2).item(), rel=1e-5)


def test_each_product_has_a_queue_of_its_own(tiny_net, view):
    method = moco(tiny_net, products=("enmap", "landsat"))
    views = [view(4, 3, seed=0), view(4, 3, seed=1)]
    before = method.queue.clone()
    aim(method, "landsat")
    loss = method(views, torch.Generator()).loss
    assert torch.equal(method.queue[0], before[0])
    assert method.position.tolist() == [0, 4]
    with torch.no_grad():
        query = F.normalize(method.head(method.encoder(views[0].image)), dim=1)
    wanted = info_nce(query, method.queue[1, :4], before[1], 0.2)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    aim(method, "enmap")
    method(views, torch.Generator())
    assert method.position.tolist() == [4, 4]


def test_a_run_from_before_goes_on_with_its_one_queue_for_each_product(tiny_net):
    state = moco(tiny_net).state_dict()
    state["queue"], state["position"] = state["queue"][0], state["position"][0] + 3
    for products in (("",), ("enmap", "landsat")):
        method = moco(tiny_net, products=products)
        method.load_state_dict(state)
        assert all(torch.equal(part, state["queue"]) for part in method.queue)
        assert method.position.tolist() == [3] * len(products)
        method.queue[0].zero_()
        assert state["queue"].any()


def test_a_batch_larger_than_the_queue_leaves_its_last_keys(tiny_net, view):
    method = moco(tiny_net, queue=2)
    method([view(5, 3, seed=0), view(5, 3, seed=1)], torch.Generator())
    assert method.queue.shape == (1, 2, EMBEDDING_WIDTH)


def test_the_key_encoder_follows_by_momentum_and_gets_no_gradient(tiny_net, view):
    method = moco(tiny_net, momentum=0.75)
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter.add_(1.0)
    apart = [p.detach().clone() for p in method.key_encoder.parameters()]
    method.begin(0)
    method([view(4, 3), view(4, 3, seed=1)], torch.Generator()).loss.backward()
    online = method.encoder.parameters()
    for before, after, q in zip(apart, method.key_encoder.parameters(), online, strict=True):
        torch.testing.assert_close(after, 0.75 * before + 0.25 * q)
        assert after.grad is None
    assert all(p.grad is not None for p in method.encoder.parameters())


def test_the_two_encoders_share_no_weights(tiny_net):
    method = moco(tiny_net)
    mine = {p.data_ptr() for p in method.encoder.parameters()}
    assert mine.isdisjoint(p.data_ptr() for p in method.key_encoder.parameters())


def test_queue_and_position_are_part_of_the_state(tiny_net):
    assert {"queue", "position"} <= set(moco(tiny_net).state_dict())


def test_the_loss_is_float32_inside_autocast(tiny_net, view):
    method = moco(tiny_net)
    with torch.autocast("cpu", torch.bfloat16):
        learned = method([view(4, 3), view(4, 3, seed=1)], torch.Generator())
    assert learned.loss.dtype == learned.embedding.dtype == torch.float32

"""A batch over two ranks is the same batch: losses and gradients of processes on this machine."""

from __future__ import annotations

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from pipeline.pretrain.methods.barlow import barlow_loss
from pipeline.pretrain.methods.dino import DINO, Schedule
from pipeline.pretrain.methods.method import View

#: Rows of each rank.
SHARES = {"equal": (6, 6), "unequal": (3, 9)}


def views(shares):
    """Two views of a batch whose ranks' statistics differ as much as two sensors' do."""
    random = torch.Generator().manual_seed(3)
    first, noise = torch.randn(2, sum(shares), 4, generator=random, dtype=torch.float64)
    first[shares[0] :] = 3 * first[shares[0] :] + 2
    return first, first + 0.4 * noise


def learn(first, second):
    """Return a loss and the gradient of an encoder without batch norm."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 5)).double()
    loss = barlow_loss(net(first), net(second), 0.0051)
    loss.backward()
    return [loss.detach(), *(p.grad for p in net.parameters())]


def distil(first, second):
    """Return loss, centre and gradient of DINO at its second step, which sees a centre."""
    torch.manual_seed(0)
    method = DINO(
        nn.Sequential(nn.Flatten(), nn.Linear(4, 6)),
        6,
        prototypes=5,
        schedule=Schedule(9, 0.9, 0.04, 0.04, 0, 0),
        student_temperature=0.1,
        centre_momentum=0.5,
    )
    images = [view.float().reshape(-1, 4, 1, 1) for view in (first, second)]
    both = [View(image, torch.ones_like(image, dtype=torch.bool)) for image in images]
    for _ in range(2):
        method.zero_grad()
        loss = method(both, torch.Generator()).loss
        loss.backward()
    used = [p.grad for p in method.parameters() if p.requires_grad]
    return method.centre, [loss.detach(), *used]


def one_rank(rank, port, folder):
    """Write what one of two ranks gets, its gradients averaged as data-parallel training does."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    url = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=url, rank=rank, world_size=2)
    try:
        for name, shares in SHARES.items():
            loss, *gradients = learn(*(view.split(shares)[rank] for view in views(shares)))
            _mean(gradients)
            torch.save([loss, *gradients], folder / f"{name}-{rank}.pt")
            centre, learned = distil(*(view.split(shares)[rank] for view in views(shares)))
            _mean(learned)
            torch.save([centre, *learned], folder / f"dino-{name}-{rank}.pt")
    finally:
        dist.destroy_process_group()


def _mean(tensors):
    for tensor in tensors:
        dist.all_reduce(tensor.div_(2))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Where both ranks wrote; starting them takes longer than all of their work."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(one_rank, args=(port, folder), nprocs=2)
    return folder


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", SHARES)
def test_barlow_twins_over_two_ranks_equals_one_rank(name, rank, two_ranks):
    found = torch.load(two_ranks / f"{name}-{rank}.pt")
    torch.testing.assert_close(found, learn(*views(SHARES[name])), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rank", [0, 1])
def test_dino_over_two_ranks_equals_one_rank(rank, two_ranks):
    centre, learned = distil(*views(SHARES["equal"]))
    found = torch.load(two_ranks / f"dino-equal-{rank}.pt")
    torch.testing.assert_close(found, [centre, *learned], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_centre_is_the_mean_over_items_not_over_ranks(rank, two_ranks):
    centre, _ = distil(*views(SHARES["unequal"]))
    found = torch.load(two_ranks / f"dino-unequal-{rank}.pt")[0]
    torch.testing.assert_close(found, centre, rtol=1e-5, atol=1e-6)

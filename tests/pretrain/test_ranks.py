"""A batch over two ranks is the same batch: loss and gradients of processes on this machine."""

from __future__ import annotations

import os
import socket
from typing import get_args

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from pipeline.pretrain.choice import TWO_SIZES
from pipeline.pretrain.data.batches import Stored
from pipeline.pretrain.draws import own_uniform
from pipeline.pretrain.encoders.norms import RankBatchNorm, share_norms
from pipeline.pretrain.encoders.spectral import WIDTH, SpectralAdapter
from pipeline.pretrain.logs import Meter
from pipeline.pretrain.methods.barlow import BarlowTwins, barlow_loss
from pipeline.pretrain.methods.barlow_pixels import PixelBarlow
from pipeline.pretrain.methods.data2vec import Data2Vec
from pipeline.pretrain.methods.decur import DeCUR
from pipeline.pretrain.methods.dino import DINO, Schedule
from pipeline.pretrain.methods.mae import MAE, Decoder
from pipeline.pretrain.methods.method import View
from pipeline.pretrain.methods.moco import MoCo
from pipeline.pretrain.methods.mocov3 import MoCoV3
from pipeline.pretrain.methods.paws import PAWS, paws_loss
from pipeline.pretrain.methods.simclr import SimCLR
from pipeline.pretrain.methods.simsiam import SimSiam
from pipeline.pretrain.methods.swav import SwAV
from pipeline.pretrain.ranks import first_rows, gather_rows, own_rows, rank
from pipeline.pretrain.train import _over_ranks
from pipeline.recipe import Pretrain

#: Rows of each rank.
SHARES = {"equal": (6, 6), "unequal": (3, 9)}
METHODS = get_args(Pretrain.model_fields["method"].annotation)
#: Items of a batch, and its steps: the second sees the centre or queue of the first.
ITEMS, STEPS = 8, 2


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


def agree(first, second):
    """Return PAWS's loss of three crops, and its gradient."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=1)).double()
    loss = paws_loss(net(first), net(second), net(first + second))
    loss.backward()
    return [loss.detach(), *(p.grad for p in net.parameters())]


def net(bands):
    """Takes crops of 8 x 8 and, enlarged, of 4 x 4 pixels."""
    return nn.Sequential(nn.Upsample(8), nn.Flatten(), nn.Linear(bands * 64, 6), nn.Tanh())


def vit():
    return VisionTransformer(
        img_size=8,
        patch_size=2,
        in_chans=3,
        num_classes=0,
        embed_dim=24,
        depth=2,
        num_heads=2,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
    )


def build(name):
    """Build a method in float64, without any batch norm: those of two ranks are two.

    In float32 the products of two halves and of a whole batch differ by rounding, and by how much
    depends on the processor.
    """
    torch.manual_seed(0)
    barlow = {"projector_width": 8, "off_diagonal": 0.0051}
    made = {
        "moco": lambda: MoCo(net(3), 6, queue=20, momentum=0.9, temperature=0.2, seed=0),
        "mae": lambda: MAE(vit(), bands=3, mask_fraction=0.5, decoder=Decoder(16, 1, 2)),
        "barlow": lambda: BarlowTwins(net(3), 6, **barlow),
        "dino": lambda: DINO(
            net(3),
            6,
            prototypes=5,
            schedule=Schedule(9, 0.9, 0.04, 0.04, 0, 1),
            student_temperature=0.1,
            centre_momentum=0.5,
        ),
        "decur": lambda: DeCUR((net(3), net(2)), (6, 6), common=6, **barlow),
        "paws": lambda: PAWS(net(3), 6, classes=2, hidden_width=8, temperature=0.1),
        "barlow_pixels": lambda: PixelBarlow(net(3), 6, window_px=8, windows=1, **barlow),
        "mocov3": lambda: MoCoV3(
            net(3), 6, hidden_width=8, steps=9, first_momentum=0.9, temperature=0.2
        ),
        "simclr": lambda: SimCLR(net(3), 6, hidden_width=8, temperature=0.2),
        "simsiam": lambda: SimSiam(net(3), 6, projector_width=8),
        "swav": lambda: SwAV(
            net(3),
            6,
            hidden_width=8,
            prototypes=5,
            queue=12,
            steps=2,
            frozen_steps=0,
            temperature=0.1,
        ),
        "data2vec": lambda: Data2Vec(
            vit(), mask_fraction=0.5, steps=9, first_momentum=0.9, drop_path=0.0
        ),
    }
    method = made[name]()
    for module in list(method.modules()):
        for key, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm1d):
                setattr(module, key, nn.Identity())
    return method.double()


def batch(name, part=slice(None)):
    """Return what a rank sees of a batch whose second half is of another kind than its first."""
    random = torch.Generator().manual_seed(7)
    wanted = {"decur": (3, 3, 2, 2), "mae": (3,), "data2vec": (3,)}.get(name, (3, 3))
    seen = []
    for bands in wanted:
        image = torch.randn(ITEMS, bands, 8, 8, generator=random, dtype=torch.float64)
        image[ITEMS // 2 :] = 3 * image[ITEMS // 2 :] + 2
        valid = torch.ones_like(image, dtype=torch.bool)
        valid[: ITEMS // 2, :, :6] = False  # one rank has far fewer valid values than the other
        seen.append(View(image[part], valid[part]))
    if name in TWO_SIZES:
        for _ in range(3):
            image = torch.randn(ITEMS, 3, 4, 4, generator=random, dtype=torch.float64)
            seen.append(View(image[part], torch.ones_like(image[part], dtype=torch.bool)))
    if name == "paws":
        image = torch.randn(6, 3, 8, 8, generator=random, dtype=torch.float64)
        label = torch.arange(6) % 2
        seen.append(View(image, torch.ones_like(image, dtype=torch.bool), label))
    return seen


def study(name, part=slice(None)):
    """Return loss, gradients and all other state after two steps through one forward each."""
    method = build(name)
    learner = _over_ranks(method, torch.device("cpu"))
    # Windows are drawn by each rank on its own, so here each is the whole patch, undisturbed.
    for step in range(STEPS):
        method.begin(step)
        method.zero_grad()
        loss = learner(batch(name, part), torch.Generator().manual_seed(step)).loss
        loss.backward()
        with torch.no_grad():
            for parameter in method.parameters():
                if parameter.grad is not None:
                    parameter -= 0.05 * parameter.grad
    if part.stop:
        loss = loss.detach().clone()
        dist.all_reduce(loss.div_(2))
    grads = [p.grad for p in method.parameters() if p.grad is not None]
    return {"loss": loss.detach(), "gradient": grads, "state": method.state_dict()}


def adapt(way="forward", part=slice(None), *, bf16=False):
    """Learn with a spectral adapter on a batch whose halves differ as much as two sensors' do.

    Returns output, gradients, running moments, and the bytes that were kept for the gradients.
    """
    random = torch.Generator().manual_seed(5)
    images = torch.randn(ITEMS, 80, 4, 4, generator=random)
    images[ITEMS // 2 :] = 3 * images[ITEMS // 2 :] + 2
    upstream = torch.randn(ITEMS, WIDTH, 4, 4, generator=random)
    torch.manual_seed(0)
    adapter = SpectralAdapter(80)
    if part.stop:
        share_norms(adapter, torch.device("cpu"))
        assert isinstance(adapter.layers[1], RankBatchNorm)
    kept = {}

    def count(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    own = images[part].requires_grad_()
    hooks = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = getattr(adapter, way)(own)
    out.backward(upstream[part].to(out.dtype))
    # A shift before a norm has no gradient but rounding.
    named = dict(adapter.named_parameters())
    shifts = {f"layers.{k}.bias" for k in (0, 3, 6)}
    grads = {name: p.grad for name, p in named.items() if name not in shifts}
    buffers = {name: b.clone() for name, b in adapter.named_buffers()}
    adapter.eval()
    with torch.no_grad():
        after = getattr(adapter, way)(own)
    return {
        "out": out.detach(),
        "image": own.grad,
        "after": after,
        "gradient": grads,
        "moments": buffers,
        "bytes": sum(kept.values()),
    }


def one_rank(rank, port, folder):
    """Write what one of two ranks gets, its gradients averaged as data-parallel training does."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    url = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=url, rank=rank, world_size=2)
    try:
        for name, shares in SHARES.items():
            loss, *gradients = learn(*(view.split(shares)[rank] for view in views(shares)))
            for gradient in gradients:
                dist.all_reduce(gradient.div_(2))
            torch.save([loss, *gradients], folder / f"{name}-{rank}.pt")
        loss, *gradients = agree(*(view.split(6)[rank] for view in views((6, 6))))
        for part in (loss, *gradients):
            dist.all_reduce(part.div_(2))
        torch.save([loss, *gradients], folder / f"agree-{rank}.pt")
        half = ITEMS // 2
        for name in METHODS:
            found = study(name, slice(rank * half, (rank + 1) * half))
            torch.save(found, folder / f"{name}-{rank}.pt")
        share = slice(rank * half, (rank + 1) * half)
        for bf16 in (False, True):
            for way in ("forward", "plain"):
                torch.save(adapt(way, share, bf16=bf16), folder / f"{way}-{bf16}-{rank}.pt")
        torch.save(gathered(), folder / f"gathered-{rank}.pt")
        torch.save(metered(), folder / f"metered-{rank}.pt")
    finally:
        dist.destroy_process_group()


def gathered():
    """Return gathered rows, and the gradient of a sum that weighs rows and ranks differently."""
    own = torch.arange(4.0).view(2, 2) + 10 * rank()
    own.requires_grad_()
    rows = gather_rows(own)
    weight = torch.arange(float(rows.numel())).view_as(rows) * (1 + rank())
    (gradient,) = torch.autograd.grad((rows * weight).sum(), own)
    first = [first_rows(own, most) for most in (1, 3, 9)]
    drawn = torch.from_numpy(own_uniform(3, 5, 7, 1).copy())
    return rows.detach(), gradient, own_rows(rows.detach()), first, drawn


def metered():
    """Return the rates of a second in which this rank had 3 items of 200 bytes."""
    now_s = iter((0.0, 0.25, 0.5, 0.5, 0.5, 1.0))
    meter = Meter(lambda: next(now_s))
    bands = torch.zeros(3, 1, 10, 10, dtype=torch.uint8)
    stored = Stored(bands, bands[:, 0].clone(), "image")
    list(meter.watch([(stored, stored)]))
    rates = meter.rates()
    return rates.samples_per_s, rates.decoded_gb_per_s, rates.busy_fraction


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
def test_paws_over_two_ranks_equals_one_rank(rank, two_ranks):
    wanted = agree(*views((6, 6)))
    torch.testing.assert_close(
        torch.load(two_ranks / f"agree-{rank}.pt"), wanted, rtol=1e-9, atol=1e-12
    )


#: Its ranks draw their windows on their own; its loss is that of `barlow`.
SAME = [name for name in METHODS if name != "barlow_pixels"]


@pytest.mark.parametrize("name", SAME)
def test_a_method_over_two_ranks_equals_one_rank(name, two_ranks):
    wanted = study(name)
    for number in range(2):
        found = torch.load(two_ranks / f"{name}-{number}.pt")
        assert found["loss"].dtype == torch.float64
        assert found["loss"].item() == pytest.approx(wanted["loss"].item(), rel=1e-9, abs=1e-9)
        assert apart(found["gradient"], wanted["gradient"]) < 1e-9
        states = [list(run["state"].values()) for run in (found, wanted)]
        assert apart(*states) < 1e-9
        assert found["state"].keys() == wanted["state"].keys()


def adapted(folder, way, *, bf16):
    """Return what two ranks' adapters gave, put together as one rank's; and the kept bytes."""
    both = [torch.load(folder / f"{way}-{bf16}-{number}.pt") for number in range(2)]
    joined = {key: torch.cat([one[key] for one in both]) for key in ("out", "image", "after")}
    names = both[0]["gradient"]
    joined["gradient"] = {name: sum(one["gradient"][name] for one in both) for name in names}
    for name, kept in both[0]["moments"].items():
        assert torch.equal(kept, both[1]["moments"][name])
    return {**joined, "moments": both[0]["moments"]}, [one["bytes"] for one in both]


def tensors(result):
    """Every tensor of what `adapt` returns, by name."""
    flat = {key: result[key] for key in ("out", "image", "after")}
    return flat | result["gradient"] | result["moments"]


def test_a_spectral_adapter_over_two_ranks_equals_one_rank(two_ranks):
    found, _ = adapted(two_ranks, "forward", bf16=False)
    wanted = tensors(adapt())
    for name, one in tensors(found).items():
        assert apart([one], [wanted[name]]) < 1e-5, name


def test_a_spectral_adapter_over_two_ranks_is_in_bfloat16_as_near_as_its_definition(two_ranks):
    wanted = tensors(adapt())
    found, plain = (tensors(adapted(two_ranks, way, bf16=True)[0]) for way in ("forward", "plain"))
    for name, one in found.items():
        assert apart([one], [wanted[name]]) < 1.2 * apart([plain[name]], [wanted[name]]) + 1e-3


@pytest.mark.parametrize("bf16", [False, True])
def test_a_spectral_adapter_over_two_ranks_keeps_half_of_what_conv3d_keeps_or_less(bf16, two_ranks):
    ours, plain = (adapted(two_ranks, way, bf16=bf16)[1] for way in ("forward", "plain"))
    assert all(one < 0.5 * other for one, other in zip(ours, plain, strict=True))


def apart(found, wanted):
    """Return how long the difference of two lists of tensors is, relative to the second."""
    one, other = (torch.cat([t.double().flatten() for t in part]) for part in (found, wanted))
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("name", METHODS)
def test_ranks_agree_on_weights_queues_and_centres(name, two_ranks):
    first, second = (torch.load(two_ranks / f"{name}-{number}.pt") for number in range(2))
    torch.testing.assert_close(first["state"], second["state"], rtol=1e-5, atol=1e-7)


def test_gathered_rows_are_every_ranks_and_their_gradient_the_sum_of_all(two_ranks):
    both = [
        torch.load(two_ranks / f"gathered-{number}.pt", weights_only=False) for number in (0, 1)
    ]
    wanted = torch.cat([torch.arange(4.0).view(2, 2), torch.arange(4.0).view(2, 2) + 10])
    weight = torch.arange(8.0).view(4, 2) * (1 + 2)
    for number, (rows, gradient, own, first, _) in enumerate(both):
        assert all(map(torch.equal, first, (wanted[:1], wanted[:3], wanted)))
        assert torch.equal(rows, wanted)
        assert torch.equal(gradient, weight[2 * number : 2 * number + 2])
        assert torch.equal(own, wanted[2 * number : 2 * number + 2])


def test_an_items_draws_do_not_depend_on_how_many_ranks_there_are(two_ranks):
    both = [
        torch.load(two_ranks / f"gathered-{number}.pt", weights_only=False) for number in (0, 1)
    ]
    drawn = np.concatenate([found[-1].numpy() for found in both])
    assert np.array_equal(drawn, own_uniform(6, 5, 7, 1))
    assert not np.array_equal(drawn, own_uniform(6, 5, 7, 2))
    assert len(np.unique(drawn)) == drawn.size


@pytest.mark.parametrize("rank", [0, 1])
def test_rates_are_of_all_ranks(rank, two_ranks):
    assert torch.load(two_ranks / f"metered-{rank}.pt") == (6, pytest.approx(1.2e-6), 0.75)
    assert metered() == (3, pytest.approx(6e-7), 0.75)

"""Unlabelled items are cut to windows of the size of those that vote on them."""

from __future__ import annotations

import pytest
import torch

from pipeline.pretrain import train as training
from pipeline.pretrain.data.batches import Share, Stored
from pipeline.pretrain.data.windows import cut_alike


def places(count=6, size_px=20, bands=2, offset=0):
    """Pixels that say where they stand: 100 y + x."""
    y, x = torch.arange(size_px).view(-1, 1), torch.arange(size_px)
    values = (100 * y + x + offset).short().expand(count, bands, size_px, size_px).clone()
    return Stored(values, torch.ones(count, size_px, size_px, dtype=torch.uint8), "image")


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def test_all_views_of_an_item_are_cut_at_one_place_and_items_at_their_own():
    first, second = cut_alike((places(), places(offset=7)), 5, random())
    assert first.bands.shape == (6, 2, 5, 5)
    assert first.mask.shape == (6, 5, 5)
    assert torch.equal(first.bands + 7, second.bands)
    corners = first.bands[:, 0, 0, 0]
    assert len(set(corners.tolist())) > 3
    whole = places().bands[0, 0]
    for item, corner in enumerate(corners.tolist()):
        y, x = divmod(corner, 100)
        assert torch.equal(first.bands[item, 1], whole[y : y + 5, x : x + 5])


def test_a_patch_twice_stays_one_and_one_that_is_no_larger_stays_as_it_is():
    one = places()
    first, second = cut_alike((one, one), 5, random())
    assert first is second
    generator = random()
    same = cut_alike((one, one), 20, generator)
    assert same[0] is one
    assert torch.equal(generator.get_state(), random().get_state())


def test_windows_are_where_every_view_was_seen():
    one, other = places(50), places(50)
    one.mask[:, :, :8] = 0
    other.mask[:, :6] = 0
    first, second = cut_alike((one, other), 5, random())
    seen = torch.minimum(*((v.mask != 0).float().mean(dim=(1, 2)) for v in (first, second)))
    assert (seen >= 0.7).float().mean() > 0.9


@pytest.mark.parametrize("ranks", [2, 3])
def test_windows_do_not_depend_on_how_many_processes_share_a_batch(ranks):
    whole, *_ = cut_alike((places(),), 5, random())
    parts = []
    for rank in range(ranks):
        share = Share(rank, ranks)
        ours = share.of(6)
        one = places()
        mine = (Stored(one.bands[ours], one.mask[ours], "image"),)
        parts.append(cut_alike(mine, 5, random(), share)[0].bands)
    assert torch.equal(torch.cat(parts), whole.bands)


def test_paws_sees_unlabelled_ground_at_the_resolution_of_its_support(tiny_run, monkeypatch):
    """Support windows of 6 of the 12 pixels: what is enlarged beside them must be as small."""
    tiny = tiny_run("paws")
    plain, small = type(tiny)._support, []

    def smaller(self, step):
        stored, label = plain(self, step)
        return Stored(stored.bands[..., :6, :6], stored.mask[..., :6, :6], stored.product), label

    monkeypatch.setattr(type(tiny), "_support", smaller)
    make = training.make_views

    def watch(batch, *more):
        small.append([view.bands.shape[-1] for view in batch])
        return make(batch, *more)

    monkeypatch.setattr(training, "make_views", watch)
    tiny.go_on(1)
    assert small == [[6, 6], [6, 6]]

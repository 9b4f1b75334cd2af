"""What was never seen reaches no view, loss or gradient, whatever is stored there."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.pretrain.choice import crops_of
from pipeline.pretrain.data.augment import Augmentation, Crop
from pipeline.pretrain.data.batches import Share, Stored
from pipeline.pretrain.data.normalise import Normaliser
from pipeline.pretrain.data.views import make_views
from pipeline.recipe import Pretrain

FILL = -32768
METHODS = get_args(Pretrain.model_fields["method"].annotation)


def stored(seed, dtype=torch.int16, count=4, bands=3, size_px=12, product="image"):
    """Pixels, a third of them masked, some fill in single bands, one band absent in one item."""
    random = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 100, (count, bands, size_px, size_px), generator=random).to(dtype)
    fill = torch.rand(values.shape, generator=random) < 0.1
    fill[0, 1] = True
    values[fill] = FILL if dtype == torch.int16 else torch.nan
    mask = (torch.rand(count, size_px, size_px, generator=random) > 1 / 3).to(torch.uint8)
    return Stored(values, mask, product)


def spoilt(view, seed):
    """The same, with something else under the mask."""
    random = torch.Generator().manual_seed(seed)
    junk = torch.randint(-30000, 30000, view.bands.shape, generator=random).to(view.bands.dtype)
    if view.bands.dtype.is_floating_point:
        odd = torch.tensor([torch.nan, torch.inf, -torch.inf, 3e38])
        junk = odd[torch.randint(0, 4, view.bands.shape, generator=random)]
    return view._replace(bands=torch.where(view.mask.bool().unsqueeze(1), view.bands, junk))


def views(batch, crops, share=Share()):  # noqa: B008 - it cannot change
    fill = None if batch[0].bands.is_floating_point() else FILL
    normalisers = {
        product: Normaliser([50.0] * bands, [30.0] * bands, fill)
        for product, bands in (("image", 3), ("radar", 2))
    }
    return make_views(batch, crops, normalisers, torch.Generator().manual_seed(1), share)


@given(st.integers(0, 2**32), st.sampled_from([torch.int16, torch.float32]))
@settings(max_examples=20)
def test_junk_in_invalid_values_changes_no_bit_of_a_view(seed, dtype):
    crops = [Crop(0, Augmentation(8, blur=1.0)), Crop(1, None)]
    batch = (stored(seed, dtype), stored(seed + 1, dtype))
    wanted = views(batch, crops)
    found = views(tuple(spoilt(view, seed) for view in batch), crops)
    for one, other in zip(wanted, found, strict=True):
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.valid, other.valid)
        assert one.image.isfinite().all()
        assert not one.image[~one.valid].any()
        assert one.valid.any()


def patches(method, views):
    """Return the batch of a step: two times, or two products; and labelled patches."""
    if method == "decur":
        return (stored(0), stored(1, bands=2, product="radar")), None
    return tuple(stored(seed) for seed in range(views)), stored(9) if method == "paws" else None


@pytest.mark.parametrize("method", METHODS)
def test_junk_in_invalid_values_changes_no_bit_of_loss_or_gradient(method, tiny_run):
    tiny = tiny_run(method)
    count = tiny.run.method.views
    crops = crops_of(tiny.settings, tiny.shape, patches=count, second=tiny.second)
    batch, support = patches(method, count)
    results = []
    for spoil in (lambda view: view, lambda view: spoilt(view, 5)):
        seen = views(tuple(map(spoil, batch)), crops)
        if support is not None:
            labelled = views((spoil(support),) * count, crops[:count])
            seen += [view._replace(label=torch.arange(4) % 2) for view in labelled]
        module = tiny_run(method).run.method
        module.begin(0)
        torch.manual_seed(0)  # layers that drop
        learned = module(seen, torch.Generator().manual_seed(2))
        learned.loss.backward()
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        results.append([learned.loss.detach(), *gradients])
    assert len(results[0]) == len(results[1]) > 5
    assert any(gradient.any() for gradient in results[0][1:])
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)


def test_a_band_that_a_processor_left_out_is_masked_and_moves_no_other():
    batch = (stored(3),)
    crops = [Crop(0, Augmentation(8, blur=1.0))]
    (view,) = views(batch, crops)
    assert not view.valid[0, 1].any()
    assert view.valid[0, 0].any()
    one_grid = batch[0].bands.clone()
    one_grid[0, 1] = 77
    (whole,) = views((batch[0]._replace(bands=one_grid),), crops)
    assert torch.equal(view.image[:, [0, 2]], whole.image[:, [0, 2]])
    assert torch.equal(view.image[1:], whole.image[1:])


@pytest.mark.parametrize("ranks", [2, 4])
def test_views_do_not_depend_on_how_many_processes_share_a_batch(ranks):
    crops = [Crop(0, Augmentation(8, blur=0.5)), Crop(0, Augmentation(6, blur=0.5))]
    whole = views((stored(0),), crops)
    parts = []
    for rank in range(ranks):
        ours = Share(rank, ranks).of(4)
        one = stored(0)
        parts.append(
            views((Stored(one.bands[ours], one.mask[ours], "image"),), crops, Share(rank, ranks))
        )
    for number, view in enumerate(whole):
        assert torch.equal(torch.cat([part[number].image for part in parts]), view.image)


def test_standardising_after_the_crop_is_standardising_before_it():
    batch = (stored(4),)
    crops = [Crop(0, Augmentation(8, blur=1.0))]
    (after,) = views(batch, crops)
    normaliser = Normaliser([50.0] * 3, [30.0] * 3, FILL)
    before = normaliser(batch[0].bands, batch[0].mask)
    before = crops[0].augmentation(before, torch.Generator().manual_seed(1))
    torch.testing.assert_close(after.image, before.image, rtol=1e-4, atol=1e-5)

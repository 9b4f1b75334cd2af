"""Baselines: statistics by numpy, random filters by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.evaluate.baselines import (
    BIAS,
    FILTERS,
    QUANTILES,
    WHITENING_FLOOR,
    RandomFilters,
    image_statistics,
    whiten,
)
from pipeline.pretrain.methods.method import View


def view(seed=0, count=5, bands=3, size_px=6, seen=0.7):
    random = torch.Generator().manual_seed(seed)
    image = torch.randn(count, bands, size_px, size_px, generator=random)
    valid = torch.rand(image.shape, generator=random) < seen
    return View(torch.where(valid, image, 0.0), valid)


def test_statistics_are_numpys_over_what_was_seen():
    sample = view()
    values = torch.where(sample.valid, sample.image, torch.nan).flatten(2).double().numpy()
    wanted = [
        np.nanmean(values, 2),
        np.nanstd(values, 2),
        np.nanmin(values, 2),
        np.nanmax(values, 2),
        *np.nanquantile(values, QUANTILES, axis=2),
    ]
    found = image_statistics(sample).view(5, 3, -1).numpy()
    np.testing.assert_allclose(found, np.stack(wanted, axis=2), rtol=1e-4, atol=1e-5)


def test_a_band_never_seen_is_the_mean():
    sample = view(seen=1.0)
    sample.valid[2, 1] = False
    found = image_statistics(sample).view(5, 3, -1)
    assert not found[2, 1].any()
    assert torch.isfinite(found).all()


def test_statistics_do_not_know_where_values_lie():
    sample = view(seen=1.0)
    turned = View(sample.image.flip(2).transpose(2, 3), sample.valid)
    torch.testing.assert_close(image_statistics(turned), image_statistics(sample))


def test_whitening_is_that_of_the_covariance():
    patches = torch.randn(40, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    flat = patches.double().flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    flat = flat / flat.norm(dim=1, keepdim=True)
    covariance = flat.T @ flat / len(flat) + WHITENING_FLOOR * torch.eye(18)
    wanted = flat @ torch.linalg.inv(covariance)
    torch.testing.assert_close(whiten(patches).flatten(1).double(), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("count", "bands"), [(4, 202), (60, 2)])
def test_filters_work_for_few_windows_and_many_bands(count, bands):
    images = torch.randn(count, bands, 8, 8, generator=torch.Generator().manual_seed(0))
    features = RandomFilters(images, seed=0)(View(images, images > -99))
    assert features.shape == (count, 2 * FILTERS)
    assert torch.isfinite(features).all()


def test_a_feature_is_the_mean_rectified_response_of_its_filter():
    images = torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(1))
    filters = RandomFilters(images, seed=3)
    features = filters(View(images, images > -99))
    response = sum(
        (images[4, :, y : y + 3, x : x + 3] * filters.filters[7]).sum().add(BIAS).clamp(min=0)
        for y in range(3)
        for x in range(3)
    )
    assert features[4, 7].item() == pytest.approx(response.item() / 9, rel=1e-4)


def test_equal_seeds_draw_equal_filters():
    images = torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(1))
    first, second, other = (RandomFilters(images, seed=s).filters for s in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)

"""Standardised values have mean 0 and deviation 1, and what was never seen is 0."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.pretrain.data.normalise import Normaliser

SEEN = torch.ones(1, 2, 2, dtype=torch.uint8)


def test_values_are_centred_and_scaled_by_band():
    stored = torch.tensor([[[[0, 20], [10, 30]], [[-5, -5], [5, 5]]]], dtype=torch.int16)
    view = Normaliser([10.0, 0.0], [10.0, 5.0], fill=-32768)(stored, SEEN)
    assert view.image[0, 0].tolist() == [[-1, 1], [0, 2]]
    assert view.image[0, 1].tolist() == [[-1, -1], [1, 1]]
    assert view.valid.all()


@pytest.mark.parametrize(
    ("fill", "dtype"), [(-32768, np.int16), (0, np.uint16), (None, np.float32)]
)
def test_fill_becomes_zero_and_invalid_in_its_own_band_only(fill, dtype):
    stored = np.full((1, 2, 2, 2), 7).astype(dtype)
    stored[0, 1, 0, 0] = np.nan if fill is None else fill
    view = Normaliser([3.0, 3.0], [2.0, 2.0], fill)(torch.from_numpy(stored), SEEN)
    assert view.valid.sum() == 7
    assert not view.valid[0, 1, 0, 0]
    assert view.image[0, 1, 0, 0] == 0
    assert (view.image[view.valid] == 2).all()


def test_a_masked_pixel_is_invalid_in_every_band():
    mask = torch.tensor([[[0, 5], [1, 2]]], dtype=torch.uint8)
    view = Normaliser([0.0] * 3, [1.0] * 3, -32768)(torch.ones(1, 3, 2, 2), mask)
    assert not view.valid[0, :, 0, 0].any()
    assert view.valid.sum() == 9  # a cloud (5) was seen


@pytest.mark.parametrize("std", [0.0, float("nan"), float("inf")])
def test_a_band_without_statistics_gives_finite_numbers(std):
    view = Normaliser([float("nan")], [std], -32768)(torch.full((1, 1, 2, 2), 4), SEEN)
    assert (view.image == 4).all()

"""Crops, flips and blurs move pixels and never what they mean."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn import functional as F

from pipeline.pretrain.data.augment import (
    LEAST_VALID,
    Augmentation,
    blur,
    choose_boxes,
    crop,
    draw_boxes,
    kernel_px,
    resize,
)
from pipeline.pretrain.methods.method import View

UPRIGHT = torch.ones(1, 2)


def random_view(seed, *, count=2, bands=3, size_px=12, seen=1.0):
    random = torch.Generator().manual_seed(seed)
    valid = torch.rand(count, bands, size_px, size_px, generator=random) < seen
    image = torch.randn(count, bands, size_px, size_px, generator=random)
    return View(torch.where(valid, image, 0.0), valid)


@given(st.integers(0, 8), st.integers(0, 8), st.integers(1, 4), st.integers(0, 99))
def test_a_box_of_whole_pixels_is_cut_exactly(upper, left, edge, seed):
    view = random_view(seed, count=1)
    out = crop(view, torch.tensor([[upper, left, edge, edge]]).float(), UPRIGHT, edge)
    wanted = view.image[..., upper : upper + edge, left : left + edge]
    torch.testing.assert_close(out.image, wanted, rtol=1e-4, atol=1e-4)
    assert out.valid.all()


def test_enlarging_the_whole_image_equals_torchs_interpolation():
    view = random_view(0)
    wanted = F.interpolate(view.image, size=18, mode="bilinear", align_corners=False)
    torch.testing.assert_close(resize(view, 18).image, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("flips", "axes"), [((-1, 1), (2,)), ((1, -1), (3,)), ((-1, -1), (2, 3))])
def test_flips_mirror_the_axis_they_name(flips, axes):
    view = random_view(0, count=1)
    box = torch.tensor([[0.0, 0.0, 12.0, 12.0]])
    out = crop(view, box, torch.tensor([flips]), 12)
    torch.testing.assert_close(out.image, view.image.flip(axes), rtol=1e-4, atol=1e-5)


@given(st.integers(0, 2**32))
def test_boxes_lie_inside_the_image_and_keep_their_area(seed):
    boxes = draw_boxes(64, 20, 30, (0.2, 1.0), torch.Generator().manual_seed(seed))
    upper, left, tall, wide = boxes.unbind(dim=1)
    assert (boxes >= 0).all()
    assert (upper + tall <= 20.001).all()
    assert (left + wide <= 30.001).all()
    fits = (tall < 20) & (wide < 30)
    assert (tall * wide)[fits].min() >= 0.2 * 600 - 1e-2


@pytest.mark.parametrize("blurred", [0.0, 1.0])
def test_a_flat_image_with_holes_stays_flat(blurred):
    view = random_view(3, seen=0.7, size_px=40)
    flat = View(torch.where(view.valid, 2.5, 0.0), view.valid)
    out = Augmentation(40, blur=blurred)(flat, torch.Generator().manual_seed(0))
    assert 0 < out.valid.float().mean() < 1
    torch.testing.assert_close(out.image[out.valid], torch.full_like(out.image[out.valid], 2.5))
    assert not out.image[~out.valid].any()


@given(st.integers(0, 999))
def test_results_are_averages_of_seen_values(seed):
    view = random_view(seed, seen=0.6, size_px=24)
    shifted = View(torch.where(view.valid, view.image + 100, 0.0), view.valid)
    for out in (
        Augmentation(20, blur=1.0)(shifted, torch.Generator().manual_seed(seed)),
        blur(shifted, torch.tensor([1.0, 2.0]), 3),
    ):
        seen = out.image[out.valid]
        assert seen.min() >= shifted.image[view.valid].min() - 1e-2
        assert seen.max() <= shifted.image[view.valid].max() + 1e-2
        assert not out.image[~out.valid].any()


def test_a_blur_equals_torchs_convolution_and_spares_items_of_sigma_zero():
    view = random_view(0)
    out = blur(view, torch.tensor([1.5, 0.0]), 3)
    reach = torch.tensor([-1.0, 0.0, 1.0])
    line = torch.exp(-0.5 * (reach / 1.5) ** 2)
    kernel = (line[:, None] * line[None]) / line.sum() ** 2
    wanted = F.conv2d(view.image[:1].transpose(0, 1), kernel.view(1, 1, 3, 3))
    torch.testing.assert_close(out.image[0, :, 1:-1, 1:-1], wanted[:, 0])
    torch.testing.assert_close(out.image[1], view.image[1])


def test_a_blur_invents_no_values():
    view = random_view(1, seen=0.5)
    assert not (blur(view, torch.tensor([2.0, 2.0]), 5).valid & ~view.valid).any()


@pytest.mark.parametrize(("size_px", "edge"), [(8, 1), (32, 3), (64, 7), (128, 13), (264, 27)])
def test_the_kernel_is_about_a_tenth_and_odd(size_px, edge):
    assert kernel_px(size_px) == edge


def test_equal_generators_draw_equal_views_and_bands_move_together():
    view = random_view(0, bands=1)
    doubled = View(view.image.expand(-1, 2, -1, -1), view.valid.expand(-1, 2, -1, -1))
    augment = Augmentation(8, blur=0.5)
    first = augment(doubled, torch.Generator().manual_seed(5))
    second = augment(doubled, torch.Generator().manual_seed(5))
    assert torch.equal(first.image, second.image)
    torch.testing.assert_close(first.image[:, 0], first.image[:, 1])
    assert not torch.equal(first.image[0], first.image[1])


def share_of(valid, box):
    """Share of a box's values that are valid, of the bands that have any, the slow way."""
    upper, left, tall, wide = box.tolist()
    rows = slice(math.floor(upper), math.ceil(upper + tall))
    columns = slice(math.floor(left), math.ceil(left + wide))
    present = valid.flatten(1).any(dim=1)
    return valid[present][:, rows, columns].float().mean().item()


@given(st.integers(0, 2**32))
def test_the_first_crop_that_shows_enough_is_taken_or_the_best(seed):
    random = torch.Generator().manual_seed(seed)
    valid = torch.zeros(6, 3, 20, 30, dtype=torch.bool)
    valid[:, :2, :, : int(torch.randint(1, 30, (), generator=random))] = True  # the third is absent
    boxes = draw_boxes(6 * 8, 20, 30, (0.1, 0.6), random).view(6, 8, 4)
    for item, chosen in enumerate(choose_boxes(valid, boxes)):
        shares = [share_of(valid[item], box) for box in boxes[item]]
        assume(all(abs(share - LEAST_VALID) > 1e-6 for share in shares))  # rounding decides
        enough = [k for k, share in enumerate(shares) if share >= LEAST_VALID]
        if enough:
            assert torch.equal(chosen, boxes[item, enough[0]])
        else:
            assert share_of(valid[item], chosen) == pytest.approx(max(shares))


def test_crops_of_a_patch_at_the_edge_of_a_swath_show_the_swath():
    valid = torch.zeros(256, 2, 40, 40, dtype=torch.bool)
    valid[..., :25] = True
    seen = View(valid.float(), valid)
    out = Augmentation(16, area=(0.1, 0.5))(seen, torch.Generator().manual_seed(0))
    enough = out.valid.float().mean(dim=(1, 2, 3)) > LEAST_VALID - 0.1
    assert enough.float().mean() > 0.98


def test_an_item_without_any_valid_value_is_cropped_all_the_same():
    nothing = torch.zeros(2, 3, 12, 12)
    out = Augmentation(8)(View(nothing, nothing.bool()), torch.Generator().manual_seed(0))
    assert not out.valid.any()
    assert not out.image.any()

"""Brightness, contrast, grey and bands left out: of physical values, of what was seen."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from pipeline.errors import RecipeError
from pipeline.pretrain.choice import crops_of
from pipeline.pretrain.data.augment import Augmentation, Crop, draw_boxes
from pipeline.pretrain.data.batches import Share, Stored
from pipeline.pretrain.data.intensity import (
    Quantities,
    average_bands,
    brighten,
    change_intensity,
    drop_bands,
    solarise,
)
from pipeline.pretrain.data.normalise import Normaliser
from pipeline.pretrain.data.views import make_views
from pipeline.pretrain.encoders.backbones import EncoderShape
from pipeline.pretrain.methods.method import View
from pipeline.recipe import Intensity, Pretrain

FILL = -32768
LANDSAT = (0.0000275, -0.2)
ALL = Intensity(brightness=0.4, contrast=0.4, grey=0.3, solarise=0.3, drop_bands=2)


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def seen(count=64, bands=3, seed=0):
    """Stored reflectances between 0 and 1 of 1e-4, a fifth of them never seen."""
    random = generator(seed)
    valid = torch.rand(count, bands, 6, 6, generator=random) < 0.8
    image = torch.randint(0, 10000, valid.shape, generator=random).float()
    return View(torch.where(valid, image, 0.0), valid)


def means(values, valid):
    return torch.where(valid, values, 0.0).sum((2, 3)) / valid.sum((2, 3))


def stored(seed, count=8):
    random = generator(seed)
    bands = torch.randint(0, 10000, (count, 3, 12, 12), generator=random).short()
    mask = (torch.rand(count, 12, 12, generator=random) > 1 / 3).to(torch.uint8)
    return Stored(bands, mask, "image")


def views(batch, intensity, share=Share()):  # noqa: B008 - it cannot change
    crops = [Crop(0, Augmentation(8, blur=0.5), intensity), Crop(0, Augmentation(6), intensity)]
    normaliser = Normaliser([5000.0] * 3, [2900.0] * 3, FILL, Quantities("111", 1e-4, 0.0))
    return make_views((batch,), crops, {"image": normaliser}, generator(), share)


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e-4, 0.0), LANDSAT])
def test_brightness_multiplies_reflectance_whatever_its_scale_and_offset(scale, offset):
    reflectance = torch.rand(64, 3, 6, 6, generator=generator())
    view = View((reflectance - offset) / scale, torch.ones_like(reflectance).bool())
    intensity = Intensity(brightness=0.4, probability=0.8)
    out = change_intensity(view, intensity, Quantities("111", scale, offset), generator())
    ratio = ((out.image * scale + offset) / reflectance).flatten(1)
    gain = ratio.median(dim=1, keepdim=True).values
    torch.testing.assert_close(ratio, gain.expand_as(ratio), rtol=2e-3, atol=2e-3)
    assert 0.6 <= gain.min() < 0.7
    assert 1.3 < gain.max() <= 1.4 + 1e-3
    assert 0.6 < (out.image != view.image).flatten(1).any(dim=1).float().mean() < 0.95


def test_a_gain_is_added_to_decibels_and_temperatures_count_from_the_darkest():
    quantities = Quantities(("dB", "1", "K"))
    values = torch.tensor([-10.0, 0.01, 248.15]).view(1, 3, 1, 1)
    out = brighten(values, torch.full((1, 1, 1, 1), 1.4), quantities).flatten().tolist()
    assert out == pytest.approx([-10 + 10 * math.log10(1.4), 0.014, 248.15], rel=1e-5)
    power = 10 ** (torch.tensor(out[0]) / 10)
    assert power == pytest.approx(1.4 * 10 ** (-10 / 10), rel=1e-5)
    warm = brighten(torch.full((1, 3, 1, 1), 258.15), torch.full((1, 1, 1, 1), 0.6), quantities)
    assert warm.flatten()[2] == pytest.approx(254.15)


def test_contrast_keeps_the_mean_of_what_was_seen_and_scales_what_differs_from_it():
    view = seen()
    out = change_intensity(view, Intensity(contrast=0.4), Quantities("111", 1e-4), generator())
    before, after = means(view.image, view.valid), means(out.image, out.valid)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=0.5)
    slopes = []
    for item in range(64):
        centre = before[item].view(-1, 1, 1)
        old, new = (v.image[item].sub(centre)[view.valid[item]] for v in (view, out))
        slopes.append(float(old @ new / (old @ old)))
        torch.testing.assert_close(new, slopes[-1] * old, rtol=1e-3, atol=1.0)
    assert 0.6 <= min(slopes) < 0.7
    assert 1.3 < max(slopes) <= 1.401


def test_grey_is_the_mean_of_the_seen_bands_of_one_unit():
    quantities = Quantities(("1", "K", "1", "1"))
    values = torch.tensor([0.1, 290.0, 0.3, 99.0]).view(1, 4, 1, 1)
    valid = torch.tensor([True, True, True, False]).view(1, 4, 1, 1)
    out = average_bands(values, valid, quantities)
    assert out.flatten()[:3].tolist() == pytest.approx([0.2, 290.0, 0.2])
    # Landsat beside Sentinel-2 in one image: of reflectances, not of stored numbers.
    both = Quantities.joined([Quantities("1", *LANDSAT), Quantities("1", 1e-4)])
    numbers = torch.tensor([(0.1 + 0.2) / 0.0000275, 3000.0]).view(1, 2, 1, 1)
    mixed = View(numbers, torch.ones_like(numbers).bool())
    out = change_intensity(mixed, Intensity(grey=1.0), both, generator()).image
    reflectance = out * both.scale + both.offset
    torch.testing.assert_close(reflectance.flatten(), torch.tensor([0.2, 0.2]))


def test_what_is_above_its_bands_mean_is_mirrored_at_it():
    values = torch.tensor([1.0, 2.0, 6.0, 50.0]).view(1, 1, 2, 2)
    valid = torch.tensor([True, True, True, False]).view(1, 1, 2, 2)
    assert solarise(values, valid).flatten()[:3].tolist() == [1.0, 2.0, 0.0]


def test_whole_bands_are_left_out_one_to_so_many_and_never_all():
    view = seen(count=400, bands=5)
    view.valid[0, 1:] = False  # one band is all that the first item has
    view = View(torch.where(view.valid, view.image, 0.0), view.valid)
    intensity = Intensity(drop_bands=4, drop_probability=0.5)
    out = change_intensity(view, intensity, Quantities("1" * 5), generator())
    before, after = (v.valid.flatten(2).any(dim=2) for v in (view, out))
    # A band is gone whole or is there as it was: no row, no column, no other value.
    stays = after[:, :, None, None].expand_as(out.valid)
    assert torch.equal(out.valid, view.valid & stays)
    assert torch.equal(out.image, torch.where(stays, view.image, 0.0))
    gone = before.sum(dim=1) - after.sum(dim=1)
    assert after.any(dim=1).all()
    assert torch.equal(gone[1:].unique(), torch.arange(5))
    assert 0.4 < (gone[1:] == 0).float().mean() < 0.6
    assert (after[1:].float().mean(dim=0) < 0.9).all()  # none is spared


def test_the_lowest_of_the_order_go_first_and_absent_bands_are_not_counted():
    valid = torch.ones(2, 4, 1, 1).bool()
    valid[1, 0] = False
    order = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).expand(2, 4)
    out = drop_bands(View(valid.float(), valid), torch.tensor([2.0, 2.0]), order).valid
    assert out.flatten(1).tolist() == [[False, False, True, True], [False, False, False, True]]


def test_the_probability_of_each_change_is_that_of_the_recipe():
    view = seen(count=2000)
    for name, chance in (("grey", 0.2), ("solarise", 0.2), ("contrast", 0.8)):
        asked = Intensity(**{name: 0.4 if name == "contrast" else chance})
        out = change_intensity(view, asked, Quantities("111"), generator())
        changed = (out.image != view.image).flatten(1).any(dim=1).float().mean()
        assert changed == pytest.approx(chance, abs=0.03), name


def test_what_was_never_seen_stays_so_and_changes_no_bit():
    one = stored(3)
    junk = torch.randint(-30000, 30000, one.bands.shape, generator=generator()).short()
    spoilt = one._replace(bands=torch.where(one.mask.bool().unsqueeze(1), one.bands, junk))
    for clean, dirty in zip(views(one, ALL), views(spoilt, ALL), strict=True):
        assert torch.equal(clean.image, dirty.image)
        assert torch.equal(clean.valid, dirty.valid)
        assert not clean.image[~clean.valid].any()
        assert clean.valid.any()


@pytest.mark.parametrize("ranks", [2, 4])
def test_changes_do_not_depend_on_how_many_processes_share_a_batch(ranks):
    whole = views(stored(0), ALL)
    parts = []
    for rank in range(ranks):
        one, ours = stored(0), Share(rank, ranks).of(8)
        part = Stored(one.bands[ours], one.mask[ours], "image")
        parts.append(views(part, ALL, Share(rank, ranks)))
    for number, view in enumerate(whole):
        assert torch.equal(torch.cat([part[number].image for part in parts]), view.image)
        assert torch.equal(torch.cat([part[number].valid for part in parts]), view.valid)


def test_nothing_is_drawn_or_changed_unless_the_recipe_asks():
    crops = crops_of(Pretrain(), EncoderShape("resnet18", 3, 8, 4), patches=2)
    assert all(crop.intensity is None for crop in crops)
    assert not Intensity().changes


@pytest.mark.parametrize(
    ("method", "solarised"), [("moco", {1}), ("dino", {1}), ("decur", {1, 3}), ("paws", {1})]
)
def test_all_views_are_changed_and_the_second_alone_is_solarised(method, solarised):
    settings = Pretrain(method=method, intensity={"grey": 0.2, "solarise": 0.2})
    shape = EncoderShape("resnet18", 3, 32, 4)
    crops = crops_of(settings, shape, patches=2, second=shape if method == "decur" else None)
    assert all(crop.intensity.grey == 0.2 for crop in crops)
    found = {number for number, crop in enumerate(crops) if crop.intensity.solarise}
    assert found == solarised


def test_a_product_may_have_changes_of_its_own():
    settings = Pretrain(
        intensity={"brightness": 0.4}, intensity_of={"radar": {}, "camera": {"grey": 1.0}}
    )
    for crop in crops_of(settings, EncoderShape("resnet18", 3, 8, 4), patches=2):
        assert crop.change_of("any").brightness == 0.4
        assert not crop.change_of("radar").changes
        assert (crop.change_of("camera").grey, crop.change_of("camera").brightness) == (1.0, 0.0)


def test_a_batch_is_changed_as_its_own_product_is():
    """Views of a camera are grey, those of the other product as they were."""
    crop = Crop(0, None, Intensity(), {"camera": Intensity(grey=1.0)})
    for name in ("camera", "other"):
        normaliser = Normaliser([0.0] * 3, [1.0] * 3, FILL, Quantities("111", 1e-4, 0.0))
        batch = (stored(0)._replace(product=name),)
        (view,) = make_views(batch, [crop], {name: normaliser}, generator())
        alike = torch.allclose(view.image[:, 0], view.image[:, 1])
        assert alike == (name == "camera")


def test_changes_by_product_are_refused_where_an_image_shows_several():
    with pytest.raises(ValidationError, match="an image shows several"):
        Pretrain(joint=True, intensity_of={"x": {}})


@pytest.mark.parametrize("method", ["moco", "simclr", "mae", "dino", "decur"])
def test_a_crop_shows_as_much_as_the_recipe_says(method):
    shape = EncoderShape("vit_tiny", 3, 32, 4)
    second = shape if method == "decur" else None
    settings = Pretrain(method=method, crop_area=(0.8, 0.9), local_px=8)
    crops = crops_of(settings, shape, patches=2, second=second)
    areas = [crop.augmentation.area for crop in crops]
    assert set(areas[:2]) == {(0.8, 0.9)}
    assert set(areas[2:]) <= {(0.05, 0.8), (0.8, 0.9)}


@pytest.mark.parametrize("method", ["moco", "mae", "dino", "decur", "swav"])
@pytest.mark.parametrize("blur", [None, 0.0, 0.7])
def test_views_are_blurred_as_often_as_the_recipe_says(blur, method):
    shape = EncoderShape("vit_tiny", 3, 32, 4)
    second = shape if method == "decur" else None
    settings = Pretrain(method=method, blur=blur, local_px=8, local_crops=1)
    crops = crops_of(settings, shape, patches=2, second=second)
    usual = {"mae": [0.0, 0.0], "dino": [1.0, 0.1, 0.5]}.get(method, [0.5] * len(crops))
    found = [crop.augmentation.blur for crop in crops]
    assert found == (usual if blur is None else [blur] * len(crops))


def test_the_area_of_one_is_the_whole_patch():
    view = View(torch.randn(4, 2, 8, 8), torch.ones(4, 2, 8, 8).bool())
    assert draw_boxes(2, 8, 9, (1.0, 1.0), generator()).tolist() == [[0, 0, 8, 9]] * 2
    out = Augmentation(8, area=(1.0, 1.0))(view, generator())
    flips = [view.image.flip(axes) for axes in ((), (2,), (3,), (2, 3))]
    for item in range(4):
        found = [torch.allclose(out.image[item], flip[item], atol=1e-4) for flip in flips]
        assert any(found)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"crop_area": (0.0, 1.0)}, r"is \[0.0, 1.0\].*above 0"),
        ({"crop_area": (0.8, 0.2)}, r"is \[0.8, 0.2\]"),
        ({"crop_area": (0.2, 1.2)}, r"is \[0.2, 1.2\]"),
        ({"intensity": {"brightness": 1.0}}, "less than 1"),
        ({"intensity": {"grey": 1.5}}, "less than or equal to 1"),
        ({"intensity": {"drop_bands": -1}}, "greater than or equal to 0"),
        ({"intensity": {"hue": 0.1}}, "Extra inputs"),
        ({"method": "mae", "intensity": {"solarise": 0.2}}, "`mae` has one view"),
        ({"method": "barlow_pixels", "intensity": {"grey": 0.2}}, "its windows"),
        ({"method": "barlow_pixels", "crop_area": (0.2, 1.0)}, "its windows"),
        ({"method": "barlow_pixels", "blur": 0.0}, "its windows"),
    ],
)
def test_what_makes_no_sense_is_refused(asked, message):
    with pytest.raises(ValidationError, match=message):
        Pretrain(**asked)


def test_a_product_keeps_a_band():
    settings = Pretrain(intensity={"drop_bands": 3})
    with pytest.raises(RecipeError, match="is 3, but a product has 3 bands; at most 2"):
        crops_of(settings, EncoderShape("resnet18", 3, 8, 4), patches=2)
    assert crops_of(settings, EncoderShape("resnet18", 4, 8, 4), patches=2)


def test_a_killed_run_draws_the_same_changes(tiny_run):
    more = {"intensity": ALL.model_dump(), "crop_area": (0.5, 1.0)}
    straight = tiny_run("moco", **more)
    straight.go_on(4)
    first = tiny_run("moco", **more)
    first.go_on(2)
    second = tiny_run("moco", **more)
    second.run.restore(first.run.state(), first.run.log_csv())
    torch.manual_seed(9)
    second.go_on(2)
    plain = tiny_run("moco")
    plain.go_on(4)
    losses = [run.run.log[-1]["loss"] for run in (straight, second, plain)]
    assert losses[0] == losses[1] != losses[2]
    wanted, found = (run.run.method.state_dict() for run in (straight, second))
    for name, value in wanted.items():
        assert torch.equal(value, found[name])

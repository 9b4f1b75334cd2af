"""An encoder of any sensor knows bands by what they see, not by their place."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from pipeline.errors import RecipeError
from pipeline.pretrain.encoders.backbones import EncoderShape, build_encoder, width_of
from pipeline.pretrain.encoders.wavelength import Sensor, WavelengthConv2d, aim
from pipeline.products.catalogue import load_product

#: 202 and 13 bands, 7 bands, and radar.
PRODUCTS = ("enmap-l2a", "sentinel-2-l1c", "landsat-oli-sr", "sentinel-1-grd")
BACKBONES = ("wave_resnet18", "wave_vit_tiny")
SIZE_PX = 16


def sensor(product, bands=None):
    """A sensor of the catalogue; the first so many bands."""
    facts = load_product(product)
    chosen = facts.bands[:bands]
    return Sensor(
        product,
        tuple(band.name for band in chosen),
        tuple(band.wavelength_nm for band in chosen),
        tuple(band.fwhm_nm for band in chosen),
    )


def shuffled(one, order):
    """The same bands in another order."""
    return Sensor(
        one.product,
        *(tuple(part[k] for k in order) for part in (one.bands, one.wavelength_nm, one.fwhm_nm)),
    )


def encoder(backbone, *sensors):
    shape = EncoderShape(backbone, len(sensors[0].bands), SIZE_PX, 4, sensors)
    return build_encoder(shape, seed=0).eval()


def scene(bands, seed=0, count=2):
    """Smooth ground in correlated bands, as a standardised scene is."""
    random = torch.Generator().manual_seed(seed)
    ground = torch.randn(count, 3, 4, 4, generator=random)
    walk = torch.randn(bands, 3, generator=random).cumsum(0) / bands**0.5
    values = F.interpolate(torch.einsum("bk,nkyx->nbyx", walk, ground), size=SIZE_PX)
    return (values - values.mean((0, 2, 3), keepdim=True)) / values.std((0, 2, 3), keepdim=True)


@torch.inference_mode()
def features(net, image):
    return net(image)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("product", PRODUCTS)
def test_bands_may_come_in_any_order_but_not_without_their_wavelengths(backbone, product):
    one = sensor(product)
    bands = len(one.bands)
    order = torch.randperm(bands, generator=torch.Generator().manual_seed(2)).tolist()
    order = order if order != sorted(order) else order[::-1]
    image = scene(bands)
    wanted = features(encoder(backbone, one), image)
    other = encoder(backbone, shuffled(one, order))
    torch.testing.assert_close(features(other, image[:, order]), wanted, rtol=1e-4, atol=1e-5)
    foreign = (features(encoder(backbone, one), scene(bands, seed=1)) - wanted).norm()
    assert (features(other, image) - wanted).norm() > 0.05 * foreign


@pytest.mark.parametrize("backbone", BACKBONES)
def test_one_state_takes_spectrometers_cameras_and_radar(backbone):
    sensors = [sensor(product) for product in PRODUCTS]
    enmap = sensor("enmap-l2a", 202)
    trained = encoder(backbone, enmap)
    counts = []
    for one in (enmap, *sensors):
        alone = encoder(backbone, one)
        alone.load_state_dict(trained.state_dict())
        image = scene(len(one.bands))
        found = features(alone, image)
        assert found.shape == (2, width_of(alone))
        assert found.isfinite().all()
        counts.append(len(one.bands))
    assert counts == [202, 224, 13, 7, 2]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("product", PRODUCTS[:3])
def test_a_dropped_band_moves_the_features_less_than_a_foreign_scene(backbone, product):
    one = sensor(product)
    bands = len(one.bands)
    net = encoder(backbone, one)
    image = scene(bands)
    wanted, foreign = features(net, image), features(net, scene(bands, seed=1))
    without = []
    for band in range(0, bands, max(bands // 7, 1)):
        dropped = image.clone()
        dropped[:, band] = 0
        without.append((features(net, dropped) - wanted).norm(dim=1))
    moved = torch.stack(without)
    assert (moved > 0).all()
    assert (moved.max(dim=0).values < 0.7 * (foreign - wanted).norm(dim=1)).all()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_an_encoder_is_aimed_at_one_of_its_sensors_with_all_its_copies(backbone):
    sensors = [sensor(product) for product in PRODUCTS]
    net = encoder(backbone, *sensors)
    pair = torch.nn.ModuleList([net, copy.deepcopy(net)])
    for one in sensors[::-1]:
        aim(pair, one.product)
        image = scene(len(one.bands))
        wanted = features(encoder(backbone, one), image)
        for part in pair:
            assert torch.equal(features(part, image), wanted)
    with pytest.raises(RecipeError, match=r"built for enmap-l2a.*not for landsat-tm-toa"):
        aim(net, "landsat-tm-toa")


def test_its_kernels_are_shared_ones_after_a_mixture_of_bands():
    one = sensor("sentinel-2-l2a")
    conv = WavelengthConv2d([one], 6, 3, stride=2, padding=1, bias=True)
    image = scene(12)
    mixture = conv.mix(conv.waves_0 + conv.code(conv.code_0))
    mixed = torch.einsum("bk,nbyx->nkyx", mixture, image) / 12
    wanted = F.conv2d(mixed, conv.kernels, conv.bias, stride=2, padding=1)
    torch.testing.assert_close(conv(image), wanted, rtol=1e-4, atol=1e-5)


def alike(first, second):
    """Cosine between the kernels of two bands, each alone in its sensor."""
    torch.manual_seed(0)
    conv = WavelengthConv2d([first, replace(second, product="other")], 16, 3, stride=1)
    one = conv.weight().flatten()
    aim(conv, "other")
    return F.cosine_similarity(one, conv.weight().flatten(), dim=0).item()


def band(centre, width=30.0, name="x"):
    return Sensor("one", (name,), (centre,), (width,))


def test_what_sees_nearly_the_same_is_read_nearly_alike():
    red = band(664.6)
    assert alike(red, band(665.2)) > 0.99
    assert alike(red, band(665.2)) > alike(red, band(704.1)) > alike(red, band(2200.0)) + 0.05
    assert alike(red, band(664.6, width=175.0)) < 0.99
    assert alike(red, band(664.6, width=None)) == pytest.approx(1.0)
    assert alike(band(10895.0, 590.0), band(12005.0, 1010.0)) < 0.99


def test_radar_is_known_by_its_polarisation():
    vv = band(None, None, "VV")
    assert alike(vv, band(None, None, "vv")) == pytest.approx(1.0)
    assert alike(vv, band(None, None, "VH")) < 0.9
    with pytest.raises(RecipeError, match=r"'class' of one has no wavelength.*vv, vh"):
        WavelengthConv2d([band(None, None, "class")], 4, 3, stride=1)


@pytest.mark.parametrize(
    ("backbone", "patch_px"), [("wave_resnet50", 4), ("wave_vit_base", 8), ("wave_vit_large", 16)]
)
def test_large_encoders_take_every_sensor(backbone, patch_px):
    sensors = tuple(sensor(product) for product in PRODUCTS)
    with torch.device("meta"):
        net = build_encoder(EncoderShape(backbone, 224, 128, patch_px, sensors), seed=0)
        for one in sensors:
            aim(net, one.product)
            image = torch.empty(2, len(one.bands), 128, 128)
            assert net(image).shape == (2, width_of(net))


def test_gradients_reach_all_that_makes_a_kernel():
    net = encoder("wave_vit_tiny", sensor("sentinel-1-grd"))
    net(scene(2)).square().sum().backward()
    conv = net.patch_embed.proj
    for parameter in conv.parameters():
        assert parameter.grad.abs().sum() > 0
    assert (conv.code.weight.grad.abs().sum(dim=1) > 0).tolist() == [
        False,
        True,
        True,
        *[False] * 3,
    ]

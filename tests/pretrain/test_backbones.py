"""Encoders for any number of bands, equal for equal seeds."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import RecipeError
from pipeline.pretrain.encoders.backbones import EncoderShape, build_encoder, width_of


@pytest.mark.parametrize("backbone", ["resnet18", "vit_tiny"])
@pytest.mark.parametrize(("bands", "image_px"), [(1, 16), (202, 16), (12, 64)])
def test_any_number_of_bands_becomes_one_vector(backbone, bands, image_px):
    patch_px = 8
    encoder = build_encoder(EncoderShape(backbone, bands, image_px, patch_px), seed=0).eval()
    with torch.inference_mode():
        features = encoder(torch.zeros(2, bands, image_px, image_px))
    assert features.shape == (2, width_of(encoder))


def test_a_small_image_keeps_its_resolution_in_the_stem():
    small = build_encoder(EncoderShape("resnet18", 3, 32, 4), seed=0)
    large = build_encoder(EncoderShape("resnet18", 3, 64, 4), seed=0)
    image = torch.zeros(1, 3, 32, 32)
    assert small.maxpool(small.act1(small.bn1(small.conv1(image)))).shape[-1] == 32
    assert large.maxpool(large.act1(large.bn1(large.conv1(image)))).shape[-1] == 8


def test_weights_are_a_function_of_the_seed_and_nothing_global_moves():
    shape = EncoderShape("resnet18", 3, 16, 4)
    torch.manual_seed(7)
    wanted = torch.rand(1)
    torch.manual_seed(7)
    first, second, other = (build_encoder(shape, seed=s).state_dict() for s in (0, 0, 1))
    assert torch.rand(1) == wanted
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_bands_do_not_share_a_tiled_kernel():
    weight = build_encoder(EncoderShape("resnet18", 6, 16, 4), seed=0).conv1.weight
    assert not torch.equal(weight[:, 0], weight[:, 3])


def test_an_unknown_backbone_names_the_known_ones():
    with pytest.raises(RecipeError, match="vit_small"):
        build_encoder(EncoderShape("resnet19", 3, 16, 4), seed=0)


@pytest.mark.parametrize("patch_px", [5, 16, 32])
def test_tokens_must_divide_the_image(patch_px):
    with pytest.raises(RecipeError, match="whole tokens"):
        build_encoder(EncoderShape("vit_tiny", 3, 16, patch_px), seed=0)

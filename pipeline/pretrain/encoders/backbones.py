"""Encoders for images of any number of bands: timm's ResNets and vision transformers.

`spec_` before a name puts the spectral adapter in front of it
(`pipeline.pretrain.encoders.spectral`); `wave_` gives it a first convolution for any sensor
(`pipeline.pretrain.encoders.wavelength`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from pipeline.errors import RecipeError
from pipeline.pretrain.encoders.spectral import SpectralPatchEmbed, replace_stem
from pipeline.pretrain.encoders.wavelength import Sensor, for_any_sensor

#: Recipe name to timm's name.
RESNETS = {name: name for name in ("resnet18", "resnet34", "resnet50", "resnet101")}
VITS = {f"vit_{size}": f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")}
#: Before the name of one of these: with a spectral adapter.
SPECTRAL = "spec_"
#: Before the name of one of these: for any sensor, by the wavelengths of its bands.
WAVELENGTH = "wave_"

#: Below this edge a ResNet keeps full resolution in its stem (a 3 x 3 convolution, no pooling), as
#: for CIFAR in He et al. 2016 (arXiv 1512.03385, section 4.2): the usual stem would shrink a
#: 32-pixel crop to a single value before the last stage. Behind a spectral adapter, which keeps
#: full resolution, the first stage keeps it too.
SMALL_PX = 64


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """What an encoder is built from; stored with its weights."""

    backbone: str
    """A key of `RESNETS` or `VITS`, or one behind `SPECTRAL` or `WAVELENGTH`."""
    bands: int
    """Bands of its images; of an encoder for any sensor, those of the first."""
    image_px: int
    """Edge of its images."""
    patch_px: int
    """Edge of a ViT's tokens; a ResNet has none."""
    sensors: tuple[Sensor, ...] = ()
    """What an encoder for any sensor can be aimed at; none for the others."""
    class_token: bool = False
    """Of a ViT: a token beside the image's, which is what it returns, and learned positions. Ours
    have neither; those that others released have both."""

    @property
    def family(self) -> str:
        """The backbone without what is in front of it."""
        return self.backbone.removeprefix(SPECTRAL).removeprefix(WAVELENGTH)

    @property
    def spectral(self) -> bool:
        """Whether it has a spectral adapter."""
        return self.backbone.startswith(SPECTRAL)

    @property
    def any_sensor(self) -> bool:
        """Whether its first convolution goes by wavelengths."""
        return self.backbone.startswith(WAVELENGTH)


def build_encoder(shape: EncoderShape, *, seed: int, any_size: bool = False) -> nn.Module:
    """Build an encoder with random weights: (batch, band, y, x) -> (batch, width).

    Global randomness is left as it was found.

    Parameters
    ----------
    shape : EncoderShape
    seed : int
    any_size : bool
        Let a ViT take images of other sizes (whole tokens) too, its positions stretched over them,
        as DINO's small crops need. Weights, and features at its own size, are the same.

    Raises
    ------
    RecipeError
        No such backbone, tokens that do not divide the image, or too few bands for an adapter.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if shape.family in RESNETS:
            return _resnet(shape)
        if shape.family in VITS:
            return _vit(shape, any_size=any_size)
    known = ", ".join((*RESNETS, *VITS))
    raise RecipeError(
        f"`pretrain.backbone` is {shape.backbone!r}, which is not one of: {known}; or one of these "
        f"behind `{SPECTRAL}`, for spectra of many bands, or `{WAVELENGTH}`, for any sensor."
    )


def width_of(encoder: nn.Module) -> int:
    """Return how many features an encoder returns."""
    if not isinstance(encoder, ResNet | VisionTransformer):
        raise TypeError(f"{type(encoder).__name__} is no encoder of this project")
    return int(encoder.num_features)


def _first_bands(shape: EncoderShape) -> int:
    """Return the bands that timm's first convolution is built for."""
    # One for any sensor, where it is replaced: so random weights do not depend on which sensors.
    return 1 if shape.any_sensor else shape.bands


def _resnet(shape: EncoderShape) -> nn.Module:
    net: Any = timm.create_model(
        RESNETS[shape.family], pretrained=False, num_classes=0, in_chans=_first_bands(shape)
    )
    small = shape.image_px < SMALL_PX
    if shape.spectral:
        replace_stem(net, shape.bands, stride=1 if small else 2)
    elif small:
        width = net.bn1.num_features
        net.conv1 = nn.Conv2d(_first_bands(shape), width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        net.maxpool = nn.Identity()
    if shape.any_sensor:
        net.conv1 = for_any_sensor(net.conv1, shape.sensors)
    built: nn.Module = net
    return built


def _vit(shape: EncoderShape, *, any_size: bool) -> nn.Module:
    if shape.image_px % shape.patch_px or shape.image_px == shape.patch_px:
        raise RecipeError(
            f"`pretrain.patch_px` is {shape.patch_px}, which does not cut an image of "
            f"{shape.image_px} pixels into whole tokens (at least 2 x 2); choose a divisor, or "
            "another `pretrain.crop_px`."
        )
    net: Any = timm.create_model(
        VITS[shape.family],
        pretrained=False,
        num_classes=0,
        in_chans=_first_bands(shape),
        img_size=shape.image_px,
        patch_size=shape.patch_px,
        class_token=shape.class_token,
        global_pool="token" if shape.class_token else "avg",
        fc_norm=False,
        dynamic_img_size=any_size,
        embed_layer=SpectralPatchEmbed if shape.spectral else PatchEmbed,
    )
    if shape.class_token:
        plain: nn.Module = net
        return plain
    # Fixed 2-D sines and a patch embedding that starts like a linear layer: MAE and MoCo v3
    # (arXiv 2111.06377, 2104.02057) both found learned positions unnecessary.
    positions = build_sincos2d_pos_embed(list(net.patch_embed.grid_size), dim=net.embed_dim)
    net.pos_embed.requires_grad_(False).copy_(positions.unsqueeze(0))
    if shape.any_sensor:
        net.patch_embed.proj = for_any_sensor(net.patch_embed.proj, shape.sensors)
    else:
        with torch.no_grad():
            nn.init.xavier_uniform_(net.patch_embed.proj.weight.view(net.embed_dim, -1))
    built: nn.Module = net
    return built

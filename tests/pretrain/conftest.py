"""Small encoders: these tests are about laws, not about speed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from pipeline.pretrain.methods.method import View


@pytest.fixture
def tiny_vit() -> Callable[[int], VisionTransformer]:
    """A ViT of 8 x 8 pixels and 2 x 2 tokens, built as `pipeline.pretrain.backbones` does."""

    def build(bands: int) -> VisionTransformer:
        torch.manual_seed(0)
        return VisionTransformer(
            img_size=8,
            patch_size=2,
            in_chans=bands,
            num_classes=0,
            embed_dim=24,
            depth=2,
            num_heads=2,
            class_token=False,
            global_pool="avg",
            fc_norm=False,
        )

    return build


@pytest.fixture
def tiny_net() -> Callable[[int], nn.Module]:
    """A convolution and a mean: (batch, band, y, x) -> (batch, 6)."""

    def build(bands: int) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(bands, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )

    return build


@pytest.fixture
def view() -> Callable[..., View]:
    """A random view; `seed` tells views apart."""

    def build(count: int, bands: int, size_px: int = 8, seed: int = 0) -> View:
        random = torch.Generator().manual_seed(seed)
        image = torch.randn(count, bands, size_px, size_px, generator=random)
        return View(image, torch.ones_like(image, dtype=torch.bool))

    return build

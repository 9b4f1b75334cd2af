"""Small encoders: these tests are about laws, not about speed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, get_args

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from pipeline.pretrain.data.batches import Batch, Stored
from pipeline.pretrain.data.normalise import Normaliser
from pipeline.pretrain.encoders.backbones import EncoderShape
from pipeline.pretrain.methods.method import View
from pipeline.pretrain.train import Run, build_run, train
from pipeline.recipe import Pretrain

#: Every method a recipe can name.
METHODS = get_args(Pretrain.model_fields["method"].annotation)
#: Of the tiny runs: two products with bands of their own, two classes.
BANDS = {"image": 3, "radar": 2}
CLASSES = 2
TINY: dict[str, Any] = {
    "batch_size": 4,
    "crop_px": 8,
    "queue": 10,
    "projector_width": 8,
    "prototypes": 8,
    "windows": 3,
    "local_px": 4,
    "local_crops": 2,
    "frozen_fraction": 0.2,
    "warmup_steps": 2,
}


@pytest.fixture
def tiny_vit() -> Callable[[int], VisionTransformer]:
    """A ViT of 8 x 8 pixels and 2 x 2 tokens, built as `pretrain.encoders.backbones` does."""

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


def tiny_settings(method: str, **more: Any) -> Pretrain:
    """A run of a method that takes a second."""
    backbone = "vit_tiny" if method in ("mae", "data2vec") else "small"
    return Pretrain(**{"method": method, "backbone": backbone, "steps": 8, **TINY, **more})


@dataclass
class Tiny:
    """A run of a method on random pixels of (seed, step)."""

    settings: Pretrain
    kept: list[int] = field(default_factory=list)
    """Steps at which it was to be saved."""

    def __post_init__(self) -> None:
        self.run: Run = build_run(
            self.settings, self.shape, torch.device("cpu"), second=self.second, classes=CLASSES
        )

    @property
    def shape(self) -> EncoderShape:
        return EncoderShape(self.settings.backbone, BANDS["image"], 8, 4)

    @property
    def second(self) -> EncoderShape | None:
        two = self.settings.method == "decur"
        return EncoderShape(self.settings.backbone, BANDS["radar"], 8, 4) if two else None

    def go_on(self, steps: int) -> None:
        normalisers = {
            product: Normaliser([50.0] * bands, [30.0] * bands, -32768)
            for product, bands in BANDS.items()
        }
        train(
            self.run,
            itertools.islice(self._batches(), steps),
            settings=self.settings,
            shape=self.shape,
            second=self.second,
            normalisers=normalisers,
            support=self._support if self.settings.method == "paws" else None,
            checkpoint=lambda run: self.kept.append(run.step),
            after_step=lambda _: None,
        )

    def _batches(self) -> Iterator[Batch]:
        two = self.second is not None
        products = list(BANDS) if two else ["image"] * self.run.method.views
        for step in itertools.count(self.run.step):
            random = torch.Generator().manual_seed(step)
            yield tuple(_pixels(self.settings.batch_size, name, random) for name in products)

    def _support(self, step: int) -> tuple[Stored, torch.Tensor]:
        random = torch.Generator().manual_seed(-step)
        return _pixels(2 * CLASSES, "image", random), torch.arange(CLASSES).repeat(2)


def _pixels(count: int, product: str, random: torch.Generator) -> Stored:
    shape = (count, BANDS[product], 12, 12)
    bands = torch.randint(0, 100, shape, generator=random).short()
    return Stored(bands, torch.ones(count, 12, 12, dtype=torch.uint8), product)


@pytest.fixture
def tiny_run(small_backbone: None) -> Callable[..., Tiny]:
    """Begin a tiny run of a method, by default of a `small_backbone`."""
    return lambda method, **more: Tiny(tiny_settings(method, **more))

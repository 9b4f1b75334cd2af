"""From the `[pretrain]` table to what it names: the method, its views and its optimiser."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import RecipeError
from pipeline.pretrain.augment import Augmentation, Crop
from pipeline.pretrain.backbones import RESNETS, EncoderShape, build_encoder, width_of
from pipeline.pretrain.methods.barlow import BarlowTwins
from pipeline.pretrain.methods.mae import MAE
from pipeline.pretrain.methods.method import Method
from pipeline.pretrain.methods.moco import MoCo
from pipeline.recipe import Pretrain

#: Probability of a blur: SpectralEarth blurs half of the views that are compared and none of the
#: masked ones (arXiv 2408.08447); the crop's area is that of SSL4EO-S12 and of MAE.
BLUR = {"moco": 0.5, "mae": 0.0, "barlow": 0.5}

#: AdamW's betas where the paper of a method states its own (MAE, appendix A), and otherwise.
BETAS = {"mae": (0.9, 0.95)}
USUAL_BETAS = (0.9, 0.999)


def build_method(settings: Pretrain, shape: EncoderShape) -> Method:
    """Build the method a recipe names, with random weights drawn from its seed.

    Raises
    ------
    RecipeError
        The method cannot use this backbone.
    """
    encoder = build_encoder(shape, seed=settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(settings.seed, "heads"))
        if settings.method == "moco":
            return _moco(settings, encoder)
        if settings.method == "barlow":
            return BarlowTwins(
                encoder,
                width_of(encoder),
                projector_width=settings.projector_width,
                off_diagonal=settings.off_diagonal,
            )
        return _mae(settings, shape, encoder)


def crops_of(method: Method, settings: Pretrain, shape: EncoderShape) -> tuple[Crop, ...]:
    """Return the views of a step, in the order the method wants them: one of each patch."""
    augmentation = Augmentation(shape.image_px, blur=BLUR[settings.method])
    return tuple(Crop(patch, augmentation) for patch in range(method.views))


def build_optimizer(method: Method, settings: Pretrain) -> torch.optim.Optimizer:
    """Return AdamW for every method; biases and norms do not decay, as is usual for it."""
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for parameter in method.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 else plain).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    betas = BETAS.get(settings.method, USUAL_BETAS)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas)


def seed_of(seed: int, use: str, step: int = 0) -> int:
    """Derive the seed of one use at one step; different uses never share random numbers."""
    sequence = np.random.SeedSequence([seed, step, *use.encode()])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def _moco(settings: Pretrain, encoder: nn.Module) -> MoCo:
    return MoCo(
        encoder,
        width_of(encoder),
        queue=settings.queue,
        momentum=settings.momentum,
        temperature=settings.temperature,
        seed=settings.seed,
    )


def _mae(settings: Pretrain, shape: EncoderShape, encoder: nn.Module) -> MAE:
    if shape.family in RESNETS:
        raise RecipeError(
            f'`pretrain.method = "mae"` hides tokens, and {shape.backbone} has none; choose a '
            'ViT, such as `backbone = "vit_small"`.'
        )
    return MAE(encoder, bands=shape.bands, mask_fraction=settings.mask_fraction)  # type: ignore[arg-type]

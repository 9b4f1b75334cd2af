"""From the `[pretrain]` table to what it names: the method, its views and its optimiser."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import RecipeError
from pipeline.pretrain.augment import Augmentation, Crop
from pipeline.pretrain.backbones import RESNETS, VITS, EncoderShape, build_encoder, width_of
from pipeline.pretrain.methods.barlow import BarlowTwins
from pipeline.pretrain.methods.dino import DINO, Schedule
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

#: DINO's crops (Caron et al. 2021, and its code): blur of the two large ones and of the small ones;
#: the least area of a large crop, which is the largest of a small one, and the least of a small
#: one; and the small ones' edge, 96 of 224 pixels.
GLOBAL_BLURS = (1.0, 0.1)
LOCAL_BLUR = 0.5
LEAST_GLOBAL_AREA = {"resnet": 0.14, "vit": 0.4}
LEAST_LOCAL_AREA = 0.05
LOCAL_EDGE = 96 / 224


def build_method(settings: Pretrain, shape: EncoderShape) -> Method:
    """Build the method a recipe names, with random weights drawn from its seed.

    Raises
    ------
    RecipeError
        The method cannot use this backbone.
    """
    encoder = build_encoder(shape, seed=settings.seed, any_size=settings.method == "dino")
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
        if settings.method == "dino":
            return _dino(settings, encoder)
        return _mae(settings, shape, encoder)


def crops_of(settings: Pretrain, shape: EncoderShape, *, patches: int) -> tuple[Crop, ...]:
    """Return the views of a step, in the order the method wants them.

    One of each of an item's patches; for DINO also small ones, the patches taking turns.

    Raises
    ------
    RecipeError
        A small crop does not fit.
    """
    if settings.method == "dino":
        return _dino_crops(settings, shape, patches)
    augmentation = Augmentation(shape.image_px, blur=BLUR[settings.method])
    return tuple(Crop(patch, augmentation) for patch in range(patches))


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


def _dino(settings: Pretrain, encoder: nn.Module) -> DINO:
    schedule = Schedule(
        steps=settings.steps,
        first_momentum=settings.teacher_momentum,
        first_temperature=settings.teacher_temperature_start,
        last_temperature=settings.teacher_temperature,
        warmup_steps=settings.teacher_warmup_steps,
        frozen_steps=round(settings.frozen_fraction * settings.steps),
    )
    return DINO(
        encoder,
        width_of(encoder),
        prototypes=settings.prototypes,
        schedule=schedule,
        student_temperature=settings.student_temperature,
        centre_momentum=settings.centre_momentum,
    )


def _dino_crops(settings: Pretrain, shape: EncoderShape, patches: int) -> tuple[Crop, ...]:
    least = LEAST_GLOBAL_AREA["vit" if shape.family in VITS else "resnet"]
    crops = [
        Crop(patch, Augmentation(shape.image_px, area=(least, 1.0), blur=blur))
        for patch, blur in enumerate(GLOBAL_BLURS)
    ]
    if settings.local_crops:
        area = (LEAST_LOCAL_AREA, least)
        small = Augmentation(_local_px(settings, shape), area=area, blur=LOCAL_BLUR)
        crops += [Crop(k % patches, small) for k in range(settings.local_crops)]
    return tuple(crops)


def _local_px(settings: Pretrain, shape: EncoderShape) -> int:
    """Return the edge of the small crops: as the recipe says, or 3/7 of the large ones'."""
    token_px = shape.patch_px if shape.family in VITS else 1
    edge = settings.local_px or max(int(shape.image_px * LOCAL_EDGE) // token_px, 1) * token_px
    if edge % token_px or edge >= shape.image_px:
        raise RecipeError(
            f"`pretrain.local_px` is {edge}, but the small crops of a {shape.backbone} must be "
            f"smaller than its {shape.image_px} pixels, in whole tokens of {token_px}; choose "
            "another, or `local_crops = 0`."
        )
    return edge


def _mae(settings: Pretrain, shape: EncoderShape, encoder: nn.Module) -> MAE:
    if shape.family in RESNETS:
        raise RecipeError(
            f'`pretrain.method = "mae"` hides tokens, and {shape.backbone} has none; choose a '
            'ViT, such as `backbone = "vit_small"`.'
        )
    return MAE(encoder, bands=shape.bands, mask_fraction=settings.mask_fraction)  # type: ignore[arg-type]

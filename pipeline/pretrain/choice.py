"""From the `[pretrain]` table to what it names: the method and its views."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from pipeline.errors import RecipeError
from pipeline.pretrain.data.augment import Augmentation, Crop
from pipeline.pretrain.encoders.backbones import VITS, EncoderShape, build_encoder, width_of
from pipeline.pretrain.methods.barlow import BarlowTwins
from pipeline.pretrain.methods.barlow_pixels import PixelBarlow
from pipeline.pretrain.methods.data2vec import Data2Vec
from pipeline.pretrain.methods.decur import DeCUR
from pipeline.pretrain.methods.dino import DINO, Schedule
from pipeline.pretrain.methods.mae import MAE, Decoder
from pipeline.pretrain.methods.method import Method
from pipeline.pretrain.methods.moco import MoCo
from pipeline.pretrain.methods.mocov3 import MoCoV3
from pipeline.pretrain.methods.paws import PAWS
from pipeline.pretrain.methods.simclr import SimCLR
from pipeline.pretrain.methods.simsiam import SimSiam
from pipeline.pretrain.methods.swav import SwAV
from pipeline.recipe import Pretrain

#: Probability of a blur: SpectralEarth blurs half of the views that are compared (arXiv 2408.08447)
#: and none of the masked ones. The crop's area is that of SSL4EO-S12 and of MAE.
BLUR = 0.5
AREA = (0.2, 1.0)
MASKED = ("mae", "data2vec")
#: Methods whose two views may be of two products, seen by one encoder.
COMPARING = ("moco", "mocov3", "simclr", "simsiam", "barlow", "dino")

#: Crops of two sizes (Caron et al. 2020 and 2021, Assran et al. 2021, and their code): DINO's blur
#: of the two large ones, where SwAV and PAWS blur half of all crops, as here of the small ones; the
#: least area of a large crop, which is the largest of a small one, and the least of a small one;
#: and the small ones' edge, 96 of 224 pixels.
TWO_SIZES = ("dino", "swav", "paws")
GLOBAL_BLURS = {"dino": (1.0, 0.1)}
LEAST_GLOBAL_AREA = {"resnet": 0.14, "vit": 0.4}
LEAST_LOCAL_AREA = 0.05
LOCAL_EDGE = 96 / 224


def build_method(
    settings: Pretrain,
    shape: EncoderShape,
    *,
    second: EncoderShape | None = None,
    classes: int = 0,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> Method:
    """Build the method a recipe names, with random weights drawn from its seed.

    Parameters
    ----------
    settings : Pretrain
    shape : EncoderShape
    second : EncoderShape or None
        Of the second product's encoder, for a method of two.
    classes : int
        Of the labelled support, for a method that has one.
    weights : mapping of str to Tensor or None
        State of the encoder to begin with.

    Raises
    ------
    RecipeError
        The method cannot use this backbone, or misses a second product or labels.
    """
    encoder = build_encoder(shape, seed=settings.seed, any_size=settings.method in TWO_SIZES)
    if weights is not None:
        encoder.load_state_dict(weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(settings.seed, "heads"))
        if settings.method in MASKED:
            return _masked(settings, shape, encoder)
        if settings.method == "decur":
            return _decur(settings, encoder, second)
        if settings.method == "paws":
            return _paws(settings, encoder, classes)
        if settings.method == "barlow_pixels":
            return _barlow_pixels(settings, shape, encoder)
        if settings.method in REMEMBERING:
            return REMEMBERING[settings.method](settings, encoder, _products(settings, shape))
        return _BUILDERS[settings.method](settings, encoder)


def crops_of(
    settings: Pretrain, shape: EncoderShape, *, patches: int, second: EncoderShape | None = None
) -> tuple[Crop, ...]:
    """Return the views of a step, in the order the method wants them.

    One of each of an item's patches; for DINO, SwAV and PAWS also small ones, the patches taking
    turns; for a method of two products two of each product's patch.

    Raises
    ------
    RecipeError
        A small crop does not fit, or no band would be left.
    """
    crops = _cuts_of(settings, shape, patches, second)
    asked = {"": settings.intensity, **settings.intensity_of}
    if not any(intensity.changes for intensity in asked.values()):
        return crops
    shapes = (shape,) if second is None else (shape, second)
    bands = {sensor.product: len(sensor.bands) for one in shapes for sensor in one.sensors}
    fewest = min([one.bands for one in shapes] + [*bands.values()])
    for product, intensity in asked.items():
        there = bands.get(product, fewest)
        if intensity.drop_bands >= there:
            key = f"intensity_of.{product}" if product else "intensity"
            raise RecipeError(
                f"`pretrain.{key}.drop_bands` is {intensity.drop_bands}, but a product has {there} "
                f"bands; at most {there - 1} may be left out."
            )
    # Only the second view of a pair is solarised, as by DINO and Barlow Twins.
    plain = {key: one.model_copy(update={"solarise": 0.0}) for key, one in asked.items()}
    seconds = (1, 3) if second is not None else (1,)
    changed = []
    for number, crop in enumerate(crops):
        own = dict(asked if number in seconds else plain)
        changed.append(replace(crop, intensity=own.pop(""), intensity_of=own))
    return tuple(changed)


def seed_of(seed: int, use: str, step: int = 0) -> int:
    """Derive the seed of one use at one step; different uses never share random numbers."""
    sequence = np.random.SeedSequence([seed, step, *use.encode()])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def first_seed(settings: Pretrain, *, second: bool) -> int:
    """Return the seed of the weights that an encoder begins with, or a method's second one."""
    return seed_of(settings.seed, "second encoder") % 2**32 if second else settings.seed


def _products(settings: Pretrain, shape: EncoderShape) -> tuple[str, ...]:
    """Return whose batches come: the joint images' alone, where there are such."""
    names = tuple(sensor.product for sensor in shape.sensors) or ("",)
    return names[-1:] if settings.joint else names


def _cuts_of(
    settings: Pretrain, shape: EncoderShape, patches: int, second: EncoderShape | None
) -> tuple[Crop, ...]:
    if settings.method in TWO_SIZES:
        return _crops_of_two_sizes(settings, shape, patches)
    if settings.method == "barlow_pixels":
        return tuple(Crop(patch, None) for patch in range(patches))
    blur = 0.0 if settings.method in MASKED else BLUR
    blur = blur if settings.blur is None else settings.blur
    area = settings.crop_area or AREA
    augmentation = Augmentation(shape.image_px, area=area, blur=blur)
    if second is not None:
        other = replace(augmentation, size_px=second.image_px)
        return (*[Crop(0, augmentation)] * 2, *[Crop(1, other)] * 2)
    return tuple(Crop(patch, augmentation) for patch in range(patches))


def _moco(settings: Pretrain, encoder: nn.Module, products: tuple[str, ...]) -> MoCo:
    return MoCo(
        encoder,
        width_of(encoder),
        queue=settings.queue,
        momentum=settings.momentum,
        temperature=settings.temperature,
        seed=settings.seed,
        products=products,
        key_parts=settings.key_parts,
    )


def _mocov3(settings: Pretrain, encoder: nn.Module) -> MoCoV3:
    return MoCoV3(
        encoder,
        width_of(encoder),
        hidden_width=settings.projector_width,
        steps=settings.steps,
        first_momentum=settings.teacher_momentum,
        temperature=settings.temperature,
    )


def _simclr(settings: Pretrain, encoder: nn.Module) -> SimCLR:
    return SimCLR(
        encoder,
        width_of(encoder),
        hidden_width=settings.projector_width,
        temperature=settings.temperature,
    )


def _simsiam(settings: Pretrain, encoder: nn.Module) -> SimSiam:
    return SimSiam(encoder, width_of(encoder), projector_width=settings.projector_width)


def _swav(settings: Pretrain, encoder: nn.Module, products: tuple[str, ...]) -> SwAV:
    return SwAV(
        encoder,
        width_of(encoder),
        hidden_width=settings.projector_width,
        prototypes=settings.prototypes,
        queue=settings.queue,
        steps=settings.steps,
        frozen_steps=round(settings.frozen_fraction * settings.steps),
        temperature=settings.temperature,
        products=products,
    )


def _barlow(settings: Pretrain, encoder: nn.Module) -> BarlowTwins:
    return BarlowTwins(
        encoder,
        width_of(encoder),
        projector_width=settings.projector_width,
        off_diagonal=settings.off_diagonal,
    )


def _barlow_pixels(settings: Pretrain, shape: EncoderShape, encoder: nn.Module) -> PixelBarlow:
    return PixelBarlow(
        encoder,
        width_of(encoder),
        window_px=shape.image_px,
        windows=settings.windows,
        projector_width=settings.projector_width,
        off_diagonal=settings.off_diagonal,
    )


def _decur(settings: Pretrain, encoder: nn.Module, second: EncoderShape | None) -> DeCUR:
    if second is None:
        raise RecipeError(
            '`pretrain.method = "decur"` learns from two products of a location; name the second '
            "one in `pretrain.more_products`."
        )
    other = build_encoder(second, seed=first_seed(settings, second=True))
    return DeCUR(
        (encoder, other),
        (width_of(encoder), width_of(other)),
        projector_width=settings.projector_width,
        common=min(
            max(round(settings.common_fraction * settings.projector_width), 1),
            settings.projector_width - 1,
        ),
        off_diagonal=settings.off_diagonal,
    )


def _paws(settings: Pretrain, encoder: nn.Module, classes: int) -> PAWS:
    if classes < 2:
        raise RecipeError(
            '`pretrain.method = "paws"` needs labelled patches of at least two classes in the '
            "training part; name their product in `pretrain.support_labels`."
        )
    return PAWS(
        encoder,
        width_of(encoder),
        classes=classes,
        hidden_width=settings.projector_width,
        temperature=settings.temperature,
    )


def _dino(settings: Pretrain, encoder: nn.Module, products: tuple[str, ...]) -> DINO:
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
        drop_path=settings.drop_path,
        products=products,
    )


def _crops_of_two_sizes(settings: Pretrain, shape: EncoderShape, patches: int) -> tuple[Crop, ...]:
    usual = (LEAST_GLOBAL_AREA["vit" if shape.family in VITS else "resnet"], 1.0)
    large = settings.crop_area or usual
    blurs = (*GLOBAL_BLURS.get(settings.method, (BLUR, BLUR)), BLUR)
    if settings.blur is not None:
        blurs = (settings.blur,) * 3
    crops = [
        Crop(patch, Augmentation(shape.image_px, area=large, blur=blur))
        for patch, blur in enumerate(blurs[:2])
    ]
    if settings.local_crops:
        area = (min(LEAST_LOCAL_AREA, large[0]), large[0])
        small = Augmentation(_local_px(settings, shape), area=area, blur=blurs[2])
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


def _masked(settings: Pretrain, shape: EncoderShape, encoder: nn.Module) -> MAE | Data2Vec:
    if not isinstance(encoder, VisionTransformer):
        raise RecipeError(
            f'`pretrain.method = "{settings.method}"` hides tokens, and {shape.backbone} has '
            'none; choose a ViT, such as `backbone = "vit_small"`.'
        )
    if settings.method == "mae":
        decoder = Decoder(settings.decoder_width, settings.decoder_blocks, settings.decoder_heads)
        return MAE(
            encoder, bands=shape.bands, mask_fraction=settings.mask_fraction, decoder=decoder
        )
    return Data2Vec(
        encoder,
        mask_fraction=settings.mask_fraction,
        steps=settings.steps,
        first_momentum=settings.teacher_momentum,
        drop_path=settings.drop_path,
    )


#: The methods that remember what they saw of each product.
REMEMBERING: dict[str, Callable[[Pretrain, nn.Module, tuple[str, ...]], Method]] = {
    "dino": _dino,
    "moco": _moco,
    "swav": _swav,
}
#: The methods that need nothing but an encoder.
_BUILDERS: dict[str, Callable[[Pretrain, nn.Module], Method]] = {
    "mocov3": _mocov3,
    "simclr": _simclr,
    "simsiam": _simsiam,
    "barlow": _barlow,
}

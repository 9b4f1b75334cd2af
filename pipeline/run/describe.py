"""What a recipe's model is before its first step: products, bands, standardisation, shape."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.errors import RecipeError
from pipeline.pretrain import checkpoint
from pipeline.pretrain.choice import COMPARING
from pipeline.pretrain.data.intensity import Quantities
from pipeline.pretrain.data.joint import join_sensors
from pipeline.pretrain.encoders.backbones import (
    RESNETS,
    SMALL_PX,
    SPECTRAL,
    WAVELENGTH,
    EncoderShape,
)
from pipeline.pretrain.encoders.released import Released, read_released
from pipeline.pretrain.encoders.spectral import LEAST_BANDS
from pipeline.pretrain.encoders.wavelength import Sensor
from pipeline.pretrain.model import Input, Model, Origin, Second
from pipeline.products.model import Product
from pipeline.recipe import Intensity, LoadedRecipe, Pretrain
from pipeline.store.patches import PatchReader
from pipeline.store.reader import Dataset


def product_of(loaded: LoadedRecipe) -> str:
    """Return the id of the product that is learned from.

    Raises
    ------
    RecipeError
        There is no such image product in the recipe.
    """
    images = [key for key, product in loaded.products.items() if product.kind == "image"]
    wanted = settings_of(loaded).product
    if wanted is None and images:
        return images[0]
    if wanted not in images:
        raise RecipeError(
            f"`pretrain.product` is {wanted!r}, but the image products of recipe {loaded.name} "
            f"are: {', '.join(images) or 'none'}."
        )
    return str(wanted)


def products_of(loaded: LoadedRecipe) -> tuple[str, ...]:
    """Return the ids of all products that are learned from, the recipe's `product` first.

    Raises
    ------
    RecipeError
        One is no image product of the recipe, is named twice, or needs another backbone.
    """
    settings, first = settings_of(loaded), product_of(loaded)
    images = [key for key, product in loaded.products.items() if product.kind == "image"]
    more = settings.more_products
    if settings.pairs == "products" and not more:
        more = tuple(key for key in images if key != first)[:1]
    everything = (first, *more)
    for product in settings.more_products:
        if product not in images or everything.count(product) > 1:
            raise RecipeError(
                f"`pretrain.more_products` names {product!r}; it takes other image products of "
                f"recipe {loaded.name} than {first}: {', '.join(images)}."
            )
    if strange := [key for key in settings.intensity_of if key not in everything]:
        raise RecipeError(
            f"`pretrain.intensity_of` names {strange[0]!r}, which is not learned from; allowed "
            f"are: {', '.join(everything)}."
        )
    mixed = len(everything) > 1 and settings.method != "decur"
    paired = settings.pairs == "products"
    if paired and settings.method not in ("decur", *COMPARING):
        raise RecipeError(
            f'`pretrain.pairs = "products"` compares two views, which {settings.method} does not; '
            f"choose one of: decur, {', '.join(COMPARING)}."
        )
    if mixed and not settings.backbone.startswith(WAVELENGTH):
        raise RecipeError(
            f"`pretrain.more_products` mixes sensors, which {settings.backbone} cannot take; "
            f'write `backbone = "{WAVELENGTH}..."`, or pair two of them with `method = "decur"`.'
        )
    if mixed and settings.method == "mae":
        raise RecipeError(
            '`pretrain.method = "mae"` predicts the bands of one product; leave out '
            "`pretrain.more_products`, or choose another method."
        )
    if mixed and settings.method == "paws":
        raise RecipeError(
            '`pretrain.method = "paws"` has labelled patches of one product; leave out '
            "`pretrain.more_products`, or choose another method."
        )
    if settings.joint and (paired or not mixed):
        raise RecipeError(
            "`pretrain.joint` shows one encoder several products at once; name the others in "
            '`pretrain.more_products`, and leave out `pairs = "products"`.'
        )
    if settings.modality_dropout and not settings.joint:
        raise RecipeError(
            "`pretrain.modality_dropout` hides products of images that show several, so it needs "
            "`joint = true`: a batch of one product has nothing else to show, and DeCUR compares "
            "two products, of which neither can be missing."
        )
    if settings.method == "decur" and settings.pairs != "products":
        raise RecipeError(
            '`pretrain.method = "decur"` learns from two products; leave out `pretrain.pairs`.'
        )
    if paired and len(everything) != 2:
        raise RecipeError(
            '`pretrain.pairs = "products"` pairs two products: `product` and one in '
            f"`more_products`, not {len(everything)}."
        )
    return everything


def describe(
    loaded: LoadedRecipe,
    dataset: Dataset,
    *,
    name: str | None = None,
    released: Released | None = None,
) -> Model:
    """Return what the recipe's model on this version is, before its first step.

    Parameters
    ----------
    loaded : LoadedRecipe
    dataset : Dataset
    name : str or None
        None: `model_name`.
    released : Released or None
        What it begins with, where the recipe says so: `released_of`.

    Raises
    ------
    RecipeError
        The recipe does not fit the data, or the weights.
    """
    settings, product = settings_of(loaded), product_of(loaded)
    reader = dataset.patches(product)
    own = input_of(dataset, product, released)
    shape = _shape(loaded, dataset, reader, released)
    products = products_of(loaded)
    others = () if settings.method == "decur" else products[1:]
    second = _second(dataset, products[1], shape) if settings.method == "decur" else None
    return Model(
        name=checkpoint.check_name(name or model_name(loaded, dataset)),
        dataset=dataset.version.name,
        identity=dataset.version.identity,
        version=dataset.version.number,
        digest=dataset.version.dataset_digest,
        product=product,
        **dict(own),
        others={other: input_of(dataset, other) for other in others},
        terms={one: loaded.products[one].conditions for one in products},
        origin=None if released is None else _origin(settings, released),
        shape=shape,
        settings=settings,
        second=second,
    )


def model_name(loaded: LoadedRecipe, dataset: Dataset) -> str:
    """Name a run by what it is, so that other settings never meet its checkpoints."""
    settings = settings_of(loaded)
    shown = settings.model_dump(mode="json", exclude={"threads", "requests", "checkpoint_every"})
    # What is not used leaves names as they were before it could be.
    shown = {k: v for k, v in shown.items() if k not in NEWER or v != NEWER[k]}
    values = [product_of(loaded), shown]
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    number = dataset.version.number
    what: str = settings.method
    if settings.weights is not None and not settings.steps:
        what = settings.weights.layout
    return f"{what}-{settings.backbone}-v{number}-{digest[:6]}".replace("_", "-")


def released_of(loaded: LoadedRecipe, dataset: Dataset) -> Released | None:
    """Read the weights that the recipe begins with, if it names some, for its product's bands.

    Raises
    ------
    RecipeError
        They do not fit the recipe or the product.
    """
    settings = loaded.recipe.pretrain
    if settings is None or settings.weights is None:
        return None
    backbone = settings.backbone.removeprefix(SPECTRAL)
    if backbone.startswith(WAVELENGTH) or settings.method == "decur":
        raise RecipeError(
            "`pretrain.weights` are of one encoder for the bands of one product; choose a backbone "
            f"without `{WAVELENGTH}`, and another method than decur."
        )
    released = read_released(
        loaded.folder / settings.weights.path,
        layout=settings.weights.layout,
        backbone=backbone,
        bands=dataset.patches(product_of(loaded)).bands,
    )
    if released.shape.backbone != settings.backbone:
        raise RecipeError(
            f"`pretrain.weights.layout` {settings.weights.layout!r} is of a "
            f"{released.shape.backbone}, not of a {settings.backbone}."
        )
    if released.shape.class_token and settings.method in ("mae", "data2vec"):
        raise RecipeError(
            f'`pretrain.method = "{settings.method}"` hides tokens of an encoder that has no class '
            "token, which `pretrain.weights` have; choose another method."
        )
    return released


def input_of(dataset: Dataset, product: str, released: Released | None = None) -> Input:
    """Return a product's bands and standardisation: by the training part, or as released."""
    reader = dataset.patches(product)
    mean, std, _ = dataset.statistics(product)
    fill = None if np.isnan(reader.fill) else float(reader.fill)
    if released is not None and released.ranges is not None:
        own = released.normaliser(scale=reader.scale, offset=reader.offset, fill=fill)
        mean, std = (part.flatten().double().numpy() for part in (own.mean, own.std))
    return Input(
        bands=tuple(reader.bands),
        wavelength_nm=tuple(reader.wavelength_nm),
        # Bands that no training patch saw have no statistics; any number will do for them.
        mean=tuple(np.nan_to_num(mean).tolist()),
        std=tuple(np.nan_to_num(std, nan=1.0).tolist()),
        fill=fill,
    )


def sensor_of(reader: PatchReader, facts: Product) -> Sensor:
    """Return what a product's bands see, in storage order."""
    widths = reader.fwhm_nm
    if all(width is None for width in widths):  # of a root from before they were kept
        widths = tuple(facts.band(name).fwhm_nm for name in reader.bands)
    return Sensor(reader.product, tuple(reader.bands), tuple(reader.wavelength_nm), widths)


def quantities_of(reader: PatchReader) -> Quantities:
    """Return what a product's stored numbers stand for."""
    return Quantities(reader.band_unit, reader.scale, reader.offset)


def settings_of(loaded: LoadedRecipe) -> Pretrain:
    """Return the recipe's `[pretrain]`, its files of weights by their name alone.

    Raises
    ------
    RecipeError
        It has none.
    """
    if loaded.recipe.pretrain is None:
        raise RecipeError(
            f"recipe {loaded.name} has no [pretrain] table; add one, for example "
            '[pretrain] with method = "moco" and backbone = "resnet18".'
        )
    settings = loaded.recipe.pretrain
    if settings.weights is None:
        return settings
    # Where a file lies on this machine is no part of what is learned.
    named = settings.weights.model_copy(update={"path": Path(settings.weights.path).name})
    return settings.model_copy(update={"weights": named})


def _origin(settings: Pretrain, released: Released) -> Origin:
    if settings.weights is None:
        raise ValueError("there are no weights to begin with")
    return Origin(
        file=settings.weights.path,
        sha256=released.sha256,
        layout=settings.weights.layout,
        ranges=released.ranges,
    )


def _shape(
    loaded: LoadedRecipe, dataset: Dataset, reader: PatchReader, released: Released | None
) -> EncoderShape:
    settings, products = settings_of(loaded), products_of(loaded)
    if released is not None:
        return _released_shape(settings, reader, released)
    edges = [dataset.patches(each).shape[-1] for each in products]
    size_px = edges[0] if settings.joint else min(edges)
    crop_px = settings.crop_px or size_px
    if crop_px > size_px:
        raise RecipeError(
            f"`pretrain.crop_px` is {crop_px}, but the patches have {size_px} pixels."
        )
    sensors: tuple[Sensor, ...] = ()
    if settings.backbone.startswith(WAVELENGTH):
        sensors = tuple(sensor_of(dataset.patches(p), loaded.products[p]) for p in products)
    if settings.joint:
        sensors = (*sensors, join_sensors(sensors))
    return EncoderShape(settings.backbone, len(reader.bands), crop_px, settings.patch_px, sensors)


def _second(dataset: Dataset, product: str, first: EncoderShape) -> Second:
    """Return what the second product's encoder is built from, for a method of two.

    It is the first's but for the bands, and has no spectral adapter where those are too few; one of
    any sensor begins with the second product.
    """
    own = input_of(dataset, product)
    plain = first.spectral and len(own.bands) < LEAST_BANDS
    shape = replace(
        first,
        backbone=first.family if plain else first.backbone,
        bands=len(own.bands),
        sensors=first.sensors[::-1],
    )
    file = f"weights.{product}.safetensors"
    return Second(product=product, input=own, shape=shape, weights_file=file)


def _released_shape(settings: Pretrain, reader: PatchReader, released: Released) -> EncoderShape:
    """Return the shape of released weights at the size of our images, which are brought to it."""
    shape = released.shape
    if shape.class_token:
        if settings.crop_px not in (None, shape.image_px):
            raise RecipeError(
                f"`pretrain.crop_px` is {settings.crop_px}, but the positions of these weights are "
                f"those of {shape.image_px} pixels; leave it out, and patches are brought to that."
            )
        return shape
    crop_px = settings.crop_px or reader.shape[-1]
    if shape.family in RESNETS and crop_px < SMALL_PX:
        raise RecipeError(
            f"`pretrain.weights` are of a {shape.backbone} for {SMALL_PX} pixels or more, not "
            f"{crop_px}; write `crop_px = {shape.image_px}`, and patches are brought to that."
        )
    return replace(shape, image_px=crop_px)


#: Settings that came after models had names, and what they are where they are not used.
NEWER = {
    "joint": False,
    "modality_dropout": 0.0,
    "weights": None,
    "compile": False,
    "key_parts": 1,
    "crop_area": None,
    "blur": None,
    "intensity": Intensity().model_dump(mode="json"),
    "intensity_of": {},
}

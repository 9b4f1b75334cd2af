"""A trained model, ready for images of one product: its own, another it knows, or a new one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from pipeline.errors import RecipeError
from pipeline.ports import ObjectStore
from pipeline.pretrain import checkpoint
from pipeline.pretrain.choice import first_seed
from pipeline.pretrain.data.normalise import Normaliser
from pipeline.pretrain.encoders.backbones import EncoderShape, build_encoder
from pipeline.pretrain.encoders.wavelength import aim
from pipeline.pretrain.model import Input, Model
from pipeline.recipe import LoadedRecipe
from pipeline.run.describe import input_of, sensor_of
from pipeline.store.patches import PatchReader
from pipeline.store.reader import Dataset


@dataclass(frozen=True)
class Trained:
    """A model that looks at one product of a version."""

    model: Model
    """Facing the product, if there is an encoder for it alone."""
    product: str
    reader: PatchReader
    encoder: nn.Module
    """(batch, band, y, x) -> (batch, width), aimed at the product, in evaluation mode."""
    normaliser: Normaliser
    """By the product's own statistics, on the encoder's device."""
    shape: EncoderShape
    """Of the encoder: the model's own, and the product's sensor if it is new."""
    new: bool
    """Whether the model never learned from the product. Its statistics are then those of the
    training part of the version that is looked at."""

    def untrained(self) -> nn.Module:
        """Return the encoder with the weights that training began with, on the CPU."""
        second = self.model.weights_file != Model.model_fields["weights_file"].default
        seed = first_seed(self.model.settings, second=second)
        encoder = build_encoder(self.shape, seed=seed)
        aim(encoder, self.product)
        return encoder


def open_trained(
    loaded: LoadedRecipe,
    store: ObjectStore,
    dataset: Dataset,
    model: Model,
    product: str | None,
    device: torch.device,
) -> Trained:
    """Get a model ready for a product of a version.

    Parameters
    ----------
    loaded : LoadedRecipe
    store : ObjectStore
        The root.
    dataset : Dataset
    model : Model
        At a checkpoint.
    product : str or None
        None: the model's own.
    device : torch.device

    Raises
    ------
    RecipeError
        The version has no such image product, or it is not what the model can look at.
    """
    product = product or model.product
    images = [key for key, facts in loaded.products.items() if facts.kind == "image"]
    if product not in images:
        raise RecipeError(
            f"{product!r} is no image product of recipe {loaded.name}; there are: "
            f"{', '.join(images) or 'none'}."
        )
    model = model.facing(product)
    reader, shape = dataset.patches(product), model.shape
    known = model.inputs.get(product)
    if known is not None and reader.bands != known.bands:
        raise RecipeError(
            f"model {model.name!r} wants of {product} the bands {', '.join(known.bands)}; "
            f"version {dataset.version.number} has {', '.join(reader.bands)}."
        )
    if known is None and not shape.any_sensor:
        learned = dict.fromkeys((*model.encoders, *model.inputs))
        raise RecipeError(
            f"model {model.name!r} learned from {', '.join(learned)} and not from {product}: "
            f"its {shape.backbone} has weights for those bands alone. A backbone of any sensor "
            "(`wave_...`) takes others."
        )
    if shape.any_sensor and product not in [sensor.product for sensor in shape.sensors]:
        sensor = sensor_of(reader, loaded.products[product])
        shape = replace(shape, sensors=(*shape.sensors, sensor))
    encoder = checkpoint.load_encoder(store, model, shape).to(device)
    if shape.any_sensor:
        aim(encoder, product)
    own: Input = known or input_of(dataset, product)
    normaliser = Normaliser(own.mean, own.std, own.fill).to(device)
    return Trained(model, product, reader, encoder, normaliser, shape, known is None)

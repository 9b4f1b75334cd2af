"""What a trained encoder is and what it needs of its input."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from pipeline.pretrain.encoders.backbones import EncoderShape
from pipeline.recipe import Pretrain


class Input(BaseModel):
    """What images of a product are made of, and how they are standardised."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    bands: tuple[str, ...]
    """In the order of the input's second axis."""
    wavelength_nm: tuple[float | None, ...]
    mean: tuple[float, ...]
    """Per band, stored units: what `pipeline.pretrain.data.normalise` subtracts ..."""
    std: tuple[float, ...]
    """... and divides by."""
    fill: float | None
    """Stored where nothing was seen; None: NaN."""


class Origin(BaseModel):
    """Released weights that a model began with."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    file: str
    """Its name."""
    sha256: str
    layout: str
    """Key of `pipeline.pretrain.encoders.released.LAYOUTS`."""
    ranges: tuple[tuple[float, float], ...] | None
    """Physical values that stand for 0 and 1 in each band, as they did for who trained it; None:
    standardised by the training part."""


#: Names of files of weights: the encoder's own, or that of another product.
WEIGHTS_FILE = r"^weights(\.[a-z0-9][a-z0-9-]*)?\.safetensors$"


class Second(BaseModel):
    """The other encoder of a method that trains one for each of two products."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    product: str
    input: Input
    shape: EncoderShape
    weights_file: str = Field(pattern=WEIGHTS_FILE)
    """Beside that of the first."""


class Model(BaseModel):
    """What a trained encoder is and what it needs of its input: `model.json`.

    All but the last four fields are fixed when a run begins; JSON has no NaN, so none is here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str
    dataset: str
    identity: str
    """Of the recipe whose data it saw."""
    version: int
    """Published version it learned from."""
    digest: str
    """Dataset digest of that version."""
    product: str
    bands: tuple[str, ...]
    """In the order of the input's second axis."""
    wavelength_nm: tuple[float | None, ...]
    mean: tuple[float, ...]
    """Per band, stored units: what `pipeline.pretrain.data.normalise` subtracts ..."""
    std: tuple[float, ...]
    """... and divides by."""
    fill: float | None
    """Stored where nothing was seen; None: NaN."""
    terms: dict[str, str] = {}
    """By product it learned from: terms of its data, and what is to be said beside them."""
    others: dict[str, Input] = {}
    """The other products that it learned from, each with its own standardisation."""
    origin: Origin | None = None
    """What it began with; None: random weights."""
    shape: EncoderShape
    settings: Pretrain
    weights_file: str = Field(default="weights.safetensors", pattern=WEIGHTS_FILE)
    """In the folder of the checkpoint."""
    second: Second | None = None
    """The encoder of the other product (DeCUR); None: there is one encoder."""
    step: int = 0
    """Steps done."""
    weights_sha256: str = ""
    state_sha256: str = ""
    second_sha256: str = ""
    """Of the other encoder's weights."""

    @property
    def encoders(self) -> tuple[str, ...]:
        """Products that have an encoder of their own."""
        return (self.product,) if self.second is None else (self.product, self.second.product)

    def facing(self, product: str) -> Model:
        """Return the same model with the encoder of that product in the first place.

        Nothing changes unless it is the second's.
        """
        second = self.second
        if second is None or product != second.product:
            return self
        first = Second(
            product=self.product,
            input=self.inputs[self.product],
            shape=self.shape,
            weights_file=self.weights_file,
        )
        swapped = {
            "product": product,
            "shape": second.shape,
            "weights_file": second.weights_file,
            "second": first,
            "weights_sha256": self.second_sha256,
            "second_sha256": self.weights_sha256,
        }
        return self.model_copy(update={**dict(second.input), **swapped})

    @property
    def inputs(self) -> dict[str, Input]:
        """All products that it learned from, its own first."""
        own = Input(**{name: getattr(self, name) for name in Input.model_fields})
        return {self.product: own, **self.others}

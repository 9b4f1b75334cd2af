"""What a trained encoder is and what it needs of its input."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

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


class Model(BaseModel):
    """What a trained encoder is and what it needs of its input: `model.json`.

    All but the last three fields are fixed when a run begins; JSON has no NaN, so none is here.
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
    others: dict[str, Input] = {}
    """The other products that it learned from, each with its own standardisation."""
    origin: Origin | None = None
    """What it began with; None: random weights."""
    shape: EncoderShape
    settings: Pretrain
    step: int = 0
    """Steps done."""
    weights_sha256: str = ""
    state_sha256: str = ""

    @property
    def inputs(self) -> dict[str, Input]:
        """All products that it learned from, its own first."""
        own = Input(**{name: getattr(self, name) for name in Input.model_fields})
        return {self.product: own, **self.others}

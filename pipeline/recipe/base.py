"""What all tables of a recipe share: strictness, and the mark of what may grow."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

#: Mark of a field that may grow without changing what the data set is.
EXTENT: dict[str, Any] = {"extent": True}


class Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        validate_default=True,  # else a default 0 and a written 0.0 hash differently
    )

"""What all tables of a recipe share: strictness, and the mark of what may grow."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator

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

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_no_texts(cls, values: object) -> object:
        """Refuse `"500"` and `true` where a number belongs: pydantic would make one of them."""
        for key, value in values.items() if isinstance(values, dict) else ():
            kind = cls.model_fields[key].annotation if key in cls.model_fields else None
            allowed = {kind, *get_args(kind)} - {type(None)}
            if allowed and allowed <= {int, float} and isinstance(value, str | bool):
                written = repr(value) if isinstance(value, str) else str(value).lower()
                raise ValueError(f"`{key}` should be a number, without quotes (found {written})")
        return values

"""What the tables of reports are made of: kinds of features, and scores."""

from __future__ import annotations

from dataclasses import dataclass

#: The model's own features; every other kind is a baseline.
MODEL = "model"
#: What the kinds of features are called in tables.
TITLES = {
    MODEL: "**this model**",
    "untrained": "the same encoder, untrained",
    "image-statistics": "image statistics",
    "random-filters": "random filters (RCF)",
}


@dataclass(frozen=True, slots=True)
class Score:
    """An accuracy on the test part, 0 to 1, and the interval of its redraws."""

    value: float
    low: float
    high: float

"""The small networks between an encoder and a loss."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import nn


def mlp(*widths: int, end: Literal["bias", "plain", "norm"] = "bias") -> nn.Sequential:
    """Build linear layers with batch norm and ReLU between them: (batch, first) -> (batch, last).

    Parameters
    ----------
    *widths : int
        Of the input and of each layer's output.
    end : str
        The last layer has a bias, has none, or is followed by a batch norm without scale or shift.
    """
    *inner, (width, out) = pairwise(widths)
    layers: list[nn.Module] = []
    for before, after in inner:
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(True)]
    layers.append(nn.Linear(width, out, bias=end == "bias"))
    if end == "norm":
        layers.append(nn.BatchNorm1d(out, affine=False))
    return nn.Sequential(*layers)

"""data2vec for images.

Baevski et al. 2022, "data2vec: A General Framework for Self-supervised Learning in Speech, Vision
and Language" (arXiv 2202.03555). A student sees an image with blocks of tokens hidden and predicts,
where they are hidden, what its teacher, a moving average of itself, makes of the whole image: the
mean of the outputs of the upper half of its blocks. For Earth observation: SSL4EO-S12
(arXiv 2211.07044).

Positions are fixed sines, as everywhere here, instead of the biases of attention that all blocks
share there, and there is no layer scale: a ViT of this project is the same for every method. The
biases would be part of the encoder, which could then no longer be exported as timm's plain ViT, and
would be bound to one number of tokens.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.pretrain.draws import draw_seed, own_uniform
from pipeline.pretrain.methods.mae import patchify
from pipeline.pretrain.methods.method import Learned, Method, View, drop_paths, follow, full
from pipeline.pretrain.ranks import sum_over_ranks
from pipeline.pretrain.sending import send

#: The momentum of the teacher at the end (SSL4EO-S12).
LAST_MOMENTUM = 0.9998
#: Where the error turns from square to straight (section 4.1).
BETA = 2.0
#: A block has at least this share of the tokens (16 of 196), and an aspect of at most 1 : 0.3
#: (Bao et al. 2022, arXiv 2106.08254, algorithm 1).
LEAST_BLOCK = 16 / 196
LEAST_ASPECT = 0.3
#: Draws after which no block is found to add anything.
TRIES = 10


def draw_blocks(
    items: int, rows: int, columns: int, fraction: float, generator: torch.Generator
) -> Tensor:
    """Hide rectangles of tokens in each item until about a share of them is hidden.

    Ranks with equal generators hide as one rank with all of their items would.

    Returns
    -------
    Tensor, bool, shape (items, rows * columns)
        True where hidden: at least one token, at most the share, but for rounding, and never all.
    """
    most = min(max(round(rows * columns * fraction), 1), rows * columns - 1)
    hidden = np.zeros((items, rows, columns), bool)
    failures = np.zeros(items, "int64")
    left = np.full(items, most)
    seed, tries = draw_seed(generator), 0
    while (open_ := (left > 0) & (failures < TRIES)).any():
        block = place_blocks(own_uniform(items, 4, seed, tries), left, most, (rows, columns))
        added = (block & ~hidden).sum(axis=(1, 2))
        fits = open_ & (added > 0) & (added <= left)
        hidden |= block & fits[:, None, None]
        left -= np.where(fits, added, 0)
        failures = np.where(fits, 0, failures + 1)
        tries += 1
    hidden[left == most, rows // 2, columns // 2] = True
    return torch.from_numpy(hidden.reshape(items, -1))


def place_blocks(
    draws: NDArray[np.float64], left: NDArray[np.int64], most: int, grid: tuple[int, int]
) -> NDArray[np.bool_]:
    """Turn draws into one rectangle of tokens for each item.

    Parameters
    ----------
    draws : float64 array, shape (item, 4)
        Of size, aspect, upper and left edge, each from [0, 1).
    left : int64 array, shape (item,)
        How many tokens may still be hidden.
    most : int
        How many may be hidden of an item at all.
    grid : (int, int)
        Rows and columns of tokens.

    Returns
    -------
    bool array, shape (item, row, column)
    """
    rows, columns = grid
    least = min(max(round(LEAST_BLOCK * rows * columns), 1), most)
    size, aspect, upper, start = draws.T
    area = least + size * np.maximum(left - least, 0)
    ratio = np.exp((2 * aspect - 1) * -math.log(LEAST_ASPECT))
    tall = np.rint(np.sqrt(area * ratio)).astype("int64").clip(1, rows)
    wide = np.rint(np.sqrt(area / ratio)).astype("int64").clip(1, columns)
    y = (upper * (rows - tall + 1)).astype("int64")
    x = (start * (columns - wide + 1)).astype("int64")
    row = np.arange(rows) - y[:, None]
    column = np.arange(columns) - x[:, None]
    inside_rows = (row >= 0) & (row < tall[:, None])
    inside_columns = (column >= 0) & (column < wide[:, None])
    found: NDArray[np.bool_] = inside_rows[:, :, None] & inside_columns[:, None, :]
    return found


def regression_loss(predicted: Tensor, target: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean smooth L1 error of the wanted tokens of all ranks.

    Parameters
    ----------
    predicted, target : Tensor, float32, shape (batch, token, width)
    wanted : Tensor, bool, shape (batch, token)

    Returns
    -------
    Tensor, float32, shape ()
        0 if no token is wanted.
    """
    error = F.smooth_l1_loss(predicted, target, beta=BETA, reduction="none").mean(dim=-1)
    counted = wanted.to(error.dtype)
    total = sum_over_ranks(torch.stack([(error * counted).sum(), counted.sum()]))
    return total[0] / total[1].clamp(min=1)


class Data2Vec(Method):
    """Predict a teacher's features of hidden tokens.

    Parameters
    ----------
    encoder : timm VisionTransformer
        Without class or register tokens.
    mask_fraction : float
        Share of hidden tokens.
    steps : int
        Of the whole run.
    first_momentum : float
        Share of itself that the teacher keeps at first; it rises straight to `LAST_MOMENTUM`.
    drop_path : float
        Of the student.
    """

    views = 1
    measures = ("target_deviation",)
    encoder: VisionTransformer
    teacher: VisionTransformer

    def __init__(
        self,
        encoder: VisionTransformer,
        *,
        mask_fraction: float,
        steps: int,
        first_momentum: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        drop_paths(encoder, drop_path)
        self.predictor = nn.Linear(encoder.embed_dim, encoder.embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(encoder.embed_dim))
        nn.init.normal_(self.mask_token, std=0.02)
        self.mask_fraction = mask_fraction
        self.steps = steps
        self.first_momentum = first_momentum

    def momentum(self, step: int) -> float:
        """Return the share of itself that the teacher keeps before a step."""
        last = max(LAST_MOMENTUM, self.first_momentum)
        return self.first_momentum + (last - self.first_momentum) * step / max(self.steps - 1, 1)

    def begin(self, step: int) -> None:
        """Move the teacher towards the student."""
        follow(self.encoder, self.teacher, self.momentum(step))

    def forward(self, views: Sequence[View], generator: torch.Generator) -> Learned:
        """Return the loss of one batch."""
        (view,) = views
        rows, columns = self.encoder.patch_embed.grid_size
        drawn = draw_blocks(len(view.image), rows, columns, self.mask_fraction, generator)
        (hidden,) = send([drawn], view.image.device)
        seen = self.see(view.image, hidden)
        predicted = self.predictor(seen)
        target = self.targets(view.image)
        some = patchify(view.valid, int(self.encoder.patch_embed.patch_size[0])).any(dim=-1)
        with torch.autocast(predicted.device.type, enabled=False):
            loss = regression_loss(full(predicted), target, hidden & some)
        features = seen.detach().float().mean(dim=1)
        measures = {"target_deviation": target.std(dim=(0, 1)).mean()}
        return Learned(loss, features, target.mean(dim=1), measures)

    def see(self, image: Tensor, hidden: Tensor) -> Tensor:
        """Encode images whose hidden tokens all look the same: (batch, token, width)."""
        vit = self.encoder
        tokens: Any = vit.patch_embed(image)
        tokens = torch.where(hidden.unsqueeze(-1), self.mask_token.to(tokens.dtype), tokens)
        tokens = tokens + vit.pos_embed
        encoded: Tensor = vit.norm(vit.blocks(vit.norm_pre(tokens)))
        return encoded

    @torch.no_grad()
    def targets(self, image: Tensor) -> Tensor:
        """Return what the teacher makes of whole images: float32, (batch, token, width).

        Each token's output of each upper block standardised, their mean, standardised again.
        """
        vit = self.teacher
        tokens = vit.norm_pre(vit.patch_embed(image) + vit.pos_embed)
        outputs = []
        for block in vit.blocks:
            tokens = block(tokens)
            outputs.append(F.layer_norm(full(tokens), tokens.shape[-1:]))
        upper = outputs[len(outputs) // 2 :]
        return F.layer_norm(torch.stack(upper).mean(dim=0), tokens.shape[-1:])

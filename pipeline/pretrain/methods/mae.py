"""Masked autoencoder.

He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners" (arXiv 2111.06377). The encoder
sees the tokens that are not hidden; a light decoder predicts the hidden ones from them. A token's
target is its own values of all bands, standardised within the token (the paper's `norm_pix`).
Values that were never seen take no part in the target or in the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from pipeline.pretrain.draws import draw_seed, own_uniform
from pipeline.pretrain.methods.method import Learned, Method, View, full
from pipeline.pretrain.ranks import sum_over_ranks
from pipeline.pretrain.sending import send

#: Added to a token's variance before the root, as in the paper's code.
VARIANCE_FLOOR = 1e-6


ON_CPU = torch.device("cpu")


class Hidden(NamedTuple):
    """Which tokens are kept and hidden: int64 numbers, shapes (batch, kept) and (batch, hidden)."""

    kept: Tensor
    hidden: Tensor


def patchify(image: Tensor, patch_px: int) -> Tensor:
    """Cut images into tokens.

    Parameters
    ----------
    image : Tensor, shape (batch, band, y, x)
    patch_px : int
        Edge of a token; divides y and x.

    Returns
    -------
    Tensor, shape (batch, token, patch_px * patch_px * band)
        Tokens row by row; in a token bands vary fastest.
    """
    batch, bands, height, width = image.shape
    rows, columns = height // patch_px, width // patch_px
    cut = image.reshape(batch, bands, rows, patch_px, columns, patch_px)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch_px**2 * bands)


def choose_hidden(
    batch: int,
    tokens: int,
    fraction: float,
    generator: torch.Generator,
    device: torch.device = ON_CPU,
) -> Hidden:
    """Hide a share of each item's tokens at random, at least one and never all.

    Ranks with equal generators hide as one rank with all of their items would.
    """
    count = min(max(round(tokens * fraction), 1), tokens - 1)
    drawn = torch.from_numpy(own_uniform(batch, tokens, draw_seed(generator)))
    (draws,) = send([drawn], device)
    order = draws.argsort(dim=1)
    return Hidden(order[:, count:], order[:, :count])


def take(tokens: Tensor, numbers: Tensor) -> Tensor:
    """Return tokens (batch, token, width) by their numbers (batch, n): (batch, n, width)."""
    return tokens.gather(1, numbers.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def reconstruction_loss(predicted: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the mean squared error against targets standardised within each token.

    Parameters
    ----------
    predicted, target : Tensor, float32, shape (batch, token, value)
    valid : Tensor, bool, same shape
        Values that were seen. Others count neither in the token's mean and variance nor in its
        error; a token without any counts for nothing.

    Returns
    -------
    Tensor, float32, shape ()
        Mean over the tokens of all ranks of the mean over their values; 0 if there is no valid
        value at all.
    """
    seen = valid.to(target.dtype)
    count = seen.sum(dim=-1, keepdim=True)
    at_least_one = count.clamp(min=1)
    mean = (target * seen).sum(dim=-1, keepdim=True) / at_least_one
    variance = ((target - mean).square() * seen).sum(dim=-1, keepdim=True)
    # The paper's code takes the sample variance (n - 1).
    variance = variance / (count - 1).clamp(min=1)
    wanted = (target - mean) / (variance + VARIANCE_FLOOR).sqrt()
    error = ((predicted - wanted).square() * seen).sum(dim=-1) / at_least_one.squeeze(-1)
    usable = (count.squeeze(-1) > 0).to(error.dtype)
    total = sum_over_ranks(torch.stack([(error * usable).sum(), usable.sum()]))
    return total[0] / total[1].clamp(min=1)


class Decoder(NamedTuple):
    """Shape of the decoder.

    The paper uses 8 blocks of 512 and 16 heads for ImageNet, as SSL4EO-S12 does, and finds a probe
    to gain from depth (its table 1); SpectralEarth uses 1 block of 512 (arXiv 2408.08447).
    """

    width: int
    blocks: int
    heads: int


class MAE(Method):
    """Predict hidden tokens of an image from the others, for any number of bands.

    Parameters
    ----------
    encoder : timm VisionTransformer
        Without class or register tokens (`pipeline.pretrain.encoders.backbones` builds it so).
    bands : int
    mask_fraction : float
        Share of hidden tokens.
    decoder : Decoder
    """

    views = 1
    encoder: VisionTransformer
    positions: Tensor

    def __init__(
        self, encoder: VisionTransformer, *, bands: int, mask_fraction: float, decoder: Decoder
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.mask_fraction = mask_fraction
        self.patch_px = int(encoder.patch_embed.patch_size[0])
        grid = [int(edge) for edge in encoder.patch_embed.grid_size]
        width = decoder.width
        self.embed = nn.Linear(encoder.embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.normal_(self.mask_token, std=0.02)
        # A function of the grid, so no part of the state.
        sincos = build_sincos2d_pos_embed(grid, dim=width)
        self.register_buffer("positions", sincos.unsqueeze(0), persistent=False)
        self.decoder = nn.Sequential(
            *(Block(width, decoder.heads, qkv_bias=True) for _ in range(decoder.blocks)),
            nn.LayerNorm(width),
        )
        self.predict = nn.Linear(width, self.patch_px**2 * bands)

    def forward(self, views: Sequence[View], generator: torch.Generator) -> Learned:
        """Return the loss of one batch."""
        (view,) = views
        tokens = self.positions.shape[1]
        count, device = len(view.image), view.image.device
        chosen = choose_hidden(count, tokens, self.mask_fraction, generator, device)
        seen = self.encode(view.image, chosen.kept)
        predicted = self.decode(seen, chosen)
        target = take(patchify(view.image, self.patch_px), chosen.hidden)
        valid = take(patchify(view.valid, self.patch_px), chosen.hidden)
        with torch.autocast(predicted.device.type, enabled=False):
            loss = reconstruction_loss(full(predicted), full(target), valid)
        return Learned(loss, seen.detach().float().mean(dim=1))

    def encode(self, image: Tensor, kept: Tensor) -> Tensor:
        """Encode the kept tokens alone: (batch, kept, width).

        The encoder's parts are used as timm built them, so that its weights serve whole images.
        """
        vit = self.encoder
        tokens = take(vit.patch_embed(image) + vit.pos_embed, kept)
        encoded: Tensor = vit.norm(vit.blocks(vit.norm_pre(tokens)))
        return encoded

    def decode(self, seen: Tensor, chosen: Hidden) -> Tensor:
        """Predict the hidden tokens: (batch, kept, width) -> (batch, hidden, values)."""
        kept = self.embed(seen)
        positions = self.positions.expand(len(seen), -1, -1)
        kept = kept + take(positions, chosen.kept)
        hidden = self.mask_token + take(positions, chosen.hidden)
        # Attention has no order: the hidden tokens can simply follow the kept ones.
        decoded = self.decoder(torch.cat([kept, hidden.to(kept.dtype)], dim=1))
        predicted: Tensor = self.predict(decoded[:, kept.shape[1] :])
        return predicted

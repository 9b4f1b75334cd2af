"""Barlow Twins on single pixels or small windows of imaging spectrometers.

Braham et al. 2022, "Self Supervised Learning for Few Shot Hyperspectral Image Classification"
(arXiv 2206.12117), pretrains on the pixels of a scene and then needs few labels. Nothing but the
idea is published; augmentations (`pipeline.pretrain.encoders.spectra`) and pairs are our own: two
windows a few pixels apart are a pair, as neighbours mostly show the same material. A pair of which
a window shows too little is drawn again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.pretrain.data.augment import TRIES
from pipeline.pretrain.data.windows import choose_corners, take_tries
from pipeline.pretrain.encoders.spectra import disturb
from pipeline.pretrain.methods.barlow import BarlowTwins
from pipeline.pretrain.methods.method import Learned, View
from pipeline.pretrain.ranks import rank
from pipeline.pretrain.sending import send

#: How far apart the two windows of a pair are at most, in y and in x.
NEIGHBOURHOOD_PX = 2


class PixelBarlow(BarlowTwins):
    """Make neighbouring windows of an item agree, dimension by dimension.

    Parameters
    ----------
    encoder : module, (window, band, y, x) -> (window, width)
    width : int
        Features the encoder returns.
    window_px : int
        Edge of a window; 1 is a single pixel.
    windows : int
        Pairs drawn from each item.
    projector_width : int
    off_diagonal : float
        See `BarlowTwins`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        width: int,
        *,
        window_px: int,
        windows: int,
        projector_width: int,
        off_diagonal: float,
    ) -> None:
        super().__init__(encoder, width, projector_width=projector_width, off_diagonal=off_diagonal)
        self.window_px = window_px
        self.windows = windows

    def forward(self, views: Sequence[View], generator: torch.Generator) -> Learned:
        """Return the loss of one batch of whole patches: two times of each, or the same twice."""
        # Ranks draw on their own: nobody needs another's windows.
        seed = int(torch.randint(2**62, (), generator=generator)) + rank()
        generator = torch.Generator().manual_seed(seed)
        batch, _, height, width = views[0].image.shape
        last = torch.tensor([height, width]) - self.window_px
        shape = (batch, self.windows, TRIES, 2)
        first = (torch.rand(shape, generator=generator) * (last + 1)).long()
        reach = 2 * NEIGHBOURHOOD_PX + 1
        shift = torch.randint(0, reach, shape, generator=generator) - NEIGHBOURHOOD_PX
        second = torch.minimum((first + shift).clamp(min=0), last)
        drawn = send([first, second], views[0].image.device)
        chosen = choose_corners([seen_of(view) for view in views], drawn, self.window_px)
        corners = [take_tries(part, chosen) for part in drawn]
        cut = [
            disturb(cut_windows(view, corner, self.window_px), generator)
            for view, corner in zip(views, corners, strict=True)
        ]
        return super().forward(cut, generator)


def seen_of(view: View) -> Tensor:
    """Return which share of each pixel's bands was seen, of those an item has: (batch, y, x)."""
    present = view.valid.flatten(2).any(dim=2).sum(dim=1).clamp(min=1)
    return view.valid.sum(dim=1) / present.view(-1, 1, 1)


def cut_windows(view: View, corners: Tensor, window_px: int) -> View:
    """Cut windows out of each item.

    Parameters
    ----------
    view : View
        Shape (batch, band, y, x).
    corners : Tensor, int64, shape (batch, window, 2)
        Upper and left edge; on the device of the view.
    window_px : int

    Returns
    -------
    View
        Shape (batch * window, band, window_px, window_px).
    """
    batch, windows, _ = corners.shape
    reach = torch.arange(window_px, device=corners.device)
    item = torch.arange(batch, device=corners.device).view(-1, 1, 1, 1).expand(-1, windows, 1, 1)
    rows = corners[..., 0].view(batch, windows, 1, 1) + reach.view(-1, 1)
    columns = corners[..., 1].view(batch, windows, 1, 1) + reach

    def cut(values: Tensor) -> Tensor:
        # Indices around a slice: the bands come last, (batch, window, y, x, band).
        windows = values[item, :, rows, columns]
        return windows.flatten(0, 1).permute(0, 3, 1, 2)

    return View(cut(view.image), cut(view.valid))

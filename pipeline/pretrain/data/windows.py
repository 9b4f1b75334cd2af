"""Square windows of whole pixels, drawn where enough was seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.pretrain.data.augment import LEAST_VALID, TRIES
from pipeline.pretrain.data.batches import WHOLE, Batch, Share, Stored
from pipeline.pretrain.sending import send


def choose_corners(seen: Sequence[Tensor], corners: Sequence[Tensor], window_px: int) -> Tensor:
    """Return which of several windows to take: the first that shows enough, or the best.

    Parameters
    ----------
    seen : sequence of Tensors, float32, shape (batch, y, x)
        Of each view of the items, the share of a pixel that was seen. A window is as good as it is
        in the view that shows least of it.
    corners : sequence of Tensors, int64, shape (batch, window, try, 2)
        Upper and left edges in each view; on the device of `seen`.
    window_px : int

    Returns
    -------
    Tensor, int64, shape (batch, window)
        Numbers of tries, on the device of `seen`.
    """
    shares = [
        _share_inside(one, places, window_px) for one, places in zip(seen, corners, strict=True)
    ]
    share = torch.stack(shares).amin(dim=0)
    earlier = torch.arange(share.shape[-1], 0, -1, device=share.device) + 1.0
    return torch.where(share >= LEAST_VALID, earlier, share).argmax(dim=-1)


def take_tries(corners: Tensor, chosen: Tensor) -> Tensor:
    """Return the chosen corners: (batch, window, try, 2), (batch, window) -> (batch, window, 2)."""
    where = chosen[..., None, None].expand(*chosen.shape, 1, 2)
    return corners.gather(2, where).squeeze(2)


def cut_alike(
    batch: Batch, edge_px: int, generator: torch.Generator, share: Share = WHOLE
) -> Batch:
    """Cut one window out of each item, the same out of all of its views.

    Parameters
    ----------
    batch : Batch
        Our share of it; patches of one size, which stay as they are if they are no larger.
    edge_px : int
    generator : torch.Generator
        On the CPU; in the same state on every rank.
    share : Share
    """
    items, _, height, width = batch[0].bands.shape
    if edge_px >= min(height, width):
        return batch
    count = items * share.ranks
    last = torch.tensor([height, width]) - edge_px
    drawn = (torch.rand(count, 1, TRIES, 2, generator=generator) * (last + 1)).long()
    (drawn,) = send([drawn[share.of(count)]], batch[0].bands.device)
    distinct = {id(view): view for view in batch}
    seen = [(view.mask != 0).float() for view in distinct.values()]
    corners = take_tries(drawn, choose_corners(seen, [drawn] * len(seen), edge_px))[:, 0]
    reach = torch.arange(edge_px, device=corners.device)
    item = torch.arange(items, device=corners.device).view(-1, 1, 1)
    rows = (corners[:, :1] + reach).unsqueeze(2)
    columns = (corners[:, 1:] + reach).unsqueeze(1)
    cut = {
        # Indices around a slice: the bands come last.
        key: Stored(
            view.bands[item, :, rows, columns].permute(0, 3, 1, 2).contiguous(),
            view.mask[item, rows, columns],
            view.product,
        )
        for key, view in distinct.items()
    }
    return tuple(cut[id(view)] for view in batch)


def _share_inside(seen: Tensor, corners: Tensor, window_px: int) -> Tensor:
    """Return the mean over windows: (batch, y, x), (batch, window, try, 2) -> all but the 2."""
    width = seen.shape[2]
    # Sums over everything above and to the left, so that any window is four look-ups.
    sums = F.pad(seen.cumsum(dim=1).cumsum(dim=2), (1, 0, 1, 0)).flatten(1)
    top, left = corners.flatten(1, 2).unbind(dim=2)
    bottom, right = top + window_px, left + window_px

    def before(y: Tensor, x: Tensor) -> Tensor:
        return sums.gather(1, y * (width + 1) + x)

    inside = before(bottom, right) - before(top, right) - before(bottom, left) + before(top, left)
    return (inside / window_px**2).view(corners.shape[:-1])

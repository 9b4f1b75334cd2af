"""What a model must beat on the same split: statistics of the image, and random filters.

On several published benchmarks a pretrained ResNet loses to these (torchgeo-bench's released
table: m-so2sat, m-brick-kiln and treesatai under kNN), so a score means little without them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.pretrain.methods.method import View

#: Quantiles beside mean, deviation, minimum and maximum.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

#: Random filters, giving twice as many features, and their edge (torchgeo's RCF defaults to 3).
FILTERS = 256
FILTER_PX = 3
#: Added before the rectifier, so that weak responses are cut off (torchgeo's RCF, MOSAIKS).
BIAS = -1.0
#: Added to the eigenvalues when filters are whitened (torchgeo's RCF).
WHITENING_FLOOR = 1e-3


def image_statistics(view: View) -> Tensor:
    """Describe each window by numbers of each band's values, wherever they lie.

    Parameters
    ----------
    view : View
        Shape (window, band, y, x).

    Returns
    -------
    Tensor, shape (window, 9 * band)
        Mean, deviation, minimum, maximum and `QUANTILES` of the values that were seen; all 0, the
        mean of the training set, where none was.
    """
    values = view.image.flatten(2)
    seen = view.valid.flatten(2)
    count = seen.sum(dim=2)
    some = count.clamp(min=1)
    mean = (values * seen).sum(dim=2) / some
    std = (((values - mean.unsqueeze(2)) * seen).square().sum(dim=2) / some).sqrt()
    ordered = torch.where(seen, values, torch.inf).sort(dim=2).values
    found = [mean, std]
    found += [_quantile(ordered, some, share) for share in (0.0, 1.0, *QUANTILES)]
    table = torch.stack(found, dim=2)
    return torch.where((count > 0).unsqueeze(2), table, 0.0).flatten(1)


def _quantile(ordered: Tensor, count: Tensor, share: float) -> Tensor:
    """Interpolate a quantile of the first `count` of the sorted values, shape (window, band)."""
    place = share * (count - 1)
    low = place.floor().long()
    high = torch.minimum(low + 1, count - 1)
    below = ordered.gather(2, low.unsqueeze(2)).squeeze(2)
    above = ordered.gather(2, high.unsqueeze(2)).squeeze(2)
    # `torch.where`, because infinity (a band never seen) times 0 is not a number.
    return torch.where(below == above, below, below + (place - low) * (above - below))


class RandomFilters:
    """Random convolutional features (RCF), with filters drawn from training images.

    Rahimi and Recht 2007; Rolf et al. 2021 (MOSAIKS, Nature Communications 12:4392); Coates and Ng
    2012 for whitened patches as filters. A window's feature is the mean over its pixels of a
    filter's rectified response, and of its rectified negative.

    Parameters
    ----------
    images : Tensor, float32, shape (window, band, y, x)
        Some windows of the training part, standardised.
    seed : int
    """

    def __init__(self, images: Tensor, *, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        edge_px = min(FILTER_PX, images.shape[-1])
        self.filters = whiten(_draw_patches(images.cpu(), edge_px, random))

    def __call__(self, view: View) -> Tensor:
        """Return features, shape (window, 2 * FILTERS); what was never seen counts as the mean."""
        response = F.conv2d(view.image, self.filters.to(view.image.device))
        positive = F.relu(response + BIAS).mean(dim=(2, 3))
        negative = F.relu(-response + BIAS).mean(dim=(2, 3))
        return torch.cat([positive, negative], dim=1)


def whiten(patches: Tensor) -> Tensor:
    """Make filters of patches: unit length, then whitened twice (once for the image's side).

    Parameters
    ----------
    patches : Tensor, shape (patch, band, y, x)

    Returns
    -------
    Tensor, float32, same shape
    """
    flat = patches.double().flatten(1)
    flat = flat - flat.mean(dim=1, keepdim=True)
    length = flat.norm(dim=1, keepdim=True)
    flat = flat / torch.where(length > 1e-8, length, 1.0)
    # Eigenvectors of the covariance from the patches themselves: there are fewer patches than
    # values in a patch of an imaging spectrometer (3 * 3 * 202).
    _, singular, axes = torch.linalg.svd(flat, full_matrices=False)
    eigenvalues = singular.square() / len(flat)
    whitened: Tensor = ((flat @ axes.T) / (eigenvalues + WHITENING_FLOOR)) @ axes
    return whitened.float().view_as(patches)


def _draw_patches(images: Tensor, edge_px: int, random: torch.Generator) -> Tensor:
    """Draw `FILTERS` patches of edge_px from anywhere in the images."""
    count, _, height, width = images.shape
    windows = torch.randint(0, count, (FILTERS,), generator=random)
    rows = torch.randint(0, height - edge_px + 1, (FILTERS,), generator=random)
    columns = torch.randint(0, width - edge_px + 1, (FILTERS,), generator=random)
    places = zip(windows.tolist(), rows.tolist(), columns.tolist(), strict=True)
    return torch.stack([images[n, :, y : y + edge_px, x : x + edge_px] for n, y, x in places])

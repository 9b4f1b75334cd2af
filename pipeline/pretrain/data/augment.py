"""Random views of a batch: crop, flip, blur. Nothing that changes a spectrum.

What changes a spectrum is left out as in SpectralEarth (arXiv 2408.08447): it is what the encoder
should learn, and what differs between two dates of a place is the better teacher. For images of few
bands a recipe may ask for it: `pipeline.pretrain.data.intensity`.

Every operation carries the validity of values along: what was never seen is left out of
interpolation and blur, instead of darkening its neighbours, and a crop that shows too little is
drawn again. All random numbers come from one generator on the CPU, so they are the same on every
device, and are drawn for the whole batch, so that they do not depend on how many processes share
it. Resampling is done in float32 (a crop in bfloat16 shifts pixels).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.pretrain.data.batches import WHOLE, Share
from pipeline.pretrain.methods.method import View
from pipeline.pretrain.sending import send
from pipeline.recipe import Intensity

#: Aspect ratios of crops (Szegedy et al. 2015, as in torchvision's RandomResizedCrop).
ASPECTS = (3 / 4, 4 / 3)
#: Range of the blur's standard deviation in pixels (SimCLR, arXiv 2002.05709, appendix A).
BLUR_SIGMA_PX = (0.1, 2.0)
#: Least share of seen values under an interpolation or blur kernel for its result to be valid.
LEAST_SEEN = 0.5
#: Least share of valid values in a crop, of the bands that its item has at all ...
LEAST_VALID = 0.7
#: ... and how many crops are drawn to find one. The best of them is taken if none has that much.
TRIES = 8


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What is drawn for a view."""

    size_px: int
    """Edge of the views."""
    area: tuple[float, float] = (0.2, 1.0)
    """Share of the image's area that a crop keeps."""
    blur: float = 0.0
    """Probability of a blur."""

    def __call__(self, view: View, generator: torch.Generator, share: Share = WHOLE) -> View:
        """Return one random view of each item of our share of a batch, size_px x size_px."""
        height, width = view.image.shape[-2:]
        count = len(view.image) * share.ranks
        ours = share.of(count)
        drawn = draw_boxes(count * TRIES, height, width, self.area, generator)
        flips = torch.randint(0, 2, (count, 2), generator=generator) * 2 - 1
        needed = [drawn.view(count, TRIES, 4)[ours], flips[ours]]
        if self.blur:
            sigma_px = self._draw_sigma_px(count, generator)[ours]
            needed += gaussians(sigma_px, kernel_px(self.size_px))
        tried, flips, *kernels = send(needed, view.image.device)
        out = crop(view, choose_boxes(view.valid, tried), flips, self.size_px)
        return _blurred(out, *kernels) if kernels else out

    def _draw_sigma_px(self, count: int, generator: torch.Generator) -> Tensor:
        low, high = BLUR_SIGMA_PX
        sigma = torch.rand(count, generator=generator) * (high - low) + low
        chosen = torch.rand(count, generator=generator) < self.blur
        return torch.where(chosen, sigma, 0.0)


@dataclass(frozen=True, slots=True)
class Crop:
    """One of the views a step is made of."""

    patch: int
    """Which of an item's patches it is drawn from."""
    augmentation: Augmentation | None
    """None: the whole patch as it is, for a method that cuts by itself."""
    intensity: Intensity | None = None
    """What else is changed; None: nothing."""
    intensity_of: Mapping[str, Intensity] = field(default_factory=dict)
    """By product what is changed in place of that."""

    def change_of(self, product: str) -> Intensity | None:
        """Return what is changed in images of a product."""
        return self.intensity_of.get(product, self.intensity)


def draw_boxes(
    count: int, height: int, width: int, area: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Draw crops inside an image of height x width pixels.

    Returns
    -------
    Tensor, float32, shape (count, 4)
        Upper edge, left edge, height, width; fractions of pixels are kept. A box whose aspect does
        not fit is narrowed to the image. The area (1, 1) is the whole image.
    """
    if area[0] == 1:
        return torch.tensor([[0.0, 0.0, height, width]]).expand(count, 4)
    draws = torch.rand(count, 4, generator=generator)
    share = area[0] + (area[1] - area[0]) * draws[:, 0]
    low, high = (math.log(ratio) for ratio in ASPECTS)
    aspect = torch.exp(low + (high - low) * draws[:, 1])
    tall = (share * height * width / aspect).sqrt().clamp(max=height)
    wide = (share * height * width * aspect).sqrt().clamp(max=width)
    return torch.stack(
        [draws[:, 2] * (height - tall), draws[:, 3] * (width - wide), tall, wide], dim=1
    )


def choose_boxes(valid: Tensor, boxes: Tensor) -> Tensor:
    """Return each item's first box with enough valid values in it, or its best.

    Nothing waits for the device: all boxes are drawn beforehand, counted in one pass, and are where
    `valid` is.

    Parameters
    ----------
    valid : Tensor, bool, shape (batch, band, y, x)
        A band without any valid value in an item is not missed there.
    boxes : Tensor, float32, shape (batch, try, 4)
        Upper edge, left edge, height, width; on the device of `valid`.

    Returns
    -------
    Tensor, float32, shape (batch, 4)
    """
    height, width = valid.shape[-2:]
    present = valid.flatten(2).any(dim=2).sum(dim=1).clamp(min=1)
    per_pixel = valid.sum(dim=1) / present.view(-1, 1, 1)
    # Sums over everything above and to the left, so that any box is four look-ups.
    sums = F.pad(per_pixel.cumsum(dim=1).cumsum(dim=2), (1, 0, 1, 0)).flatten(1)
    upper, left, tall, wide = boxes.unbind(dim=2)
    top, start = upper.floor().long(), left.floor().long()
    bottom = (upper + tall).ceil().long().clamp(max=height)
    end = (left + wide).ceil().long().clamp(max=width)

    def before(y: Tensor, x: Tensor) -> Tensor:
        return sums.gather(1, y * (width + 1) + x)

    inside = before(bottom, end) - before(top, end) - before(bottom, start) + before(top, start)
    share = inside / ((bottom - top) * (end - start)).clamp(min=1)
    tries = boxes.shape[1]
    earlier = torch.arange(tries, 0, -1, device=boxes.device) + 1.0
    best = torch.where(share >= LEAST_VALID, earlier, share).argmax(dim=1)
    return boxes[torch.arange(len(boxes), device=boxes.device), best]


def crop(view: View, boxes: Tensor, flips: Tensor, size_px: int) -> View:
    """Cut boxes (upper, left, height, width in pixels) and bring them to size_px, bilinearly.

    Parameters
    ----------
    view : View
    boxes : Tensor, float32, shape (batch, 4)
    flips : Tensor, shape (batch, 2)
        1 or -1 for y and x.
    size_px : int
        Edge of the result.
    """
    height, width = view.image.shape[-2:]
    upper, left, tall, wide = boxes.unbind(dim=1)
    theta = torch.zeros(len(boxes), 2, 3, device=boxes.device)
    theta[:, 0, 0] = flips[:, 1] * wide / width
    theta[:, 0, 2] = (2 * left + wide) / width - 1
    theta[:, 1, 1] = flips[:, 0] * tall / height
    theta[:, 1, 2] = (2 * upper + tall) / height - 1
    shape = [len(boxes), view.image.shape[1], size_px, size_px]
    grid = F.affine_grid(theta, shape, align_corners=False)

    def resample(values: Tensor) -> Tensor:
        return F.grid_sample(values, grid, padding_mode="border", align_corners=False)

    return _share_out(resample(view.image), resample(view.valid.to(torch.float32)))


def resize(view: View, size_px: int) -> View:
    """Bring a whole batch to size_px x size_px; nothing happens if it has that size."""
    height, width = view.image.shape[-2:]
    if height == width == size_px:
        return view
    count = len(view.image)
    boxes = view.image.new_zeros(count, 4)
    boxes[:, 2], boxes[:, 3] = height, width
    return crop(view, boxes, view.image.new_ones(count, 2), size_px)


def regrid(view: View, size_px: int) -> View:
    """Bring a whole batch to a coarser or finer grid of the same ground, size_px x size_px.

    A coarser pixel that holds whole ones is the mean of those that were seen, and valid if half of
    them were; else as `resize`.
    """
    edge = view.image.shape[-1]
    factor = edge // size_px
    if factor < 2 or edge % size_px:
        return resize(view, size_px)
    image = F.avg_pool2d(view.image, factor)
    return _share_out(image, F.avg_pool2d(view.valid.to(torch.float32), factor))


def kernel_px(size_px: int) -> int:
    """Return the edge of the blur kernel for an image: about a tenth of it, odd (SpectralEarth)."""
    return 2 * (size_px // 10 // 2) + 1


def blur(view: View, sigma_px: Tensor, edge_px: int) -> View:
    """Blur each item with its own Gaussian, leaving out what was not seen.

    Parameters
    ----------
    view : View
    sigma_px : Tensor, float32, shape (batch,)
        Standard deviations; 0 leaves an item as it is.
    edge_px : int
        Edge of the kernel, odd.
    """
    kernels = gaussians(sigma_px, edge_px)
    return _blurred(view, *send(kernels, view.image.device)) if kernels else view


def gaussians(sigma_px: Tensor, edge_px: int) -> list[Tensor]:
    """Return the kernel of each item as one tensor (batch, edge_px); none if nothing is blurred."""
    if edge_px == 1 or not bool((sigma_px > 0).any()):
        return []
    reach = torch.arange(edge_px, dtype=torch.float32) - edge_px // 2
    kernels = torch.exp(-0.5 * (reach / sigma_px.clamp(min=1e-3).unsqueeze(1)).square())
    return [kernels / kernels.sum(dim=1, keepdim=True)]


def _blurred(view: View, kernels: Tensor) -> View:
    """Blur each item with its own kernel, which is where the view is."""
    weight = _convolve(view.valid.to(torch.float32), kernels)
    blurred = _share_out(_convolve(view.image, kernels), weight)
    # What was not seen stays so: a blur must not invent values.
    valid = blurred.valid & view.valid
    return View(torch.where(valid, blurred.image, 0.0), valid)


def _convolve(values: Tensor, kernels: Tensor) -> Tensor:
    """Convolve each item with its own separable kernel; outside the image nothing was seen."""
    batch, bands, height, width = values.shape
    edge = kernels.shape[1]
    rows = values.transpose(0, 1)  # one group of the convolution per item
    for shape in ((edge, 1), (1, edge)):
        pad = (shape[0] // 2, shape[1] // 2)
        rows = F.conv2d(rows, kernels.view(batch, 1, *shape), padding=pad, groups=batch)
    return rows.transpose(0, 1).reshape(batch, bands, height, width)


def _share_out(weighted: Tensor, weight: Tensor) -> View:
    """Divide sums over seen values by the weight that was seen; too little of it is invalid."""
    valid = weight >= LEAST_SEEN
    return View(torch.where(valid, weighted / weight.clamp(min=LEAST_SEEN), 0.0), valid)

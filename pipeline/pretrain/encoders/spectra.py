"""Random changes of small windows of spectra, for methods that learn from single pixels.

Each keeps what tells materials apart, the shape of the spectrum, and takes away what does not: a
few bands, the exact level, single pixels. The shares of bands and pixels, and how often they are
taken, are those of the code for arXiv 2306.10955; gain and noise are our own choice. All random
numbers come from one generator on the CPU, so they are the same on every device; but for the noise,
as large as the windows themselves, which is drawn where they are, from a seed of that generator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.pretrain.draws import draw_seed
from pipeline.pretrain.methods.method import View
from pipeline.pretrain.sending import send

#: How often each of the changes that leave something out is made, and the share it leaves out.
OFTEN = 0.75
DROPPED = 0.2
#: Neighbouring bands that are replaced by their mean: runs of so many, so often.
RUN_BANDS = 10
RUNS = 3
#: Deviation of a window's gain around 1, and of each value's noise, in standard deviations.
GAIN = 0.1
NOISE = 0.05


def disturb(view: View, generator: torch.Generator) -> View:
    """Change each window in every way: (window, band, y, x), square."""
    view = turn(view, generator)
    view = average_bands(view, generator)
    view = gain_and_noise(view, generator)
    view = leave_out(view, (1, 0, 0), generator)
    if view.image.shape[-1] > 1:
        view = leave_out(view, (0, 1, 1), generator)
    return view


def turn(view: View, generator: torch.Generator) -> View:
    """Turn all windows by the same multiple of 90 degrees, and flip half of them."""
    quarter = int(torch.randint(0, 4, (), generator=generator))
    drawn = torch.rand(len(view.image), generator=generator) < 0.5
    (flipped,) = send([drawn.view(-1, 1, 1, 1)], view.image.device)

    def turned(values: Tensor) -> Tensor:
        rotated = torch.rot90(values, quarter, dims=(2, 3))
        return torch.where(flipped, rotated.flip(3), rotated)

    return View(turned(view.image), turned(view.valid))


def average_bands(view: View, generator: torch.Generator) -> View:
    """Replace some runs of neighbouring bands by the mean of those of them that were seen."""
    count, bands = view.image.shape[:2]
    run = min(RUN_BANDS, bands)
    chosen = torch.rand(RUNS, count, generator=generator) < OFTEN
    starts = torch.randint(0, bands - run + 1, (RUNS, count), generator=generator)
    image, weight = view.image, view.valid.to(view.image.dtype)
    places = torch.arange(bands, device=image.device)
    chosen, starts = send([chosen, starts], image.device)
    for often, start in zip(chosen, starts.unsqueeze(-1), strict=True):
        inside = (places >= start) & (places < start + run) & often.unsqueeze(1)
        inside = inside.view(count, bands, 1, 1)
        share = inside * weight
        mean = (image * share).sum(dim=1, keepdim=True) / share.sum(dim=1, keepdim=True).clamp(1)
        image = torch.where(inside & view.valid, mean, image)
    return View(image, view.valid)


def gain_and_noise(view: View, generator: torch.Generator) -> View:
    """Scale each window a little and add a little noise to every value that was seen."""
    device = view.image.device
    (gain,) = send([1 + GAIN * torch.randn(len(view.image), 1, 1, 1, generator=generator)], device)
    there = torch.Generator(device).manual_seed(draw_seed(generator))
    noise = NOISE * torch.randn(view.image.shape, generator=there, device=device)
    changed = view.image * gain + noise
    return View(torch.where(view.valid, changed, 0.0), view.valid)


def leave_out(view: View, axes: tuple[int, int, int], generator: torch.Generator) -> View:
    """Unsee a share of the bands (axes 1, 0, 0) or of the pixels (axes 0, 1, 1) of most windows."""
    shape = [n if wanted else 1 for n, wanted in zip(view.image.shape[1:], axes, strict=True)]
    count = len(view.image)
    chosen = torch.rand(count, 1, 1, 1, generator=generator) < OFTEN
    out = (torch.rand(count, *shape, generator=generator) < DROPPED) & chosen
    (out,) = send([out], view.valid.device)
    valid = view.valid & ~out
    return View(torch.where(valid, view.image, 0.0), valid)

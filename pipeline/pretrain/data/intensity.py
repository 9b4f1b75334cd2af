"""Random changes of intensity, for images of few bands: brightness, contrast, grey, bands left out.

As in SSL4EO-S12 (arXiv 2211.07044), SSL4EO-L (arXiv 2306.09424) and DeCUR (arXiv 2309.05300), where
a recipe asks for them; for imaging spectrometers SpectralEarth leaves them out (arXiv 2408.08447).

Everything is computed from physical values, before standardisation, and nothing is clipped or cast:
8 bits wrap around in the released code of SSL4EO-S12, and kornia's operations clip to 0 to 1, which
destroys standardised values. Means are those of what was seen. All random numbers come from one
generator on the CPU and are drawn for the whole batch, so that they depend on no device and on no
number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import torch
from torch import Tensor, nn

from pipeline.pretrain.data.batches import WHOLE, Share
from pipeline.pretrain.methods.method import View
from pipeline.pretrain.sending import send
from pipeline.recipe import Intensity

#: What a gain leaves as it is, in a band's unit, where that is not 0: a temperature of 0 in the
#: images of SSL4EO-L (its 8 bits stand for 248.15 to 318.15 K).
DARK = {"K": 248.15}
#: Of logarithms of power: a gain is added to them.
DECIBEL = "dB"


class Quantities(nn.Module):
    """What stored numbers stand for, band by band: physical value = stored * scale + offset.

    Parameters
    ----------
    units : sequence of str, one per band
    scale, offset : float
        Of the product; 0 stays 0 by default.
    """

    scale: Tensor
    offset: Tensor
    dark: Tensor
    logarithm: Tensor
    kind: Tensor

    def __init__(self, units: Sequence[str], scale: float = 1.0, offset: float = 0.0) -> None:
        super().__init__()
        self.kinds = tuple(dict.fromkeys(crc32(unit.encode()) for unit in units))
        self._keep("scale", [scale] * len(units))
        self._keep("offset", [offset] * len(units))
        self._keep("dark", [DARK.get(unit, 0.0) for unit in units])
        self._keep("logarithm", [unit == DECIBEL for unit in units], torch.bool)
        # Bands of one number may be averaged. It is of the unit alone, the same in every product.
        self._keep("kind", [crc32(unit.encode()) for unit in units], torch.int64)

    @classmethod
    def joined(cls, parts: Sequence[Quantities]) -> Quantities:
        """Return those of views whose bands stand one after another."""
        whole = cls(())
        whole.kinds = tuple(dict.fromkeys(kind for part in parts for kind in part.kinds))
        for name, _ in whole.named_buffers():
            setattr(whole, name, torch.cat([getattr(part, name) for part in parts]))
        return whole

    def _keep(self, name: str, values: Sequence[float], dtype: torch.dtype = torch.float32) -> None:
        column = torch.tensor(values, dtype=dtype).view(-1, 1, 1)
        self.register_buffer(name, column, persistent=False)


def change_intensity(
    view: View,
    intensity: Intensity,
    quantities: Quantities,
    generator: torch.Generator,
    share: Share = WHOLE,
) -> View:
    """Return our share of a batch, each item changed as drawn; one that is not keeps its bits.

    Brightness and contrast, both or neither; then grey, solarisation, bands left out.

    Parameters
    ----------
    view : View
        Stored units, 0 where nothing was seen.
    intensity : Intensity
    quantities : Quantities
        Of its bands, on its device.
    generator : torch.Generator
        On the CPU; in the same state on every rank.
    share : Share
        What part of the whole batch the view is.
    """
    count, bands = len(view.image) * share.ranks, view.image.shape[1]
    ours = share.of(count)
    needed = [torch.rand(count, 7, generator=generator)[ours]]
    if intensity.drop_bands:
        needed.append(torch.rand(count, bands, generator=generator)[ours])
    drawn, *orders = send(needed, view.image.device)
    drawn = drawn.view(-1, 7, 1, 1, 1)
    jittered, lighter, steeper, greyed, solarised, left_out, how_many = drawn.unbind(dim=1)
    often = intensity.probability if intensity.brightness or intensity.contrast else 0.0
    jitter = jittered < often
    grey = greyed < intensity.grey
    mirrored = solarised < intensity.solarise

    values = view.image * quantities.scale + quantities.offset
    gain = torch.where(jitter, 1 + intensity.brightness * (2 * lighter - 1), 1.0)
    slope = torch.where(jitter, 1 + intensity.contrast * (2 * steeper - 1), 1.0)
    values = brighten(values, gain, quantities)
    centre = _mean_seen(values, view.valid, (2, 3))
    values = centre + slope * (values - centre)
    if intensity.grey:
        values = torch.where(grey, average_bands(values, view.valid, quantities), values)
    if intensity.solarise:
        values = torch.where(mirrored, solarise(values, view.valid), values)
    image = (values - quantities.offset) / quantities.scale
    image = torch.where(view.valid & (jitter | grey | mirrored), image, view.image)
    if not orders:
        return View(image, view.valid)
    most = (1 + how_many * intensity.drop_bands).floor().clamp(max=intensity.drop_bands)
    most = torch.where(left_out < intensity.drop_probability, most, 0.0)
    return drop_bands(View(image, view.valid), most.flatten(), *orders)


def brighten(values: Tensor, gain: Tensor, quantities: Quantities) -> Tensor:
    """Multiply physical values by a gain: reflectances, powers; to decibels it is added.

    Parameters
    ----------
    values : Tensor, float32, shape (batch, band, y, x)
    gain : Tensor, float32, shape (batch, 1, 1, 1)
        Above 0.
    quantities : Quantities
    """
    scaled = quantities.dark + gain * (values - quantities.dark)
    return torch.where(quantities.logarithm, values + 10 * gain.log10(), scaled)


def average_bands(values: Tensor, valid: Tensor, quantities: Quantities) -> Tensor:
    """Give all bands of a unit the mean of those of them that were seen, pixel by pixel."""
    out = values
    for kind in quantities.kinds:
        alike = quantities.kind == kind
        out = torch.where(alike, _mean_seen(values, valid & alike, (1,)), out)
    return out


def solarise(values: Tensor, valid: Tensor) -> Tensor:
    """Mirror what is above its band's mean in the image at that mean.

    Of 8 bits, what is above 127 is mirrored (DINO, arXiv 2104.14294), the middle of what DeCUR
    makes of a band: its mean and two deviations on each side. Half of 0 to 1, as in SSL4EO-S12, is
    a reflectance that only clouds and snow reach, and none of a temperature or of decibels.
    """
    centre = _mean_seen(values, valid, (2, 3))
    return centre - (values - centre).abs()


def drop_bands(view: View, most: Tensor, order: Tensor) -> View:
    """Unsee whole bands of each item; one of those that it has always stays.

    They count as never seen: 0 after standardisation, and in no loss.

    Parameters
    ----------
    view : View
    most : Tensor, shape (batch,)
        How many bands go.
    order : Tensor, float32, shape (batch, band)
        From 0 to 1: the lowest go first.
    """
    present = view.valid.flatten(2).any(dim=2)
    place = torch.where(present, order, 2.0).argsort(dim=1).argsort(dim=1)
    gone = place < torch.minimum(most, present.sum(dim=1) - 1).unsqueeze(1)
    valid = view.valid & ~gone[:, :, None, None]
    return View(torch.where(valid, view.image, 0.0), valid)


def _mean_seen(values: Tensor, valid: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the mean of valid values along axes, which stay; 0 where there are none."""
    total = torch.where(valid, values, 0.0).sum(dim=axes, keepdim=True)
    return total / valid.sum(dim=axes, keepdim=True).clamp(min=1)

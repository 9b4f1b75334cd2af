"""A convolution for any sensor: its kernels are a function of each band's wavelength and width.

After Xiong et al. 2024, "Neural Plasticity-Inspired Multimodal Foundation Model for Earth
Observation" (DOFA, arXiv 2403.15356): a small network turns what is known of a band into the
weights that read it, so one encoder takes EnMAP, Sentinel-2 and Landsat. Two things are ours. A
band's weights depend on that band alone, so bands may come in any order and any of them may be
missing; and they are a mixture of shared kernels instead of free (a token of 16 x 16 pixels and 768
features would ask the small network for 196,608 numbers a band).

Radar and heights have no wavelength; they are known by a code that is learned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import RecipeError

#: Bands that no wavelength describes, by their names: polarisations of a radar, and heights. The
#: first, which says nothing, is that of all bands that have a wavelength.
CODES = ("", "vv", "vh", "hh", "hv", "elevation")
#: Shared kernels that a band's weights are mixed from.
KERNELS = 128
HIDDEN = 128

#: Periods in which wavelengths and widths are written down, in nanometres: from the distance at
#: which absorption features differ to twice the width of the reflected spectrum. Shorter ones would
#: let two sensors' red bands, a few nanometres apart, look unrelated; longer ones, far bands alike.
PERIODS_NM = (100.0, 5_000.0)
#: How many periods write down a centre, and a width, of which less depends.
CENTRE_WAVES, WIDTH_WAVES = 56, 8
#: Numbers that describe a band: a sine and a cosine of each.
DESCRIPTION = 2 * (CENTRE_WAVES + WIDTH_WAVES)
#: Width of a band for which none is stated: about that of Sentinel-2's.
USUAL_FWHM_NM = 30.0


@dataclass(frozen=True, slots=True)
class Sensor:
    """What a product's bands see, in storage order."""

    product: str
    bands: tuple[str, ...]
    wavelength_nm: tuple[float | None, ...]
    """Centres; None for what has none."""
    fwhm_nm: tuple[float | None, ...]
    """Full widths at half maximum; None where no width is stated."""


def describe_bands(sensor: Sensor) -> tuple[Tensor, Tensor]:
    """Write down a sensor's bands in numbers.

    Returns
    -------
    (waves, code)
        float32, shape (band, DESCRIPTION): sines and cosines of centre and width, 0 without a
        wavelength; and int64, shape (band,): numbers of `CODES`.

    Raises
    ------
    RecipeError
        A band has no wavelength, and its name is no known code.
    """
    codes = [
        0 if centre is not None else _code(sensor.product, name)
        for name, centre in zip(sensor.bands, sensor.wavelength_nm, strict=True)
    ]
    centres = [0.0 if centre is None else centre for centre in sensor.wavelength_nm]
    widths = [USUAL_FWHM_NM if width is None else width for width in sensor.fwhm_nm]
    waves = torch.cat([_waves(centres, CENTRE_WAVES), _waves(widths, WIDTH_WAVES)], dim=1)
    unseen = torch.tensor(codes).unsqueeze(1) != 0
    return torch.where(unseen, 0.0, waves).float(), torch.tensor(codes)


class WavelengthConv2d(nn.Module):
    """A 2-D convolution over the bands of whichever sensor it is aimed at.

    (batch, band, y, x) -> (batch, out, y, x). No weight depends on the number of bands, so one
    state serves all sensors. Each band counts with 1 over their number: neighbouring bands of a
    spectrometer say much the same, and their sum should not outgrow a camera's.

    Parameters
    ----------
    sensors : sequence of Sensor
        Which it can be aimed at; at first, the first.
    out : int
        Features.
    kernel_px, stride, padding : int
    bias : bool
    """

    def __init__(
        self,
        sensors: Sequence[Sensor],
        out: int,
        kernel_px: int,
        *,
        stride: int,
        padding: int = 0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        self.code = nn.Embedding(len(CODES), DESCRIPTION, padding_idx=0)
        # An odd activation of arguments about 1: bands that have nothing in common begin with
        # mixtures that have nothing in common, where GELU's share a mean.
        first = nn.Linear(DESCRIPTION, HIDDEN)
        nn.init.normal_(first.weight, std=(DESCRIPTION / 2) ** -0.5)
        self.mix = nn.Sequential(
            first,
            nn.Tanh(),
            nn.LayerNorm(HIDDEN),
            nn.Linear(HIDDEN, KERNELS),
        )
        self.kernels = nn.Parameter(torch.empty(out, KERNELS, kernel_px, kernel_px))
        nn.init.xavier_uniform_(self.kernels.view(out, -1))
        self.bias = nn.Parameter(torch.zeros(out)) if bias else None
        self._numbers = {sensor.product: number for number, sensor in enumerate(sensors)}
        for number, sensor in enumerate(sensors):
            # Functions of the sensors, so no part of the state.
            waves, code = describe_bands(sensor)
            self.register_buffer(f"waves_{number}", waves, persistent=False)
            self.register_buffer(f"code_{number}", code, persistent=False)
        self._aim = 0

    def aim(self, product: str) -> None:
        """Read images of another product from now on.

        Raises
        ------
        RecipeError
            It was not built for that product.
        """
        if product not in self._numbers:
            known = ", ".join(self._numbers)
            raise RecipeError(f"this encoder was built for {known}, not for {product}.")
        self._aim = self._numbers[product]

    def weight(self) -> Tensor:
        """Return the kernels of the sensor it is aimed at: (out, band, y, x)."""
        waves: Tensor = getattr(self, f"waves_{self._aim}")
        code: Tensor = getattr(self, f"code_{self._aim}")
        mixture = self.mix(waves + self.code(code))
        return torch.einsum("okyx,bk->obyx", self.kernels, mixture.to(self.kernels)) / len(code)

    def forward(self, image: Tensor) -> Tensor:
        """Convolve an image with the kernels of its bands."""
        return F.conv2d(image, self.weight(), self.bias, self.stride, self.padding)


@runtime_checkable
class Aimed(Protocol):
    """What goes by the product of a batch."""

    def aim(self, product: str) -> None:
        """Expect batches of a product from now on."""
        ...


def aim(module: nn.Module, product: str) -> None:
    """Aim everything in a module that can be aimed, copies of the encoder too, at a product."""
    for part in module.modules():
        if isinstance(part, Aimed):
            part.aim(product)


def for_any_sensor(conv: Any, sensors: Sequence[Sensor]) -> WavelengthConv2d:
    """Return what takes the place of an ordinary convolution over bands."""
    return WavelengthConv2d(
        sensors,
        conv.out_channels,
        conv.kernel_size[0],
        stride=conv.stride[0],
        padding=conv.padding[0],
        bias=conv.bias is not None,
    )


def _waves(lengths_nm: Sequence[float], count: int) -> Tensor:
    """Return sines and cosines of lengths in periods of `PERIODS_NM`: (length, 2 * count)."""
    low, high = (math.log(period) for period in PERIODS_NM)
    periods = torch.linspace(low, high, count, dtype=torch.float64).exp()
    phase = 2 * math.pi * torch.tensor(lengths_nm, dtype=torch.float64).unsqueeze(1) / periods
    return torch.cat([phase.sin(), phase.cos()], dim=1)


def _code(product: str, band: str) -> int:
    name = band.lower()
    if name in CODES[1:]:
        return CODES.index(name)
    raise RecipeError(
        f"band {band!r} of {product} has no wavelength; without one an encoder of any sensor knows "
        f"only: {', '.join(CODES[1:])}."
    )

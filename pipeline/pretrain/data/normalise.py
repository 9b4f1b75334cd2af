"""Standardise stored pixels, and say which of their values were ever seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.pretrain.data.intensity import Quantities
from pipeline.pretrain.methods.method import View


class Normaliser(nn.Module):
    """Turn stored values into standardised ones, band by band, in two steps.

    Augmentation belongs between them: it works on values that are proportional to the signal, and
    standardising a crop costs less than standardising the patch. Mean and deviation are in stored
    units, so scale and offset of a product cancel. A value that was never seen becomes 0, which is
    the mean.

    Parameters
    ----------
    mean, std : sequence of float, one per band
        Of the training split. Where a band was never seen or never varies (std 0 or not finite)
        its values are only centred.
    fill : float or None
        Stored where nothing was seen; None: NaN alone (float products).
    quantities : Quantities or None
        What stored numbers stand for; None: for themselves.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        fill: float | None,
        quantities: Quantities | None = None,
    ) -> None:
        super().__init__()
        centre = torch.tensor(mean, dtype=torch.float64).nan_to_num(0.0, 0.0, 0.0)
        spread = torch.tensor(std, dtype=torch.float64)
        spread = torch.where(torch.isfinite(spread) & (spread > 0), spread, 1.0)
        self.register_buffer("mean", centre.float().view(-1, 1, 1), persistent=False)
        self.register_buffer("std", spread.float().view(-1, 1, 1), persistent=False)
        self.fill = fill
        self.quantities = Quantities(("1",) * len(centre)) if quantities is None else quantities

    @classmethod
    def joined(cls, parts: Sequence[Normaliser]) -> Normaliser:
        """Return what standardises converted views whose bands stand one after another."""
        whole = cls((), (), None)
        whole.mean = torch.cat([part.mean for part in parts])
        whole.std = torch.cat([part.std for part in parts])
        whole.quantities = Quantities.joined([part.quantities for part in parts])
        return whole

    def convert(self, stored: Tensor, mask: Tensor) -> View:
        """Return stored values as float32, and their validity.

        Parameters
        ----------
        stored : Tensor, stored type, shape (batch, band, y, x)
            A band that an item's processor did not deliver is fill throughout, so all items share
            one grid of wavelengths.
        mask : Tensor, uint8, shape (batch, y, x)
            Common legend; 0 means that nothing was seen in any band.

        Returns
        -------
        View
            In stored units, 0 where nothing was seen. Clouds and defects, where the recipe let them
            through, are valid: they were seen.
        """
        values = stored.to(torch.float32)
        # Stored integers up to 2^24 are exact in float32, so the fill value compares exactly.
        seen = torch.isfinite(values) & (mask != 0).unsqueeze(1)
        if self.fill is not None:
            seen &= values != self.fill
        return View(torch.where(seen, values, 0.0), seen)

    def standardise(self, view: View) -> View:
        """Return a converted view with mean 0 and deviation 1; what was not seen becomes 0."""
        image = torch.where(view.valid, (view.image - self.mean) / self.std, 0.0)
        return view._replace(image=image)

    def forward(self, stored: Tensor, mask: Tensor) -> View:
        """Convert and standardise: see both."""
        return self.standardise(self.convert(stored, mask))

"""Images that show all products of a location and slot at once, for an encoder of any sensor.

The products' bands stand one after another on the pixels of the first product. Modality dropout
hides whole products of a view (ModDrop, Neverova et al. 2015, arXiv 1501.00102; with a probability
that anything is hidden at all in AV-HuBERT, Shi et al. 2022, arXiv 2201.02184), so that the encoder
also learns from each part alone. What is hidden counts as never seen: it reaches no crop, statistic
or gradient. The bands that stay are scaled by (all bands / bands that stay), which is what the
encoder's mean over bands needs (`pipeline.pretrain.encoders.wavelength`): a view of which only one
product is left gives the features that the encoder has for that product alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.pretrain.data.augment import Crop, regrid
from pipeline.pretrain.data.batches import WHOLE, Batch, Share
from pipeline.pretrain.data.intensity import change_intensity
from pipeline.pretrain.data.normalise import Normaliser
from pipeline.pretrain.encoders.wavelength import Sensor
from pipeline.pretrain.methods.method import View
from pipeline.pretrain.sending import send


@dataclass(frozen=True, slots=True)
class Joint:
    """What a joint image is made of."""

    sensors: tuple[Sensor, ...]
    """Of its products, in the order of the batch."""
    size_px: int
    """Edge of its grid: that of the first product's patches."""
    dropout: float
    """Probability that a view lacks products."""

    @property
    def sensor(self) -> Sensor:
        """All bands, as one sensor."""
        return join_sensors(self.sensors)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw which products each of so many views keeps: bool, shape (view, product).

        At least one is kept. Every part of the products but all and none comes up equally often in
        the views that lack some.
        """
        products = len(self.sensors)
        lacks = torch.rand(count, generator=generator) < self.dropout
        # A number from 1 to 2 ** products - 2 is one such part, written in bits.
        part = torch.randint(1, 2**products - 1, (count,), generator=generator)
        bits = part.unsqueeze(1).bitwise_right_shift(torch.arange(products)).bitwise_and(1).bool()
        return bits | ~lacks.unsqueeze(1)

    def make_views(
        self,
        batch: Batch,
        crops: Sequence[Crop],
        normalisers: Mapping[str, Normaliser],
        generator: torch.Generator,
        share: Share = WHOLE,
    ) -> list[View]:
        """Return one view for each crop, in their order: `pipeline.pretrain.data.views.make_views`.

        Parameters
        ----------
        batch : Batch
            All products of one of an item's patches, then of the next.
        crops, normalisers, generator, share
            As there. What is hidden is drawn for the whole batch, anew for each crop.
        """
        count = len(self.sensors)
        groups = [batch[k : k + count] for k in range(0, len(batch), count)]
        fused: dict[int, View] = {}
        for group in groups:
            if id(group[0]) not in fused:
                fused[id(group[0])] = self._fuse(group, normalisers)
        normaliser = Normaliser.joined([normalisers[sensor.product] for sensor in self.sensors])
        views = []
        for crop in crops:
            cut = fused[id(groups[crop.patch][0])]
            scale = None
            if self.dropout:
                cut, scale = self._hide(cut, generator, share)
            if crop.augmentation is not None:
                cut = crop.augmentation(cut, generator, share)
            if crop.intensity is not None:
                what = normaliser.quantities
                cut = change_intensity(cut, crop.intensity, what, generator, share)
            view = normaliser.standardise(cut)
            views.append(view if scale is None else view._replace(image=view.image * scale))
        return views

    def _fuse(self, group: Batch, normalisers: Mapping[str, Normaliser]) -> View:
        """Convert every product's patches and put them onto one grid."""
        parts = [
            regrid(normalisers[one.product].convert(one.bands, one.mask), self.size_px)
            for one in group
        ]
        return View(torch.cat([p.image for p in parts], 1), torch.cat([p.valid for p in parts], 1))

    def _hide(self, view: View, generator: torch.Generator, share: Share) -> tuple[View, Tensor]:
        """Hide products of our share of a batch; return the scale of the rest, (view, 1, 1, 1)."""
        items = len(view.image) * share.ranks
        keep = self.draw(items, generator)[share.of(items)]
        widths = torch.tensor([len(sensor.bands) for sensor in self.sensors])
        (bands,) = send([keep.repeat_interleave(widths, dim=1)], view.image.device)
        seen = view.valid & bands[:, :, None, None]
        scale = bands.shape[1] / bands.sum(dim=1, dtype=torch.float32)
        return View(torch.where(seen, view.image, 0.0), seen), scale.view(-1, 1, 1, 1)


def join_sensors(sensors: Sequence[Sensor]) -> Sensor:
    """Return one sensor that has the bands of several, one after another."""
    return Sensor(
        "+".join(sensor.product for sensor in sensors),
        tuple(band for sensor in sensors for band in sensor.bands),
        tuple(centre for sensor in sensors for centre in sensor.wavelength_nm),
        tuple(width for sensor in sensors for width in sensor.fwhm_nm),
    )

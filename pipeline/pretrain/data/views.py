"""From a batch of stored patches to the views of a step, on the device.

Conversion, augmentation, change of intensity, standardisation, in this order: what is invalid is
set to 0 before anything is computed from it, and again after the last change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from pipeline.pretrain.data.augment import Crop
from pipeline.pretrain.data.batches import WHOLE, Batch, Share
from pipeline.pretrain.data.intensity import change_intensity
from pipeline.pretrain.data.normalise import Normaliser
from pipeline.pretrain.methods.method import View


def make_views(
    batch: Batch,
    crops: Sequence[Crop],
    normalisers: Mapping[str, Normaliser],
    generator: torch.Generator,
    share: Share = WHOLE,
) -> list[View]:
    """Return one view for each crop, in their order.

    Parameters
    ----------
    batch : Batch
        Our share of it, on the device of the normalisers.
    crops : sequence of Crop
        Each names the view of the batch that it is cut from.
    normalisers : mapping of product to Normaliser
    generator : torch.Generator
        On the CPU; in the same state on every rank.
    share : Share
        What part of the whole batch `batch` is.
    """
    converted: dict[int, View] = {}
    for stored in batch:
        if id(stored) not in converted:
            converted[id(stored)] = normalisers[stored.product].convert(stored.bands, stored.mask)
    several = len({stored.product for stored in batch}) > 1
    views = []
    for crop in crops:
        stored = batch[crop.patch]
        normaliser = normalisers[stored.product]
        cut = converted[id(stored)]
        if crop.augmentation is not None:
            cut = crop.augmentation(cut, generator, share)
        change = crop.change_of(stored.product)
        if change is not None:
            cut = change_intensity(cut, change, normaliser.quantities, generator, share)
        product = stored.product if several else ""
        views.append(normaliser.standardise(cut)._replace(product=product))
    return views

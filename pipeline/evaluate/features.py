"""Turn windows into feature vectors, several kinds in one pass over the pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.evaluate.windows import Windows
from pipeline.pretrain.data.augment import resize
from pipeline.pretrain.data.normalise import Normaliser
from pipeline.pretrain.methods.method import View

if TYPE_CHECKING:
    from pipeline.store.patches import PatchReader

Features = NDArray[np.float32]

#: Standardised pixels that are held at a time.
CHUNK_BYTES = 64 * 2**20


class Describe(Protocol):
    """Anything that turns windows into vectors."""

    def __call__(self, view: View) -> Tensor:
        """Return features, shape (window, width)."""
        ...


class EncoderFeatures:
    """A frozen encoder's features of windows brought to the size it was trained on.

    Size and normalisation are those of pretraining: other ones cost tens of points
    (arXiv 2305.13456).
    """

    def __init__(self, encoder: nn.Module, image_px: int) -> None:
        self.encoder = encoder.eval()
        self.image_px = image_px

    def __call__(self, view: View) -> Tensor:
        features: Tensor = self.encoder(resize(view, self.image_px).image)
        return features


@torch.inference_mode()
def describe_windows(
    images: PatchReader,
    windows: Windows,
    normaliser: Normaliser,
    kinds: Mapping[str, Describe],
    *,
    device: torch.device,
    threads: int = 2,
) -> dict[str, Features]:
    """Return the features of all windows, one array (window, width) for each kind.

    Parameters
    ----------
    images : PatchReader
    windows : Windows
    normaliser : Normaliser
        On `device`.
    kinds : mapping of str to Describe
        All see the same standardised pixels and their validity.
    device : torch.device
    threads : int
        Decoding threads.
    """
    parts: dict[str, list[Features]] = {kind: [] for kind in kinds}
    for view in read_windows(images, windows, normaliser, device=device, threads=threads):
        for kind, describe in kinds.items():
            parts[kind].append(describe(view).float().cpu().numpy())
    return {kind: np.concatenate(vectors) for kind, vectors in parts.items()}


def read_windows(
    images: PatchReader,
    windows: Windows,
    normaliser: Normaliser,
    *,
    device: torch.device,
    threads: int,
) -> Iterator[View]:
    """Yield the standardised pixels of all windows in order, a chunk at a time."""
    bands, size_px = images.shape[0], images.shape[-1]
    per_patch = max(CHUNK_BYTES // (bands * size_px**2 * 4), 1)
    distinct, where = np.unique(windows.patch, return_inverse=True)
    for start in range(0, len(distinct), per_patch):
        stored, mask = images.read(distinct[start : start + per_patch], threads=threads)
        inside = np.flatnonzero((where >= start) & (where < start + per_patch))
        edge = windows.edge_px
        boxes = [
            (where[w] - start, slice(y, y + edge), slice(x, x + edge))
            for w, y, x in zip(inside, windows.y_px[inside], windows.x_px[inside], strict=True)
        ]
        pixels = np.stack([stored[patch, :, ys, xs] for patch, ys, xs in boxes])
        masks = np.stack([mask[patch, ys, xs] for patch, ys, xs in boxes])
        yield normaliser(torch.from_numpy(pixels).to(device), torch.from_numpy(masks).to(device))

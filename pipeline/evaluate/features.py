"""Turn windows into feature vectors, several kinds in one pass over the pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.evaluate.windows import Numbers, Windows
from pipeline.pretrain.data.augment import resize
from pipeline.pretrain.data.batches import stream
from pipeline.pretrain.data.normalise import Normaliser
from pipeline.pretrain.data.order import Pick
from pipeline.pretrain.methods.barlow_pixels import cut_windows as crop_windows
from pipeline.pretrain.methods.method import View
from pipeline.recipe import Pretrain

if TYPE_CHECKING:
    from pipeline.store.patches import PatchReader

Features = NDArray[np.float32]

#: Standardised pixels of the patches that are held at a time, and of the images that an encoder is
#: given at once, by the kind of device: a GPU has the memory, and is idle in small batches (64 MiB
#: were 5 EnMAP patches).
CHUNK_BYTES = {"cpu": 2**28, "cuda": 2**30}


class Describe(Protocol):
    """Anything that turns windows into vectors."""

    def __call__(self, view: View) -> Tensor:
        """Return features, shape (window, width)."""
        ...


class EncoderFeatures:
    """A frozen encoder's features of windows brought to the size it was trained on.

    Size and normalisation are those of pretraining: other ones cost tens of points
    (arXiv 2305.13456).

    Parameters
    ----------
    encoder : module, (batch, band, y, x) -> (batch, width)
    image_px : int
        Edge of the images that it was trained on.
    pixels : bool
        It was trained on small windows at the pixels' own size: a larger image has the mean of the
        features of its windows, instead of being shrunk.
    bf16 : bool
        Run it in bfloat16, as it was trained.
    """

    def __init__(
        self, encoder: nn.Module, image_px: int, *, pixels: bool = False, bf16: bool = False
    ) -> None:
        self.encoder = encoder.eval()
        self.image_px = image_px
        self.pixels = pixels
        self.bf16 = bf16

    @classmethod
    def trained(cls, encoder: nn.Module, image_px: int, settings: Pretrain) -> EncoderFeatures:
        """Return the features of an encoder as its settings trained it."""
        pixels, bf16 = settings.method == "barlow_pixels", settings.precision == "bf16"
        return cls(encoder, image_px, pixels=pixels, bf16=bf16)

    def __call__(self, view: View) -> Tensor:
        count, bands, height, width = view.image.shape
        cut = self.pixels and min(height, width) > self.image_px
        corners = _corners(height, width, self.image_px) if cut else torch.zeros(1, 2).long()
        item_bytes = 4 * bands * self.image_px**2 * len(corners)
        step = max(CHUNK_BYTES[view.image.device.type] // item_bytes, 1)
        found = []
        for start in range(0, count, step):
            part = View(view.image[start : start + step], view.valid[start : start + step])
            found.append(self._mean(part, corners) if cut else self._whole(part))
        return torch.cat(found)

    def _whole(self, view: View) -> Tensor:
        with torch.autocast(view.image.device.type, torch.bfloat16, self.bf16):
            features: Tensor = self.encoder(resize(view, self.image_px).image)
        return features.float()

    def _mean(self, view: View, corners: Tensor) -> Tensor:
        """Return the mean over each item's windows of which something was seen, or over all."""
        count = len(view.image)
        windows = crop_windows(view, corners.expand(count, -1, -1), self.image_px)
        seen = windows.valid.flatten(1).any(dim=1).view(count, -1, 1)
        seen |= ~seen.any(dim=1, keepdim=True)
        features = self._whole(windows).view(count, len(corners), -1)
        return (features * seen).sum(dim=1) / seen.sum(dim=1)


def _corners(height: int, width: int, window_px: int) -> Tensor:
    """Return upper and left edges of windows that cover an image, as few as do and evenly spread.

    Shape (window, 2).
    """
    edges = [
        torch.linspace(0, edge - window_px, -(-edge // window_px)).round().long()
        for edge in (height, width)
    ]
    return torch.cartesian_prod(*edges)


@torch.inference_mode()
def describe_windows(
    images: PatchReader,
    windows: Windows,
    normaliser: Normaliser,
    kinds: Mapping[str, Describe],
    *,
    device: torch.device,
    threads: int = 2,
    done: Callable[[int], object] = lambda _: None,
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
    done : callable
        Told how many windows have been described since it was told last.
    """
    parts: dict[str, list[Features]] = {kind: [] for kind in kinds}
    for view in read_windows(images, windows, normaliser, device=device, threads=threads):
        for kind, describe in kinds.items():
            parts[kind].append(describe(view).float().cpu().numpy())
        done(len(view.image))
    return {kind: np.concatenate(vectors) for kind, vectors in parts.items()}


def read_windows(
    images: PatchReader,
    windows: Windows,
    normaliser: Normaliser,
    *,
    device: torch.device,
    threads: int,
) -> Iterator[View]:
    """Yield the standardised pixels of all windows in order, a chunk at a time.

    The next chunks are read while one is worked on.
    """
    bands, size_px = images.shape[0], images.shape[-1]
    per_chunk = max(CHUNK_BYTES[device.type] // (bands * size_px**2 * 4), 1)
    distinct, where = np.unique(windows.patch, return_inverse=True)
    chunks = _Chunks(images.product, distinct, per_chunk)
    edge = windows.edge_px
    batches = stream(
        {images.product: images},
        chunks,
        start=0,
        stop=-(-len(distinct) // per_chunk),
        threads=threads,
        device=device,
    )
    for number, (stored,) in enumerate(batches):
        inside = np.flatnonzero(where // per_chunk == number)
        boxes = [
            (where[w] - number * per_chunk, slice(y, y + edge), slice(x, x + edge))
            for w, y, x in zip(inside, windows.y_px[inside], windows.x_px[inside], strict=True)
        ]
        pixels = torch.stack([stored.bands[patch, :, ys, xs] for patch, ys, xs in boxes])
        masks = torch.stack([stored.mask[patch, ys, xs] for patch, ys, xs in boxes])
        yield normaliser(pixels, masks)


@dataclass(frozen=True)
class _Chunks:
    """Patches in ascending order, so many at a time."""

    product: str
    numbers: Numbers
    per_chunk: int

    def picks(self, step: int) -> tuple[Pick, ...]:
        first = step * self.per_chunk
        return (Pick(self.product, self.numbers[first : first + self.per_chunk]),)

"""The spectral adapter: convolutions along the spectrum, in front of an encoder of images.

Ait Ali Braham et al. 2025, "SpectralEarth" (arXiv 2408.08447). Each pixel's spectrum is seen by
three one-dimensional convolutions and becomes 128 features; nothing mixes neighbouring pixels
before the encoder does. Neighbouring bands share weights, which a plain stem of hundreds of bands
has to learn one by one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from timm.layers.patch_embed import PatchEmbed
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from pipeline.errors import RecipeError
from pipeline.pretrain.encoders.spectral_rows import features_by_rows


class Layer(NamedTuple):
    """A convolution along the spectrum."""

    channels: int
    kernel: int
    stride: int
    padding: int

    def length(self, bands: int) -> int:
        """Return how many values are left of a spectrum; below 1: it is too short."""
        return (bands + 2 * self.padding - self.kernel) // self.stride + 1


#: As in SpectralEarth's code (src/backbones/spectral_adapter.py).
LAYERS = (Layer(32, 7, 5, 1), Layer(64, 7, 5, 1), Layer(128, 5, 3, 1))
#: Features of a pixel.
WIDTH = LAYERS[-1].channels
#: The fewest bands that leave a value after the last layer.
LEAST_BANDS = 75


def lengths(bands: int) -> tuple[int, ...]:
    """Return the length of a spectrum after each layer.

    Raises
    ------
    RecipeError
        It has too few bands.

    Examples
    --------
    >>> lengths(202)
    (40, 8, 2)
    """
    if bands < LEAST_BANDS:
        raise RecipeError(
            f"`pretrain.backbone` has a spectral adapter, which needs {LEAST_BANDS} bands or more, "
            f"but the images have {bands}; choose the backbone without `spec_`."
        )
    left = [bands]
    for layer in LAYERS:
        left.append(layer.length(left[-1]))
    return tuple(left[1:])


class SpectralAdapter(nn.Module):
    """Turn spectra into features, pixel by pixel: (batch, band, y, x) -> (batch, WIDTH, y, x).

    `plain` is its definition, three convolutions of a volume; `forward` is the same arithmetic in
    an order that moves and keeps less (`pipeline.pretrain.encoders.spectral_rows`): memory, not
    arithmetic, is its cost.

    Parameters
    ----------
    bands : int
        At least `LEAST_BANDS`. No weight depends on it, so one state serves any number.
    """

    def __init__(self, bands: int) -> None:
        super().__init__()
        lengths(bands)
        parts: list[nn.Module] = []
        before = 1
        for layer in LAYERS:
            # Kernels of k x 1 x 1: the spectrum is the depth of a volume.
            kernel, stride, padding = (layer.kernel, 1, 1), (layer.stride, 1, 1), layer.padding
            parts += [
                nn.Conv3d(before, layer.channels, kernel, stride, (padding, 0, 0)),
                nn.BatchNorm3d(layer.channels),
                nn.ReLU(inplace=True),
            ]
            before = layer.channels
        self.layers = nn.Sequential(*parts)

    def plain(self, image: Tensor) -> Tensor:
        """Return the mean over what is left of the spectrum after the layers."""
        features: Tensor = self.layers(image.unsqueeze(1)).mean(dim=2)
        return features

    def forward(self, image: Tensor) -> Tensor:
        """Return what `plain` does."""
        return features_by_rows(self.layers, image, lengths(image.shape[1]))


class SpectralPatchEmbed(PatchEmbed):
    """timm's patch embedding behind an adapter: tokens of features instead of bands (SpecViT)."""

    def __init__(self, *, in_chans: int, **others: Any) -> None:
        super().__init__(in_chans=WIDTH, **others)
        self.adapter = SpectralAdapter(in_chans)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens of an image (batch, band, y, x), in the layout timm asked for."""
        tokens: Tensor = super().forward(self.adapter(x))  # type: ignore[no-untyped-call]
        return tokens


def replace_stem(net: ResNet, bands: int, *, stride: int) -> None:
    """Put an adapter in place of a ResNet's stem and pooling (SpecResNet).

    The first block then starts from `WIDTH` features at full resolution. In a ResNet-50 its inner
    width is 256, as in SpectralEarth; SpectralEarth has no shallow ResNet, so there the block keeps
    its own width.

    Parameters
    ----------
    net : timm ResNet
        Changed in place.
    bands : int
    stride : int
        Of the first block; 2 in SpectralEarth.
    """
    stem: Any = net
    stem.conv1 = SpectralAdapter(bands)
    stem.bn1, stem.act1, stem.maxpool = nn.Identity(), nn.Identity(), nn.Identity()
    stem.layer1[0] = _first_block(type(stem.layer1[0]), stride)


def _first_block(kind: type[BasicBlock | Bottleneck], stride: int) -> nn.Module:
    planes = 64  # of the first stage of every ResNet
    out = planes * kind.expansion
    shortcut = nn.Sequential(
        nn.Conv2d(WIDTH, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out)
    )
    if issubclass(kind, Bottleneck):
        # timm's base width widens the block inside: 64 is usual, 256 makes it as wide as its end.
        block: Any = kind(WIDTH, planes, stride, shortcut, base_width=out)
    else:
        block = kind(WIDTH, planes, stride, shortcut)
    for part in block.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    block.zero_init_last()
    built: nn.Module = block
    return built

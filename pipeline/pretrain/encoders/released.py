"""Read encoders that others released, from a file on this machine, where their layout is known.

SSL4EO-S12 (arXiv 2211.07044; zhu-xlab/SSL4EO-S12), SSL4EO-L (arXiv 2306.09424) as torchgeo names
it, and SpectralEarth (arXiv 2408.08447; AABNassim/spectral_earth). A file is a wrapper around a
state dict, whose keys have a prefix and, behind it, timm's own names; what a pretraining head
leaves behind is dropped by name, and a key that is neither is an error. Nothing is downloaded.

Their bands are known by name, so an encoder is made for the bands one has, in any order; a band one
does not have is left out, which is what feeding zeros does (as SSL4EO-S12's own transfer does with
B10). Files that hold more than weights are refused: unpickling them would run their code.
"""

from __future__ import annotations

import hashlib
import math
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.errors import RecipeError
from pipeline.pretrain.data.normalise import Normaliser
from pipeline.pretrain.encoders.backbones import (
    RESNETS,
    SPECTRAL,
    VITS,
    EncoderShape,
    build_encoder,
)

#: Sentinel-2's bands in the order of SSL4EO-S12 (level 1C).
SENTINEL_2 = (*(f"B{n}" for n in range(1, 9)), "B8A", "B9", "B10", "B11", "B12")
#: EnMAP's 202 bands of SpectralEarth, in ascending wavelength: those outside water vapour.
ENMAP = tuple(f"B{n}" for n in (*range(1, 127), *range(142, 161), *range(168, 225)))
#: Size of SpectralEarth's images.
ENMAP_PX = 128
#: Size of SSL4EO's crops.
CROP_PX = 224

#: What 0 and 1 of an SSL4EO-L image were before it became bytes (its compress_dataset.py).
TOA, KELVIN, SURFACE = (0.0, 0.4), (248.15, 318.15), (0.0, 0.3)

Range = tuple[float, float]


@dataclass(frozen=True)
class Layout:
    """How one release keeps an encoder in a file."""

    bands: tuple[str, ...]
    """In the order of the first convolution."""
    ranges: tuple[Range, ...] | None
    """Physical values (reflectance, kelvin) that the encoder saw as 0 and 1, per band (beyond them
    nothing: they were clipped); None: standardised by statistics of its own."""
    wrapper: str | None = None
    """Key of the state dict in the file; None: the file is one."""
    prefix: str = ""
    """Before the encoder's keys, behind `module.` if that is there."""
    others: tuple[str, ...] = ("fc.", "head.")
    """Beginnings of keys that belong to a pretraining head or a second network."""
    spectral: bool = False
    """Whether a spectral adapter is in front."""


def _landsat(prefix: str, names: str, reflectance: Range, thermal: tuple[str, ...]) -> Layout:
    bands = tuple(prefix + name for name in names.split())
    return Layout(bands, tuple(KELVIN if band in thermal else reflectance for band in bands))


_REFLECTANCE = ((0.0, 1.0),) * len(SENTINEL_2)

LAYOUTS: dict[str, Layout] = {
    # zhu-xlab/SSL4EO-S12, src/benchmark/pretrain_ssl: what each script's checkpoint holds.
    "ssl4eo-s12-moco": Layout(
        SENTINEL_2,
        _REFLECTANCE,
        "state_dict",
        "encoder_q.",
        ("encoder_q.fc.", "encoder_k.", "queue"),
    ),
    "ssl4eo-s12-moco-v3": Layout(
        SENTINEL_2,
        _REFLECTANCE,
        "state_dict",
        "base_encoder.",
        ("base_encoder.fc.", "base_encoder.head.", "momentum_encoder.", "predictor."),
    ),
    "ssl4eo-s12-dino": Layout(
        SENTINEL_2, _REFLECTANCE, "teacher", "backbone.", ("head.", "backbone.fc.")
    ),
    "ssl4eo-s12-mae": Layout(
        SENTINEL_2, _REFLECTANCE, "model", others=("mask_token", "decoder_", "head.")
    ),
    # torchgeo/models/resnet.py and vit.py: timm's names, nothing else.
    "torchgeo-ssl4eo-s12": Layout(SENTINEL_2, _REFLECTANCE),
    "ssl4eo-l-tm-toa": _landsat("B", "1 2 3 4 5 6 7", TOA, ("B6",)),
    "ssl4eo-l-etm-toa": _landsat(
        "B", "1 2 3 4 5 6_VCID_1 6_VCID_2 7 8", TOA, ("B6_VCID_1", "B6_VCID_2")
    ),
    "ssl4eo-l-etm-sr": _landsat("SR_B", "1 2 3 4 5 7", SURFACE, ()),
    "ssl4eo-l-oli-tirs-toa": _landsat("B", "1 2 3 4 5 6 7 8 9 10 11", TOA, ("B10", "B11")),
    "ssl4eo-l-oli-sr": _landsat("SR_B", "1 2 3 4 5 6 7", SURFACE, ()),
    # AABNassim/spectral_earth, src/backbones: adapter and core are two modules of a third.
    "spectral-earth": Layout(
        ENMAP, None, others=("resnet.fc.", "vit_core.head.", "fc.", "head."), spectral=True
    ),
}


@dataclass(frozen=True)
class Released:
    """An encoder that others trained, ready for one's own bands."""

    encoder: nn.Module
    """(batch, band, y, x) -> (batch, width), on the CPU, in evaluation mode."""
    bands: tuple[str, ...]
    """As they were asked for, in the order of the encoder's second axis."""
    ranges: tuple[Range, ...] | None
    """Physical values that it saw as 0 and 1, per band; None: see `Layout.ranges`."""
    shape: EncoderShape
    """What `build_encoder` builds it from."""
    sha256: str
    """Of the file."""

    @property
    def image_px(self) -> int:
        """Edge of the images it was trained on."""
        return self.shape.image_px

    def normaliser(self, *, scale: float, offset: float, fill: float | None) -> Normaliser:
        """Return what brings stored values to the encoder's range.

        Parameters
        ----------
        scale, offset : float
            Physical value = stored * scale + offset (`PatchReader.scale`, `.offset`).
        fill : float or None
            Stored where nothing was seen.

        Raises
        ------
        RecipeError
            The release was standardised by statistics of its own, which are not in its weights:
            use those of one's own training part.
        """
        if self.ranges is None:
            raise RecipeError(
                "these weights were trained on values standardised band by band; standardise with "
                "the statistics of the data set instead."
            )
        low = [(low - offset) / scale for low, _ in self.ranges]
        width = [(high - low) / scale for low, high in self.ranges]
        return Normaliser(low, width, fill)


def read_released(
    path: Path, *, layout: str, backbone: str, bands: Sequence[str] | None = None
) -> Released:
    """Read an encoder from a file that somebody released.

    Parameters
    ----------
    path : Path
        A safetensors file, or one that `torch.save` wrote and that holds weights alone.
    layout : str
        A key of `LAYOUTS`.
    backbone : str
        A key of `backbones.RESNETS` or `VITS`, such as `resnet50`.
    bands : sequence of str or None
        The bands one has, in one's own order; `B1` and `B01` are the same. None: the release's.

    Raises
    ------
    RecipeError
        An unknown layout, backbone or band; a file that holds more than weights; or weights that
        are not of this layout and backbone, with the keys that say so.
    """
    known = LAYOUTS.get(layout)
    if known is None:
        raise RecipeError(f"layout {layout!r} is not known; allowed are: {', '.join(LAYOUTS)}.")
    if backbone not in RESNETS and backbone not in VITS:
        names = ", ".join((*RESNETS, *VITS))
        raise RecipeError(f"backbone {backbone!r} is not known; allowed are: {names}.")
    wanted = tuple(known.bands if bands is None else bands)
    places = _places(layout, known, wanted)
    weights = _encoder_weights(path, layout, known, _read(path))
    if known.spectral:
        weights = _adapter_in_front(weights, resnet=backbone in RESNETS)
    else:
        weights = _select_bands(path, weights, known, places)
    shape = _shape(path, weights, backbone, len(wanted), spectral=known.spectral)
    encoder = build_encoder(shape, seed=0)
    _load(path, layout, backbone, encoder, weights)
    ranges = known.ranges and tuple(known.ranges[place] for place in places)
    return Released(encoder.eval(), wanted, ranges, shape, _digest(path))


def _read(path: Path) -> dict[str, Any]:
    """Return what a file holds, without running anything of it."""
    if not path.is_file():
        raise RecipeError(f"{path}: there is no such file of weights.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RecipeError(
            f"{path} holds more than weights, and reading that could run code of its author; "
            "save its state dict alone, as safetensors, where you trust it."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise RecipeError(f"{path} is no file of weights: {error}.") from error
    if not isinstance(found, dict):
        raise RecipeError(f"{path} holds a {type(found).__name__}, not a state dict.")
    return found


def _encoder_weights(
    path: Path, name: str, layout: Layout, found: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Take the encoder's weights out of the wrapper and off their prefix."""
    if layout.wrapper is not None:
        inner = found.get(layout.wrapper)
        if not isinstance(inner, Mapping):
            raise RecipeError(
                f"{path} has no {layout.wrapper!r}, which layout {name} keeps its weights under; "
                f"it has: {_some(found)}."
            )
        found = inner
    bare = {key.removeprefix("module."): value for key, value in found.items()}
    strange = [key for key, value in bare.items() if not isinstance(value, Tensor)]
    strange += [key for key in bare if not key.startswith((layout.prefix, *layout.others))]
    if strange:
        raise RecipeError(f"{path} is not of layout {name}, which has no key {_some(strange)}.")
    weights = {
        key.removeprefix(layout.prefix): value
        for key, value in bare.items()
        if not key.startswith(layout.others)
    }
    if not weights:
        raise RecipeError(f"{path} has no key that begins with {layout.prefix!r} ({name}).")
    return weights


def _places(name: str, layout: Layout, wanted: Sequence[str]) -> list[int]:
    """Return where each wanted band stands in the release."""
    there = {_canonical(band): place for place, band in enumerate(layout.bands)}
    unknown = [band for band in wanted if _canonical(band) not in there]
    if unknown or len({_canonical(band) for band in wanted}) != len(wanted) or not wanted:
        what = f"not the bands {_some(unknown)}" if unknown else "each band once"
        raise RecipeError(f"{name} knows {what}; its bands are: {', '.join(layout.bands)}.")
    places = [there[_canonical(band)] for band in wanted]
    if layout.spectral and places != list(range(len(layout.bands))):
        raise RecipeError(
            f"{name} convolves along the spectrum, so it takes its {len(layout.bands)} bands, all "
            f"of them, in ascending wavelength; {len(wanted)} were given, or in another order."
        )
    return places


def _canonical(band: str) -> str:
    """Return a band's name without what conventions differ in: case, and zeros before a number."""
    return re.sub(r"(?<![0-9])0+(?=[0-9])", "", band.upper())


def _select_bands(
    path: Path, weights: dict[str, Tensor], layout: Layout, places: list[int]
) -> dict[str, Tensor]:
    """Put the first convolution's bands into the wanted order."""
    key = next((k for k in ("conv1.weight", "patch_embed.proj.weight") if k in weights), None)
    if key is None or weights[key].ndim != 4 or weights[key].shape[1] != len(layout.bands):
        shape = tuple(weights[key].shape) if key else "missing"
        raise RecipeError(
            f"{path}: the first convolution is {shape}; it should see {len(layout.bands)} bands."
        )
    return {**weights, key: weights[key][:, places].contiguous()}


def _adapter_in_front(weights: dict[str, Tensor], *, resnet: bool) -> dict[str, Tensor]:
    """Rename SpectralEarth's modules to ours: the adapter is part of the first layer."""
    adapter = "conv1.layers." if resnet else "patch_embed.adapter.layers."
    core = "resnet." if resnet else "vit_core."
    return {
        adapter + key.removeprefix("spectral_adapter.")
        if key.startswith("spectral_adapter.")
        else key.removeprefix(core): value
        for key, value in weights.items()
    }


def _shape(
    path: Path, weights: Mapping[str, Tensor], backbone: str, bands: int, *, spectral: bool
) -> EncoderShape:
    """Return what the weights' architecture is built from, for the images they were trained on."""
    name = SPECTRAL + backbone if spectral else backbone
    if backbone in RESNETS:
        return EncoderShape(name, bands, ENMAP_PX if spectral else CROP_PX, patch_px=4)
    tokens, kernel = weights.get("pos_embed"), weights.get("patch_embed.proj.weight")
    if tokens is None or kernel is None or tokens.ndim != 3 or kernel.ndim != 4:
        raise RecipeError(f"{path} has no positions and no patch embedding, so it is no ViT.")
    patch_px = int(kernel.shape[-1])
    image_px = math.isqrt(tokens.shape[1] - 1) * patch_px
    # Unlike ours, released ViTs have a class token, and it is what they return.
    return EncoderShape(name, bands, image_px, patch_px, class_token=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load(
    path: Path, layout: str, backbone: str, encoder: nn.Module, weights: Mapping[str, Tensor]
) -> None:
    wanted = {key: tuple(value.shape) for key, value in encoder.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    problems = [f"lacks {_some(missing)}" for missing in [wanted.keys() - found.keys()] if missing]
    problems += [f"has {_some(extra)}" for extra in [found.keys() - wanted.keys()] if extra]
    other = sorted(key for key in wanted.keys() & found.keys() if wanted[key] != found[key])
    problems += [f"has {key} of {found[key]}, not {wanted[key]}" for key in other[:1]]
    if problems:
        raise RecipeError(f"{path} is no {backbone} of layout {layout}: it {'; '.join(problems)}.")
    encoder.load_state_dict(dict(weights))


def _some(keys: Any) -> str:
    """Name some keys, and say how many more there are."""
    names = sorted(str(key) for key in keys)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more

"""Take a trained encoder out of its root, for programs that do not know this one.

An export is a folder::

    config.json          what timm and the Hugging Face Hub build the encoder from
    model.safetensors    its weights
    README.md            the model card
    model.onnx           if asked for: stored pixels in, features out

`timm.create_model("local-dir:FOLDER", pretrained=True)` loads it where timm knows the architecture.
Encoders with a stem of our own (a spectral adapter, the stem for small crops) are loaded by
`load_folder`; their ONNX file needs nothing of ours either way.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from pipeline.errors import IntegrityError, RecipeError
from pipeline.pretrain.card import card
from pipeline.pretrain.data.normalise import Normaliser
from pipeline.pretrain.encoders.backbones import (
    RESNETS,
    VITS,
    EncoderShape,
    build_encoder,
    width_of,
)
from pipeline.pretrain.model import Model
from pipeline.products.explain import explain

#: Most that the features of an export may differ from the encoder's, relative to their size.
TOLERANCE = 1e-4
#: Of the ONNX operators; the one torch's exporter is written for.
OPSET = 18
#: What `config.json` says instead of a name where timm cannot build the encoder.
OWN = "terrashard"
#: What writing ONNX needs.
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class StoredToFeatures(nn.Module):
    """Standardise as in training, then encode: what an ONNX file holds.

    Parameters
    ----------
    model : Model
    encoder : module, (batch, band, y, x) -> (batch, width)
    """

    def __init__(self, model: Model, encoder: nn.Module) -> None:
        super().__init__()
        self.normaliser = Normaliser(model.mean, model.std, model.fill)
        self.encoder = encoder

    def forward(self, stored: Tensor) -> Tensor:
        """Return features of stored values.

        Parameters
        ----------
        stored : Tensor, float32, shape (batch, band, y, x)
            The data set's numbers, at the size of training; the fill value, or NaN, where nothing
            was seen.
        """
        seen = torch.ones_like(stored[:, 0], dtype=torch.uint8)
        features: Tensor = self.encoder(self.normaliser(stored, seen).image)
        return features


def export(model: Model, encoder: nn.Module, folder: Path, *, onnx: bool = False) -> list[str]:
    """Write an export: the whole folder or nothing.

    Parameters
    ----------
    model : Model
        As loaded from a checkpoint.
    encoder : module
        Its encoder, on the CPU, in evaluation mode.
    folder : Path
        Made here; must not exist.
    onnx : bool
        Write `model.onnx` too, and compare it with the encoder.

    Returns
    -------
    list of str
        Names of the files.

    Raises
    ------
    RecipeError
        The folder exists, or ONNX is asked for where its packages are not installed.
    IntegrityError
        What was written does not give the encoder's features.
    """
    if folder.exists():
        raise RecipeError(f"{folder} exists; an export makes a new folder, so name another.")
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if onnx and missing:
        raise RecipeError(
            f"to write ONNX, {', '.join(missing)} must be installed: `pip install "
            "'terrashard[export]'`."
        )
    beside = folder.with_name(f".tmp-{folder.name}~{os.getpid()}")
    beside.mkdir(parents=True)
    try:
        _write_weights(model, encoder, beside)
        (beside / "README.md").write_text(
            card(model) + _usage(model, beside, onnx), encoding="utf-8"
        )
        if onnx:
            write_onnx(model, encoder, beside / "model.onnx")
        _readable(beside)
        names = sorted(path.name for path in beside.iterdir())
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return names


def load_folder(folder: str | Path) -> nn.Module:
    """Return the encoder of an export, in evaluation mode, whoever can build it.

    Raises
    ------
    IntegrityError
        The folder is no export of this program.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        shape = TypeAdapter(EncoderShape).validate_python(config["terrashard"]["shape"])
    except ValidationError as error:
        raise IntegrityError(explain(error, str(folder / "config.json"))) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{folder} is no export of this program: {error!r}.") from error
    encoder = build_encoder(shape, seed=0)
    encoder.load_state_dict(load_file(folder / "model.safetensors"))
    return encoder.eval()


def write_onnx(model: Model, encoder: nn.Module, path: Path) -> None:
    """Write stored pixels in, features out, for any batch size; then run and compare it.

    Raises
    ------
    IntegrityError
        ONNX Runtime's features differ from torch's by more than `TOLERANCE`.
    """
    whole = StoredToFeatures(model, encoder).eval()
    example = _example(model, batch=2)
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # The exporter's own, about torch's internals.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                whole,
                (example,),
                path,
                input_names=["stored"],
                output_names=["features"],
                dynamic_shapes={"stored": {0: torch.export.Dim("batch")}},
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
    finally:
        quiet.setLevel(level)
    _compare_onnx(whole, path, _example(model, batch=3))


def timm_arguments(shape: EncoderShape) -> tuple[str, dict[str, Any]]:
    """Return what timm builds the plain form of an encoder from: a name and arguments."""
    if shape.family in RESNETS:
        return RESNETS[shape.family], {"in_chans": shape.bands, "num_classes": 0}
    return VITS[shape.family], {
        "in_chans": shape.bands,
        "num_classes": 0,
        "img_size": shape.image_px,
        "patch_size": shape.patch_px,
        "class_token": shape.class_token,
        "global_pool": "token" if shape.class_token else "avg",
        "fc_norm": False,
    }


def _write_weights(model: Model, encoder: nn.Module, folder: Path) -> None:
    about = {
        "name": model.name,
        "product": model.product,
        "bands": model.bands,
        "wavelength_nm": model.wavelength_nm,
        "mean": model.mean,
        "std": model.std,
        "fill": model.fill,
        "others": {product: own.model_dump() for product, own in model.others.items()},
        "origin": None if model.origin is None else model.origin.model_dump(),
        "weights_sha256": model.weights_sha256,
        "data_digest": model.digest,
        "shape": asdict(model.shape),
    }
    plain = _as_timm(model.shape, encoder)
    if plain is None:
        config = {"architecture": OWN, "num_features": width_of(encoder), "terrashard": about}
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        save_file(encoder.state_dict(), folder / "model.safetensors")
        return
    inputs = {
        "input_size": (model.shape.bands, model.shape.image_px, model.shape.image_px),
        "mean": model.mean,
        "std": model.std,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    }
    save_for_hf(
        plain,
        str(folder),
        model_config={"terrashard": about, "pretrained_cfg": inputs},
        model_args=timm_arguments(model.shape)[1],
        safe_serialization=True,
        data_config=inputs,
    )


def _as_timm(shape: EncoderShape, encoder: nn.Module) -> nn.Module | None:
    """Return timm's own model with the encoder's weights; None if that is another function."""
    name, arguments = timm_arguments(shape)
    plain: nn.Module = timm.create_model(name, pretrained=False, **arguments).eval()
    weights = encoder.state_dict()
    wanted = {key: tensor.shape for key, tensor in plain.state_dict().items()}
    if {key: tensor.shape for key, tensor in weights.items()} != wanted:
        return None
    plain.load_state_dict(weights)
    random = torch.Generator().manual_seed(0)
    image = torch.randn(2, shape.bands, shape.image_px, shape.image_px, generator=random)
    with torch.inference_mode():
        same = torch.allclose(plain(image), encoder(image), rtol=TOLERANCE, atol=TOLERANCE)
    return plain if same else None


def _usage(model: Model, folder: Path, onnx: bool) -> str:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    lend, load = "import timm", 'timm.create_model(f"local-dir:{folder}", pretrained=True).eval()'
    if config["architecture"] == OWN:
        lend, load = "from pipeline.pretrain.export import load_folder", "load_folder(folder)"
    size = ", ".join(map(str, (model.shape.bands, model.shape.image_px, model.shape.image_px)))
    seen = "~stored.isnan()" if model.fill is None else f"stored != {model.fill:g}"
    text = f"""
## Use

In the folder of this file, for patches with the data set's own numbers:

```python
import json
from pathlib import Path

import torch
{lend}

folder = Path(".")
encoder = {load}
about = json.loads((folder / "config.json").read_text())["terrashard"]
mean, std = (torch.tensor(about[key]).view(1, -1, 1, 1) for key in ("mean", "std"))

stored = torch.zeros(1, {size})  # batch, band, y, x
image = torch.where({seen}, (stored - mean) / std, 0.0)
with torch.inference_mode():
    features = encoder(image)  # batch, feature
```
"""
    if onnx:
        text += (
            "\n`model.onnx` takes `stored`, float32 (batch, band, y, x): the data set's own "
            "numbers, with the fill value or NaN where nothing was seen. It standardises them.\n"
        )
    return text


def _readable(folder: Path) -> None:
    """Give all files the rights that new files have here: some libraries write private ones."""
    usual = os.umask(0)
    os.umask(usual)
    for path in folder.iterdir():
        path.chmod(0o666 & ~usual)


def _example(model: Model, *, batch: int) -> Tensor:
    """Return likely stored values with a corner that was not seen."""
    random = torch.Generator().manual_seed(batch)
    edge = model.shape.image_px
    image = torch.randn(batch, model.shape.bands, edge, edge, generator=random)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (model.mean, model.std))
    stored = (mean + std * image).float()
    stored[:, :, :2, :2] = torch.nan if model.fill is None else model.fill
    return stored


def _compare_onnx(whole: nn.Module, path: Path, stored: Tensor) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(["features"], {"stored": stored.numpy()})[0])
    with torch.inference_mode():
        wanted = whole(stored)
    error = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))
    if not error <= TOLERANCE:
        raise IntegrityError(
            f"{path.name}: features of ONNX Runtime differ from torch's by {error:.1e} of their "
            f"size, more than {TOLERANCE:g}; nothing was exported."
        )

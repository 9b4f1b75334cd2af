"""Keep a model in its root, so that a run goes on where it was killed.

A checkpoint is a folder of its own, and nothing in it is ever changed::

    models/<name>/step-00000500/weights.safetensors    the encoder, for whoever uses it
    models/<name>/step-00000500/weights.<product>.safetensors    DeCUR: that of its second product
    models/<name>/step-00000500/state.pt               everything a resumed run needs
    models/<name>/step-00000500/log.csv                loss and health up to this step
    models/<name>/step-00000500/README.md              the model card
    models/<name>/step-00000500/model.json             the checkpoint exists when this does

Nothing that can execute is read back: weights are safetensors, the state is loaded with
`weights_only=True`, and both must have the digests that `model.json` states.
"""

from __future__ import annotations

import hashlib
import io
import re
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from pipeline.errors import IntegrityError, RecipeError
from pipeline.ports import ObjectStore
from pipeline.pretrain.card import card
from pipeline.pretrain.encoders.backbones import EncoderShape, build_encoder
from pipeline.pretrain.model import Model
from pipeline.products.explain import explain
from pipeline.store import layout

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_STEP = re.compile(r"step-(\d{8})/model\.json")

#: Complete checkpoints that are kept: the newest, and one to fall back on.
KEEP = 2


def check_name(name: str) -> str:
    """Return a model's name, or raise `RecipeError` if it cannot be a folder's."""
    if not _NAME.fullmatch(name):
        raise RecipeError(
            f"model name {name!r} is not allowed: lower-case letters, digits, `.`, `_` and `-`, "
            "beginning with a letter or digit."
        )
    return name


def save(
    store: ObjectStore,
    model: Model,
    encoder: nn.Module,
    state: dict[str, Any],
    log: str,
    *,
    second: nn.Module | None = None,
) -> Model:
    """Write a checkpoint whole, then drop the oldest beyond `KEEP`.

    Parameters
    ----------
    store : ObjectStore
    model : Model
        With the step that was reached; digests are filled in here.
    encoder : module
    state : dict
        Tensors, numbers, strings, lists and dicts of them.
    log : str
        CSV.
    second : module or None
        The encoder of `model.second`.

    Returns
    -------
    Model
        As written.
    """
    weights = _weights(encoder)
    other = b"" if second is None else _weights(second)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    written = model.model_copy(
        update={
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
            "state_sha256": hashlib.sha256(buffer.getbuffer()).hexdigest(),
            "second_sha256": hashlib.sha256(other).hexdigest() if other else "",
        }
    )
    store.put(_key(model, model.weights_file), weights)
    if model.second is not None and other:
        store.put(_key(model, model.second.weights_file), other)
    store.put(_key(model, "state.pt"), buffer.getvalue())
    store.put(_key(model, "log.csv"), log.encode())
    store.put(_key(model, "README.md"), card(written).encode())
    store.put(_key(model, "model.json"), layout.dump_json(written.model_dump(mode="json")))
    for step in steps(store, model.name)[:-KEEP]:
        drop(store, model.name, step)
    return written


def steps(store: ObjectStore, name: str) -> list[int]:
    """Return the steps of a model's complete checkpoints, ascending."""
    prefix = layout.model(check_name(name), "")
    found = (_STEP.fullmatch(key.removeprefix(prefix)) for key in store.list(prefix))
    return sorted(int(match[1]) for match in found if match)


def drop(store: ObjectStore, name: str, step: int) -> None:
    """Remove a checkpoint; its description first, so that it never looks complete."""
    first = layout.model(name, f"{_folder(step)}/model.json")
    for key in (first, *store.list(first.removesuffix("model.json"))):
        store.delete(key)


def load(store: ObjectStore, name: str, step: int | None = None) -> Model:
    """Return what a model is, at a step or at its newest checkpoint.

    Raises
    ------
    RecipeError
        There is no such model.
    IntegrityError
        Its description does not fit what this program writes.
    """
    if step is None:
        known = steps(store, name)
        if not known:
            there = sorted({key.split("/")[1] for key in store.list(layout.MODELS)})
            others = [other for other in there if _NAME.fullmatch(other) and steps(store, other)]
            raise RecipeError(
                f"{store.url} has no model {name!r} with a complete checkpoint; `terrashard "
                f"pretrain` makes it. There are: {', '.join(others) or '(none)'}."
            )
        step = known[-1]
    key = layout.model(name, f"{_folder(step)}/model.json")
    try:
        return Model.model_validate(layout.read_json(store, key))
    except ValidationError as error:
        raise IntegrityError(explain(error, key)) from error


def load_encoder(store: ObjectStore, model: Model, shape: EncoderShape | None = None) -> nn.Module:
    """Return the trained encoder, in evaluation mode, on the CPU.

    Parameters
    ----------
    store : ObjectStore
    model : Model
        As written, or facing its second product.
    shape : EncoderShape or None
        The model's own, or that with more sensors.
    """
    data = _read(store, _key(model, model.weights_file), model.weights_sha256)
    encoder = build_encoder(shape or model.shape, seed=0)
    encoder.load_state_dict(load_tensors(data))
    return encoder.eval()


def _weights(encoder: nn.Module) -> bytes:
    tensors = {key: t.detach().cpu().contiguous() for key, t in encoder.state_dict().items()}
    return save_tensors(tensors)


def load_state(store: ObjectStore, model: Model) -> tuple[dict[str, Any], str]:
    """Return the state and the log that `save` was given, on the CPU."""
    data = _read(store, _key(model, "state.pt"), model.state_sha256)
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return state, store.get(_key(model, "log.csv")).decode()


def on_cpu(value: Any) -> Any:
    """Return a state with all of its tensors copied to the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: on_cpu(item) for key, item in value.items()}
    if isinstance(value, list):
        return [on_cpu(item) for item in value]
    return value


def folder(name: str, step: int) -> str:
    """Return the key of a checkpoint's folder in its root."""
    return layout.model(name, _folder(step))


def _folder(step: int) -> str:
    return f"step-{step:08d}"


def _key(model: Model, file: str) -> str:
    return layout.model(check_name(model.name), f"{_folder(model.step)}/{file}")


def _read(store: ObjectStore, key: str, sha256: str) -> bytes:
    try:
        data = store.get(key)
    except KeyError:
        raise IntegrityError(
            f"{key} is missing in {store.url}, though its model.json is."
        ) from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise IntegrityError(
            f"{key} in {store.url} does not have the digest its model.json states."
        )
    return data

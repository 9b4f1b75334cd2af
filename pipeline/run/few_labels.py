"""Join a trained model, its windows and the few labels of which `evaluate` makes a section."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from pipeline.evaluate.features import EncoderFeatures, Features, describe_windows, read_windows
from pipeline.evaluate.few_labels import (
    PROJECTED,
    RATES,
    FewLabels,
    Way,
    choose,
    compare,
    draw_support,
    fine_tune,
    soft_nearest,
)
from pipeline.evaluate.probes import Numbers
from pipeline.evaluate.scores import MODEL
from pipeline.evaluate.windows import Windows
from pipeline.ports import ObjectStore
from pipeline.pretrain import checkpoint
from pipeline.pretrain.choice import build_method
from pipeline.pretrain.data.normalise import Normaliser
from pipeline.pretrain.methods.method import View
from pipeline.pretrain.methods.paws import PAWS
from pipeline.pretrain.model import Model
from pipeline.recipe import Evaluate
from pipeline.store.patches import PatchReader


def classify_with_few(
    store: ObjectStore,
    model: Model,
    settings: Evaluate,
    reader: PatchReader,
    normaliser: Normaliser,
    windows: Windows,
    features: Mapping[str, Features],
    encoders: Mapping[str, nn.Module],
) -> FewLabels | None:
    """Return what few labels are enough for; None where the recipe does not ask.

    Nor is there such a section on windows with sets of labels.

    Parameters
    ----------
    store : ObjectStore
        Where the model is.
    model : Model
    settings : Evaluate
    reader : PatchReader
        Of the classified patches.
    normaliser : Normaliser
        On the device that is used.
    windows : Windows
    features : mapping of str to array (window, width)
        Of the model and every baseline.
    encoders : mapping of str to module
        The trained encoder as `MODEL`, and those that are fine-tuned beside it.
    """
    semi = model.settings.method == "paws"
    if windows.holds is not None or (settings.few_labels is None and not semi):
        return None
    per_class, seed = settings.few_labels, settings.seed
    if per_class is None:
        # The same windows that pretraining knew.
        per_class, seed = model.settings.support_known, model.settings.seed
    support = draw_support(windows, per_class, seed)
    classes, label = np.unique(windows.label[support], return_inverse=True)
    said: dict[tuple[str, Way], Numbers] = {}
    for kind, values in features.items():
        told = soft_nearest(_standardised(values, windows), support, label)
        said[kind, "soft-nn"] = classes[told.argmax(axis=1)]
    if semi:
        projected = _projected(store, model, features[MODEL])
        told = soft_nearest(projected, support, label, model.settings.temperature)
        said[PROJECTED, "soft-nn"] = classes[told.argmax(axis=1)]
    rates: dict[str, float] = {}
    if settings.fine_tune_steps:
        tuned = _fine_tuned(encoders, reader, normaliser, windows, support, label, model, settings)
        for kind, (rate, codes) in choose(tuned, windows, classes).items():
            rates[kind], said[kind, "fine-tune"] = rate, codes
    return FewLabels(
        labels=len(support),
        per_class=int(np.bincount(label).max()),
        pretraining_knew=model.settings.support_known if semi else 0,
        fine_tune_steps=settings.fine_tune_steps,
        results=compare(said, windows, rates, seed=settings.seed),
    )


def _standardised(values: Features, windows: Windows) -> Features:
    """Standardise by the training part, whose images need no labels for it."""
    train = values[windows.of("train")].astype(np.float64)
    mean, std = train.mean(axis=0), train.std(axis=0)
    standardised: Features = ((values - mean) / np.where(std > 0, std, 1.0)).astype(np.float32)
    return standardised


def _projected(store: ObjectStore, model: Model, features: Features) -> Features:
    """Return features as PAWS's loss compares them, by the projector of the checkpoint."""
    method = build_method(model.settings, model.shape, classes=2)
    state, _ = checkpoint.load_state(store, model)
    method.load_state_dict(state["method"])
    if not isinstance(method, PAWS):
        raise TypeError(f"{type(method).__name__} has no projector for a vote")
    with torch.inference_mode():
        projected: Features = method.projector.eval()(torch.from_numpy(features)).numpy()
    return projected


def _fine_tuned(
    encoders: Mapping[str, nn.Module],
    reader: PatchReader,
    normaliser: Normaliser,
    windows: Windows,
    support: Numbers,
    label: Numbers,
    model: Model,
    settings: Evaluate,
) -> dict[tuple[str, float], Features]:
    """Fine-tune every encoder at every rate, and return what each then says of all windows."""
    device = normaliser.mean.device
    image_px, pixels = model.shape.image_px, model.settings.method == "barlow_pixels"

    def read(numbers: Numbers) -> View:
        some = windows.at(numbers)
        seen = list(read_windows(reader, some, normaliser, device=device, threads=2))
        return View(torch.cat([v.image for v in seen]), torch.cat([v.valid for v in seen]))

    nets = {
        (kind, rate): fine_tune(
            encoder,
            read,
            support,
            label,
            image_px=image_px,
            pixels=pixels,
            steps=settings.fine_tune_steps,
            rate=rate,
            seed=settings.seed,
        )
        for kind, encoder in encoders.items()
        for rate in RATES
    }
    names = {f"{kind} {rate}": (kind, rate) for kind, rate in nets}
    found = describe_windows(
        reader,
        windows,
        normaliser,
        {name: EncoderFeatures(nets[key], image_px, pixels=pixels) for name, key in names.items()},
        device=device,
    )
    return {names[name]: values for name, values in found.items()}

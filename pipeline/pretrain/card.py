"""Say beside the weights what they are, what they need of their input, and where they come from."""

from __future__ import annotations

import json
import textwrap

from pipeline.pretrain.model import Input, Model

#: Bands listed one by one; of an imaging spectrometer's only the first and the last.
MOST_BANDS = 16


def card(model: Model) -> str:
    """Return the model card of a checkpoint: Markdown, with front matter for the Hugging Face Hub.

    Parameters
    ----------
    model : Model
        As written, with its step and digests.
    """
    shape, settings = model.shape, model.settings
    seen = (
        "all parts of the data set, validation and test images included (**transductive**)"
        if settings.transductive
        else "the training part alone"
    )
    return f"""---
library_name: timm
pipeline_tag: image-feature-extraction
tags: [terrashard, remote-sensing, self-supervised, {settings.method}]
---

# {model.name}

An encoder of {model.product} images, pretrained without labels. It has no classifier; it returns
one feature vector for an image. How good the features are is not said here: `terrashard evaluate`
measures it beside baselines.

| | |
|---|---|
| backbone | {shape.backbone}, {shape.image_px} x {shape.image_px} pixels{_tokens(model)} |
| method | {_method(model)} |
| trained for | {model.step} of {settings.steps} steps, {settings.batch_size} items in each |
| data set | {model.dataset}, version {model.version}, {seen} |
| digest of the data | `{model.digest}` |
| digest of the weights | `{model.weights_sha256}` (sha256) |

## Input

{len(model.bands)} bands in this order: {_bands(model)}.

{_standardised(model)}
{_others(model)}{_second(model)}{_origin(model)}
## Terms

The images keep the terms of their owners, which may bind what is made of them.
{_terms(model)}
## Settings

```json
{json.dumps(settings.model_dump(mode="json"), indent=1)}
```
"""


def _tokens(model: Model) -> str:
    family = model.shape.family
    return f", tokens of {model.shape.patch_px} pixels" if family.startswith("vit") else ""


def _standardised(model: Model) -> str:
    fill = "not a number" if model.fill is None else f"{model.fill:g}"
    moments = "the mean and deviation of its training part"
    if model.origin is not None and model.origin.ranges is not None:
        moments = "the value that stood for 0 when it was released, and the width from there to 1"
    return textwrap.fill(
        f"Values as stored in the data set, standardised band by band with {moments}, "
        f"`(value - mean) / std`; what was never seen (stored as {fill}) becomes 0. Both are in "
        "`model.json` beside a checkpoint and under `terrashard` in the `config.json` of an export."
        f" Images of another size are brought to {model.shape.image_px} pixels. Another "
        "standardisation or size costs accuracy.",
        100,
    )


def _method(model: Model) -> str:
    settings = model.settings
    if not settings.steps:
        return "as released, not trained here"
    return f"{settings.method}, seed {settings.seed}"


def _others(model: Model) -> str:
    """Say what else it learned from; one encoder of any sensor takes it as well."""
    if not model.others:
        return ""
    lines = [f"- {product}: {_bands(own)}." for product, own in model.others.items()]
    text = "It also takes, each with a mean and deviation of its own under `others`:"
    return "\n".join(["", text, "", *lines, ""])


def _second(model: Model) -> str:
    if model.second is None:
        return ""
    text = (
        f"It was trained beside an encoder of {model.second.product} images, whose weights are in "
        f"`{model.second.weights_file}` of the checkpoint, sha256 `{model.second_sha256}`."
    )
    return f"\n{textwrap.fill(text, 100)}\n"


def _origin(model: Model) -> str:
    if model.origin is None:
        return ""
    text = (
        f"It began with released weights, which have terms of their own: {model.origin.file} "
        f"({model.origin.layout}), sha256 `{model.origin.sha256}`."
    )
    return f"\n{textwrap.fill(text, 100)}\n"


def _terms(model: Model) -> str:
    lines = [f"- {product}: {text}" for product, text in model.terms.items()]
    return "\n".join(["", *lines, ""]) if lines else ""


def _bands(own: Model | Input) -> str:
    named = [
        name if wavelength is None else f"{name} ({wavelength:g} nm)"
        for name, wavelength in zip(own.bands, own.wavelength_nm, strict=True)
    ]
    if len(named) > MOST_BANDS:
        named = [named[0], "...", named[-1]]
    return ", ".join(named)

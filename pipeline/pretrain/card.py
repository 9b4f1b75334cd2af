"""Say beside the weights what they are, what they need of their input, and where they come from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.pretrain.checkpoint import Input, Model

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
    fill = "not a number" if model.fill is None else f"{model.fill:g}"
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
| method | {settings.method}, seed {settings.seed} |
| trained for | {model.step} of {settings.steps} steps, {settings.batch_size} items in each |
| data set | {model.dataset}, version {model.version}, {seen} |
| digest of the data | `{model.digest}` |
| digest of the weights | `{model.weights_sha256}` (sha256) |

## Input

{len(model.bands)} bands in this order: {_bands(model)}.

Values as stored in the data set, standardised band by band with {_moments(model)},
`(value - mean) / std`; what was never seen (stored as {fill}) becomes 0. Mean and
deviation are in `model.json` beside a checkpoint and under `terrashard` in the `config.json` of an
export. Images of another size are brought to {shape.image_px} pixels. Another standardisation or
size costs accuracy.
{_others(model)}{_origin(model)}
## Terms

The images keep the terms of their owners, which may bind what is made of them; see the data set.

## Settings

```json
{json.dumps(settings.model_dump(mode="json"), indent=1)}
```
"""


def _tokens(model: Model) -> str:
    family = model.shape.family
    return f", tokens of {model.shape.patch_px} pixels" if family.startswith("vit") else ""


def _moments(model: Model) -> str:
    if model.origin is not None and model.origin.ranges is not None:
        return "the least value, as mean, and the range, as deviation, of its first training"
    return "the mean and deviation of its training part"


def _others(model: Model) -> str:
    """Say what else it learned from; one encoder of any sensor takes it as well."""
    if not model.others:
        return ""
    lines = [f"- {product}: {_bands(own)}." for product, own in model.others.items()]
    text = "It also takes, each with a mean and deviation of its own under `others`:"
    return "\n".join(["", text, "", *lines, ""])


def _origin(model: Model) -> str:
    if model.origin is None:
        return ""
    return (
        f"\nIt began with released weights: {model.origin.file} ({model.origin.layout}, sha256 "
        f"`{model.origin.sha256}`), which have terms of their own.\n"
    )


def _bands(own: Model | Input) -> str:
    named = [
        name if wavelength is None else f"{name} ({wavelength:g} nm)"
        for name, wavelength in zip(own.bands, own.wavelength_nm, strict=True)
    ]
    if len(named) > MOST_BANDS:
        named = [named[0], "...", named[-1]]
    return ", ".join(named)

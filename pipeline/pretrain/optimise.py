"""From the `[pretrain]` table to the optimiser, and its rates at each step."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim.lars import Lars

from pipeline.pretrain.methods.method import Method
from pipeline.pretrain.schedule import cosine, learning_rate
from pipeline.pretrain.tuning import fused
from pipeline.recipe import Pretrain

#: AdamW's betas where the paper of a method states its own (MAE, appendix A), and otherwise.
BETAS = {"mae": (0.9, 0.95)}
USUAL_BETAS = (0.9, 0.999)

#: Momentum of SGD and LARS in every paper that uses them.
MOMENTUM = 0.9

#: Under LARS, the rate of biases and norms over that of weights: they take a step of SGD, for which
#: the scale of the loss matters. 0.0048 over 0.2 in the code of Barlow Twins and of DeCUR.
REST_UNDER_LARS = {"barlow": 0.024, "decur": 0.024, "barlow_pixels": 0.024}


def build_optimizer(method: Method, settings: Pretrain) -> torch.optim.Optimizer:
    """Build the optimiser a recipe names.

    Biases and norms do not decay, nor does LARS adapt their rates, as is usual; all weights' it
    does, whether they decay or not. What a method calls `steady` keeps the first rate to the end.
    """
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            steady, decays = name.split(".")[0] in method.steady, parameter.ndim > 1
            decay = settings.weight_decay if decays else 0.0
            group = {"params": [], "weight_decay": decay, "decays": decays, "steady": steady}
            groups.setdefault((steady, decays), group)["params"].append(parameter)
    parameters, rate = list(groups.values()), settings.learning_rate
    one = fused(next(method.parameters()).device)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=MOMENTUM, fused=one)
    if settings.optimizer == "lars":
        for group in parameters:
            # Else timm's LARS is SGD wherever nothing decays.
            group["always_adapt"] = group["decays"]
        return Lars(parameters, lr=rate, momentum=MOMENTUM)
    betas = BETAS.get(settings.method, USUAL_BETAS)
    return torch.optim.AdamW(parameters, lr=rate, betas=betas, fused=one)


def set_rates(optimizer: torch.optim.Optimizer, settings: Pretrain, step: int) -> float:
    """Give the optimiser the learning rate and weight decay of a step; return the weights' rate."""
    peak, steps = settings.learning_rate, settings.steps
    rate = learning_rate(step, peak=peak, steps=steps, warmup_steps=settings.warmup_steps)
    last = settings.weight_decay_end
    decay = settings.weight_decay
    if last is not None:
        decay = cosine(step, first=decay, last=last, steps=steps)
    rest = REST_UNDER_LARS.get(settings.method, 1.0) if settings.optimizer == "lars" else 1.0
    for group in optimizer.param_groups:
        group["lr"] = (peak if group["steady"] else rate) * (1.0 if group["decays"] else rest)
        group["weight_decay"] = decay if group["decays"] else 0.0
    return rate

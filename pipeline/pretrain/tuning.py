"""What makes a GPU fast, and leaves results on a CPU as they are, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from pipeline.pretrain.encoders.norms import RankBatchNorm
from pipeline.pretrain.encoders.spectral import SpectralAdapter


@contextmanager
def tensor_cores(device: torch.device) -> Iterator[None]:
    """Let a GPU round the factors of float32 products and convolutions to TF32: 10 bits, not 23.

    Sums stay in float32. So does everything on a CPU, where `high` would mean bfloat16.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def in_bf16(precision: str, device: torch.device) -> bool:
    """Return whether networks run in bfloat16; `auto`: on a GPU that has units for it."""
    if precision != "auto":
        return precision == "bf16"
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def fused(device: torch.device) -> bool | None:
    """Return what torch's optimisers are told: one kernel for all parameters, or as they like."""
    return True if device.type == "cuda" else None


def channels_last(method: nn.Module) -> None:
    """Lay out the kernels of ResNets as a GPU's convolutions take them; their images follow.

    Kernels of volumes (the spectral adapter's) have a layout of their own.
    """
    for part in method.modules():
        if isinstance(part, ResNet):
            for parameter in part.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def lay_out_state(optimizer: torch.optim.Optimizer) -> None:
    """Lay out what an optimiser remembers as its parameters are, which one fused kernel asks for.

    A state from a checkpoint has the layout of the machine that wrote it.
    """
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
                continue
            if value.stride() != parameter.stride():
                kept[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def compile_encoders(method: nn.Module, backend: str = "inductor") -> None:
    """Let torch compile the encoders of a method: a ResNet whole, of a ViT its blocks.

    Parameters and state keep their names. The spectral adapter is left as it is: its kernels are
    matrix products already, and it talks to other ranks; norms over ranks talk too.
    """
    disable: Any = torch.compiler.disable
    for part in list(method.modules()):
        if isinstance(part, ResNet):
            part.compile(backend=backend)
        elif isinstance(part, VisionTransformer):
            part.blocks.compile(backend=backend)
        elif isinstance(part, SpectralAdapter | RankBatchNorm):
            plain: Any = part
            plain.forward = disable(part.forward)

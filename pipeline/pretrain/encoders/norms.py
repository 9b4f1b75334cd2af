"""Batch norms whose moments are those of all ranks, on a CPU too.

torch's own `SyncBatchNorm` takes images on a GPU alone, so processes that talk through gloo would
each have moments of their own, and a run's result would depend on how many there are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.pretrain import ranks


class RankBatchNorm(_BatchNorm):
    """A batch norm of any number of dimensions over the items of all ranks.

    (batch, channel, ...) -> the same, as many items on every rank. State, evaluation and a run of
    one process are those of torch's batch norms.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise by the moments of all ranks, or by the running ones in evaluation."""
        if not self.training or not ranks.started():
            return super().forward(input)
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        axes = (0, *range(2, input.ndim))
        wide = (1, -1, *(1,) * (input.ndim - 2))
        count = values.numel() // values.shape[1] * ranks.size()
        mean = ranks.sum_over_ranks(values.sum(axes)) / count
        centred = values - mean.view(wide)
        variance = ranks.sum_over_ranks(centred.square().sum(axes)) / count
        self._follow(mean.detach(), variance.detach() * (count / max(count - 1, 1)))
        normed = centred * (variance + self.eps).rsqrt().view(wide)
        if self.weight is not None and self.bias is not None:
            normed = normed * self.weight.view(wide) + self.bias.view(wide)
        return normed.to(input.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running moments."""
        if self.running_mean is None or self.running_var is None:
            return
        tracked: Any = self.num_batches_tracked
        tracked.add_(1)
        share = 1 / float(tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"a batch norm takes (batch, channel, ...), not {tuple(input.shape)}")


def share_norms(module: nn.Module, device: torch.device) -> None:
    """Let the batch norms inside a module have the moments of all ranks; parameters stay.

    Parameters
    ----------
    module : module
        Changed in place.
    device : torch.device
        Where it will be: torch's own norms on a GPU.
    """
    if device.type == "cuda":
        convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
        convert(module)
        return
    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(child, RankBatchNorm):
                setattr(part, name, _as_shared(child))


def _as_shared(norm: _BatchNorm) -> RankBatchNorm:
    shared = RankBatchNorm(norm.num_features, norm.eps, norm.momentum, affine=False)
    shared.train(norm.training)
    shared.affine, shared.track_running_stats = norm.affine, norm.track_running_stats
    shared.weight, shared.bias = norm.weight, norm.bias
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        setattr(shared, name, getattr(norm, name))
    return shared

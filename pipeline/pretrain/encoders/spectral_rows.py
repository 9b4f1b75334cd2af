"""The spectral adapter's arithmetic in a cheaper order than three convolutions of a volume.

Pixels become rows, and the features of one place of the spectrum neighbours in memory ("channels
last"), so that every convolution is a matrix product:

- the first layer, whose kernel of 7 values of one channel no matrix unit likes, makes 8 places at a
  time: 202 bands, padded to 208, are 26 groups of 8, and a block-Toeplitz kernel of 6 groups turns
  them, 5 groups further each time, into 8 places of 32 features;
- the other two are a kernel's places times its features long: 7 x 32 and 5 x 64 values.

Of what a layer computes, its convolution's result is kept for the backward pass; norm and
activation are computed again there, and of the first layer the convolution too. So of 4,298 values
a pixel of 202 bands (image; results of convolutions and of activations) 1,232 are kept.

Where several ranks share a batch, the norms' moments are those of all of them, and so are the two
sums over items that a norm's gradient needs: a few hundred numbers each, exchanged on the way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from pipeline.pretrain import ranks
from pipeline.pretrain.encoders.norms import RankBatchNorm

#: Places of the spectrum that the first layer makes at a time, and bands in a group.
LANES = 8
#: Groups that 8 places of a 7-band kernel with stride 5 reach into: 7 * 5 + 7 <= 6 * 8.
TAPS = 6


def features_by_rows(layers: nn.Sequential, image: Tensor, left: tuple[int, ...]) -> Tensor:
    """Return the mean over the places that are left of each spectrum after the layers.

    Parameters
    ----------
    layers : Sequential
        Conv3d, BatchNorm3d or a norm over ranks, ReLU; three times. Running moments move as usual.
    image : Tensor, shape (batch, band, y, x)
    left : tuple of int
        Places left after each layer.

    Returns
    -------
    Tensor, shape (batch, feature, y, x)
        Channels last, in the type of the surrounding autocast or of the image.
    """
    kind = image.device.type
    dtype = image.dtype
    if kind != "meta" and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    with torch.autocast("cpu" if kind == "meta" else kind, enabled=False):
        convs: list[Any] = list(layers[::3])
        norms: list[Any] = list(layers[1::3])
        spectra = _grouped(image.to(dtype), left[0])
        toeplitz = _toeplitz(convs[0].weight).to(dtype)
        shifts = convs[0].bias.repeat(LANES).to(dtype)
        values = _norm_relu_conv(norms[0], convs[1], spectra, toeplitz, shifts, left[0])
        values = _norm_relu_conv(norms[1], convs[2], values)
        values = F.relu(norms[2](values.unsqueeze(2)).squeeze(2), inplace=True)
        batch, features, _, _ = values.shape
        return values.mean(dim=3).view(batch, features, *image.shape[2:])


def _grouped(image: Tensor, places: int) -> Tensor:
    """Turn an image into rows of groups of bands: (batch, LANES, pixel, group), channels last."""
    batch, bands = image.shape[:2]
    blocks = -(-places // LANES)
    groups = 5 * (blocks - 1) + TAPS
    pixels = image.flatten(2).transpose(1, 2)
    # One band of padding before the first, as the first layer has it.
    rows = F.pad(pixels, (1, groups * LANES - bands - 1))
    return rows.reshape(batch, -1, groups, LANES).permute(0, 3, 1, 2)


def _toeplitz(weight: Tensor) -> Tensor:
    """Turn the first kernel (32, 1, 7, 1, 1) into one of groups: (LANES * 32, LANES, 1, TAPS).

    Place p of a block begins 5 p bands after the block does.
    """
    kernel = weight.flatten(1)
    places = [F.pad(kernel, (5 * p, TAPS * LANES - 7 - 5 * p)) for p in range(LANES)]
    return torch.cat(places).view(-1, 1, TAPS, LANES).permute(0, 3, 1, 2)


def _first(spectra: Tensor, toeplitz: Tensor, shifts: Tensor, places: int) -> Tensor:
    """Return the first layer's convolution: (batch, 32, pixel, place), channels last."""
    blocks = F.conv2d(spectra, toeplitz, shifts, stride=(1, 5)).permute(0, 2, 3, 1)
    whole = blocks.reshape(*blocks.shape[:2], -1, blocks.shape[3] // LANES)
    return whole[:, :, :places].contiguous().permute(0, 3, 1, 2)


def _first_backward(grad: Tensor, blocks: int) -> Tensor:
    """Bring a gradient of `_first`'s result into the shape of its blocks."""
    rows = F.pad(grad.permute(0, 2, 3, 1), (0, 0, 0, blocks * LANES - grad.shape[3]))
    return rows.reshape(*rows.shape[:2], blocks, -1).permute(0, 3, 1, 2)


def _norm_relu_conv(
    norm: Any,
    conv: Any,
    values: Tensor,
    toeplitz: Tensor | None = None,
    shifts: Tensor | None = None,
    places: int = 0,
) -> Tensor:
    """Normalise, rectify, convolve; before that, if a kernel is given, the first convolution."""
    if norm.training:
        norm.num_batches_tracked.add_(1)
    weight = conv.weight.flatten(2).unsqueeze(2).to(values.dtype)
    bias = conv.bias.to(values.dtype)
    stride, padding = conv.stride[0], conv.padding[0]
    width, kernel = places or values.shape[3], weight.shape[3]
    if width + 2 * padding - kernel < stride:
        # One place is left: what of the kernel lies on padding adds nothing. oneDNN 3 (torch 2.15,
        # bfloat16 on a CPU with AMX) multiplies it with whatever lies in memory, which may be NaN.
        weight, padding = weight[..., padding : padding + width], 0
    result: Tensor = _NormReluConv.apply(
        values,
        toeplitz,
        shifts,
        norm.weight,
        norm.bias,
        weight,
        bias,
        norm,
        stride,
        padding,
        places,
    )
    return result


class _NormReluConv(Function):
    """Keeps what the norm is given, or what that is made from, and nothing after it."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        toeplitz: Tensor | None,
        shifts: Tensor | None,
        gain: Tensor,
        shift: Tensor,
        weight: Tensor,
        bias: Tensor,
        norm: nn.BatchNorm3d,
        stride: int,
        padding: int,
        places: int,
    ) -> Tensor:
        given = values
        if toeplitz is not None and shifts is not None:
            given = _first(values, toeplitz, shifts, places)
        count = None
        if norm.training and _is_shared(norm):
            mean, variance, count = _moments(given, norm)
            spread = (variance + norm.eps).rsqrt()
            normed = F.batch_norm(given, mean, variance, gain, shift, eps=norm.eps)
        else:
            normed, mean, spread = torch.native_batch_norm(
                given,
                gain,
                shift,
                norm.running_mean,
                norm.running_var,
                norm.training,
                norm.momentum or 0.0,
                norm.eps,
            )
        if not norm.training and norm.running_mean is not None and norm.running_var is not None:
            mean, spread = norm.running_mean, (norm.running_var + norm.eps).rsqrt()
        ctx.save_for_backward(values, toeplitz, shifts, gain, shift, weight, mean, spread, count)
        ctx.settings = (norm.training, norm.eps, (1, stride), (0, padding), places)
        return F.conv2d(normed.relu_(), weight, bias, (1, stride), (0, padding))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, toeplitz, shifts, gain, shift, weight, mean, spread, count = ctx.saved_tensors
        training, eps, stride, padding, places = ctx.settings
        given = values if toeplitz is None else _first(values, toeplitz, shifts, places)
        variance = spread.square().reciprocal() - eps
        normed = F.batch_norm(given, mean, variance, gain, shift, eps=eps).relu_()
        grad, grad_weight, grad_bias = _conv_backward(
            grad, normed, weight, stride, padding, (True, True, True)
        )
        grad = torch.ops.aten.threshold_backward(grad, normed, 0)
        own = training and count is None
        moments = (None, None, mean, spread) if own else (mean, variance, None, None)
        grad, grad_gain, grad_shift = torch.ops.aten.native_batch_norm_backward(
            grad, given, gain, *moments, own, eps, [True, True, True]
        )
        if count is not None:
            _through_moments(grad, given, gain * spread, mean, spread, count, grad_gain, grad_shift)
        of_values, of_toeplitz, of_shifts = grad, None, None
        if toeplitz is not None:
            blocks = -(-places // LANES)
            needed = (ctx.needs_input_grad[0], True, True)
            of_values, of_toeplitz, of_shifts = _conv_backward(
                _first_backward(grad, blocks), values, toeplitz, (1, 5), (0, 0), needed
            )
        results = (of_values, of_toeplitz, of_shifts, grad_gain, grad_shift, grad_weight, grad_bias)
        return (*results, None, None, None, None)


def _is_shared(norm: Any) -> bool:
    """Return whether a norm's moments are those of all ranks, and there are several."""
    return ranks.size() > 1 and isinstance(norm, RankBatchNorm | nn.SyncBatchNorm)


def _moments(given: Tensor, norm: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, variance and number of the values of all ranks; move the running moments.

    Each rank's own moments are joined as Chan et al. 1979 do (Stanford STAN-CS-79-773), which
    costs no digits where a mean is large. Ranks may differ in size.
    """
    zero = norm.running_mean.new_zeros(norm.num_features)
    # The norm's own sums, in float32 whatever type the values have; what they move is thrown away.
    own = torch.batch_norm_update_stats(given, zero, zero.clone(), 0.0)
    items = given.numel() // given.shape[1]
    parts = ranks.gather_rows(torch.cat([*own, zero.new_full((1,), items)]).unsqueeze(0))
    means, variances, counts = torch.split(parts, [len(zero), len(zero), 1], dim=1)
    count = counts.sum()
    share = counts / count
    mean = (means * share).sum(dim=0)
    variance = ((variances + (means - mean).square()) * share).sum(dim=0)
    momentum = norm.momentum or 0.0
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), momentum)
    return mean, variance, count


def _through_moments(
    grad: Tensor,
    given: Tensor,
    scale: Tensor,
    mean: Tensor,
    spread: Tensor,
    count: Tensor,
    grad_gain: Tensor,
    grad_shift: Tensor,
) -> None:
    """Add to a norm's gradient what goes through the moments of all ranks; in place.

    With x the normalised values and d the gradient of the norm's result, that of its input is
    scale * (d - mean(d) - x mean(d x)) (Ioffe and Szegedy 2015, section 3), means over all ranks.
    The first term is `grad`; the sums of d and d x over this rank are the gradients of the norm's
    parameters, which stay this rank's: data-parallel training takes their mean over ranks.
    """
    both = ranks.sum_over_ranks(torch.stack([grad_shift, grad_gain])) / count
    slope = scale * spread * both[1]
    level = scale * both[0] - slope * mean
    slope, level = (part.view(1, -1, 1, 1) for part in (slope, level))
    grad.sub_(level).addcmul_(given, slope, value=-1)


def _conv_backward(
    grad: Tensor,
    values: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    needed: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of a 2-D convolution's input, kernel and bias."""
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad, values, weight, [len(weight)], stride, padding, (1, 1), False, (0, 0), 1, needed
    )
    return found

"""Small tensors of a step on their way to the device: one copy for all of them, waited for by none.

What is drawn at random is drawn on the CPU. Copied by itself, out of memory that the system may
page out, each tensor would hold the training thread until the device has done all that was asked
of it before. So tensors that are needed together travel as one row of bytes in page-locked memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Each tensor begins at a multiple of so many bytes: the largest element there is.
_ALIGN_BYTES = 16


def send(parts: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Bring tensors of the CPU to a device with one copy; nothing waits for it.

    Parameters
    ----------
    parts : sequence of Tensor
        On the CPU, any types and shapes.
    device : torch.device

    Returns
    -------
    list of Tensor
        The same on the device; on the CPU the very ones.
    """
    if device.type == "cpu" or not parts:
        return list(parts)
    packed = pack(parts)
    if device.type == "cuda":
        # torch keeps page-locked memory for the next time, but not before this copy is done.
        packed = packed.pin_memory()
    return unpack(packed.to(device, non_blocking=True), parts)


def pack(parts: Sequence[Tensor]) -> Tensor:
    """Return the bytes of tensors in a row, each padded to a multiple of `_ALIGN_BYTES`."""
    packed = torch.zeros(sum(map(_room, parts)), dtype=torch.uint8)
    start = 0
    for part in parts:
        bytes_ = part.contiguous().flatten().view(torch.uint8)
        packed[start : start + len(bytes_)] = bytes_
        start += _room(part)
    return packed


def unpack(packed: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
    """Return what `pack` was given, as views of a row of bytes; types and shapes are of `parts`."""
    found, start = [], 0
    for part in parts:
        found.append(packed[start : start + part.nbytes].view(part.dtype).view(part.shape))
        start += _room(part)
    return found


def _room(part: Tensor) -> int:
    return -(-part.nbytes // _ALIGN_BYTES) * _ALIGN_BYTES

"""ReLU and 2 x 2 max pooling in one pass, forward and backward.

Apart, they read and write the full-size image three times forward and four times backward; on CPUs that costs as much
as the convolutions around them. Together each pixel is read once forward and written once backward. The largest of
ReLUs is the ReLU of the largest, and their gradients are the same too.

Roof: memory traffic, ``B C H W`` times 5.25 bytes forward and as many backward, in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmem.errors import InputError
from fastmem.ops._modes import dispatched, transformed
from fastmem.ops._registry import select

__all__ = ["relu_max_pool"]


def relu_max_pool(x: Tensor) -> Tensor:
    """``relu(max_pool2d(x, 2))``, which is ``max_pool2d(relu(x), 2)``.

    Within ``torch.compile``, ``torch.func`` and symbolic tracing it is the composition of PyTorch's own operators, and
    so are its higher derivatives everywhere.

    Args:
        x: Images [B, C, H, W] of at least 2 x 2 pixels; floating point, in any memory format. The C++ kernel takes
            float32 and float64 in ``torch.channels_last``.

    Returns:
        [B, C, H // 2, W // 2]; a last odd row or column is left out. Of equal pixels the first, row by row, gets the
        gradient; NaN wins over numbers and stays.

    Raises:
        InputError: If x is no batch of such images.
    """
    if type(x) not in (Tensor, nn.Parameter) or dispatched() or transformed():
        return _composed(x)
    if x.ndim != 4 or min(x.shape[2:]) < 2:
        raise InputError("x", f"has shape {list(x.shape)}", "give images [B, C, H, W] of at least 2 x 2 pixels")
    if select("relu_max_pool", x).name == "reference":
        return _composed(x)
    return _ReluMaxPool.apply(x)


def _composed(x: Tensor) -> Tensor:
    return F.relu(F.max_pool2d(x, 2))


class _ReluMaxPool(torch.autograd.Function):
    """By the kernel that fits; the winners of the windows are kept as one byte each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        backend = select("relu_max_pool", x)
        y, winners = backend.forward(x)
        ctx.save_for_backward(x, winners)
        ctx.backward_by = backend.backward
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        x, winners = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants to differentiate this again
            return torch.autograd.grad(_composed(x), x, gradients[0], create_graph=True)[0]
        return ctx.backward_by(gradients[0], winners, x.shape)

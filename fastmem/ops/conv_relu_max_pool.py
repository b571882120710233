"""A convolution, ReLU and 2 x 2 max pooling as one operator.

Forward, the four outputs of a window stay in registers until the largest is known: the full-size map, which a library
writes, reads and keeps for the gradient, never exists. Backward, at most one output of a window has a gradient, and
which one differs from channel to channel: a library's two gradient convolutions multiply three zeros out of four. Here
the winners are kept, a byte each, and the gradients are summed over windows, ``d`` the gradient by a pooled value and
``p`` the patch that its winner saw: by the weight ``sum d p``, by the bias ``sum d``, by the images ``d`` times the
weight added at ``p``.

Roof: arithmetic. Forward ``8 B O H' W' K C`` operations (H', W' pooled, K taps). Backward ``4 B O H' W' K C``, half of
it without the gradient by the images, times the share of windows whose ReLU is on, against 16 for a library.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmem.errors import InputError
from fastmem.ops._modes import dispatched, transformed, watched
from fastmem.ops._registry import select
from fastmem.ops.relu_max_pool import relu_max_pool

__all__ = ["conv_relu_max_pool"]


def conv_relu_max_pool(x: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, int] = (0, 0)) -> Tensor:
    """``relu(max_pool2d(conv2d(x, weight, bias, padding=padding), 2))``.

    Within ``torch.compile``, ``torch.func``, symbolic tracing and a mode that watches PyTorch's functions it is the
    composition of PyTorch's own operators, and so are its higher derivatives everywhere.

    Args:
        x: Images [B, C, H, W], floating point, in any memory format. The C++ kernel takes float32 and float64 in
            ``torch.channels_last``.
        weight: [O, C, KH, KW].
        bias: [O].
        padding: Rows and columns of zeros on either side of the images.

    Returns:
        [B, O, H' // 2, W' // 2] for outputs of H' x W'; a last odd row or column is left out. Of equal outputs the
        first, row by row, gets the gradient. What is multiplied by zero in a full convolution is not looked at: an
        infinite pixel that no winner saw leaves the gradients finite.

    Raises:
        InputError: The shapes do not fit, or the outputs are smaller than one window.
    """
    tensors = (x, weight, bias)
    if any(type(tensor) not in (Tensor, nn.Parameter) for tensor in tensors) or dispatched() or transformed():
        return _composed(x, weight, bias, padding)
    _check(x, weight, bias, padding)
    backend = select("conv_relu_max_pool", x, weight, bias, padding)
    if backend.name == "reference" or watched():
        return relu_max_pool(F.conv2d(x, weight, bias, padding=padding))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return _ConvReluMaxPool.apply(x, weight, bias, padding)
    return backend.forward(x, weight, bias, padding)[0]


def _composed(x: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, int]) -> Tensor:
    return F.relu(F.max_pool2d(F.conv2d(x, weight, bias, padding=padding), 2))


def _check(x: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, int]) -> None:
    if x.ndim != 4:
        raise InputError("x", f"has shape {list(x.shape)}", "give images [B, C, H, W]")
    if weight.ndim != 4 or weight.shape[1] != x.shape[1]:
        raise InputError("weight", f"has shape {list(weight.shape)}", f"give [O, {x.shape[1]}, KH, KW]")
    if bias.shape != weight.shape[:1]:
        raise InputError("bias", f"has shape {list(bias.shape)}", f"give [{len(weight)}]")
    sizes = [x.shape[dim] + 2 * padding[dim - 2] - weight.shape[dim] + 1 for dim in (2, 3)]
    if min(padding) < 0 or min(sizes) < 2:
        raise InputError("padding", f"{padding} leaves outputs of {sizes[0]} x {sizes[1]}", "leave at least 2 x 2")


class _ConvReluMaxPool(torch.autograd.Function):
    """By the kernel that fits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, int]) -> Tensor:
        backend = select("conv_relu_max_pool", x, weight, bias, padding)
        y, winners = backend.forward(x, weight, bias, padding)
        ctx.save_for_backward(x, weight, bias, winners)
        ctx.padding, ctx.backward_by = padding, backend.backward
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, winners = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants to differentiate this again
            wanted = [tensor for tensor, needed in zip((x, weight, bias), ctx.needs_input_grad, strict=False) if needed]
            found = iter(
                torch.autograd.grad(_composed(x, weight, bias, ctx.padding), wanted, gradients[0], create_graph=True)
            )
            return *(next(found) if needed else None for needed in ctx.needs_input_grad[:3]), None
        of_x = ctx.needs_input_grad[0]
        return *ctx.backward_by(gradients[0], winners, x, weight, ctx.padding, of_x), None

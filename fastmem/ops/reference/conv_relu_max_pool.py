"""A convolution, ReLU and 2 x 2 max pooling in plain PyTorch, with the winner of each window."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmem.ops._registry import Backend, register
from fastmem.ops.reference import relu_max_pool


def forward(x: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The pooled maps, and uint8 of their shape: where in its window (0 to 3) the value is from, 4 where it is 0."""
    return relu_max_pool.forward(F.conv2d(x, weight, bias, padding=padding))


def backward(
    gradient: Tensor, winners: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int], of_x: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The gradients by x (None unless ``of_x``), by the weight and by the bias."""
    sizes = [x.shape[dim] + 2 * padding[dim - 2] - weight.shape[dim] + 1 for dim in (2, 3)]
    full = relu_max_pool.backward(gradient, winners, torch.Size((*gradient.shape[:2], *sizes)))
    return torch.ops.aten.convolution_backward(
        full, x, weight, [len(weight)], (1, 1), padding, (1, 1), False, (0, 0), 1, (of_x, True, True)
    )


register(
    Backend(
        op="conv_relu_max_pool",
        name="reference",
        priority=0,
        available=lambda: None,
        supports=lambda x, weight, bias, padding: None,
        forward=forward,
        backward=backward,
    )
)

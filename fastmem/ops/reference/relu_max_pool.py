"""ReLU and 2 x 2 max pooling in plain PyTorch, with the winner of each window."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmem.ops._registry import Backend, register

_NOBODY = 4


def forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """The pooled image, and uint8 of its shape: where in its window (0 to 3) the value is from, 4 where it is 0."""
    best, place = F.max_pool2d(x, 2, return_indices=True)
    down, right = place // x.shape[3] % 2, place % x.shape[3] % 2
    return best.relu(), (2 * down + right).where(~(best <= 0), _NOBODY).to(torch.uint8)


def backward(gradient: Tensor, winners: Tensor, shape: torch.Size) -> Tensor:
    """The gradient by the image of this shape."""
    result = gradient.new_zeros(shape)
    height, width = (2 * size for size in gradient.shape[2:])
    for place in range(4):
        result[:, :, place // 2 : height : 2, place % 2 : width : 2] = gradient * (winners == place)
    return result


register(
    Backend(
        op="relu_max_pool",
        name="reference",
        priority=0,
        available=lambda: None,
        supports=lambda x: None,
        forward=forward,
        backward=backward,
    )
)

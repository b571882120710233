"""ReLU and 2 x 2 max pooling by the C++ kernel: channels side by side, so every register holds pixels of one place."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmem.ops._native import DTYPE_CODES, cpu_module, why_no_cpu
from fastmem.ops._registry import Backend, register


def forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """The pooled image, and uint8 of its shape: where in its window (0 to 3) the value is from, 4 where it is 0."""
    images, channels, height, width = x.shape
    shape = (images, channels, height // 2, width // 2)
    y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    winners = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
    _call(x, y, winners, backward=False)
    return y, winners


def backward(gradient: Tensor, winners: Tensor, shape: torch.Size) -> Tensor:
    """The gradient by the image of this shape."""
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    result = torch.empty(shape, dtype=gradient.dtype, memory_format=torch.channels_last)
    _call(result, gradient, winners, backward=True)
    return result


def _call(x: Tensor, y: Tensor, winners: Tensor, *, backward: bool) -> None:
    images, channels, height, width = x.shape
    cpu_module().relu_max_pool(
        x.data_ptr(),
        y.data_ptr(),
        winners.data_ptr(),
        images,
        height,
        width,
        channels,
        DTYPE_CODES[x.dtype],
        backward,
        torch.get_num_threads(),
    )


def _supports(x: Tensor) -> str | None:
    if x.device.type != "cpu":
        return f"it computes on the CPU, and these images are on {x.device.type}"
    if x.dtype not in (torch.float32, torch.float64):
        return f"it takes float32 and float64, not {str(x.dtype).removeprefix('torch.')}"
    if not x.is_contiguous(memory_format=torch.channels_last):
        return "the images are not in the channels-last memory format"
    return None


register(
    Backend(
        op="relu_max_pool",
        name="cpu",
        priority=10,
        available=lambda: why_no_cpu("relu_max_pool"),
        supports=_supports,
        forward=forward,
        backward=backward,
    )
)

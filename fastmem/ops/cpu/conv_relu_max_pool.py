"""Convolution, ReLU and 2 x 2 max pooling by the C++ kernels: a window's outputs stay in registers until one has won."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmem.ops._native import DTYPE_CODES, cpu_module, why_no_cpu
from fastmem.ops._registry import Backend, register

_LAST = torch.channels_last
_MOST_PIXELS = 10_000_000  # with 160 channels in a block, their places are numbers of 32 bits


def forward(x: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The pooled maps, and uint8 of their shape: where in its window (0 to 3) the value is from, 4 where it is 0."""
    weight = weight.contiguous(memory_format=_LAST)
    height, width = ((x.shape[dim] + 2 * padding[dim - 2] - weight.shape[dim] + 1) // 2 for dim in (2, 3))
    shape = (len(x), len(weight), height, width)
    y = torch.empty(shape, dtype=x.dtype, memory_format=_LAST)
    winners = torch.empty(shape, dtype=torch.uint8, memory_format=_LAST)
    arrays = (x, weight, bias.contiguous(), y, winners)
    cpu_module().conv_relu_max_pool(*(array.data_ptr() for array in arrays), *_sizes(x, weight, padding))
    return y, winners


def backward(
    gradient: Tensor, winners: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int], of_x: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The gradients by x (None unless ``of_x``), by the weight and by the bias."""
    gradient, weight = (tensor.contiguous(memory_format=_LAST) for tensor in (gradient, weight))
    x_gradient = torch.empty_like(x) if of_x else None
    weight_gradient, bias_gradient = torch.empty_like(weight), x.new_empty(len(weight))
    arrays = (x, weight, gradient, winners, x_gradient, weight_gradient, bias_gradient)
    addresses = (0 if array is None else array.data_ptr() for array in arrays)
    cpu_module().conv_relu_max_pool_backward(*addresses, *_sizes(x, weight, padding))
    return x_gradient, weight_gradient, bias_gradient


def _sizes(x: Tensor, weight: Tensor, padding: tuple[int, int]) -> tuple[object, ...]:
    images, channels, height, width = x.shape
    kernel = (len(weight), *weight.shape[2:])
    return (images, height, width, channels), kernel, padding, DTYPE_CODES[x.dtype], torch.get_num_threads()


def _supports(x: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, int]) -> str | None:
    if any(tensor.device.type != "cpu" for tensor in (x, weight, bias)):
        return "it computes on the CPU, and some of these tensors are not there"
    if x.dtype not in (torch.float32, torch.float64) or not x.dtype == weight.dtype == bias.dtype:
        return "it takes float32 or float64, the same for all"
    if not x.is_contiguous(memory_format=_LAST):
        return "the images are not in the channels-last memory format"
    if weight.numel() == 0:
        return "there are no weights"
    if (x.shape[2] + 2 * padding[0]) * (x.shape[3] + 2 * padding[1]) > _MOST_PIXELS:
        return f"images have more than {_MOST_PIXELS:,} pixels"
    if torch.is_autocast_enabled("cpu"):
        return "autocast lowers the precision of convolutions"
    return None


def _priority(*_: object) -> int:
    # Without AVX2 PyTorch's convolutions are faster.
    return -1 if cpu_module().isa() == "generic" else 10


register(
    Backend(
        op="conv_relu_max_pool",
        name="cpu",
        priority=_priority,
        available=lambda: why_no_cpu("conv_relu_max_pool", "conv_relu_max_pool_backward", "isa"),
        supports=_supports,
        forward=forward,
        backward=backward,
    )
)

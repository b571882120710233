"""Statistics of one layer's per-sample weight gradients by the C++ kernel, in memory of the order of the weight."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmem.ops._checks import accumulation_dtype
from fastmem.ops._native import cpu_module, why_no_cpu
from fastmem.ops._registry import Backend, register
from fastmem.ops.layer_grad_stats import LayerGradStats, weight_shape

_DTYPE_CODES = {torch.float32: 0, torch.float64: 1}


def forward(
    a: Tensor,
    delta: Tensor,
    stats: tuple[str, ...],
    kernel_size: tuple[int, int] | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> LayerGradStats:
    """The statistics asked for, see :func:`fastmem.ops.layer_grad_stats.layer_grad_stats`."""
    dtype = accumulation_dtype(a.dtype)
    empty = a.numel() == 0 or delta.numel() == 0
    new = torch.zeros if empty else torch.empty
    shape = weight_shape(a, delta, kernel_size, groups)
    results = {name: new(a.shape[:1] if name == "norm_sq" else shape, dtype=dtype) for name in stats}
    if not empty:
        # Half precision is widened here: to the kernel it would be a conversion of every element for every task.
        a, delta = a.to(dtype), delta.to(dtype)
        if kernel_size is None:
            a, delta = _as_images(a), _as_images(delta)
        cpu_module().layer_grad_stats(
            a.data_ptr(),
            a.shape,
            a.stride(),
            delta.data_ptr(),
            delta.shape,
            delta.stride(),
            _DTYPE_CODES[dtype],
            kernel_size or (1, 1),
            stride,
            padding,
            dilation,
            groups,
            *(results[name].data_ptr() if name in results else 0 for name in LayerGradStats._fields),
            torch.get_num_threads(),
        )
    return LayerGradStats(*map(results.get, LayerGradStats._fields))


def _as_images(sequence: Tensor) -> Tensor:
    """``[B, T, K]`` as ``[B, K, 1, T]``: along a sequence a linear layer is a convolution with one tap."""
    return sequence.transpose(1, 2).unsqueeze(2)


def _supports(a: Tensor, *_: object) -> str | None:
    device = a.device.type
    return None if device == "cpu" else f"it computes on the CPU, and these tensors are on {device}"


register(
    Backend(
        op="layer_grad_stats",
        name="cpu",
        priority=10,
        available=lambda: why_no_cpu("layer_grad_stats"),
        supports=_supports,
        forward=forward,
    )
)

"""Statistics of one layer's per-sample weight gradients in plain PyTorch: patches by unfold, gradients by einsum.

The definition, and the fallback on every device. Gradients are held for a few samples at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmem.ops._checks import accumulation_dtype
from fastmem.ops._registry import Backend, register
from fastmem.ops.layer_grad_stats import LayerGradStats, weight_shape

#: Elements of patches and gradients that are held at a time.
_CHUNK_ELEMENTS = 1 << 24


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
    dtype, samples = accumulation_dtype(a.dtype), len(a)
    shape = weight_shape(a, delta, kernel_size, groups)
    sums = {name: torch.zeros(shape, dtype=dtype, device=a.device) for name in stats if name != "norm_sq"}
    norms = torch.zeros(samples, dtype=dtype, device=a.device)
    positions = delta.shape[1] if kernel_size is None else delta.shape[2] * delta.shape[3]
    weights = torch.Size(shape).numel()
    held = weights + positions * weights * groups // max(shape[0], 1)
    step = max(1, _CHUNK_ELEMENTS // max(held, 1))
    for begin in range(0, samples, step):
        part, out = a[begin : begin + step].to(dtype), delta[begin : begin + step].to(dtype)
        if kernel_size is None:
            gradients = torch.einsum("bto,btk->bok", out, part)
        else:
            patches = F.unfold(part, kernel_size, dilation, padding, stride)
            gradients = torch.einsum(
                "bgot,bgkt->bgok",
                out.reshape(len(out), groups, shape[0] // groups, positions),
                patches.reshape(len(out), groups, patches.shape[1] // groups, positions),
            ).reshape(len(out), *shape)
        for name, total in sums.items():
            total += _ADDED[name](gradients).sum(0)
        if "norm_sq" in stats:
            norms[begin : begin + step] = gradients.flatten(1).square().sum(1)
    return LayerGradStats(
        sums.get("sum"), sums.get("sum_sq"), sums.get("sum_abs"), norms if "norm_sq" in stats else None
    )


_ADDED = {"sum": lambda g: g, "sum_sq": torch.square, "sum_abs": torch.abs}

register(
    Backend(
        op="layer_grad_stats",
        name="reference",
        priority=0,
        available=lambda: None,
        supports=lambda *args: None,
        forward=forward,
    )
)

"""Statistics of one layer's per-sample weight gradients by the Triton kernel: tiles, partial sums and launches.

Roof: arithmetic, one plain weight gradient, see ``fastmem.ops.layer_grad_stats``. Extra memory is that of the results,
and where a weight has too few tiles to fill the device, of partial sums over parts of the samples: at most about
``4 * multiprocessors`` tiles for each sum. No atomic operation: the same device gives the same bits.

Reasoned, compiled ahead of time and run in Triton's interpreter, but not yet measured: no GPU was at hand.
"""

# Launching a kernel adds options to its arguments.
# pyright: reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmem.ops._checks import accumulation_dtype
from fastmem.ops._registry import Backend, register
from fastmem.ops.layer_grad_stats import LayerGradStats, weight_shape
from fastmem.ops.triton import (
    OPTIONS,
    ceil_divide,
    interpreted,
    launching,
    processors,
    triton_dtype,
    why_elsewhere,
    why_unavailable,
)

__all__ = ["PRECISIONS", "STAGES", "forward", "tile_for"]

#: How float32 operands are multiplied, by what :func:`torch.set_float32_matmul_precision` was set to.
PRECISIONS = {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}
#: Of the loop over positions: a third would take registers that the sums need.
STAGES = 2
_SUMS = ("sum", "sum_sq", "sum_abs")
_LARGEST_OFFSET = 2**31 - 1


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
    from fastmem.ops.triton._layer_grad_kernels import layer_grad_tiles

    dtype, shape = accumulation_dtype(a.dtype), weight_shape(a, delta, kernel_size, groups)
    if a.numel() == 0 or delta.numel() == 0:
        zeros = {name: a.new_zeros(a.shape[:1] if name == "norm_sq" else shape, dtype=dtype) for name in stats}
        return LayerGradStats(*map(zeros.get, LayerGradStats._fields))
    if interpreted() and a.dtype == torch.bfloat16:  # whose products take its bits for integers
        a, delta = a.float(), delta.float()
    if kernel_size is None:
        kernel_size, a, delta = (1, 1), _as_image(a), _as_image(delta)
    weights, sums = torch.Size(shape).numel(), [name for name in _SUMS if name in stats]
    outputs, rows = shape[0] // groups, weights // shape[0]
    precision = PRECISIONS[torch.get_float32_matmul_precision()] if a.dtype == torch.float32 else "ieee"
    block_o, block_k, block_t, warps = tile_for(outputs, rows, a.dtype, precision)
    o_tiles, k_tiles = ceil_divide(outputs, block_o), ceil_divide(rows, block_k)
    tiles = groups * o_tiles * k_tiles
    per_split = ceil_divide(len(a), max(1, min(len(a), 4 * processors(a) // tiles)))
    splits = ceil_divide(len(a), per_split)
    partial = a.new_empty((splits, len(sums), weights), dtype=dtype)
    norms = a.new_empty((tiles, len(a)) if "norm_sq" in stats else 0, dtype=dtype)
    with launching(a):
        layer_grad_tiles[(tiles, splits)](
            a, delta, partial, norms,
            len(a), per_split, outputs, rows, a.shape[1] // groups, kernel_size[0] * kernel_size[1], kernel_size[1],
            weights, *a.shape[2:], delta[0, 0].numel(), delta.shape[3], *stride, *padding, *dilation,
            *a.stride(), *delta.stride(), o_tiles, k_tiles,
            **{name.upper(): name in stats for name in _SUMS}, NORM="norm_sq" in stats,
            PADDED=padding != (0, 0), PRECISION=precision, BLOCK_O=block_o, BLOCK_K=block_k, BLOCK_T=block_t,
            ACC=triton_dtype(dtype), num_warps=warps, num_stages=STAGES, **OPTIONS,
        )  # fmt: skip
    added = partial[0] if splits == 1 else partial.sum(0)
    found = {name: value.view(shape) for name, value in zip(sums, added, strict=True)}
    if "norm_sq" in stats:
        found["norm_sq"] = norms.sum(0)
    return LayerGradStats(*map(found.get, LayerGradStats._fields))


def tile_for(outputs: int, rows: int, dtype: torch.dtype, precision: str) -> tuple[int, int, int, int]:
    """Outputs, rows k and positions of a tile, and its warps: of every sum a thread keeps 16 registers at most."""
    tallest = 64 if dtype != torch.float64 else 32
    widest = 32 if precision == "tf32x3" else tallest  # which holds both operands in two parts
    block_o, block_k = _power_of_two(outputs, tallest), _power_of_two(rows, widest)
    return block_o, block_k, 32 if dtype.itemsize == 2 else 16, 8 if block_o * block_k > 2048 else 4


def _power_of_two(size: int, most: int) -> int:
    return min(most, max(16, 1 << (size - 1).bit_length()))


def _as_image(sequence: Tensor) -> Tensor:
    """``[B, T, K]`` as ``[B, K, 1, T]``: along a sequence a linear layer is a convolution with one tap."""
    return sequence.transpose(1, 2).unsqueeze(2)


def _supports(a: Tensor, delta: Tensor, *_: Any) -> str | None:
    for tensor in (a, delta):
        extent = sum((size - 1) * abs(step) for size, step in zip(tensor.shape[1:], tensor.stride()[1:], strict=True))
        if extent > _LARGEST_OFFSET:
            return "a sample spans more than 2^31 elements"
    return why_elsewhere(a)


register(
    Backend(
        op="layer_grad_stats",
        name="triton",
        # On CPU tensors (the interpreter) it serves tests, and never by itself.
        priority=lambda a, *_: -1 if a.device.type == "cpu" else 30,
        available=why_unavailable,
        supports=_supports,
        forward=forward,
    )
)

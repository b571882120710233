"""KL divergence by the Triton kernels: allocation, strides and launches; _kl_div_kernels.py has the arithmetic.

Roof: memory traffic, for B rows of C classes of e bytes. Forward reads each logit once at every size, ``2 B C e`` bytes,
and writes 16 B. Backward reads ``2 B C e`` and writes ``B C e`` for each side; against a shared operand of R rows it
reads ``(1 + R) B C e`` and writes the shared gradient once.
"""

# Launching a kernel adds options to its arguments.
# pyright: reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmem.ops._checks import accumulation_dtype
from fastmem.ops._gpu_choice import priority
from fastmem.ops._leading import broadcasts, leading, summed_over
from fastmem.ops._registry import Backend, register
from fastmem.ops.triton import (
    OPTIONS,
    alignment,
    ceil_divide,
    gradient_like,
    inner_sizes,
    launching,
    longest_row,
    processors,
    row_segments,
    tile_elements,
    tile_for,
    triton_dtype,
    walk,
    why_unavailable,
    why_unsupported,
)

#: A temperature whose reciprocal float32 holds with room for logits.
_TEMPERATURES = (1e-30, 1e30)


def forward(p: Tensor, q: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``kl``, ``lse_p``, ``centre`` and ``shift``, each of the broadcast leading shape."""
    shape, sizes, strides = leading(p, q)
    dtype = accumulation_dtype(p.dtype)
    results = tuple(p.new_empty(shape, dtype=dtype) for _ in range(4))
    rows, classes = shape.numel(), p.shape[-1]
    if rows > 0:
        align = alignment((p, q), strides, classes)
        places = [*inner_sizes(sizes), *walk(strides[0], align), *walk(strides[1], align), p.stride(-1), q.stride(-1)]
        bits = _inverse_bits(temperature, dtype)
        common = {"NDIM": max(len(sizes), 1), "ALIGN": align, "ACC": triton_dtype(dtype)}
        with launching(p):
            launch = _forward_long if classes > longest_row(dtype) else _forward_short
            launch(p, q, results, rows, classes // align, places, bits, common)
    return results  # type: ignore[return-value]  # four of them


def _forward_short(
    p: Tensor, q: Tensor, results: Sequence[Tensor], rows: int, units: int, places: list[int], bits: int, common: Any
) -> None:
    from fastmem.ops.triton._kl_div_kernels import kl_rows

    dtype = results[0].dtype
    in_tile, block, warps = tile_for(p.shape[-1], longest_row(dtype), dtype)
    kl_rows[(ceil_divide(rows, in_tile),)](
        p, q, *results, rows, units, *places, bits, ROWS=in_tile, BLOCK=block, **common, num_warps=warps, **OPTIONS
    )


def _forward_long(
    p: Tensor, q: Tensor, results: Sequence[Tensor], rows: int, units: int, places: list[int], bits: int, common: Any
) -> None:
    from fastmem.ops.triton._kl_div_kernels import kl_merge_segments, kl_segments

    block = tile_elements(results[0].dtype)
    segments = row_segments(p, rows, results[0].dtype)
    sums = results[0].new_empty(rows * segments * 5)
    kl_segments[(rows * segments,)](p, q, sums, units, segments, *places, bits, BLOCK=block, **common, **OPTIONS)
    kl_merge_segments[(rows,)](p, q, sums, *results, units, segments, *places, bits, BLOCK=block, **common, **OPTIONS)


def backward(
    grad: Tensor,
    p: Tensor,
    q: Tensor,
    kl: Tensor,
    lse_p: Tensor,
    centre: Tensor,
    shift: Tensor,
    temperature: float,
    need_p: bool,
    need_q: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the two operands in their own shapes and dtype; where one broadcasts, its rows are summed on chip."""
    shape = torch.broadcast_shapes(p.shape[:-1], q.shape[:-1])
    rows = [row.to(accumulation_dtype(p.dtype)).contiguous() for row in (grad, kl, lse_p, centre, shift)]
    dp = gradient_like(p) if need_p else None
    dq = gradient_like(q) if need_q else None
    sum_p, sum_q = broadcasts(p, shape), broadcasts(q, shape)
    with launching(p):
        # A summed gradient brings that of the other operand along if that one has a row for every row.
        if dp is not None and sum_p:
            _backward_summed(rows, p, q, temperature, True, dp, None if sum_q else dq)
        if dq is not None and sum_q:
            _backward_summed(rows, p, q, temperature, False, dq, None if sum_p else dp)
        alone_p = dp if not sum_p and not (need_q and sum_q) else None
        alone_q = dq if not sum_q and not (need_p and sum_p) else None
        if rows[0].numel() > 0 and (alone_p is not None or alone_q is not None):
            _backward_alone(rows, p, q, temperature, alone_p, alone_q)
    return None if dp is None else dp.to(p.dtype), None if dq is None else dq.to(q.dtype)


def _backward_alone(
    rows: list[Tensor], p: Tensor, q: Tensor, temperature: float, dp: Tensor | None, dq: Tensor | None
) -> None:
    from fastmem.ops.triton._kl_div_kernels import kl_gradients

    _, sizes, strides = leading(p, q)
    classes, dtype = p.shape[-1], rows[0].dtype
    align = alignment((p, q), strides, classes)
    in_tile, block, warps = tile_for(classes, tile_elements(dtype), dtype)
    tiles = ceil_divide(classes, block)
    kl_gradients[(ceil_divide(rows[0].numel(), in_tile) * tiles,)](
        *rows, p, q, p if dp is None else dp, q if dq is None else dq,
        rows[0].numel(), classes // align, tiles,
        *inner_sizes(sizes), *walk(strides[0], align), *walk(strides[1], align), p.stride(-1), q.stride(-1),
        _inverse_bits(temperature, dtype),
        NEED_P=dp is not None, NEED_Q=dq is not None, ROWS=in_tile, BLOCK=block,
        NDIM=max(len(sizes), 1), ALIGN=align, ACC=triton_dtype(dtype), num_warps=warps, **OPTIONS,
    )  # fmt: skip


def _backward_summed(
    rows: list[Tensor],
    p: Tensor,
    q: Tensor,
    temperature: float,
    sum_p: bool,
    gradient: Tensor,
    other_gradient: Tensor | None,
) -> None:
    from fastmem.ops.triton._kl_div_kernels import kl_summed_gradients

    operand, other = (p, q) if sum_p else (q, p)
    kept, summed, strides, row_strides = summed_over(operand, other)
    p_strides, q_strides = strides if sum_p else reversed(strides)
    classes, dtype = p.shape[-1], rows[0].dtype
    kept_rows = gradient.numel() // classes
    if kept_rows == 0:
        return
    summed_rows = rows[0].numel() // kept_rows
    align = alignment((p, q), (p_strides, q_strides), classes)
    in_tile, block, warps = tile_for(classes, tile_elements(dtype), dtype)
    in_tile = min(in_tile, 1 << (kept_rows - 1).bit_length())
    tiles = ceil_divide(classes, block)
    programs = ceil_divide(kept_rows, in_tile) * tiles
    # Where the rows kept do not fill the device by themselves, parts of the sum run side by side.
    segments = max(1, min(8 * processors(p) // programs, summed_rows // 16, 256))
    total = gradient if segments == 1 else rows[0].new_empty((segments, *gradient.shape))
    walks = [
        *(walk(part, align) for operand in (p_strides, q_strides) for part in _parts(operand, len(kept))),
        *(walk(part, 1) for part in _parts(row_strides, len(kept))),
    ]
    kl_summed_gradients[(programs * segments,)](
        *rows, p, q, total, gradient if other_gradient is None else other_gradient,
        kept_rows, summed_rows, classes // align, tiles, segments,
        *inner_sizes(kept), *inner_sizes(summed), *(stride for walk in walks for stride in walk), p.stride(-1), q.stride(-1),
        _inverse_bits(temperature, dtype),
        SUM_P=sum_p, NEED_OTHER=other_gradient is not None, KEPT_NDIM=max(len(kept), 1),
        SUMMED_NDIM=max(len(summed), 1), ROWS=in_tile, BLOCK=block, ALIGN=align, ACC=triton_dtype(dtype),
        num_warps=warps, **OPTIONS,
    )  # fmt: skip
    if segments > 1:
        torch.sum(total, 0, out=gradient) if gradient.dtype == dtype else gradient.copy_(total.sum(0))


def _parts(strides: list[int], num_kept: int) -> tuple[list[int], list[int]]:
    return strides[:num_kept], strides[num_kept:]


def _inverse_bits(temperature: float, dtype: torch.dtype) -> int:
    """1/T as the kernels compute with it, rounded to their dtype, in the bits of a float64."""
    inverse = 1 / temperature
    if dtype == torch.float32:
        (inverse,) = struct.unpack("f", struct.pack("f", inverse))
    return struct.unpack("q", struct.pack("d", inverse))[0]


def _supports(p: Tensor, q: Tensor, temperature: float) -> str | None:
    if not _TEMPERATURES[0] <= temperature <= _TEMPERATURES[1]:
        return f"the temperature {temperature:g} is beyond what float32 scales by"
    return why_unsupported(p, q)


register(
    Backend(
        op="kl_div",
        name="triton",
        priority=lambda p, q, temperature: priority("triton", p),
        available=why_unavailable,
        supports=_supports,
        forward=forward,
        backward=backward,
    )
)

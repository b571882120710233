"""Statistics of logits and labels by the Triton kernels: allocation, strides and launches.

Roof: memory traffic, for B rows of C classes of e bytes. Forward reads each logit once, ``B C e`` bytes, 8 B for labels,
and writes 4 B for each statistic. Backward computes them again from the logits rather than saving them: ``2 B C e``
bytes where a row fits in a tile (up to 2048 classes), ``3 B C e`` above. _logit_stats_kernels.py has the arithmetic.
"""

# Launching a kernel adds options to its arguments.
# pyright: reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmem.ops._checks import accumulation_dtype
from fastmem.ops._gpu_choice import priority
from fastmem.ops._leading import leading
from fastmem.ops._registry import Backend, register
from fastmem.ops.triton import (
    OPTIONS,
    alignment,
    ceil_divide,
    gradient_like,
    inner_sizes,
    launching,
    longest_row,
    row_segments,
    tile_elements,
    tile_for,
    triton_dtype,
    walk,
    why_unavailable,
    why_unsupported,
)

_STATISTICS = ("MARGIN", "LOSS", "HINGE", "PROB", "ENTROPY")


def forward(logits: Tensor, labels: Tensor, margin_only: bool) -> tuple[Tensor | None, ...]:
    """Margin, loss, hinge, max_prob and entropy, each of the leading shape; the last four ``None`` if not wanted."""
    shape = logits.shape[:-1]
    dtype = accumulation_dtype(logits.dtype)
    statistics = [logits.new_empty(shape, dtype=dtype) for _ in range(1 if margin_only else 5)]
    if shape.numel() > 0:
        results = statistics * (5 if margin_only else 1)  # those not wanted are not written
        with launching(logits):
            launch = _forward_long if logits.shape[-1] > longest_row(dtype) else _forward_short
            launch(logits, labels, results, margin_only)
    return (*statistics, *[None] * (5 - len(statistics)))


def _forward_short(logits: Tensor, labels: Tensor, results: Sequence[Tensor], margin_only: bool) -> None:
    from fastmem.ops.triton._logit_stats_kernels import logit_rows

    dtype = results[0].dtype
    rows, classes = results[0].numel(), logits.shape[-1]
    in_tile, block, warps = tile_for(classes, longest_row(dtype), dtype)
    places, common = _places(logits, labels, dtype)
    logit_rows[(ceil_divide(rows, in_tile),)](
        logits, labels, *results, rows, classes // common["ALIGN"], *places,
        MARGIN_ONLY=margin_only, ROWS=in_tile, BLOCK=block, **common, num_warps=warps, **OPTIONS,
    )  # fmt: skip


def _forward_long(logits: Tensor, labels: Tensor, results: Sequence[Tensor], margin_only: bool) -> None:
    from fastmem.ops.triton._logit_stats_kernels import logit_merge_segments

    rows = results[0].numel()
    places, common = _places(logits, labels, results[0].dtype)
    sums, _, segments = _sum_segments(logits, labels, rows, results[0].dtype, placed=False)
    logit_merge_segments[(rows,)](
        logits, labels, sums, *results, logits.shape[-1] // common["ALIGN"], segments, *places,
        MARGIN_ONLY=margin_only, **common, num_warps=1, **OPTIONS,
    )  # fmt: skip


def backward(grads: Sequence[Tensor | None], logits: Tensor, labels: Tensor) -> Tensor:
    """Gradient with respect to the logits, in their shape and dtype."""
    dtype = accumulation_dtype(logits.dtype)
    dlogits = gradient_like(logits)
    if dlogits.numel() > 0:
        rows = [None if grad is None else grad.to(dtype).contiguous() for grad in grads]
        have = {name: row is not None for name, row in zip(_STATISTICS, rows, strict=True)}
        pointers = [dlogits if row is None else row for row in rows]  # those missing are not read
        with launching(logits):
            launch = _backward_long if logits.shape[-1] > longest_row(dtype) else _backward_short
            launch(logits, labels, pointers, dlogits, have, dtype)
    return dlogits.to(logits.dtype)


def _backward_short(
    logits: Tensor, labels: Tensor, grads: list[Tensor], dlogits: Tensor, have: dict[str, bool], dtype: torch.dtype
) -> None:
    from fastmem.ops.triton._logit_stats_kernels import logit_row_gradients

    rows, classes = logits.shape[:-1].numel(), logits.shape[-1]
    in_tile, block, warps = tile_for(classes, longest_row(dtype), dtype)
    places, common = _places(logits, labels, dtype)
    logit_row_gradients[(ceil_divide(rows, in_tile),)](
        logits, labels, *grads, dlogits, rows, classes // common["ALIGN"], *places,
        **have, ROWS=in_tile, BLOCK=block, **common, num_warps=warps, **OPTIONS,
    )  # fmt: skip


def _backward_long(
    logits: Tensor, labels: Tensor, grads: list[Tensor], dlogits: Tensor, have: dict[str, bool], dtype: torch.dtype
) -> None:
    from fastmem.ops.triton._logit_stats_kernels import logit_segment_gradients

    rows = logits.shape[:-1].numel()
    places, common = _places(logits, labels, dtype)
    sums, first, segments = _sum_segments(logits, labels, rows, dtype, placed=True)
    logit_segment_gradients[(rows * segments,)](
        logits, labels, sums, first, *grads, dlogits, logits.shape[-1] // common["ALIGN"], segments, *places,
        **have, BLOCK=tile_elements(dtype), **common, **OPTIONS,
    )  # fmt: skip


def _sum_segments(
    logits: Tensor, labels: Tensor, rows: int, dtype: torch.dtype, placed: bool
) -> tuple[Tensor, Tensor, int]:
    """The sums of the segments of every row, with ``placed`` the first column of each largest, and their number."""
    from fastmem.ops.triton._logit_stats_kernels import logit_segments

    segments = row_segments(logits, rows, dtype)
    sums = logits.new_empty(rows * segments * 3, dtype=dtype)
    first = logits.new_empty(rows * segments if placed else 0, dtype=torch.int32)
    places, common = _places(logits, labels, dtype)
    logit_segments[(rows * segments,)](
        logits, labels, sums, first, logits.shape[-1] // common["ALIGN"], segments, *places,
        PLACED=placed, BLOCK=tile_elements(dtype), **common, **OPTIONS,
    )  # fmt: skip
    return sums, first, segments


def _places(logits: Tensor, labels: Tensor, dtype: torch.dtype) -> tuple[list[int], dict[str, Any]]:
    """Sizes and strides in the order of the kernels' arguments, and the constants that go with them."""
    _, sizes, (logit_strides, label_strides) = leading(logits, labels.unsqueeze(-1))
    align = alignment((logits,), (logit_strides,), logits.shape[-1])
    places = [*inner_sizes(sizes), *walk(logit_strides, align), *walk(label_strides, 1), logits.stride(-1)]
    return places, {"NDIM": max(len(sizes), 1), "ALIGN": align, "ACC": triton_dtype(dtype)}


def _supports(logits: Tensor, labels: Tensor, margin_only: bool) -> str | None:
    return why_unsupported(logits, labels.unsqueeze(-1))


register(
    Backend(
        op="logit_stats",
        name="triton",
        priority=lambda logits, labels, margin_only: priority("triton", logits),
        available=why_unavailable,
        supports=_supports,
        forward=forward,
        backward=backward,
    )
)

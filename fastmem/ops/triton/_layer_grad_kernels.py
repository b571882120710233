"""Triton kernel of the statistics of one layer's per-sample weight gradients.

A program owns a tile of the weight ``[O, K]`` of one group, K counting channels times taps, and some of the samples. For
each sample it forms the gradient's tile as a product over the positions of the output, adds ``f`` of it to the sums that
it holds in registers, and forgets it. Patches are read where they lie; nothing is laid out.
"""

# A kernel is Python to the eye only.
# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def layer_grad_tiles(
    a_ptr, delta_ptr, sums_ptr, norm_ptr,
    samples, samples_per_split, outputs, rows, channels, taps, kernel_width, weights,
    height, width, positions, out_width,
    stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w,
    a_sample, a_channel, a_row, a_column, d_sample, d_channel, d_row, d_column,
    o_tiles, k_tiles,
    SUM: tl.constexpr, SUM_SQ: tl.constexpr, SUM_ABS: tl.constexpr, NORM: tl.constexpr,
    PADDED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_T: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """``2 B T O K`` operations. ``rows`` is K, ``weights`` the size of the whole weight; sums are [splits, stats, weights]."""
    tile, split = tl.program_id(0), tl.program_id(1)
    k = tile % k_tiles * BLOCK_K + tl.arange(0, BLOCK_K)
    o = tile // k_tiles % o_tiles * BLOCK_O + tl.arange(0, BLOCK_O)
    group = tile // (k_tiles * o_tiles)
    o_live, k_live = o < outputs, k < rows
    live = o_live[:, None] & k_live[None, :]
    down = k % taps // kernel_width * dilation_h - padding_h
    right = k % kernel_width * dilation_w - padding_w
    k_place = (group * channels + k // taps) * a_channel + down * a_row + right * a_column
    o_place = (group * outputs + o) * d_channel

    total = tl.zeros((BLOCK_O, BLOCK_K), ACC)
    squares = tl.zeros((BLOCK_O, BLOCK_K), ACC)
    absolutes = tl.zeros((BLOCK_O, BLOCK_K), ACC)
    first = split * samples_per_split
    a_ptr += first.to(tl.int64) * a_sample
    delta_ptr += first.to(tl.int64) * d_sample
    norm_ptr += tile.to(tl.int64) * samples + first
    for _ in range(first, tl.minimum(first + samples_per_split, samples)):
        g = tl.zeros((BLOCK_O, BLOCK_K), ACC)
        for start in range(0, positions, BLOCK_T):
            t = start + tl.arange(0, BLOCK_T)
            y, x = t // out_width, t % out_width
            t_live = t < positions
            seen = t_live[:, None] & k_live[None, :]
            if PADDED:
                row, column = (y * stride_h)[:, None] + down[None, :], (x * stride_w)[:, None] + right[None, :]
                seen = seen & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            t_place = y * (stride_h * a_row) + x * (stride_w * a_column)
            patch = tl.load(a_ptr + (t_place[:, None] + k_place[None, :]), mask=seen, other=0.0)
            d_place = o_place[:, None] + (y * d_row + x * d_column)[None, :]
            delta = tl.load(delta_ptr + d_place, mask=o_live[:, None] & t_live[None, :], other=0.0)
            g = tl.dot(delta, patch, g, input_precision=PRECISION, out_dtype=ACC)
        if SUM:
            total += g
        if SUM_SQ:
            squares += g * g
        if SUM_ABS:
            absolutes += tl.abs(g)
        if NORM:  # beside the weight a NaN times 0 may stand
            kept = tl.where(live, g, 0.0)
            tl.store(norm_ptr, tl.sum(kept * kept))
        a_ptr += a_sample
        delta_ptr += d_sample
        norm_ptr += 1

    place = ((group * outputs + o)[:, None] * rows + k[None, :]).to(tl.int64)
    into = sums_ptr + split.to(tl.int64) * ((SUM + SUM_SQ + SUM_ABS) * weights) + place
    if SUM:
        tl.store(into, total, mask=live)
    if SUM_SQ:
        tl.store(into + SUM * weights, squares, mask=live)
    if SUM_ABS:
        tl.store(into + (SUM + SUM_SQ) * weights, absolutes, mask=live)

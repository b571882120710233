"""Triton kernels over many tensors in one launch: importance of weights, and the selection of the highest scores.

What a program works on stands in a table of chunks, ``[chunks, columns]`` int64: addresses, then the number of elements.
Scores from 0 up are ordered as their bits are, so that the k-th largest is found a few bits at a time.
"""

# A kernel is Python to the eye only.
# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

# --- accumulation -----------------------------------------------------------------------------------------------------


@triton.jit
def _pointer(table_ptr, column, TYPE: tl.constexpr):
    return tl.load(table_ptr + column).to(tl.pointer_type(TYPE))  # type: ignore[arg-type]


@triton.jit
def accumulate_importance(
    table_ptr, scale,
    KIND: tl.constexpr, OVERWRITE: tl.constexpr, MODEL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """16 bytes a float32 weight. A row of the table: score, weight, gradient, elements."""
    row = table_ptr + tl.program_id(0).to(tl.int64) * 4
    score_ptr = _pointer(row, 0, tl.float32)
    weight_ptr, gradient_ptr = _pointer(row, 1, MODEL), _pointer(row, 2, MODEL)
    count = tl.load(row + 3).to(tl.int32)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        live = i < count
        added = tl.load(gradient_ptr + i, mask=live, other=0.0).to(tl.float32)
        if (KIND == "abs_gw") | (KIND == "sq_gw") | (KIND == "gw"):
            added *= tl.load(weight_ptr + i, mask=live, other=0.0).to(tl.float32)
        if (KIND == "sq_gw") | (KIND == "sq_g"):
            added *= added
        elif KIND != "gw":
            added = tl.abs(added)
        added *= scale
        if not OVERWRITE:
            added += tl.load(score_ptr + i, mask=live, other=0.0)
        tl.store(score_ptr + i, added, mask=live)


# --- selection --------------------------------------------------------------------------------------------------------


@triton.jit
def _ordered_bits(score_ptr, i, live):
    """Bits of float32 scores, -0 as 0: negative for what is negative, above infinity's for NaN."""
    return (tl.load(score_ptr + i, mask=live, other=0.0) + 0.0).to(tl.int32, bitcast=True)


@triton.jit
def count_digits(
    table_ptr, above_ptr, histogram_ptr, invalid_ptr,
    SHIFT: tl.constexpr, DIGITS: tl.constexpr, FIRST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """4 bytes a score: how often each digit ``bits >> SHIFT`` occurs in a chunk. The first pass counts what is no score too.

    Later passes count among the scores whose higher bits are those at above_ptr. A row of the table: score, mask,
    elements.
    """
    chunk = tl.program_id(0).to(tl.int64)
    row = table_ptr + chunk * 3
    score_ptr = _pointer(row, 0, tl.float32)
    count = tl.load(row + 2).to(tl.int32)
    above = tl.load(above_ptr).to(tl.int32)
    histogram = tl.zeros((DIGITS,), tl.int32)
    invalid = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        live = i < count
        bits = _ordered_bits(score_ptr, i, live)
        digit = bits >> SHIFT
        if FIRST:
            valid = (bits >= 0) & (bits <= 0x7F800000)
            invalid += (live & ~valid).to(tl.int32)
            counted = live & valid
        else:
            counted = live & (digit // DIGITS == above)
        histogram += tl.histogram(digit & (DIGITS - 1), DIGITS, mask=counted)
    tl.store(histogram_ptr + chunk * DIGITS + tl.arange(0, DIGITS), histogram)
    if FIRST:
        tl.store(invalid_ptr + chunk, tl.sum(invalid))


@triton.jit
def mark_highest(
    table_ptr, threshold_ptr, equal_before_ptr, equal_wanted_ptr, BLOCK: tl.constexpr
):  # fmt: skip
    """4 bytes a score: sets the bits of those above the threshold, and of the first so many equal to it."""
    chunk = tl.program_id(0).to(tl.int64)
    row = table_ptr + chunk * 3
    score_ptr, mask_ptr = _pointer(row, 0, tl.float32), _pointer(row, 1, tl.uint8)
    count = tl.load(row + 2).to(tl.int32)
    threshold = tl.load(threshold_ptr).to(tl.int32)
    left = (tl.load(equal_wanted_ptr) - tl.load(equal_before_ptr + chunk)).to(tl.int32)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        live = i < count
        bits = _ordered_bits(score_ptr, i, live)
        equal = (live & (bits == threshold)).to(tl.int32)
        rank = tl.cumsum(equal, 0)
        chosen = (live & (bits > threshold)) | ((equal > 0) & (rank <= left))
        left -= tl.sum(equal)
        byte = tl.sum(tl.reshape(chosen.to(tl.int32), (BLOCK // 8, 8)) << tl.arange(0, 8)[None, :], 1)
        place = start // 8 + tl.arange(0, BLOCK // 8)
        tl.store(mask_ptr + place, byte.to(tl.uint8), mask=place * 8 < count)

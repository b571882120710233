"""Arithmetic that the Triton kernels share: rows by their strides, exponentials, series, logarithms.

The same formulas and constants as csrc/common; the C++ headers say why they are as they are. Results of ``exp2`` below
the normal range of float32 are 0 on a GPU.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

LOG2E = tl.constexpr(1 / math.log(2))

#: What stands where a row has no more elements: far below every logit in use, yet finite.
FAR_BELOW = tl.constexpr(-(2 - 2**-23) * 2.0**126)

#: How far below the largest p an element has no weight left, in units of the temperature.
VANISHING32 = tl.constexpr(110.0)
VANISHING64 = tl.constexpr(750.0)

#: exp(-v) = sum (-v)^k / k!; up to |v| = 1/2 the series replaces what would cancel.
SERIES_RANGE = tl.constexpr(0.5)
_FACTORIALS = [1 / math.factorial(k) for k in range(17)]
PHI32 = tl.constexpr(tuple(_FACTORIALS[2:9]))
PHI64 = tl.constexpr(tuple(_FACTORIALS[2:]))
EXPM1_32 = tl.constexpr(tuple(_FACTORIALS[1:9]))
EXPM1_64 = tl.constexpr(tuple(_FACTORIALS[1:]))
#: x - log1p(x) = x^2 sum (-x)^k / (k + 2), for |x| <= 1/4.
LOG1P_REMAINDER32 = tl.constexpr(tuple(1 / (k + 2) for k in range(10)))
LOG1P_REMAINDER64 = tl.constexpr(tuple(1 / (k + 2) for k in range(24)))


@triton.jit
def polynomial(x, COEFFICIENTS: tl.constexpr, LAST: tl.constexpr):
    """sum COEFFICIENTS[k] x^k for k from 0 to LAST."""
    total = tl.zeros_like(x) + COEFFICIENTS[LAST]
    for k in tl.static_range(LAST):
        total = total * x + COEFFICIENTS[LAST - 1 - k]
    return total


@triton.jit
def is_finite(x, ACC: tl.constexpr):
    if ACC == tl.float64:
        return tl.abs(x) <= 1.7976931348623157e308
    else:
        return tl.abs(x) <= 3.4028234663852886e38


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0, as accurate where 1 + x rounds (Kahan)."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * (x / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def row_offset(row, n1, n2, s0, s1, s2, NDIM: tl.constexpr):
    """Offset of row number ``row`` (int64, row-major over up to three sizes) by its strides."""
    offset = row * 0
    if NDIM == 3:
        offset += row % n2 * s2
        row = row // n2
    if NDIM >= 2:
        offset += row % n1 * s1
        row = row // n1
    return offset + row * s0


@triton.jit
def load_tile(pointer, offset, columns, class_stride, inside, FILL: tl.constexpr, ACC: tl.constexpr):
    """Elements ``[rows, columns]`` as ``ACC``; ``FILL`` outside. ``offset`` is int64, of the rows."""
    places = offset[:, None] + columns.to(tl.int64)[None, :] * class_stride
    return tl.where(inside, tl.load(pointer + places, mask=inside, other=0.0).to(ACC), FILL)

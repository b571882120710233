"""The chains between the products of ``kkt_residual``: one program a row of activations."""

# A kernel is Python to the eye only.
# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def kkt_activate(
    z_ptr, bias_ptr, alpha_ptr, a_ptr, s_ptr, alpha_rows, columns,
    HAS_BIAS: tl.constexpr, TYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """z += bias; a = relu(z), s = sigmoid(alpha z). Four elements moved for each one of z."""
    row = tl.program_id(0).to(tl.int64)
    alpha = tl.load(alpha_ptr + row // alpha_rows).to(TYPE)
    start = row * columns
    for begin in range(0, columns, BLOCK):
        j = begin + tl.arange(0, BLOCK)
        live = j < columns
        z = tl.load(z_ptr + start + j, mask=live, other=0.0)
        if HAS_BIAS:
            z += tl.load(bias_ptr + j, mask=live, other=0.0)
            tl.store(z_ptr + start + j, z, mask=live)
        tl.store(a_ptr + start + j, tl.where(z <= 0, 0.0, z), mask=live)  # (this order keeps NaN)
        tl.store(s_ptr + start + j, 1 / (1 + tl.exp(-alpha * z)), mask=live)


@triton.jit
def kkt_rise(
    h_ptr, z_ptr, s_ptr, d_ptr, alpha_ptr, v_ptr, curve_ptr, inner_ptr, alpha_rows, columns,
    ONWARD: tl.constexpr, TYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """v = s u, curve = alpha (1 - s) d u - 2 d with u = 2 (h - z) + v; the row's sum of d (h - 2 z) in float64."""
    row = tl.program_id(0).to(tl.int64)
    alpha = tl.load(alpha_ptr + row // alpha_rows).to(TYPE)
    start = row * columns
    total = tl.zeros((BLOCK,), tl.float64)
    for begin in range(0, columns, BLOCK):
        j = begin + tl.arange(0, BLOCK)
        live = j < columns
        z, s = tl.load(z_ptr + start + j, mask=live, other=0.0), tl.load(s_ptr + start + j, mask=live, other=0.0)
        d = tl.load(d_ptr + start + j, mask=live, other=0.0)
        half = tl.load(h_ptr + start + j, mask=live, other=0.0) - z
        u = half + half
        if ONWARD:
            u += tl.load(v_ptr + start + j, mask=live, other=0.0)
        tl.store(v_ptr + start + j, s * u, mask=live)
        tl.store(curve_ptr + start + j, d * (alpha * (1 - s) * u - 2), mask=live)
        total += (d * (half - z)).to(tl.float64)
    tl.store(inner_ptr + row, tl.sum(total))


@triton.jit
def boxed_step(
    x_ptr, gradient_ptr, moment_ptr, square_ptr, rate_ptr, keep_ptr, low_ptr, high_ptr, spread_ptr, elements,
    WEIGHT: tl.constexpr, MOMENTUM: tl.constexpr, DECAY: tl.constexpr, DECAY_SQ: tl.constexpr, LEAST: tl.constexpr,
    IS_ADAM: tl.constexpr, TYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of one problem's elements: the penalty's gradient, the moments and the step, see ops/boxed_step.py."""
    problem = tl.program_id(0)
    rate, keep = tl.load(rate_ptr + problem), tl.load(keep_ptr + problem)
    low, high = tl.load(low_ptr + problem), tl.load(high_ptr + problem)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = j < elements
    j += problem.to(tl.int64) * elements
    x, moment = tl.load(x_ptr + j, mask=live, other=0.0), tl.load(moment_ptr + j, mask=live, other=0.0)
    # A constant is a Python float; in the kernel's type it does not widen what it meets.
    weight, momentum = tl.full((), 2 * WEIGHT, TYPE), tl.full((), MOMENTUM, TYPE)
    inside = tl.where(x > high, high, tl.where(x < low, low, x))  # (NaN is on neither side)
    g = tl.load(gradient_ptr + j, mask=live, other=0.0) + weight * (x - inside)
    if IS_ADAM:
        square = tl.load(square_ptr + j, mask=live, other=0.0) * keep
        moment = moment * keep
        moment += (g - moment) * tl.full((), 1 - DECAY, TYPE)
        square += (g * g - square) * tl.full((), 1 - DECAY_SQ, TYPE)
        spread = tl.load(spread_ptr + problem)
        moved = x - rate * moment / (spread * tl.sqrt(square) + tl.full((), LEAST, TYPE))
        tl.store(square_ptr + j, tl.where(rate == 0, 0.0, square), mask=live)
    else:
        moment = momentum * (keep * moment) + g
        moved = x - rate * moment
    tl.store(moment_ptr + j, tl.where(rate == 0, 0.0, moment), mask=live)
    tl.store(x_ptr + j, tl.where(rate == 0, x, moved), mask=live)

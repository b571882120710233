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

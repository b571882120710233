"""Triton kernels of the KL divergence.

With weights e = exp((p - max p)/T), w = (p - q)/T and v = w - c about any centre c,

    first = sum e v / sum e,  second = sum e phi(v) / sum e,  phi(v) = v + exp(-v) - 1 >= 0,
    KL = first + log1p(second - first),

so a row, or a tile of one, is summed about its own mean, and tiles merge into rows by adding terms of one sign only
(csrc/common/kl_math.h says more). A row whose sums are not finite is computed again term by term.
"""

# A kernel is Python to the eye only.
# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from fastmem.ops.triton._math import (
    EXPM1_32,
    EXPM1_64,
    FAR_BELOW,
    LOG1P_REMAINDER32,
    LOG1P_REMAINDER64,
    LOG2E,
    PHI32,
    PHI64,
    SERIES_RANGE,
    VANISHING32,
    VANISHING64,
    is_finite,
    load_tile,
    polynomial,
    row_offset,
)

# --- arithmetic -------------------------------------------------------------------------------------------------------


@triton.jit
def _difference(a, b):
    """a - b rounded, and what rounding took from it (Knuth)."""
    high = a - b
    seen = a - high
    return high, (a - (high + seen)) + (seen - b)


@triton.jit
def _unscaled(centre, inverse):
    """The centre of (p - q)/T on the scale of p - q, as high + low."""
    exact = centre.to(tl.float64) / inverse.to(tl.float64)
    high = exact.to(centre.dtype)
    return high, (exact - high.to(tl.float64)).to(centre.dtype)


@triton.jit
def _centred(p, q, high, low, inverse):
    """(p - q)/T less the centre high + low, accurate also where that takes the leading digits away."""
    difference, error = _difference(p, q)
    return ((difference - high) + (error - low)) * inverse


@triton.jit
def _phi_series(v, ACC: tl.constexpr):
    if ACC == tl.float64:
        return v * v * polynomial(-v, PHI64, 14)
    else:
        return v * v * polynomial(-v, PHI32, 6)


@triton.jit
def _sums(p, q, inverse, ACC: tl.constexpr):
    """Of every row of a tile: what weights are relative to, their sum, the centre, and the two moments about it."""
    largest = tl.max(p, 1)
    e = tl.exp2((p - largest[:, None]) * (inverse * LOG2E))
    weight = tl.sum(e, 1)
    centre = tl.sum(e * (p - q), 1) / weight * inverse
    high, low = _unscaled(centre, inverse)
    v = _centred(p, q, high[:, None], low[:, None], inverse)
    # The mass of q on the scale of the weights, e exp(-v): it may be there where e itself is 0.
    unit, error = _difference(largest, high)
    q_mass = tl.exp2(((q - unit[:, None]) - (error - low)[:, None]) * (inverse * LOG2E))
    terms = tl.where(tl.abs(v) <= SERIES_RANGE, e * _phi_series(v, ACC), e * (v - 1.0) + q_mass)
    return largest, weight, centre, tl.sum(e * v, 1), tl.sum(terms, 1)


@triton.jit
def _unmasked(p, q, largest, inverse, ACC: tl.constexpr):
    """Finite values that mean the same as p = -inf: no element where q is -inf too, else a weight that rounds to 0."""
    if ACC == tl.float64:
        vanishing: tl.constexpr = VANISHING64
    else:
        vanishing: tl.constexpr = VANISHING32
    p_absent = p == float("-inf")
    both_absent = p_absent & (q == float("-inf"))
    p = tl.where(p_absent, (largest - vanishing / inverse)[:, None], p)
    return tl.where(both_absent, FAR_BELOW, p), tl.where(both_absent, FAR_BELOW, q)


@triton.jit
def _has_weight(largest):
    return largest > FAR_BELOW / 2


@triton.jit
def _is_regular(largest, weight, second, ACC: tl.constexpr):
    return _has_weight(largest) & (weight > 0) & is_finite(second, ACC)


@triton.jit
def _sums_unmasked(p, q, inverse, ACC: tl.constexpr):
    """``_sums``, and once more without masked classes in tiles that have any."""
    largest, weight, centre, first, second = _sums(p, q, inverse, ACC)
    again = _has_weight(largest) & (is_finite(second, ACC) == 0)
    if tl.max(again.to(tl.int32), 0) > 0:
        p, q = _unmasked(p, q, largest, inverse, ACC)
        largest, weight, centre, first, second = _sums(p, q, inverse, ACC)
    return largest, weight, centre, first, second


@triton.jit
def _sums_masked(p, q, inverse, ACC: tl.constexpr):
    """The sums of a tile in which no p is above -inf: what q puts there, on a scale of its own."""
    largest = tl.max(q, 1)
    largest = tl.where(_has_weight(largest), largest, 0.0)
    # A p that is NaN makes the weight NaN; -inf adds nothing to it.
    weight = tl.sum(tl.exp2(p), 1)
    second = tl.sum(tl.exp2((q - largest[:, None]) * (inverse * LOG2E)), 1)
    return largest, weight, largest * 0.0, largest * 0.0, second


@triton.jit
def _moved(largest, weight, centre, first, second, to_largest, to_centre, inverse, ACC: tl.constexpr):
    """Weight and moments of a part relative to another largest p and about another centre."""
    below, below_error = _difference(largest, to_largest)
    delta, delta_error = _difference(to_centre, centre)
    scale = tl.exp2(below * (inverse * LOG2E))
    # scale exp(delta); where both are large their sum may still be small.
    grown = tl.exp2(((below * inverse + delta) + (below_error * inverse + delta_error)) * LOG2E)
    moved_weight = scale * weight
    centres = tl.where(
        tl.abs(delta) <= SERIES_RANGE,
        moved_weight * _phi_series(-delta, ACC),
        weight * grown - moved_weight * (delta + 1.0),
    )
    return (
        moved_weight,
        scale * first - delta * moved_weight,
        (grown * second - (grown - scale) * first) + centres,
    )


@triton.jit
def _merge(la, wa, ca, fa, sa, lb, wb, cb, fb, sb, inverse, ACC: tl.constexpr):
    """The sums of two parts of a row together."""
    a_empty = (wa == 0) & (sa == 0)
    b_empty = (wb == 0) & (sb == 0)
    # An empty part takes the other's scale and centre, so that nothing about it overflows.
    la, ca = tl.where(a_empty, lb, la), tl.where(a_empty, cb, ca)
    lb, cb = tl.where(b_empty, la, lb), tl.where(b_empty, ca, cb)
    largest = tl.maximum(la, lb)
    weight_b = wb * tl.exp2((lb - largest) * (inverse * LOG2E))
    weight = wa * tl.exp2((la - largest) * (inverse * LOG2E)) + weight_b
    share_b = tl.where(weight > 0, weight_b / tl.where(weight > 0, weight, 1.0), 0.0)
    centre = ca + share_b * (cb - ca)
    weight_a, first_a, second_a = _moved(la, wa, ca, fa, sa, largest, centre, inverse, ACC)
    weight_b, first_b, second_b = _moved(lb, wb, cb, fb, sb, largest, centre, inverse, ACC)
    return largest, weight_a + weight_b, centre, first_a + first_b, second_a + second_b


@triton.jit
def _finish(largest, weight, first, second, inverse, ACC: tl.constexpr):
    """kl, lse_p and shift of rows."""
    first = first / weight
    second = second / weight
    x = second - first
    near = tl.where(tl.abs(x) <= 0.25, x, 0.0)
    if ACC == tl.float64:
        remainder = near * near * polynomial(-near, LOG1P_REMAINDER64, 23)
    else:
        remainder = near * near * polynomial(-near, LOG1P_REMAINDER32, 9)
    # first + log1p(x) would cancel where KL is far below first.
    kl = tl.where(tl.abs(x) <= 0.25, second - remainder, first + tl.log(1.0 + x))
    kl = tl.where(kl < 0, 0.0, kl)
    return kl, largest * inverse + tl.log(weight), kl - first


@triton.jit
def _by_terms_sums(p, q, largest_p, largest_q, inverse):
    scale = inverse * LOG2E
    weight_p = tl.sum(tl.exp2((p - largest_p[:, None]) * scale), 1)
    return weight_p, tl.sum(tl.exp2((q - largest_q[:, None]) * scale), 1)


@triton.jit
def _by_terms_row(largest_p, largest_q, weight_p, weight_q, inverse):
    """lse_p, centre and shift from the normalisers of both sides."""
    log_weight = tl.log(weight_p)
    centre = (largest_p - largest_q) * inverse
    high, low = _unscaled(centre, inverse)
    shift = tl.log(weight_q) - log_weight - _centred(largest_p, largest_q, high, low, inverse)
    return largest_p * inverse + log_weight, centre, shift


@triton.jit
def _by_terms(p, q, largest_p, largest_q, weight_p, weight_q, centre, shift, inverse, ACC: tl.constexpr):
    """sum P phi(u) of every row, right for every special value, and sum P u; absent elements are -inf on both sides."""
    scale = inverse * LOG2E
    mass_p = tl.exp2((p - largest_p[:, None]) * scale) / weight_p[:, None]
    mass_q = tl.exp2((q - largest_q[:, None]) * scale) / weight_q[:, None]
    high, low = _unscaled(centre, inverse)
    u = _centred(p, q, high[:, None], low[:, None], inverse) + shift[:, None]
    terms = tl.where(tl.abs(u) <= SERIES_RANGE, mass_p * _phi_series(u, ACC), mass_p * (u - 1.0) + mass_q)
    terms = tl.where(q == float("-inf"), float("inf"), terms)
    means = tl.where(p == float("-inf"), 0.0, mass_p * u)
    return tl.sum(tl.where(p == float("-inf"), mass_q, terms), 1), tl.sum(means, 1)


@triton.jit
def _where_defined(kl, lse_p, largest_q, weight_q, ACC: tl.constexpr):
    """NaN in place of the KL where a softmax does not exist: a NaN, a +inf or nothing but -inf."""
    defined = is_finite(lse_p, ACC) & is_finite(largest_q, ACC) & (weight_q == weight_q)
    return tl.where(defined, kl, float("nan"))


# --- forward ----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["inverse_bits"])
def kl_rows(
    p_ptr, q_ptr, kl_ptr, lse_ptr, centre_ptr, shift_ptr,
    rows, units, n1, n2, p0, p1, p2, q0, q1, q2, p_class, q_class, inverse_bits,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, NDIM: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Rows that fit in a tile: read once, 2 B C e bytes."""
    inverse = inverse_bits.to(tl.float64, bitcast=True).to(ACC)
    classes = units * ALIGN
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    live = row < rows
    inside = live[:, None] & (column < classes)[None, :]
    p_row = row_offset(row, n1, n2, p0, p1, p2, NDIM) * ALIGN
    q_row = row_offset(row, n1, n2, q0, q1, q2, NDIM) * ALIGN
    p = load_tile(p_ptr, p_row, column, p_class, inside, FAR_BELOW, ACC)
    q = load_tile(q_ptr, q_row, column, q_class, inside, FAR_BELOW, ACC)

    largest, weight, centre, first, second = _sums_unmasked(p, q, inverse, ACC)
    kl, lse_p, shift = _finish(largest, weight, first, second, inverse, ACC)
    regular = _is_regular(largest, weight, second, ACC)
    if tl.max(((regular == 0) & live).to(tl.int32), 0) > 0:
        p = tl.where(inside, p, float("-inf"))
        q = tl.where(inside, q, float("-inf"))
        largest, largest_q = tl.max(p, 1), tl.max(q, 1)
        weight, weight_q = _by_terms_sums(p, q, largest, largest_q, inverse)
        terms_lse, terms_centre, terms_shift = _by_terms_row(largest, largest_q, weight, weight_q, inverse)
        terms_kl, mean = _by_terms(p, q, largest, largest_q, weight, weight_q, terms_centre, terms_shift, inverse, ACC)
        # The mean of u is the KL, which depends on the normalisers' rounding to second order only.
        terms_shift += terms_kl - mean
        terms_kl = _where_defined(terms_kl, terms_lse, largest_q, weight_q, ACC)
        kl = tl.where(regular, kl, terms_kl)
        lse_p = tl.where(regular, lse_p, terms_lse)
        centre = tl.where(regular, centre, terms_centre)
        shift = tl.where(regular, shift, terms_shift)
    kl = tl.where((classes == 1) & is_finite(kl, ACC), 0.0, kl)  # not the rounding of p - q
    tl.store(kl_ptr + row, kl, mask=live)
    tl.store(lse_ptr + row, lse_p, mask=live)
    tl.store(centre_ptr + row, centre, mask=live)
    tl.store(shift_ptr + row, shift, mask=live)


@triton.jit(do_not_specialize=["inverse_bits"])
def kl_segments(
    p_ptr, q_ptr, sums_ptr,
    units, segments, n1, n2, p0, p1, p2, q0, q1, q2, p_class, q_class, inverse_bits,
    BLOCK: tl.constexpr, NDIM: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The sums of a segment of a long row, a tile at a time: still one read."""
    inverse = inverse_bits.to(tl.float64, bitcast=True).to(ACC)
    program = tl.program_id(0).to(tl.int64)
    row = program // segments + tl.arange(0, 1)
    segment = program % segments
    begin = (units * segment // segments).to(tl.int32) * ALIGN
    end = (units * (segment + 1) // segments).to(tl.int32) * ALIGN
    p_row = row_offset(row, n1, n2, p0, p1, p2, NDIM) * ALIGN
    q_row = row_offset(row, n1, n2, q0, q1, q2, NDIM) * ALIGN

    zero = tl.zeros([1], ACC)
    largest, weight, centre, first, second = zero, zero, zero, zero, zero
    for start in range(begin, end, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = (column < end)[None, :]
        p = load_tile(p_ptr, p_row, column, p_class, inside, FAR_BELOW, ACC)
        q = load_tile(q_ptr, q_row, column, q_class, inside, FAR_BELOW, ACC)
        lb, wb, cb, fb, sb = _sums_unmasked(p, q, inverse, ACC)
        if tl.max((_has_weight(lb) == 0).to(tl.int32), 0) > 0:
            lb, wb, cb, fb, sb = _sums_masked(p, q, inverse, ACC)
        largest, weight, centre, first, second = _merge(
            largest, weight, centre, first, second, lb, wb, cb, fb, sb, inverse, ACC
        )
    sums = sums_ptr + program * 5 + tl.arange(0, 1)
    tl.store(sums, largest)
    tl.store(sums + 1, weight)
    tl.store(sums + 2, centre)
    tl.store(sums + 3, first)
    tl.store(sums + 4, second)


@triton.jit(do_not_specialize=["inverse_bits"])
def kl_merge_segments(
    p_ptr, q_ptr, sums_ptr, kl_ptr, lse_ptr, centre_ptr, shift_ptr,
    units, segments, n1, n2, p0, p1, p2, q0, q1, q2, p_class, q_class, inverse_bits,
    BLOCK: tl.constexpr, NDIM: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Rows from the sums of their segments, in order; an irregular row term by term, in three reads."""
    inverse = inverse_bits.to(tl.float64, bitcast=True).to(ACC)
    classes = units * ALIGN
    row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    zero = tl.zeros([1], ACC)
    largest, weight, centre, first, second = zero, zero, zero, zero, zero
    for segment in range(0, segments):
        sums = sums_ptr + (row * segments + segment) * 5
        largest, weight, centre, first, second = _merge(
            largest, weight, centre, first, second,
            tl.load(sums), tl.load(sums + 1), tl.load(sums + 2), tl.load(sums + 3), tl.load(sums + 4),
            inverse, ACC,
        )  # fmt: skip
    kl, lse_p, shift = _finish(largest, weight, first, second, inverse, ACC)
    regular = _is_regular(largest, weight, second, ACC)
    if tl.max((regular == 0).to(tl.int32), 0) > 0:
        p_row = row_offset(row, n1, n2, p0, p1, p2, NDIM) * ALIGN
        q_row = row_offset(row, n1, n2, q0, q1, q2, NDIM) * ALIGN
        absent: tl.constexpr = float("-inf")
        largest_p = zero + absent
        largest_q = zero + absent
        for start in range(0, classes, BLOCK):
            column = start + tl.arange(0, BLOCK)
            inside = (column < classes)[None, :]
            p = load_tile(p_ptr, p_row, column, p_class, inside, absent, ACC)
            q = load_tile(q_ptr, q_row, column, q_class, inside, absent, ACC)
            largest_p = tl.maximum(largest_p, tl.max(p, 1))
            largest_q = tl.maximum(largest_q, tl.max(q, 1))
        weight_p = zero
        weight_q = zero
        for start in range(0, classes, BLOCK):
            column = start + tl.arange(0, BLOCK)
            inside = (column < classes)[None, :]
            p = load_tile(p_ptr, p_row, column, p_class, inside, absent, ACC)
            q = load_tile(q_ptr, q_row, column, q_class, inside, absent, ACC)
            more_p, more_q = _by_terms_sums(p, q, largest_p, largest_q, inverse)
            weight_p += more_p
            weight_q += more_q
        lse_p, centre, shift = _by_terms_row(largest_p, largest_q, weight_p, weight_q, inverse)
        kl = zero
        mean = zero
        for start in range(0, classes, BLOCK):
            column = start + tl.arange(0, BLOCK)
            inside = (column < classes)[None, :]
            p = load_tile(p_ptr, p_row, column, p_class, inside, absent, ACC)
            q = load_tile(q_ptr, q_row, column, q_class, inside, absent, ACC)
            more_kl, more_mean = _by_terms(p, q, largest_p, largest_q, weight_p, weight_q, centre, shift, inverse, ACC)
            kl += more_kl
            mean += more_mean
        shift += kl - mean
        kl = _where_defined(kl, lse_p, largest_q, weight_q, ACC)
    tl.store(kl_ptr + row, kl)
    tl.store(lse_ptr + row, lse_p)
    tl.store(centre_ptr + row, centre)
    tl.store(shift_ptr + row, shift)


# --- backward ---------------------------------------------------------------------------------------------------------


@triton.jit
def _load_rows(grad_ptr, kl_ptr, lse_ptr, centre_ptr, shift_ptr, row, live, ACC: tl.constexpr):
    """The row values; the gradient of a row whose KL is not finite is NaN."""
    kl = tl.load(kl_ptr + row, mask=live, other=0.0)
    grad = tl.load(grad_ptr + row, mask=live, other=0.0)
    grad = tl.where(is_finite(kl, ACC), grad, float("nan"))
    lse_p = tl.load(lse_ptr + row, mask=live, other=0.0)
    centre = tl.load(centre_ptr + row, mask=live, other=0.0)
    return grad, kl, lse_p, centre, tl.load(shift_ptr + row, mask=live, other=0.0)


@triton.jit
def _gradients(p, q, grad, kl, lse_p, centre, shift, inverse, ACC: tl.constexpr):
    """grad P (u - KL)/T and grad (Q - P)/T of every element, from the rows' values."""
    high, low = _unscaled(centre, inverse)
    u = _centred(p, q, high[:, None], low[:, None], inverse) + shift[:, None]
    exponent = (p * inverse - lse_p[:, None]) * LOG2E
    mass = tl.exp2(exponent)
    if ACC == tl.float64:
        series = u * polynomial(-u, EXPM1_64, 15)
    else:
        series = u * polynomial(-u, EXPM1_32, 7)
    less = tl.where(tl.abs(u) <= SERIES_RANGE, -mass * series, tl.exp2(exponent - u * LOG2E) - mass)
    p_absent = p == float("-inf")
    q_mass = tl.exp2((((q * inverse - lse_p[:, None]) + centre[:, None]) - shift[:, None]) * LOG2E)
    scale = (grad * inverse)[:, None]
    dp = scale * tl.where(p_absent, 0.0, mass * (u - kl[:, None]))
    return dp, scale * tl.where(p_absent, q_mass, less)


@triton.jit(do_not_specialize=["inverse_bits"])
def kl_gradients(
    grad_ptr, kl_ptr, lse_ptr, centre_ptr, shift_ptr, p_ptr, q_ptr, dp_ptr, dq_ptr,
    rows, units, tiles, n1, n2, p0, p1, p2, q0, q1, q2, p_class, q_class, inverse_bits,
    NEED_P: tl.constexpr, NEED_Q: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, NDIM: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Every element by itself: 2 B C e bytes read, B C e written for each side."""
    inverse = inverse_bits.to(tl.float64, bitcast=True).to(ACC)
    classes = units * ALIGN
    program = tl.program_id(0).to(tl.int64)
    row = program // tiles * ROWS + tl.arange(0, ROWS)
    column = (program % tiles).to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
    live = row < rows
    inside = live[:, None] & (column < classes)[None, :]
    p_row = row_offset(row, n1, n2, p0, p1, p2, NDIM) * ALIGN
    q_row = row_offset(row, n1, n2, q0, q1, q2, NDIM) * ALIGN
    p = load_tile(p_ptr, p_row, column, p_class, inside, 0.0, ACC)
    q = load_tile(q_ptr, q_row, column, q_class, inside, 0.0, ACC)
    grad, kl, lse_p, centre, shift = _load_rows(grad_ptr, kl_ptr, lse_ptr, centre_ptr, shift_ptr, row, live, ACC)
    dp, dq = _gradients(p, q, grad, kl, lse_p, centre, shift, inverse, ACC)
    place = (row * units * ALIGN)[:, None] + column[None, :]
    if NEED_P:
        tl.store(dp_ptr + place, dp.to(dp_ptr.dtype.element_ty), mask=inside)
    if NEED_Q:
        tl.store(dq_ptr + place, dq.to(dq_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["inverse_bits"])
def kl_summed_gradients(
    grad_ptr, kl_ptr, lse_ptr, centre_ptr, shift_ptr, p_ptr, q_ptr, total_ptr, other_ptr,
    kept_rows, summed_rows, units, tiles, segments,
    k1, k2, s1, s2, pk0, pk1, pk2, ps0, ps1, ps2, qk0, qk1, qk2, qs0, qs1, qs2,
    rk0, rk1, rk2, rs0, rs1, rs2, p_class, q_class, inverse_bits,
    SUM_P: tl.constexpr, NEED_OTHER: tl.constexpr, KEPT_NDIM: tl.constexpr, SUMMED_NDIM: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient of an operand that broadcasts: its tile stays, the rows that share it pass by and add up.

    ``total`` is ``[segments, kept_rows, classes]``; the other operand's gradient is written on the way.
    """
    inverse = inverse_bits.to(tl.float64, bitcast=True).to(ACC)
    classes = units * ALIGN
    program = tl.program_id(0).to(tl.int64)
    segment = program % segments
    column = (program // segments % tiles).to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
    kept = program // segments // tiles * ROWS + tl.arange(0, ROWS)
    live = kept < kept_rows
    inside = live[:, None] & (column < classes)[None, :]
    p_kept = row_offset(kept, k1, k2, pk0, pk1, pk2, KEPT_NDIM)
    q_kept = row_offset(kept, k1, k2, qk0, qk1, qk2, KEPT_NDIM)
    r_kept = row_offset(kept, k1, k2, rk0, rk1, rk2, KEPT_NDIM)
    total = tl.zeros([ROWS, BLOCK], ACC)
    for index in range(summed_rows * segment // segments, summed_rows * (segment + 1) // segments):
        summed = index + tl.zeros([1], tl.int64)
        p_row = (p_kept + row_offset(summed, s1, s2, ps0, ps1, ps2, SUMMED_NDIM)) * ALIGN
        q_row = (q_kept + row_offset(summed, s1, s2, qs0, qs1, qs2, SUMMED_NDIM)) * ALIGN
        row = r_kept + row_offset(summed, s1, s2, rs0, rs1, rs2, SUMMED_NDIM)
        p = load_tile(p_ptr, p_row, column, p_class, inside, 0.0, ACC)
        q = load_tile(q_ptr, q_row, column, q_class, inside, 0.0, ACC)
        grad, kl, lse_p, centre, shift = _load_rows(grad_ptr, kl_ptr, lse_ptr, centre_ptr, shift_ptr, row, live, ACC)
        dp, dq = _gradients(p, q, grad, kl, lse_p, centre, shift, inverse, ACC)
        total += dp if SUM_P else dq
        if NEED_OTHER:
            other = dq if SUM_P else dp
            place = (row * units * ALIGN)[:, None] + column[None, :]
            tl.store(other_ptr + place, other.to(other_ptr.dtype.element_ty), mask=inside)
    place = ((segment * kept_rows + kept) * units * ALIGN)[:, None] + column[None, :]
    tl.store(total_ptr + place, total.to(total_ptr.dtype.element_ty), mask=inside)

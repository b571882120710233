"""Triton kernels of the statistics of logits and labels.

Everything follows from the label's logit and from what the other classes add up to (csrc/common/logit_math.h): the
largest of them, the sum of exp(z - largest), and that of exp(z - largest) (z - largest). Sums of tiles merge into those
of rows, so one read gives all statistics.
"""

# A kernel is Python to the eye only.
# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from fastmem.ops.triton._math import FAR_BELOW, LOG2E, is_finite, load_tile, log1p, row_offset

# --- arithmetic -------------------------------------------------------------------------------------------------------


@triton.jit
def _within_range(largest):
    return tl.where(largest < FAR_BELOW, FAR_BELOW, tl.where(largest > -FAR_BELOW, -FAR_BELOW, largest))


@triton.jit
def _sums(z, ACC: tl.constexpr):
    """Of every row of a tile: its largest, kept finite, the weights relative to it, and their tilt.

    The weight is 0 if all elements are -inf, +inf if one is +inf and NaN if one is NaN.
    """
    largest = _within_range(tl.max(tl.where(z == z, z, float("-inf")), 1))
    below = z - largest[:, None]
    e = tl.exp2(below * LOG2E)
    return largest, tl.sum(e, 1), tl.sum(e * tl.where(below < FAR_BELOW, FAR_BELOW, below), 1)


@triton.jit
def _merge(la, wa, ta, lb, wb, tb):
    largest = tl.maximum(la, lb)
    scale_a = tl.exp2((la - largest) * LOG2E)
    scale_b = tl.exp2((lb - largest) * LOG2E)
    tilt = scale_a * (ta + (la - largest) * wa) + scale_b * (tb + (lb - largest) * wb)
    return largest, scale_a * wa + scale_b * wb, tilt


@triton.jit
def _rival(largest, weight, ACC: tl.constexpr):
    """The largest logit of the others: infinite or NaN where it is."""
    return tl.where(weight == 0, float("-inf"), tl.where(is_finite(weight, ACC), largest, weight))


@triton.jit
def _softplus(x):
    return tl.where(x > 0, x, 0.0) + log1p(tl.exp2(-tl.abs(x) * LOG2E))


@triton.jit
def _margin(logit, largest, weight, ACC: tl.constexpr):
    hinge = logit - _rival(largest, weight, ACC)
    finite = is_finite(hinge, ACC)
    return hinge, tl.where(finite, hinge - tl.log(tl.where(finite, weight, 1.0)), hinge)


@triton.jit
def _confidence(logit, largest, weight, tilt, ACC: tl.constexpr):
    """max_prob and entropy, relative to the largest logit of all; NaN where there is no softmax."""
    rival = _rival(largest, weight, ACC)
    top = tl.where(logit > rival, logit, rival)
    defined = (logit == logit) & (rival == rival) & is_finite(top, ACC)
    gap = tl.where(defined, logit - rival, 0.0)
    scale = tl.exp2(-tl.abs(gap) * LOG2E)  # 0 where one of the two is absent
    distance = tl.where(scale == 0, 0.0, tl.abs(gap))
    rest = tl.where(gap > 0, scale * weight, (weight - 1.0) + scale)
    surprise = tl.where(gap > 0, scale * (distance * weight - tilt), scale * distance - tilt)
    rest = tl.where(defined, rest, 0.0)
    prob = 1.0 / (1.0 + rest)
    entropy = log1p(rest) + surprise * prob
    return tl.where(defined, prob, float("nan")), tl.where(defined, entropy, float("nan"))


@triton.jit
def _label_logit(z_ptr, z_row, label, classes, class_stride, live, ACC: tl.constexpr):
    """The label's logit; NaN for a label out of range, which then spoils the row."""
    valid = live & (label >= 0) & (label < classes)
    logit = tl.load(z_ptr + z_row + label * class_stride, mask=valid, other=0.0).to(ACC)
    return tl.where(valid, logit, float("nan"))


@triton.jit
def _store(
    row, live, logit, largest, weight, tilt, margin_ptr, loss_ptr, hinge_ptr, prob_ptr, entropy_ptr,
    MARGIN_ONLY: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    hinge, margin = _margin(logit, largest, weight, ACC)
    tl.store(margin_ptr + row, margin, mask=live)
    if not MARGIN_ONLY:
        prob, entropy = _confidence(logit, largest, weight, tilt, ACC)
        tl.store(loss_ptr + row, _softplus(-margin), mask=live)
        tl.store(hinge_ptr + row, hinge, mask=live)
        tl.store(prob_ptr + row, prob, mask=live)
        tl.store(entropy_ptr + row, entropy, mask=live)


# --- forward ----------------------------------------------------------------------------------------------------------


@triton.jit
def logit_rows(
    z_ptr, label_ptr, margin_ptr, loss_ptr, hinge_ptr, prob_ptr, entropy_ptr,
    rows, units, n1, n2, z0, z1, z2, y0, y1, y2, class_stride,
    MARGIN_ONLY: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, NDIM: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Rows that fit in a tile: B C e bytes."""
    classes = units * ALIGN
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    live = row < rows
    z_row = row_offset(row, n1, n2, z0, z1, z2, NDIM) * ALIGN
    label = tl.load(label_ptr + row_offset(row, n1, n2, y0, y1, y2, NDIM), mask=live, other=-1)
    inside = live[:, None] & (column < classes)[None, :]
    z = load_tile(z_ptr, z_row, column, class_stride, inside, float("-inf"), ACC)
    others = tl.where(column[None, :] == label[:, None], float("-inf"), z)
    largest, weight, tilt = _sums(others, ACC)
    logit = _label_logit(z_ptr, z_row, label, classes, class_stride, live, ACC)
    _store(
        row, live, logit, largest, weight, tilt, margin_ptr, loss_ptr, hinge_ptr, prob_ptr, entropy_ptr,
        MARGIN_ONLY, ACC,
    )  # fmt: skip


@triton.jit
def logit_segments(
    z_ptr, label_ptr, sums_ptr, first_ptr,
    units, segments, n1, n2, z0, z1, z2, y0, y1, y2, class_stride,
    PLACED: tl.constexpr, BLOCK: tl.constexpr, NDIM: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The sums of a segment of a long row, a tile at a time, and with ``PLACED`` the first column of its largest."""
    program = tl.program_id(0).to(tl.int64)
    row = program // segments + tl.arange(0, 1)
    segment = program % segments
    begin = (units * segment // segments).to(tl.int32) * ALIGN
    end = (units * (segment + 1) // segments).to(tl.int32) * ALIGN
    z_row = row_offset(row, n1, n2, z0, z1, z2, NDIM) * ALIGN
    label = tl.load(label_ptr + row_offset(row, n1, n2, y0, y1, y2, NDIM))
    weight = tl.zeros([1], ACC)
    largest = weight + FAR_BELOW
    tilt = tl.zeros([1], ACC)
    first = tl.zeros([1], tl.int32) + 2147483647
    for start in range(begin, end, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = (column < end)[None, :]
        z = load_tile(z_ptr, z_row, column, class_stride, inside, float("-inf"), ACC)
        z = tl.where(column[None, :] == label[:, None], float("-inf"), z)
        lb, wb, tb = _sums(z, ACC)
        if PLACED:
            here = tl.min(tl.where(z == lb[:, None], column[None, :], 2147483647), 1)
            first = tl.where(lb > largest, here, first)
        largest, weight, tilt = _merge(largest, weight, tilt, lb, wb, tb)
    sums = sums_ptr + program * 3 + tl.arange(0, 1)
    tl.store(sums, largest)
    tl.store(sums + 1, weight)
    tl.store(sums + 2, tilt)
    if PLACED:
        tl.store(first_ptr + program + tl.arange(0, 1), first)


@triton.jit
def _merged_segments(sums_ptr, first_ptr, row, segments, PLACED: tl.constexpr, ACC: tl.constexpr):
    """The sums of a row from those of its segments, in order."""
    weight = tl.zeros([1], ACC)
    largest = weight + FAR_BELOW
    tilt = tl.zeros([1], ACC)
    first = tl.zeros([1], tl.int32) + 2147483647
    for segment in range(0, segments):
        place = row * segments + segment
        lb = tl.load(sums_ptr + place * 3)
        if PLACED:
            first = tl.where(lb > largest, tl.load(first_ptr + place), first)
        largest, weight, tilt = _merge(
            largest, weight, tilt, lb, tl.load(sums_ptr + place * 3 + 1), tl.load(sums_ptr + place * 3 + 2)
        )
    return largest, weight, tilt, first


@triton.jit
def logit_merge_segments(
    z_ptr, label_ptr, sums_ptr, margin_ptr, loss_ptr, hinge_ptr, prob_ptr, entropy_ptr,
    units, segments, n1, n2, z0, z1, z2, y0, y1, y2, class_stride,
    MARGIN_ONLY: tl.constexpr, NDIM: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The statistics of a long row."""
    row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    live = row >= 0
    largest, weight, tilt, _ = _merged_segments(sums_ptr, sums_ptr, row, segments, False, ACC)
    z_row = row_offset(row, n1, n2, z0, z1, z2, NDIM) * ALIGN
    label = tl.load(label_ptr + row_offset(row, n1, n2, y0, y1, y2, NDIM))
    logit = _label_logit(z_ptr, z_row, label, units * ALIGN, class_stride, live, ACC)
    _store(
        row, live, logit, largest, weight, tilt, margin_ptr, loss_ptr, hinge_ptr, prob_ptr, entropy_ptr,
        MARGIN_ONLY, ACC,
    )  # fmt: skip


# --- backward ---------------------------------------------------------------------------------------------------------


@triton.jit
def _load_grad(grad_ptr, row, live, HAVE: tl.constexpr, ACC: tl.constexpr):
    if HAVE:
        return tl.load(grad_ptr + row, mask=live, other=0.0)
    else:
        return (row * 0).to(ACC)


@triton.jit
def _gradient_rows(
    logit, largest, weight, tilt, rival_is_first, margin_grad, loss_grad, hinge_grad, prob_grad, entropy_grad,
    ACC: tl.constexpr,
):  # fmt: skip
    """What every element of a row needs: level, slope, the value at the label, and what the rival gets more."""
    _, margin = _margin(logit, largest, weight, ACC)
    valid = tl.where(is_finite(margin, ACC), 0.0, float("nan"))
    max_prob, entropy = _confidence(logit, largest, weight, tilt, ACC)
    loss = _softplus(-margin)
    other_loss = _softplus(margin)
    other_prob = tl.exp2(-other_loss * LOG2E)
    gap = logit - largest
    rival_is_top = (gap < 0) | ((gap == 0) & rival_is_first)
    of_margin = margin_grad - loss_grad * other_prob
    of_top = prob_grad * max_prob
    # log p_c + entropy = z_c - largest + this, for every other class.
    offset = entropy - other_loss - tl.log(weight)
    slope = -other_prob * entropy_grad
    level = valid - of_margin - other_prob * (of_top + entropy_grad * offset)
    label_prob = tl.exp2(-loss * LOG2E)
    at_label = (
        valid
        + of_margin
        + hinge_grad
        + tl.where(rival_is_top, 0.0, of_top)
        - label_prob * (of_top + entropy_grad * (entropy - loss))
    )
    return level, slope, at_label, tl.where(rival_is_top, of_top, 0.0) - hinge_grad


@triton.jit
def _gradients(z, column, label, rival, largest, weight, level, slope, at_label, more_at_rival, ACC: tl.constexpr):
    below = z - largest[:, None]
    below = tl.where(below < FAR_BELOW, FAR_BELOW, below)
    gradient = tl.exp2(below * LOG2E) / weight[:, None] * (slope[:, None] * below + level[:, None])
    gradient += tl.where(column[None, :] == rival[:, None], more_at_rival[:, None], 0.0)
    return tl.where(column[None, :] == label[:, None], at_label[:, None], gradient)


@triton.jit
def logit_row_gradients(
    z_ptr, label_ptr, margin_ptr, loss_ptr, hinge_ptr, prob_ptr, entropy_ptr, dz_ptr,
    rows, units, n1, n2, z0, z1, z2, y0, y1, y2, class_stride,
    MARGIN: tl.constexpr, LOSS: tl.constexpr, HINGE: tl.constexpr, PROB: tl.constexpr, ENTROPY: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, NDIM: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Rows that fit in a tile: one read, one write, 2 B C e bytes."""
    classes = units * ALIGN
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    live = row < rows
    z_row = row_offset(row, n1, n2, z0, z1, z2, NDIM) * ALIGN
    label = tl.load(label_ptr + row_offset(row, n1, n2, y0, y1, y2, NDIM), mask=live, other=-1)
    inside = live[:, None] & (column < classes)[None, :]
    z = load_tile(z_ptr, z_row, column, class_stride, inside, float("-inf"), ACC)
    z = tl.where(column[None, :] == label[:, None], float("-inf"), z)
    largest, weight, tilt = _sums(z, ACC)
    rival = tl.min(tl.where(z == largest[:, None], column[None, :], 2147483647), 1)
    level, slope, at_label, more_at_rival = _gradient_rows(
        _label_logit(z_ptr, z_row, label, classes, class_stride, live, ACC), largest, weight, tilt, rival < label,
        _load_grad(margin_ptr, row, live, MARGIN, ACC), _load_grad(loss_ptr, row, live, LOSS, ACC),
        _load_grad(hinge_ptr, row, live, HINGE, ACC), _load_grad(prob_ptr, row, live, PROB, ACC),
        _load_grad(entropy_ptr, row, live, ENTROPY, ACC), ACC,
    )  # fmt: skip
    gradient = _gradients(z, column, label, rival, largest, weight, level, slope, at_label, more_at_rival, ACC)
    place = (row * units * ALIGN)[:, None] + column[None, :]
    tl.store(dz_ptr + place, gradient.to(dz_ptr.dtype.element_ty), mask=inside)


@triton.jit
def logit_segment_gradients(
    z_ptr, label_ptr, sums_ptr, first_ptr, margin_ptr, loss_ptr, hinge_ptr, prob_ptr, entropy_ptr, dz_ptr,
    units, segments, n1, n2, z0, z1, z2, y0, y1, y2, class_stride,
    MARGIN: tl.constexpr, LOSS: tl.constexpr, HINGE: tl.constexpr, PROB: tl.constexpr, ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr, NDIM: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A segment of a long row, which is read for the second time: 3 B C e bytes in all."""
    program = tl.program_id(0).to(tl.int64)
    row = program // segments + tl.arange(0, 1)
    live = row >= 0
    segment = program % segments
    begin = (units * segment // segments).to(tl.int32) * ALIGN
    end = (units * (segment + 1) // segments).to(tl.int32) * ALIGN
    z_row = row_offset(row, n1, n2, z0, z1, z2, NDIM) * ALIGN
    label = tl.load(label_ptr + row_offset(row, n1, n2, y0, y1, y2, NDIM))
    largest, weight, tilt, rival = _merged_segments(sums_ptr, first_ptr, row, segments, True, ACC)
    level, slope, at_label, more_at_rival = _gradient_rows(
        _label_logit(z_ptr, z_row, label, units * ALIGN, class_stride, live, ACC), largest, weight, tilt,
        rival < label,
        _load_grad(margin_ptr, row, live, MARGIN, ACC), _load_grad(loss_ptr, row, live, LOSS, ACC),
        _load_grad(hinge_ptr, row, live, HINGE, ACC), _load_grad(prob_ptr, row, live, PROB, ACC),
        _load_grad(entropy_ptr, row, live, ENTROPY, ACC), ACC,
    )  # fmt: skip
    for start in range(begin, end, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = (column < end)[None, :]
        z = load_tile(z_ptr, z_row, column, class_stride, inside, float("-inf"), ACC)
        gradient = _gradients(z, column, label, rival, largest, weight, level, slope, at_label, more_at_rival, ACC)
        place = (row * units * ALIGN)[:, None] + column[None, :]
        tl.store(dz_ptr + place, gradient.to(dz_ptr.dtype.element_ty), mask=inside)

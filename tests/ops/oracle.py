"""The operators by hand: a plain loop over rows in extended precision, from the definitions alone.

Nothing here is shared with fastmem. It uses the textbook sums, which cancel; 64 bits of mantissa leave enough (about
1e-10 relative at KL = 1e-7), as ``test_oracle.py`` shows against 50 digits.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

if np.finfo(np.longdouble).eps > 1e-18:
    pytest.skip("this platform's long double is too coarse for an oracle", allow_module_level=True)

Row = np.ndarray


class Stats(NamedTuple):
    margin: float
    loss: float
    hinge: float
    max_prob: float
    entropy: float


def kl_div(p: Tensor, q: Tensor, temperature: float) -> np.ndarray:
    """KL of every broadcast row, float64."""
    p_rows, q_rows = _broadcast_rows(p, q)
    leading = p_rows.shape[:-1]
    kl = np.empty(leading)
    for index in np.ndindex(leading):
        kl[index] = kl_row(p_rows[index], q_rows[index], temperature)
    return kl


def kl_div_gradients(
    p: Tensor, q: Tensor, temperature: float, grad: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Both gradients, summed over broadcast rows, and for each the sum of the norms of the rows that went into it."""
    p_rows, q_rows = _broadcast_rows(p, q)
    weights = grad.double().cpu().numpy()
    dp, dq = np.zeros(p_rows.shape, np.longdouble), np.zeros(p_rows.shape, np.longdouble)
    for index in np.ndindex(p_rows.shape[:-1]):
        dp[index], dq[index] = kl_row_gradients(p_rows[index], q_rows[index], temperature)
        dp[index] *= weights[index]
        dq[index] *= weights[index]
    norm_p, norm_q = (np.sqrt((d * d).sum(-1, keepdims=True)) for d in (dp, dq))
    return (
        _sum_to(dp, p.shape),
        _sum_to(dq, q.shape),
        _sum_to(norm_p, (*p.shape[:-1], 1)),
        _sum_to(norm_q, (*q.shape[:-1], 1)),
    )


def kl_row(p: Row, q: Row, temperature: float) -> float:
    if _no_softmax(p) or _no_softmax(q):
        return np.nan
    log_p, log_q = _log_softmax(p / temperature), _log_softmax(q / temperature)
    present = log_p > -np.inf
    if (log_q[present] == -np.inf).any():
        return np.inf
    return max(float((np.exp(log_p[present]) * (log_p[present] - log_q[present])).sum()), 0.0)


def kl_row_gradients(p: Row, q: Row, temperature: float) -> tuple[Row, Row]:
    kl = kl_row(p, q, temperature)
    if not np.isfinite(kl):
        return np.full_like(p, np.nan), np.full_like(q, np.nan)
    log_p, log_q = _log_softmax(p / temperature), _log_softmax(q / temperature)
    prob_p, prob_q = np.exp(log_p), np.exp(log_q)
    dp = np.zeros_like(p)
    present = log_p > -np.inf
    dp[present] = prob_p[present] * (log_p[present] - log_q[present] - kl) / temperature
    return dp, (prob_q - prob_p) / temperature


def logit_stats(logits: Tensor, labels: Tensor) -> list[np.ndarray]:
    """The five statistics of every row, float64."""
    rows = _extended(logits)
    chosen = np.broadcast_to(labels.cpu().numpy(), rows.shape[:-1])
    results = [np.empty(rows.shape[:-1]) for _ in Stats._fields]
    for index in np.ndindex(rows.shape[:-1]):
        for result, value in zip(results, stats_row(rows[index], int(chosen[index])), strict=True):
            result[index] = value
    return results


def logit_stats_gradients(logits: Tensor, labels: Tensor, grads: list[Tensor]) -> np.ndarray:
    """Gradient of the sum over rows of ``grads * statistics``, float64."""
    rows = _extended(logits)
    chosen = np.broadcast_to(labels.cpu().numpy(), rows.shape[:-1])
    weights = [grad.double().cpu().numpy() for grad in grads]
    gradient = np.empty(rows.shape)
    for index in np.ndindex(rows.shape[:-1]):
        row_grads = Stats(*(weight[index] for weight in weights))
        gradient[index] = stats_row_gradients(rows[index], int(chosen[index]), row_grads)
    return gradient


def stats_row(z: Row, y: int) -> Stats:
    others = np.delete(z, y)
    if np.isnan(z).any():
        return Stats(*[np.nan] * 5)
    margin = _minus(z[y], _logsumexp(others))
    hinge = _minus(z[y], others.max())
    loss = float(np.logaddexp(np.longdouble(0), -margin)) if np.isfinite(margin) else max(-margin, 0.0)
    if _no_softmax(z):
        return Stats(margin, np.nan if np.isnan(margin) else loss, hinge, np.nan, np.nan)
    log_prob = _log_softmax(z)
    entropy = -sum(np.exp(value) * value for value in log_prob if value > -np.inf)
    return Stats(margin, loss, hinge, float(np.exp(log_prob.max())), float(entropy))


def stats_row_gradients(z: Row, y: int, grads: Stats) -> Row:
    """Gradient of ``sum of grads * statistics``; of equal largest logits the first one counts."""
    if not np.isfinite(stats_row(z, y).margin):
        return np.full_like(z, np.nan)
    prob = np.exp(_log_softmax(z))
    others = z.copy()
    others[y] = -np.inf
    among_others = np.exp(others - _logsumexp(others))
    at_label, at_rival, at_top = (np.arange(len(z)) == index for index in (y, np.argmax(others), np.argmax(z)))
    total = grads.margin * (at_label - among_others)
    total += grads.loss * np.where(at_label, -prob[~at_label].sum(), prob)
    total += grads.hinge * (at_label.astype(float) - at_rival)
    total += grads.max_prob * prob.max() * (at_top - prob)
    present = prob > 0
    total[present] -= grads.entropy * prob[present] * (np.log(prob[present]) + stats_row(z, y).entropy)
    return total


def assert_close(actual: Tensor, expected: Any, tolerance: Any) -> None:
    """Finite values within the tolerance of each, and all others the same."""
    values = actual.detach().double().cpu().numpy()
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(values[~finite], np.asarray(expected)[~finite])
    error = np.abs(np.where(finite, values, 0) - np.where(finite, expected, 0))
    bad = ~(error <= np.broadcast_to(tolerance, error.shape)) & finite
    assert not bad.any(), f"off by {error[bad]} at {np.argwhere(bad).tolist()}: got {values}, expected {expected}"


def unit_roundoff(dtype: torch.dtype) -> float:
    """What storing a gradient in a half precision may change, relatively; nothing for the wider dtypes here.

    Triton's interpreter cuts bfloat16 off where a GPU rounds, which costs it one bit more.
    """
    truncates = os.environ.get("TRITON_INTERPRET") == "1"
    return {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7 if truncates else 2.0**-8}.get(dtype, 0.0)


def largest_finite(*operands: Tensor) -> float:
    """The largest magnitude among the finite entries: what a rounding error of a logit is relative to."""
    values = torch.cat([operand.detach().double().flatten() for operand in operands])
    values = values[values.isfinite()]
    return float(values.abs().max()) if len(values) else 0.0


def _no_softmax(z: Row) -> bool:
    return bool(np.isnan(z).any() or (z == np.inf).any() or (z == -np.inf).all())


def _logsumexp(z: Row) -> np.longdouble:
    largest = z.max()
    if not np.isfinite(largest):
        return largest
    return largest + np.log(np.exp(z - largest).sum())


def _log_softmax(z: Row) -> Row:
    return z - _logsumexp(z)


def _minus(a: np.longdouble, b: np.longdouble) -> float:
    return float("nan") if np.isinf(a) and a == b else float(a - b)


def _extended(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy().astype(np.longdouble)


def _broadcast_rows(p: Tensor, q: Tensor) -> tuple[np.ndarray, np.ndarray]:
    p_rows, q_rows = np.broadcast_arrays(_extended(p), _extended(q))
    return p_rows, q_rows


def _sum_to(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    values = values.sum(axis=tuple(range(values.ndim - len(shape))))
    axes = tuple(axis for axis, size in enumerate(shape) if size == 1 and values.shape[axis] != 1)
    return values.sum(axis=axes, keepdims=True).astype(np.float64)

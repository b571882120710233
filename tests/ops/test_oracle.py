"""The oracle against 50 digits, and against cases solved by hand."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest

from . import oracle


def _extended(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    return rng.normal(scale=scale, size=size).astype(np.float32).astype(np.longdouble)


def _kl_in_50_digits(p: np.ndarray, q: np.ndarray) -> mpmath.mpf:
    with mpmath.workdps(50):
        exp_p, exp_q = ([mpmath.exp(mpmath.mpf(float(z))) for z in row] for row in (p, q))
        sum_p, sum_q = mpmath.fsum(exp_p), mpmath.fsum(exp_q)
        return mpmath.fsum(a / sum_p * mpmath.log(a / sum_p * sum_q / b) for a, b in zip(exp_p, exp_q, strict=True))


@pytest.mark.parametrize("noise", [5e-4, 1e-2, 1.0, 10.0])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_kl_matches_50_digits(noise: float, offset: float) -> None:
    rng = np.random.default_rng(0)
    p = _extended(rng, 100, 3.0)
    q = (p + noise * rng.normal(size=100) + offset).astype(np.float32).astype(np.longdouble)
    exact = _kl_in_50_digits(p, q)
    assert abs(oracle.kl_row(p, q, 1.0) - exact) <= 1e-9 * exact


def test_two_classes_by_hand() -> None:
    # P = (3/4, 1/4), Q = (1/2, 1/2)
    p, q = np.array([math.log(3.0), 0.0], np.longdouble), np.zeros(2, np.longdouble)
    assert oracle.kl_row(p, q, 1.0) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-14)
    stats = oracle.stats_row(p, 0)
    assert stats.margin == pytest.approx(math.log(3.0), rel=1e-14)
    assert stats.loss == pytest.approx(math.log(4.0 / 3.0), rel=1e-14)
    assert stats.hinge == pytest.approx(math.log(3.0), rel=1e-14)
    assert stats.max_prob == pytest.approx(0.75, rel=1e-14)
    assert stats.entropy == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25), rel=1e-14)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_kl_gradients_are_the_slopes(temperature: float) -> None:
    rng = np.random.default_rng(1)
    p, q = _extended(rng, 5, 2.0), _extended(rng, 5, 2.0)
    step = np.longdouble(1e-5)
    for which, gradient in enumerate(oracle.kl_row_gradients(p, q, temperature)):
        for c in range(5):
            ends = []
            for sign in (1, -1):
                pair = [p.copy(), q.copy()]
                pair[which][c] += sign * step
                ends.append(oracle.kl_row(*pair, temperature))
            assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(gradient[c]), abs=1e-8)


def test_stats_gradients_are_the_slopes() -> None:
    rng = np.random.default_rng(2)
    z = _extended(rng, 5, 2.0)
    grads = oracle.Stats(*rng.normal(size=5))
    gradient = oracle.stats_row_gradients(z, 3, grads)
    step = np.longdouble(1e-5)
    for c in range(5):
        ends = []
        for sign in (1, -1):
            moved = z.copy()
            moved[c] += sign * step
            ends.append(sum(g * s for g, s in zip(grads, oracle.stats_row(moved, 3), strict=True)))
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(gradient[c]), abs=1e-8)

"""Clopper-Pearson against the tail equations that define it; the AUC interval where its variance says nothing."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from fastmem.errors import InputError
from fastmem.metrics import clopper_pearson
from fastmem.metrics.intervals import auc_interval, mean_interval

PROPERTY = settings(deadline=None, derandomize=True)


@PROPERTY
@given(n=st.integers(1, 5000), share=st.floats(0, 1), confidence=st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_each_tail_holds_half_of_the_error(n: int, share: float, confidence: float) -> None:
    k = round(share * n)
    low, high = clopper_pearson(k, n, confidence)
    tail = (1 - confidence) / 2
    if k > 0:
        assert binom.sf(k - 1, n, low) == pytest.approx(tail, rel=1e-8)
    else:
        assert low == 0
    if k < n:
        assert binom.cdf(k, n, high) == pytest.approx(tail, rel=1e-8)
    else:
        assert high == 1


def test_no_success_by_hand() -> None:
    # (1 - high)^n = 0.025
    assert clopper_pearson(0, 10)[1] == pytest.approx(1 - 0.025**0.1, rel=1e-14)
    assert clopper_pearson(0, 0) == (0, 1)


@pytest.mark.parametrize("p", [0.001, 0.03, 0.3, 0.5, 0.97])
def test_it_covers_at_least_its_confidence(p: float) -> None:
    n = 40
    k = np.arange(n + 1)
    low, high = clopper_pearson(k, n)
    covered = binom.pmf(k, n, p)[(low <= p) & (p <= high)].sum()
    assert covered >= 0.95


def test_walds_interval_would_not_cover() -> None:
    n, p = 40, 0.03
    k = np.arange(n + 1)
    half = 1.96 * np.sqrt(k / n * (1 - k / n) / n)  # the usual wrong one: the test above tells them apart
    assert binom.pmf(k, n, p)[np.abs(k / n - p) <= half].sum() < 0.75


@pytest.mark.parametrize(
    ("k", "n", "confidence"), [(3, 2, 0.95), (-1, 2, 0.95), (1.0, 2, 0.95), (1, 2, 1.0), (1, 2, 0.0)]
)
def test_impossible_counts_are_refused(k: float, n: int, confidence: float) -> None:
    with pytest.raises(InputError):
        clopper_pearson(k, n, confidence)


def test_an_auc_without_variance_is_not_certain() -> None:
    low, high = auc_interval(1.0, 0.0, trials=20)
    assert 0.8 < low < 0.9
    assert high == 1.0
    low, high = auc_interval(0.5, float("nan"), trials=5)
    assert low < 0.2
    assert high > 0.8
    assert auc_interval(0.6, 0.01, trials=5) == pytest.approx((0.6 - 0.196, 0.6 + 0.196), abs=1e-4)
    assert auc_interval(0.99, 0.01, trials=5)[1] == 1.0


def test_the_interval_of_a_mean() -> None:
    found = mean_interval([1.0, 2.0, 3.0])
    assert found.value == 2
    assert found.high - found.value == pytest.approx(4.302652729911275 / math.sqrt(3))
    assert math.isnan(mean_interval([1.0]).low)

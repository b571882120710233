"""Intervals for a share of trials, the area under an ROC curve, and a mean over few models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import betainccinv, betaincinv, ndtri, stdtrit

from fastmem.errors import InputError
from fastmem.metrics.arrays import as_numpy

__all__ = ["Estimate", "auc_interval", "clopper_pearson", "mean_interval"]


def clopper_pearson(k: Any, n: Any, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The exact interval for a proportion (Clopper and Pearson 1934): equal tails of the binomial distribution.

    The upper end at ``confidence=0.90`` is the one-sided upper bound at 95%, and likewise the lower end.

    Args:
        k: Successes, integers of any shape.
        n: Trials, integers that broadcast with ``k``.
        confidence: Coverage, between 0 and 1.

    Returns:
        ``(low, high)``, float64 of the broadcast shape; (0, 1) where there are no trials.

    Raises:
        InputError: unless 0 <= k <= n are integers and 0 < confidence < 1.
    """
    check_confidence(confidence)
    k, n = as_numpy("k", k), as_numpy("n", n)
    if k.dtype.kind not in "iu" or n.dtype.kind not in "iu":
        raise InputError("k, n", f"dtypes {k.dtype}, {n.dtype}", "give integer counts")
    if (k < 0).any() or (k > n).any():
        raise InputError("k, n", "a count below 0 or above its number of trials", "give 0 <= k <= n")
    k, n = np.broadcast_arrays(k.astype(np.float64), n.astype(np.float64))
    tail = (1.0 - confidence) / 2
    low, high = np.zeros(k.shape), np.ones(k.shape)
    some, others = k > 0, k < n
    low[some] = betaincinv(k[some], n[some] - k[some] + 1, tail)
    high[others] = betainccinv(k[others] + 1, n[others] - k[others], tail)
    return low, high


def auc_interval(auc: float, variance: float, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The normal interval of an area under the curve, cut to [0, 1].

    A variance that is zero or unknown (perfect separation, one constant score, a single member) would claim certainty.
    There the interval is Wilson's for ``trials`` Bernoulli trials of mean ``auc``, which is wider than any that the
    scores could justify: no distribution of scores gives an AUC more variance than auc (1 - auc) / min(n_in, n_out).

    Args:
        auc: The area.
        variance: Its estimated variance, from DeLong or an influence function; NaN where it cannot be estimated.
        trials: The smaller of the numbers of members and non-members.
        confidence: Coverage, between 0 and 1.

    Returns:
        ``(low, high)``.
    """
    z = float(ndtri((1.0 + confidence) / 2))
    if variance > 0:
        half = z * float(np.sqrt(variance))
        return max(0.0, auc - half), min(1.0, auc + half)
    centre = (auc + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * float(np.sqrt(auc * (1 - auc) / trials + z * z / (4 * trials**2)))
    return min(auc, max(0.0, centre - half)), max(auc, min(1.0, centre + half))  # rounding may not exclude auc


def check_confidence(confidence: float) -> None:
    """Refuse a coverage that is not between 0 and 1."""
    if not 0.0 < confidence < 1.0:
        raise InputError("confidence", f"{confidence}", "give a share between 0 and 1, for example 0.95")


@dataclass(frozen=True)
class Estimate:
    """A mean over models.

    Attributes:
        value: The mean; NaN of none.
        low: Lower end of its t interval; NaN for a single model.
        high: Upper end.
        n: Models.
    """

    value: float
    low: float
    high: float
    n: int


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """A mean with Student's interval; independent models, roughly normal.

    Args:
        values: One figure a model [n].
        confidence: Of the interval.
    """
    array = np.asarray(values, np.float64)
    n = len(array)
    if n < 2:
        return Estimate(float(array.mean()) if n else math.nan, math.nan, math.nan, n)
    mean = float(array.mean())
    half = float(stdtrit(n - 1, (1 + confidence) / 2) * array.std(ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n)

"""Whether a model is right as often as it says: reliability, expected calibration error, overconfidence error.

With confidence the largest probability, in B equal bins ``(lo, hi]`` of [0, 1], ``n_b`` records each:

    ECE = sum_b n_b/n |acc_b - conf_b|                      (Naeini et al. 2015; Guo et al. 2017)
    OE  = sum_b n_b/n conf_b max(conf_b - acc_b, 0)         (Thulasidasan et al. 2019)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmem.errors import InputError
from fastmem.metrics.arrays import as_float64, as_labels

__all__ = ["Reliability", "expected_calibration_error", "overconfidence_error", "reliability"]

# Rounding of float32 probabilities of a few thousand classes.
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Reliability:
    """Accuracy by confidence.

    Args:
        edges: float64 [B + 1], from 0 to 1.
        count: Records in each bin, int64 [B].
        confidence: Mean confidence in each bin, float64 [B]; NaN where it is empty.
        accuracy: Share of right answers in each bin, float64 [B]; NaN where it is empty.
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def expected_calibration_error(self) -> float:
        """ECE, from 0 (calibrated) to 1."""
        return self._mean(np.abs(self.accuracy - self.confidence))

    @property
    def overconfidence_error(self) -> float:
        """OE: like ECE, but only claims above the accuracy count, each times its confidence."""
        return self._mean(self.confidence * np.maximum(self.confidence - self.accuracy, 0.0))

    def _mean(self, values: np.ndarray) -> float:
        filled = self.count > 0
        return float(self.count[filled] @ values[filled] / self.count.sum())


def reliability(p: Any, y: Any, n_bins: int = 15) -> Reliability:
    """Sort answers into bins of confidence.

    Args:
        p: Probabilities [N, C]; rows sum to 1.
        y: Labels [N].
        n_bins: B.

    Raises:
        InputError: If there is no record, shapes do not fit, or rows are no probabilities.
    """
    p, y = check_probabilities("p", p), as_labels("y", y)
    if n_bins < 1:
        raise InputError("n_bins", f"{n_bins}", "give at least 1")
    if len(y) != len(p) or (len(y) and y.max() >= p.shape[1]):
        raise InputError("y", f"{len(y)} labels up to {y.max(initial=0)} for probabilities {p.shape}", "give one a row")
    confidence, right = p.max(axis=1), p.argmax(axis=1) == y
    edges = np.linspace(0.0, 1.0, n_bins + 1)
    # The left end is open: side "left" puts a value that equals an edge into the bin below it.
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, n_bins - 1)
    count = np.bincount(place, minlength=n_bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, values, n_bins) / count for values in (confidence, right.astype(np.float64))]
    return Reliability(edges, count, *means)


def expected_calibration_error(p: Any, y: Any, n_bins: int = 15) -> float:
    """ECE of probabilities [N, C] and labels [N]; arguments and errors as for :func:`reliability`."""
    return reliability(p, y, n_bins).expected_calibration_error


def overconfidence_error(p: Any, y: Any, n_bins: int = 15) -> float:
    """OE of probabilities [N, C] and labels [N]; arguments and errors as for :func:`reliability`."""
    return reliability(p, y, n_bins).overconfidence_error


def check_probabilities(argument: str, p: Any) -> np.ndarray:
    """Probabilities [N, C] in float64, N at least 1 and C at least 2.

    Raises:
        InputError: For NaN, another shape, or rows that are negative or do not sum to 1.
    """
    array = as_float64(argument, p, axes=("record", "class"))
    if array.ndim != 2 or not len(array) or array.shape[1] < 2:
        raise InputError(argument, f"shape {array.shape}", "give probabilities [N, C], N at least 1 and C at least 2")
    wrong = (np.abs(array.sum(axis=1) - 1) > _SUM_TOLERANCE) | (array < 0).any(axis=1)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise InputError(
            argument,
            f"{int(wrong.sum())} rows are no probabilities, first row {first}, which sums to {array[first].sum():.4g}",
            "give the softmax of the logits, or the logits with from_logits=True",
        )
    return array

"""The metrics of an audit: several targets, the same records, scores that can be compared across targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastmem.errors import InputError
from fastmem.metrics.bootstrap import PooledScores, Resamples, resample
from fastmem.metrics.intervals import auc_interval, check_confidence, clopper_pearson
from fastmem.metrics.membership import (
    LEVELS,
    PRIORS,
    MembershipMetrics,
    TprAtFpr,
    check_priors,
    describe,
    level_key,
)
from fastmem.metrics.roc import Roc, check_levels, check_scores
from fastmem.metrics.targets import PerTarget, SortedTargets, Transfer, per_target, transfer

__all__ = ["AuditMetrics", "audit_metrics"]


@dataclass(frozen=True, eq=False)
class AuditMetrics:
    """Metrics of T targets on the same N records.

    Args:
        pooled: Of all T N scores on one ROC curve; intervals from a bootstrap over records.
        per_target: Of each target by itself.
        transfer: By level, the rates on each target of a threshold chosen on the others; empty for one target.
        resamples: How many resamples stand behind the intervals.
    """

    pooled: MembershipMetrics
    per_target: PerTarget
    transfer: dict[float, Transfer]
    resamples: int

    def to_dict(self) -> dict[str, Any]:
        """Numbers for JSON: the pooled ones at the top, ``per_target`` and ``transfer`` beside them."""
        return {
            **self.pooled.to_dict(),
            "per_target": self.per_target.to_dict(),
            "transfer": {level_key(level): rates.to_dict() for level, rates in self.transfer.items()},
        }


def audit_metrics(
    scores: Any,
    members: Any,
    levels: Sequence[float] = LEVELS,
    priors: Sequence[float] = PRIORS,
    confidence: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
) -> AuditMetrics:
    """Metrics of several targets: pooled, target by target, and with thresholds carried over from other models.

    Pooled scores share records and models, so Clopper-Pearson on the pooled counts is too narrow: pooled intervals are
    percentiles of a Poisson bootstrap over records, in which each resample also finds its own threshold. Where all
    resamples agree that no member is found, or every one, the interval is Clopper-Pearson's with records as trials.

    Args:
        scores: Numbers [T, N], higher = more likely a member.
        members: bool [T, N]; record n was in the training set of target t.
        levels: False positive rates.
        priors: Shares of members among those asked about, for the positive predictive value (see
            :func:`fastmem.metrics.membership_metrics`).
        confidence: Coverage of all intervals.
        resamples: Number of resamples.
        seed: Seed of the resamples; the same seed gives the same intervals.

    Returns:
        The metrics.

    Raises:
        InputError: for NaN scores, shapes that disagree, a mask that is not boolean, a target without members or
            without non-members (named), or levels, priors, confidence or resamples out of range.
    """
    check_confidence(confidence)
    rates, shares = check_levels(levels), check_priors(priors)
    if resamples < 2:
        raise InputError("resamples", f"{resamples}", "give at least 2, for intervals some hundreds")
    score_array, mask = check_scores(scores, members, axes=("target", "record"))
    num_records = score_array.shape[1]

    targets = SortedTargets.of(score_array, mask)
    curve = Roc.of_sorted(targets.scores, targets.members)
    drawn = resample(
        PooledScores.of_sorted(targets.scores, targets.members, targets.record, num_records), rates, resamples, seed
    )
    interval = _auc_interval(curve, drawn, num_records, confidence)
    pooled = describe(curve, interval, rates, shares, confidence, records=num_records)
    tpr_at_fpr = {
        level: _with_interval(value, drawn.tpr[:, i], num_records, confidence)
        for i, (level, value) in enumerate(pooled.tpr_at_fpr.items())
    }
    return AuditMetrics(
        pooled=replace(pooled, tpr_at_fpr=tpr_at_fpr),
        per_target=per_target(targets, rates, confidence),
        transfer=transfer(targets, rates),
        resamples=len(drawn.auc),
    )


def _auc_interval(curve: Roc, drawn: Resamples, num_records: int, confidence: float) -> tuple[float, float]:
    if len(drawn.auc) < 2 or np.ptp(drawn.auc) == 0.0:
        # Perfect separation or one constant score: no resample differs. Records are the trials, half on each side.
        return auc_interval(curve.auc, float("nan"), max(1, num_records // 2), confidence)
    return _percentiles(drawn.auc, curve.auc, confidence)


def _with_interval(value: TprAtFpr, drawn: np.ndarray, num_records: int, confidence: float) -> TprAtFpr:
    if len(drawn) < 2 or np.ptp(drawn) == 0.0:
        low, high = map(float, clopper_pearson(round(value.tpr * num_records), num_records, confidence))
    else:
        low, high = _percentiles(drawn, value.tpr, confidence)
    return replace(value, low=low, high=high)


def _percentiles(drawn: np.ndarray, estimate: float, confidence: float) -> tuple[float, float]:
    """The percentile interval, widened where needed to hold the estimate: at few positives resamples are skewed."""
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return min(float(low), estimate), max(float(high), estimate)

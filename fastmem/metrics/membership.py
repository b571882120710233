"""How well one set of scores tells members from non-members, each number with its interval.

Rates at low false positive rate are what matters (Carlini et al. 2022, section IV): the AUC of an attack can be one
half while it is certain about some records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fastmem.errors import InputError
from fastmem.metrics.intervals import auc_interval, check_confidence, clopper_pearson
from fastmem.metrics.roc import Roc, check_levels, roc

__all__ = [
    "LEVELS",
    "PRIORS",
    "MembershipMetrics",
    "TprAtFpr",
    "level_key",
    "membership_metrics",
]

LEVELS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
PRIORS = (0.5, 0.1, 0.01)


@dataclass(frozen=True)
class TprAtFpr:
    """The true positive rate at the largest realised false positive rate that a level admits.

    Args:
        tpr: True positive rate, n_tp / n_in.
        realised_fpr: False positive rate, n_fp / n_out; at most the level.
        threshold: Called members are those with score >= threshold; +inf where nobody is.
        n_tp: Members called members.
        n_fp: Non-members called members.
        n_in: Members.
        n_out: Non-members.
        low: Lower end of the interval of ``tpr``.
        high: Its upper end.
        resolvable: Whether one false positive fits the level, level * n_out >= 1. Where it does not, the rate is that
            at no false positive at all; level 0 always means "below 1 / n_out".
    """

    tpr: float
    realised_fpr: float
    threshold: float
    n_tp: int
    n_fp: int
    n_in: int
    n_out: int
    low: float
    high: float
    resolvable: bool

    def to_dict(self) -> dict[str, Any]:
        """For JSON; a threshold of +inf, which JSON lacks, becomes None."""
        return {**asdict(self), "threshold": self.threshold if abs(self.threshold) < float("inf") else None}


@dataclass(frozen=True)
class MembershipMetrics:
    """What one ROC curve says.

    Args:
        auc: Area under the step curve, ties count one half.
        auc_low: Lower end of its interval.
        auc_high: Its upper end.
        balanced_accuracy: Largest (TPR + 1 - FPR) / 2 over thresholds.
        tpr_at_fpr: By level.
        ppv: Positive predictive value by prior (the share of members among those asked about), then by level.
        roc: The curve itself.
    """

    auc: float
    auc_low: float
    auc_high: float
    balanced_accuracy: float
    tpr_at_fpr: dict[float, TprAtFpr]
    ppv: dict[float, dict[float, float]]
    roc: Roc = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Numbers for JSON, levels and priors as keys like ``"0.01"``; without the curve."""
        return {
            "auc": self.auc,
            "auc_low": self.auc_low,
            "auc_high": self.auc_high,
            "balanced_accuracy": self.balanced_accuracy,
            "tpr_at_fpr": {level_key(level): value.to_dict() for level, value in self.tpr_at_fpr.items()},
            "ppv": {
                level_key(prior): {level_key(level): value for level, value in values.items()}
                for prior, values in self.ppv.items()
            },
        }


def level_key(level: float) -> str:
    """How a level or prior is written as a key: ``"0.01"``, ``"1e-05"``, ``"0"``."""
    return format(level, "g")


def membership_metrics(
    scores: Any,
    members: Any,
    levels: Sequence[float] = LEVELS,
    priors: Sequence[float] = PRIORS,
    confidence: float = 0.95,
) -> MembershipMetrics:
    """AUC, balanced accuracy, TPR at FPR levels and PPV of one set of scores, as for one target model.

    The AUC's interval is DeLong's; that of a TPR is Clopper-Pearson on n_tp of n_in at the threshold that was found.
    Scores of several targets share records and models: for those use :func:`fastmem.metrics.audit_metrics`.

    Args:
        scores: Numbers [N], higher = more likely a member.
        members: bool [N].
        levels: False positive rates.
        priors: Shares of members among those asked about, for the positive predictive value
            prior TPR / (prior TPR + (1 - prior) FPR). Without a false positive, FPR is the upper end of its interval.
        confidence: Coverage of all intervals.

    Returns:
        The metrics.

    Raises:
        InputError: for NaN scores, shapes that disagree, a mask that is not boolean or holds one class only, or
            levels, priors or confidence out of range.

    Example:
        >>> import numpy as np
        >>> metrics = membership_metrics([4.0, 3.0, 2.0, 1.0], np.array([True, True, False, True]), levels=[0.0])
        >>> round(metrics.auc, 3), round(metrics.tpr_at_fpr[0.0].tpr, 3), metrics.tpr_at_fpr[0.0].threshold
        (0.667, 0.667, 3.0)
    """
    check_confidence(confidence)
    curve = roc(scores, members)
    low, high = auc_interval(curve.auc, curve.auc_variance(), min(curve.n_in, curve.n_out), confidence)
    return describe(curve, (low, high), check_levels(levels), check_priors(priors), confidence)


def describe(
    curve: Roc,
    interval: tuple[float, float],
    levels: Sequence[float],
    priors: Sequence[float],
    confidence: float,
    records: int | None = None,
) -> MembershipMetrics:
    """Read the metrics off a curve.

    Args:
        curve: The curve.
        interval: That of its AUC.
        levels: Checked levels.
        priors: Checked priors.
        confidence: Coverage.
        records: Where rows are not independent, the number of records that are; it then stands for n_out in the upper
            bound of an FPR without false positives.
    """
    tpr_at_fpr = {level: tpr_at(curve, level, confidence) for level in levels}
    bound = float(clopper_pearson(0, records or curve.n_out, confidence)[1])
    ppv = {prior: {level: _ppv(value, prior, bound) for level, value in tpr_at_fpr.items()} for prior in priors}
    return MembershipMetrics(curve.auc, *interval, curve.balanced_accuracy, tpr_at_fpr, ppv, curve)


def tpr_at(curve: Roc, level: float, confidence: float) -> TprAtFpr:
    """One level's rates, counts and Clopper-Pearson interval."""
    point = curve.at(level)
    n_tp, n_fp = int(curve.tp[point]), int(curve.fp[point])
    low, high = clopper_pearson(n_tp, curve.n_in, confidence)
    return TprAtFpr(
        tpr=n_tp / curve.n_in,
        realised_fpr=n_fp / curve.n_out,
        threshold=float(curve.thresholds[point]),
        n_tp=n_tp,
        n_fp=n_fp,
        n_in=curve.n_in,
        n_out=curve.n_out,
        low=float(low),
        high=float(high),
        resolvable=1 / curve.n_out <= level,
    )


def check_priors(priors: Sequence[float]) -> tuple[float, ...]:
    """Shares strictly between 0 and 1, in the order given."""
    checked = tuple(dict.fromkeys(float(prior) for prior in priors))
    if not all(0.0 < prior < 1.0 for prior in checked):
        raise InputError("priors", f"{list(priors)}", "give shares of members between 0 and 1, for example 0.01")
    return checked


def _ppv(value: TprAtFpr, prior: float, bound: float) -> float:
    fpr = value.realised_fpr if value.n_fp else bound
    return prior * value.tpr / (prior * value.tpr + (1 - prior) * fpr)

"""The same metrics target by target, and thresholds carried from the other models to a target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmem.metrics.intervals import auc_interval
from fastmem.metrics.membership import level_key
from fastmem.metrics.roc import Roc, admitted

__all__ = ["PerTarget", "SortedTargets", "Transfer", "per_target", "transfer"]


@dataclass(frozen=True, eq=False)
class SortedTargets:
    """Scores of T targets on N records, sorted once, all together.

    Args:
        scores: Descending, [T N].
        members: Membership of each, bool [T N].
        record: Its record, [T N].
        by_target: Positions of each target's scores in that order, [T, N].
    """

    scores: np.ndarray
    members: np.ndarray
    record: np.ndarray
    by_target: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, members: np.ndarray) -> SortedTargets:
        """Sort scores [T, N]."""
        num_targets, num_records = scores.shape
        order = np.argsort(-scores, axis=None)
        target = order // num_records
        # A stable sort of small integers is a counting sort: it deals the one order out to the targets.
        small = target.astype(np.uint16 if num_targets <= 1 << 16 else np.int64)
        by_target = np.argsort(small, kind="stable").reshape(num_targets, num_records)
        return cls(scores.ravel()[order], members.ravel()[order], order - target * num_records, by_target)

    def curves(self) -> Iterator[tuple[np.ndarray, Roc]]:
        """For each target its records, highest score first, and its ROC curve."""
        for positions in self.by_target:
            yield self.record[positions], Roc.of_sorted(self.scores[positions], self.members[positions])


@dataclass(frozen=True, eq=False)
class PerTarget:
    """Metrics of each target.

    Args:
        auc: float64 [T].
        auc_low: Lower end of the interval of the mean AUC over targets.
        auc_high: Its upper end.
        balanced_accuracy: float64 [T].
        tpr: At each level, float64 [T].
        realised_fpr: At each level, float64 [T].
    """

    auc: np.ndarray
    auc_low: float
    auc_high: float
    balanced_accuracy: np.ndarray
    tpr: dict[float, np.ndarray]
    realised_fpr: dict[float, np.ndarray]

    def to_dict(self) -> dict[str, Any]:
        """Means and standard deviations (ddof 1; None for one target) for JSON."""
        return {
            "auc": {**_mean_std(self.auc), "low": self.auc_low, "high": self.auc_high},
            "balanced_accuracy": _mean_std(self.balanced_accuracy),
            "tpr_at_fpr": {
                level_key(level): {**_mean_std(tpr), "realised_fpr": float(self.realised_fpr[level].mean())}
                for level, tpr in self.tpr.items()
            },
        }


@dataclass(frozen=True, eq=False)
class Transfer:
    """Rates on each target of the threshold that the other targets' scores choose for a level.

    An attacker who cannot see the target's members has exactly these thresholds. Called members are scores above
    ``threshold``, the highest score of another model's non-member that the level no longer admits.

    Args:
        threshold: float64 [T]; -inf where the level admits all.
        tpr: Realised on the target, float64 [T].
        fpr: Realised on the target, float64 [T]; close to the level where scores are comparable across models.
    """

    threshold: np.ndarray
    tpr: np.ndarray
    fpr: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Means and standard deviations over targets for JSON."""
        return {"tpr": _mean_std(self.tpr), "fpr": _mean_std(self.fpr)}


def per_target(targets: SortedTargets, levels: tuple[float, ...], confidence: float) -> PerTarget:
    """AUC, balanced accuracy and TPR at FPR levels of each target.

    The interval of the mean AUC sums each record's influence over targets before taking the variance over records
    (Obuchowski 1997, with records as clusters), since a record's scores under different targets are not independent.
    """
    num_targets, num_records = targets.by_target.shape
    auc, accuracy = np.empty(num_targets), np.empty(num_targets)
    tpr, fpr = np.empty((len(levels), num_targets)), np.empty((len(levels), num_targets))
    influence = np.zeros(num_records)
    fewest = num_records
    for t, (record, curve) in enumerate(targets.curves()):
        auc[t], accuracy[t] = curve.auc, curve.balanced_accuracy
        points = [curve.at(level) for level in levels]
        tpr[:, t], fpr[:, t] = curve.tpr[points], curve.fpr[points]
        influence[record] += _influence(curve, targets.members[targets.by_target[t]])
        fewest = min(fewest, curve.n_in, curve.n_out)
    variance = influence.var(ddof=1) / num_targets**2 / num_records if fewest > 1 else float("nan")
    low, high = auc_interval(float(auc.mean()), float(variance), fewest, confidence)
    return PerTarget(auc, low, high, accuracy, dict(zip(levels, tpr, strict=True)), dict(zip(levels, fpr, strict=True)))


def transfer(targets: SortedTargets, levels: tuple[float, ...]) -> dict[float, Transfer]:
    """Choose each level's threshold on the other targets, and apply it to the one left out; empty for one target."""
    num_targets = len(targets.by_target)
    if num_targets == 1:
        return {}
    others = ~targets.members
    out_scores = targets.scores[others]  # of all targets, descending
    out_rank = np.cumsum(others) - 1  # of a non-member among them
    shape = (len(levels), num_targets)
    threshold, tpr, fpr = np.empty(shape), np.empty(shape), np.empty(shape)
    for t, (_, curve) in enumerate(targets.curves()):
        positions = targets.by_target[t]
        own = out_rank[positions[others[positions]]]
        foreign_before = own - np.arange(len(own))  # non-members of other targets ranked above each of its own
        for i, level in enumerate(levels):
            k = admitted(level, len(out_scores) - len(own))
            refused = k + int(np.searchsorted(foreign_before, k, side="right"))
            threshold[i, t] = out_scores[refused] if k < len(out_scores) - len(own) else -np.inf
        point = np.maximum(np.searchsorted(-curve.thresholds, -threshold[:, t], side="left") - 1, 0)
        tpr[:, t], fpr[:, t] = curve.tpr[point], curve.fpr[point]
    return {level: Transfer(*rates) for level, *rates in zip(levels, threshold, tpr, fpr, strict=True)}


def _influence(curve: Roc, members: np.ndarray) -> np.ndarray:
    """The influence of each record on one target's AUC, records in descending order of score."""
    group = np.repeat(np.arange(len(curve.tp) - 1), np.diff(curve.tp + curve.fp))
    of_member, of_other = curve.placements()
    total = curve.n_in + curve.n_out
    return np.where(
        members,
        (of_member[group] - curve.auc) * (total / curve.n_in),
        (of_other[group] - curve.auc) * (total / curve.n_out),
    )


def _mean_std(values: np.ndarray) -> dict[str, float | None]:
    return {"mean": float(values.mean()), "std": float(values.std(ddof=1)) if len(values) > 1 else None}

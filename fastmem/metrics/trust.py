"""What a decision rule does to members and to one set of non-members: rates, precision, confidence, ties.

The numbers of Hintersdorf, Struppek and Kersting (IJCAI 2022, arXiv:2111.09076), each with its interval. A rule is a
threshold that was fixed elsewhere (on a shadow model), so its recall is the same for every set of non-members; the false
positive rate and the AUC tell the sets apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fastmem.errors import InputError
from fastmem.metrics.arrays import as_float64
from fastmem.metrics.intervals import clopper_pearson
from fastmem.metrics.membership import PRIORS, check_priors, level_key, membership_metrics
from fastmem.metrics.roc import roc

__all__ = ["DecisionRule", "Rate", "TrustMetrics", "fewest_errors", "trust_metrics", "youden"]


@dataclass(frozen=True)
class DecisionRule:
    """Who is called a member.

    Args:
        threshold: Of the score.
        strict: Called members are scores above the threshold; else also those equal to it.
    """

    threshold: float
    strict: bool = True

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """bool, of the shape of ``scores``."""
        return scores > self.threshold if self.strict else scores >= self.threshold


@dataclass(frozen=True)
class Rate:
    """A share with its Clopper-Pearson interval; NaN where there is nothing to count.

    Args:
        k: Counted.
        n: Of how many.
        value: k / n.
        low: Lower end at 95%.
        high: Upper end.
    """

    k: int
    n: int
    value: float
    low: float
    high: float

    @classmethod
    def of(cls, k: int, n: int) -> Rate:
        """The rate of ``k`` in ``n``."""
        low, high = clopper_pearson(k, n)
        return cls(k, n, k / n if n else float("nan"), float(low), float(high))


@dataclass(frozen=True)
class TrustMetrics:
    """One rule on members and one set of non-members.

    Args:
        recall: Members called members.
        recall_with_ties: The same when scores equal to the threshold count too: ties decide where the two differ.
        fpr: Non-members called members.
        precision: Members among those called members, at these two set sizes.
        precision_at: The same at other shares of members: ``pi TPR / (pi TPR + (1 - pi) FPR)`` by pi.
        auc: Area under the step ROC, ties count one half.
        auc_low: Lower end of its interval (DeLong).
        auc_high: Upper end.
        mmps: Mean maximum prediction score among true and false positives and negatives; NaN for an empty group.
        saturated_in: Members whose largest probability is exactly 1, as it comes.
        saturated_out: Non-members of that kind.
        tied: Share of all scores that another record has too.
    """

    recall: Rate
    recall_with_ties: Rate
    fpr: Rate
    precision: Rate
    precision_at: dict[float, float]
    auc: float
    auc_low: float
    auc_high: float
    mmps: dict[str, float]
    saturated_in: int
    saturated_out: int
    tied: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **asdict(self),
            "precision_at": {level_key(prior): value for prior, value in self.precision_at.items()},
        }


def trust_metrics(
    rule: DecisionRule,
    members: Any,
    others: Any,
    confidence_in: Any,
    confidence_out: Any,
    priors: Sequence[float] = PRIORS,
) -> TrustMetrics:
    """Evaluate a rule.

    Args:
        rule: Fixed without these scores.
        members: Scores of members [n].
        others: Scores of the non-members [m].
        confidence_in: Largest probability of each member [n], in the precision that the attacker has.
        confidence_out: The same of each non-member [m].
        priors: Shares of members at which precision is given.

    Raises:
        InputError: If a set is empty, holds NaN, or lengths differ.
    """
    scores_in, scores_out = _scores("members", members), _scores("non-members", others)
    sure_in, sure_out = (np.asarray(part, np.float64) for part in (confidence_in, confidence_out))
    if sure_in.shape != scores_in.shape or sure_out.shape != scores_out.shape:
        raise InputError("confidence", f"{sure_in.shape}, {sure_out.shape}", "give one a score")
    called_in, called_out = rule(scores_in), rule(scores_out)
    tp, fp = int(called_in.sum()), int(called_out.sum())
    both = np.concatenate([scores_in, scores_out])
    area = membership_metrics(both, np.arange(len(both)) < len(scores_in), levels=(0.01,))
    tpr, fpr = tp / len(scores_in), fp / len(scores_out)
    return TrustMetrics(
        recall=Rate.of(tp, len(scores_in)),
        recall_with_ties=Rate.of(int((scores_in >= rule.threshold).sum()), len(scores_in)),
        fpr=Rate.of(fp, len(scores_out)),
        precision=Rate.of(tp, tp + fp),
        precision_at={pi: _precision(pi, tpr, fpr) for pi in check_priors(priors)},
        auc=area.auc,
        auc_low=area.auc_low,
        auc_high=area.auc_high,
        mmps={
            "tp": _mean(sure_in[called_in]),
            "fp": _mean(sure_out[called_out]),
            "fn": _mean(sure_in[~called_in]),
            "tn": _mean(sure_out[~called_out]),
        },
        saturated_in=int((sure_in == 1.0).sum()),
        saturated_out=int((sure_out == 1.0).sum()),
        tied=tied_share(both),
    )


def youden(members: Any, others: Any) -> DecisionRule:
    """The threshold of the largest TPR - FPR on a shadow model (Youden's J), the first maximum from above; strict.

    The published rule reads the threshold off the ROC, whose points are "score >= threshold", and then decides by
    "score > threshold". The point above all scores, where nobody is called a member, is not a choice.

    Args:
        members: Scores of the shadow model's members.
        others: Scores of its non-members.

    Raises:
        InputError: If a set is empty or all scores are equal.
    """
    curve = roc(*_labelled(members, others))
    best = 1 + int(np.argmax((curve.tpr - curve.fpr)[1:]))
    return DecisionRule(float(curve.thresholds[best]))


def fewest_errors(members: Any, others: Any) -> DecisionRule:
    """The threshold of the most right decisions on a shadow model, strict; the first best one from the highest score.

    The published search tries 10,000 evenly spaced thresholds, which is coarse where nearly all scores crowd at one end;
    this one tries every score that occurs.

    Args:
        members: Scores of the shadow model's members.
        others: Scores of its non-members.

    Raises:
        InputError: If a set is empty or all scores are equal.
    """
    curve = roc(*_labelled(members, others))
    # Strictly above the k-th threshold are those at or above the one before it; the first calls nobody.
    right = curve.tp[1:-1] + (curve.n_out - curve.fp[1:-1])
    return DecisionRule(float(curve.thresholds[2 + int(np.argmax(right))]))


def tied_share(scores: np.ndarray) -> float:
    """Share of scores that occur more than once."""
    _, counts = np.unique(scores, return_counts=True)
    return float(counts[counts > 1].sum() / len(scores))


def _labelled(members: Any, others: Any) -> tuple[np.ndarray, np.ndarray]:
    scores_in, scores_out = _scores("members", members), _scores("non-members", others)
    both = np.concatenate([scores_in, scores_out])
    if (both == both[0]).all():
        raise InputError(
            "shadow scores", f"all {len(both)} are {both[0]:g}", "no threshold can be learnt from a constant score"
        )
    return both, np.arange(len(both)) < len(scores_in)


def _scores(name: str, values: Any) -> np.ndarray:
    scores = as_float64(name, values, axes=("record",), allow_inf=True)
    if scores.ndim != 1 or not len(scores):
        raise InputError(name, f"shape {scores.shape}", "give one score a record, at least one")
    return scores


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _precision(prior: float, tpr: float, fpr: float) -> float:
    called = prior * tpr + (1 - prior) * fpr
    return prior * tpr / called if called else float("nan")

"""The step ROC curve of membership scores (higher score = more likely a member), and what is read off it.

Each distinct score is one threshold, so tied scores move together, and nothing is interpolated: every point is a rule
"member if score >= threshold" that an attacker can apply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fastmem.errors import InputError
from fastmem.metrics.arrays import as_bool, as_float64

__all__ = ["Roc", "admitted", "check_levels", "roc"]


@dataclass(frozen=True, eq=False)
class Roc:
    """An ROC curve as counts at K distinct thresholds and, first, at +inf, where nobody is called a member.

    Args:
        thresholds: Descending, float64 [K + 1]; the first is +inf.
        tp: Members with score >= threshold, int64 [K + 1].
        fp: Non-members with score >= threshold, int64 [K + 1].
    """

    thresholds: np.ndarray
    tp: np.ndarray
    fp: np.ndarray

    @classmethod
    def of_sorted(cls, scores: np.ndarray, members: np.ndarray) -> Roc:
        """The curve of scores that are already in descending order; nothing is sorted or checked."""
        last = np.append(np.flatnonzero(scores[1:] != scores[:-1]), len(scores) - 1)  # the last of each tie
        tp = np.cumsum(members, dtype=np.int64)[last]
        return cls(
            thresholds=np.concatenate([[np.inf], scores[last]]),
            tp=np.concatenate([[0], tp]),
            fp=np.concatenate([[0], last + 1 - tp]),
        )

    @property
    def n_in(self) -> int:
        """Number of members."""
        return int(self.tp[-1])

    @property
    def n_out(self) -> int:
        """Number of non-members."""
        return int(self.fp[-1])

    @cached_property
    def tpr(self) -> np.ndarray:
        """True positive rate at each threshold, float64 [K + 1]."""
        return self.tp / self.n_in

    @cached_property
    def fpr(self) -> np.ndarray:
        """False positive rate at each threshold, float64 [K + 1]."""
        return self.fp / self.n_out

    @cached_property
    def auc(self) -> float:
        """Area under the step curve; ties between a member and a non-member count one half. Summed in integers."""
        return int(np.diff(self.fp) @ (self.tp[1:] + self.tp[:-1])) / (2 * self.n_in * self.n_out)

    @cached_property
    def balanced_accuracy(self) -> float:
        """Largest (TPR + 1 - FPR) / 2; optimistic, since the threshold is chosen on the same scores."""
        return float((self.tpr - self.fpr).max() + 1) / 2

    def placements(self) -> tuple[np.ndarray, np.ndarray]:
        """Structural components of the AUC (DeLong et al. 1988), one value a threshold, float64 [K] each.

        Returns:
            For a member scored at this threshold the share of non-members below it; for a non-member the share of
            members above it; ties count one half. Both have mean AUC over the members and the non-members.
        """
        return 1 - (self.fpr[1:] + self.fpr[:-1]) / 2, (self.tpr[1:] + self.tpr[:-1]) / 2

    def auc_variance(self) -> float:
        """DeLong's variance of the AUC, from counts alone (Sun and Xu 2014); NaN with one member or one non-member."""
        if min(self.n_in, self.n_out) < 2:
            return float("nan")
        of_member, of_other = self.placements()
        members = np.diff(self.tp) @ (of_member - self.auc) ** 2 / (self.n_in - 1)
        others = np.diff(self.fp) @ (of_other - self.auc) ** 2 / (self.n_out - 1)
        return float(members / self.n_in + others / self.n_out)

    def at(self, level: float) -> int:
        """The point of the largest realised FPR that does not exceed ``level``, and of the largest TPR there."""
        return int(np.searchsorted(self.fp, admitted(level, self.n_out), side="right")) - 1


def roc(scores: Any, members: Any) -> Roc:
    """The ROC curve of one set of scores.

    Args:
        scores: Numbers [N], higher = more likely a member; infinite ones are ranked, NaN is refused.
        members: bool [N].

    Returns:
        The curve: ``.fpr``, ``.tpr``, ``.thresholds`` from (0, 0, +inf) to (1, 1, the smallest score).

    Raises:
        InputError: for NaN scores, shapes that disagree, a mask that is not boolean, or only one class in it.
    """
    score_array, mask = check_scores(scores, members, axes=("sample",))
    order = np.argsort(-score_array)
    return Roc.of_sorted(score_array[order], mask[order])


def admitted(level: float, count: int) -> int:
    """How many false positives of ``count`` a level admits: the largest k with k / count <= level."""
    k = int(level * count)
    # The product rounds, the quotient is what is promised: 0.29 * 100 is below 29, 29 / 100 is 0.29.
    while k < count and (k + 1) / count <= level:
        k += 1
    while k > 0 and k / count > level:
        k -= 1
    return k


def check_scores(scores: Any, members: Any, axes: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Scores in float64 and their mask, of one shape with ``len(axes)`` axes; each row holds both classes."""
    score_array = as_float64("scores", scores, axes=axes, allow_inf=True)
    mask = as_bool("members", members)
    if score_array.shape != mask.shape or score_array.ndim != len(axes) or score_array.size == 0:
        raise InputError(
            "members",
            f"shape {mask.shape} for scores of shape {score_array.shape}",
            f"give both as [{', '.join(axis + 's' for axis in axes)}], none of them empty",
        )
    counts = np.atleast_1d(mask.sum(axis=-1))
    one_class = (counts == 0) | (counts == mask.shape[-1])
    if one_class.any():
        row = int(np.argmax(one_class))
        who = f"target {row} has" if mask.ndim > 1 else "there are"
        missing = "members" if counts[row] == 0 else "non-members"
        raise InputError("members", f"{who} no {missing}", "a rate needs at least one member and one non-member")
    return score_array, mask


def check_levels(levels: Sequence[float], argument: str = "levels") -> tuple[float, ...]:
    """Rates in [0, 1] as floats, ascending and each once."""
    checked = tuple(sorted({float(level) for level in levels}))
    if not all(0.0 <= level <= 1.0 for level in checked):  # NaN too
        raise InputError(argument, f"{list(levels)}", "give rates between 0 and 1")
    return checked

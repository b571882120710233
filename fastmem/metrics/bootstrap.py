"""The Poisson bootstrap over records of an ROC curve that pools several targets.

A record's scores under different targets rise and fall together, so records are what is drawn: each gets a Poisson(1)
weight that all its scores share (the limit of drawing N records with replacement). Scores are sorted once; a resample
is two gathers and two running sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastmem.metrics.roc import admitted

__all__ = ["PooledScores", "Resamples", "resample"]


@dataclass(frozen=True, eq=False)
class PooledScores:
    """Pooled scores in descending order, members and non-members apart.

    Args:
        record_in: The record of each member score, [L_in].
        record_out: The record of each non-member score, [L_out].
        above: For each non-member score the number of member scores above it, [L_out].
        tied: For each non-member score the number of member scores equal to it, [L_out]; None where all are zero.
        num_records: N.
    """

    record_in: np.ndarray
    record_out: np.ndarray
    above: np.ndarray
    tied: np.ndarray | None
    num_records: int

    @classmethod
    def of_sorted(cls, scores: np.ndarray, members: np.ndarray, record: np.ndarray, num_records: int) -> PooledScores:
        """Split scores [L] that are in descending order, with their membership and records."""
        first = np.concatenate([[True], scores[1:] != scores[:-1]])  # of its tie
        group = np.cumsum(first) - 1
        seen = np.concatenate([[0], np.cumsum(members)])  # members among the first k scores
        starts = np.flatnonzero(first)
        ends = np.append(starts[1:], len(scores))
        others = ~members
        above, upto = seen[starts][group[others]], seen[ends][group[others]]
        tied = upto - above
        return cls(record[members], record[others], above, tied if tied.any() else None, num_records)


@dataclass(frozen=True, eq=False)
class Resamples:
    """What the resamples gave.

    Args:
        auc: float64 [R].
        tpr: True positive rate at each level, float64 [R, levels]; each resample finds its own threshold.
    """

    auc: np.ndarray
    tpr: np.ndarray


def resample(pooled: PooledScores, levels: tuple[float, ...], resamples: int, seed: int) -> Resamples:
    """Weighted AUC and TPR at FPR levels under Poisson(1) weights of the records.

    Args:
        pooled: The scores.
        levels: False positive rates.
        resamples: R.
        seed: Seed of the weights.

    Returns:
        One row per resample that drew at least one member and one non-member score.
    """
    rng = np.random.default_rng(seed)
    aucs: list[float] = []
    tprs: list[list[float]] = []
    sum_in = np.zeros(len(pooled.record_in) + 1, np.int64)
    upto = None if pooled.tied is None else pooled.above + pooled.tied
    for _ in range(resamples):
        weight = rng.poisson(1.0, pooled.num_records)
        np.cumsum(weight[pooled.record_in], out=sum_in[1:])
        weight_out = weight[pooled.record_out]
        sum_out = np.cumsum(weight_out)
        total_in, total_out = int(sum_in[-1]), int(sum_out[-1])
        if not total_in or not total_out:
            continue
        wins = sum_in[pooled.above]
        twice = int(weight_out @ wins) * 2 if upto is None else int(weight_out @ (wins + sum_in[upto]))
        aucs.append(twice / (2 * total_in * total_out))
        # The first non-member score that the level no longer admits: every member score above it is a true positive.
        refused = (int(np.searchsorted(sum_out, admitted(level, total_out), side="right")) for level in levels)
        tprs.append([(int(wins[j]) if j < len(wins) else total_in) / total_in for j in refused])
    return Resamples(np.array(aucs), np.array(tprs).reshape(len(aucs), len(levels)))

"""Threshold rules against every threshold there is, and the numbers of a rule against counting."""

from __future__ import annotations

import numpy as np
import pytest

from fastmem.errors import InputError
from fastmem.metrics import DecisionRule, fewest_errors, trust_metrics, youden


def scores(seed: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(2, levels + 2, 40) / levels, rng.integers(0, levels, 30) / levels


@pytest.mark.parametrize("levels", [3, 8, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_rules_are_the_best_of_all_thresholds(seed: int, levels: int) -> None:
    members, others = scores(seed, levels)
    candidates = np.unique(np.concatenate([members, others]))[::-1]
    gains = [(members >= t).mean() - (others >= t).mean() for t in candidates]
    assert youden(members, others) == DecisionRule(candidates[int(np.argmax(gains))], strict=True)
    right = [(members > t).sum() + (others <= t).sum() for t in candidates[1:]]
    assert fewest_errors(members, others).threshold == candidates[1 + int(np.argmax(right))]


def test_saturated_scores_call_nobody_by_the_published_rule() -> None:
    """All members at exactly 1: the best threshold is 1, and nothing is above it. Ties make the difference."""
    members, others = np.ones(10), np.array([1.0, 0.2, 0.3, 0.4])
    rule = youden(members, others)
    metrics = trust_metrics(rule, members, others, members, others)
    assert rule.threshold == 1.0
    assert metrics.recall.value == 0.0
    assert metrics.recall_with_ties.value == 1.0
    assert (metrics.saturated_in, metrics.saturated_out) == (10, 1)
    assert metrics.tied == pytest.approx(11 / 14)
    assert np.isnan(metrics.mmps["tp"])
    assert np.isnan(metrics.precision.value)


def test_counts_on_paper() -> None:
    metrics = trust_metrics(
        DecisionRule(0.5), [0.9, 0.8, 0.5, 0.1], [0.7, 0.2], [0.9, 0.8, 0.5, 0.4], [0.7, 0.6], priors=(0.5, 0.01)
    )
    assert (metrics.recall.value, metrics.recall_with_ties.value, metrics.fpr.value) == (0.5, 0.75, 0.5)
    assert metrics.precision.value == pytest.approx(2 / 3)
    assert metrics.precision_at == pytest.approx({0.5: 0.5, 0.01: 0.01})
    assert metrics.auc == pytest.approx(5 / 8)
    assert metrics.mmps == pytest.approx({"tp": 0.85, "fp": 0.7, "fn": 0.45, "tn": 0.6})
    assert metrics.fpr.low < 0.5 < metrics.fpr.high


@pytest.mark.parametrize(
    ("members", "others", "problem"),
    [([], [1.0], "members"), ([1.0], [], "non-members"), ([np.nan], [1.0], "NaN"), ([1.0, 1.0], [1.0], "all 3 are 1")],
)
def test_doors(members: list[float], others: list[float], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        youden(members, others)
    with pytest.raises(InputError, match=problem):
        fewest_errors(members, others)

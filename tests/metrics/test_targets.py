"""Target by target against one target at a time; carried thresholds against a loop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmem.metrics import membership_metrics
from fastmem.metrics.targets import SortedTargets, per_target, transfer

PROPERTY = settings(deadline=None, derandomize=True, max_examples=40)

LEVELS = (0.0, 0.02, 0.1, 0.5, 1.0)


def example(seed: int, num_targets: int, decimals: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    members = rng.random((num_targets, 30)) < 0.5
    members[:, 0], members[:, 1] = True, False
    return (rng.normal(size=members.shape) + members).round(decimals), members


@PROPERTY
@given(st.integers(0, 2**31), st.integers(1, 6), st.sampled_from([0, 1, 9]))
def test_each_target_by_itself(seed: int, num_targets: int, decimals: int) -> None:
    scores, members = example(seed, num_targets, decimals)
    together = per_target(SortedTargets.of(scores, members), LEVELS, 0.95)
    for t in range(num_targets):
        alone = membership_metrics(scores[t], members[t], levels=LEVELS)
        assert together.auc[t] == alone.auc
        assert together.balanced_accuracy[t] == alone.balanced_accuracy
        for level in LEVELS:
            assert together.tpr[level][t] == alone.tpr_at_fpr[level].tpr
            assert together.realised_fpr[level][t] == alone.tpr_at_fpr[level].realised_fpr


@PROPERTY
@given(st.integers(0, 2**31), st.integers(2, 6), st.sampled_from([0, 1, 9]))
def test_a_carried_threshold_by_brute_force(seed: int, num_targets: int, decimals: int) -> None:
    scores, members = example(seed, num_targets, decimals)
    carried = transfer(SortedTargets.of(scores, members), LEVELS)
    for level, rates in carried.items():
        for t in range(num_targets):
            others = np.arange(num_targets) != t
            non_members = np.sort(scores[others][~members[others]])[::-1]
            # The lowest threshold "score > s" that keeps the others' false positive rate within the level.
            cuts = [s for s in [-np.inf, *non_members] if (non_members > s).mean() <= level]
            assert rates.threshold[t] == min(cuts)
            called = scores[t] > min(cuts)
            assert rates.tpr[t] == called[members[t]].mean()
            assert rates.fpr[t] == called[~members[t]].mean()


def test_one_target_has_nothing_to_carry_from() -> None:
    targets = SortedTargets.of(*example(0, 1, 9))
    assert transfer(targets, LEVELS) == {}
    as_dict = per_target(targets, LEVELS, 0.95).to_dict()
    assert as_dict["auc"]["std"] is None


def test_the_interval_of_the_mean_auc_is_that_of_leaving_records_out() -> None:
    scores, members = example(4, 5, 9)
    found = per_target(SortedTargets.of(scores, members), (0.1,), 0.95)
    # Jackknife over records: an independent way to the same variance.
    means = []
    for n in range(scores.shape[1]):
        kept = np.arange(scores.shape[1]) != n
        means.append(np.mean([membership_metrics(s[kept], m[kept]).auc for s, m in zip(scores, members, strict=True)]))
    jackknife = np.sqrt((len(means) - 1) * np.var(means))
    assert (found.auc_high - found.auc_low) / (2 * 1.959964) == pytest.approx(jackknife, rel=0.1)


def test_many_targets_are_dealt_out_in_order() -> None:
    rng = np.random.default_rng(0)
    scores, members = rng.normal(size=(300, 7)), rng.random((300, 7)) < 0.5
    targets = SortedTargets.of(scores, members)
    for t in (0, 1, 255, 256, 299):
        positions = targets.by_target[t]
        np.testing.assert_array_equal(targets.scores[positions], np.sort(scores[t])[::-1])
        np.testing.assert_array_equal(scores[t][targets.record[positions]], targets.scores[positions])
        np.testing.assert_array_equal(members[t][targets.record[positions]], targets.members[positions])

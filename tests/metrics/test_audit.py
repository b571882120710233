"""Pooled intervals must cover although a record's scores under all targets rise and fall together."""

import json

import numpy as np
import pytest

from fastmem.errors import InputError
from fastmem.metrics import audit_metrics, membership_metrics


def memorised(rng: np.random.Generator, num_targets: int, num_records: int) -> tuple[np.ndarray, np.ndarray]:
    """One record in ten gives itself away whenever it is a member; the others never do."""
    members = rng.random((num_targets, num_records)) < 0.5
    exposed = rng.random(num_records) < 0.1
    return rng.random(members.shape) + (members & exposed), members


def test_pooled_tpr_covers_where_pooled_counts_do_not() -> None:
    rng = np.random.default_rng(0)
    truth = 0.1  # at FPR 0: exactly the exposed members score above 1
    covered = naive = 0
    for trial in range(200):
        scores, members = memorised(rng, num_targets=16, num_records=300)
        found = audit_metrics(scores, members, levels=[1e-4], resamples=100, seed=trial).pooled.tpr_at_fpr[1e-4]
        covered += found.low <= truth + 0.9 * 1e-4 <= found.high
        counted = membership_metrics(scores.ravel(), members.ravel(), levels=[1e-4]).tpr_at_fpr[1e-4]
        naive += counted.low <= truth + 0.9 * 1e-4 <= counted.high
    assert covered / 200 > 0.88
    assert naive / 200 < 0.75  # Clopper-Pearson on pooled counts, the wrong interval


@pytest.mark.parametrize("num_targets", [1, 8])
def test_auc_intervals_cover_one_half_without_an_effect(num_targets: int) -> None:
    rng = np.random.default_rng(1)
    pooled = mean = 0
    for trial in range(300):
        members = rng.random((num_targets, 120)).argsort(0) < num_targets / 2 if num_targets > 1 else None
        if members is None or not ((members.any(1)) & (~members).any(1)).all():
            members = rng.random((num_targets, 120)) < 0.5
        difficulty = rng.normal(size=120)
        found = audit_metrics(
            rng.normal(size=members.shape) + difficulty, members, levels=[0.1], resamples=100, seed=trial
        )
        pooled += found.pooled.auc_low <= 0.5 <= found.pooled.auc_high
        mean += found.per_target.auc_low <= 0.5 <= found.per_target.auc_high
    assert 0.90 <= pooled / 300 <= 0.985
    assert 0.90 <= mean / 300 <= 0.985


def test_the_pooled_curve_is_that_of_all_scores() -> None:
    scores, members = memorised(np.random.default_rng(2), 4, 100)
    found = audit_metrics(scores, members)
    flat = membership_metrics(scores.ravel(), members.ravel())
    assert found.pooled.auc == flat.auc
    assert found.pooled.balanced_accuracy == flat.balanced_accuracy
    np.testing.assert_array_equal(found.pooled.roc.tp, flat.roc.tp)
    for level, value in found.pooled.tpr_at_fpr.items():
        assert (value.n_tp, value.n_fp, value.threshold) == (
            flat.tpr_at_fpr[level].n_tp,
            flat.tpr_at_fpr[level].n_fp,
            flat.tpr_at_fpr[level].threshold,
        )


def test_the_same_seed_gives_the_same_intervals() -> None:
    scores, members = memorised(np.random.default_rng(3), 4, 80)
    assert audit_metrics(scores, members).to_dict() == audit_metrics(scores, members).to_dict()
    assert audit_metrics(scores, members).to_dict() != audit_metrics(scores, members, seed=1).to_dict()


def test_perfect_and_constant_scores_are_not_certain() -> None:
    members = np.random.default_rng(4).random((6, 60)) < 0.5
    perfect = audit_metrics(members.astype(float), members).pooled
    assert (perfect.auc, perfect.auc_high) == (1.0, 1.0)
    assert 0.8 < perfect.auc_low < 1.0
    assert perfect.tpr_at_fpr[0.0].tpr == 1.0
    assert perfect.tpr_at_fpr[0.0].low == pytest.approx(0.025 ** (1 / 60))  # 60 records, not 180 scores
    constant = audit_metrics(np.zeros(members.shape), members).pooled
    assert constant.auc_low < 0.5 < constant.auc_high
    assert constant.tpr_at_fpr[0.01].tpr == 0.0
    assert constant.tpr_at_fpr[0.01].high == pytest.approx(1 - 0.025 ** (1 / 60))


def test_the_dictionary_is_strict_json() -> None:
    scores, members = memorised(np.random.default_rng(5), 4, 80)
    for metrics in (audit_metrics(scores, members), audit_metrics(scores[:1], members[:1])):
        as_json = json.loads(json.dumps(metrics.to_dict(), allow_nan=False))
        assert {"auc", "tpr_at_fpr", "ppv", "per_target", "transfer"} <= set(as_json)
        assert set(as_json["per_target"]["tpr_at_fpr"]["0.01"]) == {"mean", "std", "realised_fpr"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, m: (np.where(s == s[2, 3], np.nan, s), m), "scores: 1 NaN value, first at target 2, record 3"),
        (lambda s, m: (s, m.astype(int)), "members: dtype int64 is not boolean"),
        (lambda s, m: (s, m & (np.arange(4) != 1)[:, None]), "members: target 1 has no members"),
        (lambda s, m: (s, m | (np.arange(4) == 3)[:, None]), "members: target 3 has no non-members"),
        (lambda s, m: (s[0], m[0]), "give both as [targets, records]"),
        (lambda s, m: (s[:, :5], m), "members: shape (4, 80) for scores of shape (4, 5)"),
    ],
)
def test_bad_input_is_named(change, message: str) -> None:
    with pytest.raises(InputError) as raised:
        audit_metrics(*change(*memorised(np.random.default_rng(6), 4, 80)))
    assert message in str(raised.value)


def test_too_few_resamples() -> None:
    with pytest.raises(InputError, match="resamples"):
        audit_metrics(*memorised(np.random.default_rng(7), 4, 80), resamples=1)

"""What is read off one curve, by hand and by simulation."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmem.errors import InputError
from fastmem.metrics import LEVELS, clopper_pearson, membership_metrics

PROPERTY = settings(deadline=None, derandomize=True)

# Ten non-members at 0..9, ten members; 9.5 and 20 are above all, or all but one, of the non-members.
OUT = np.arange(10.0)
IN = np.array([20.0, 9.5, 9.0, 8.5, 7.5, 5.5, 5.5, 4.0, 2.5, 0.5])
SCORES, MEMBERS = np.concatenate([OUT, IN]), np.arange(20) >= 10


def test_a_level_by_hand() -> None:
    metrics = membership_metrics(SCORES, MEMBERS, levels=[0.0, 0.05, 0.1, 0.25, 1.0])
    at = metrics.tpr_at_fpr
    assert (at[0.0].n_tp, at[0.0].n_fp, at[0.0].threshold, at[0.0].resolvable) == (2, 0, 9.5, False)
    assert (at[0.05].tpr, at[0.05].realised_fpr, at[0.05].resolvable) == (0.2, 0.0, False)
    # At one false positive (9) the tied member at 9.0 comes along, and the threshold may go down to 8.5.
    assert (at[0.1].n_tp, at[0.1].n_fp, at[0.1].threshold, at[0.1].resolvable) == (4, 1, 8.5, True)
    # 0.25 admits two of ten, realised at 0.2; no interpolation towards 0.25.
    assert (at[0.25].n_tp, at[0.25].realised_fpr, at[0.25].threshold) == (5, 0.2, 7.5)
    assert (at[1.0].tpr, at[1.0].realised_fpr) == (1.0, 1.0)
    assert (at[0.1].low, at[0.1].high) == clopper_pearson(4, 10)
    assert (at[0.1].n_in, at[0.1].n_out) == (10, 10)


def test_nobody_can_be_called_a_member() -> None:
    found = membership_metrics([3.0, 2.0, 1.0], np.array([False, True, True]), levels=[0.0]).tpr_at_fpr[0.0]
    assert found.threshold == np.inf
    assert found.tpr == 0.0
    assert found.to_dict()["threshold"] is None


def test_predictive_value_by_hand() -> None:
    ppv = membership_metrics(SCORES, MEMBERS, levels=[0.0, 0.1], priors=[0.5, 0.01]).ppv
    assert ppv[0.5][0.1] == pytest.approx(0.4 / (0.4 + 0.1))
    assert ppv[0.01][0.1] == pytest.approx(0.004 / (0.004 + 0.099))
    upper = 1 - 0.025 ** (1 / 10)  # no false positive among ten
    assert ppv[0.5][0.0] == pytest.approx(0.2 / (0.2 + upper))
    assert ppv[0.5][0.0] < 1.0


@PROPERTY
@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_rates_never_fall_as_levels_rise(seed: int, decimals: int) -> None:
    rng = np.random.default_rng(seed)
    scores, members = rng.normal(size=60).round(decimals // 4), rng.permutation(60) < 25
    metrics = membership_metrics(scores, members, levels=np.linspace(0, 1, 11))
    tpr = [value.tpr for value in metrics.tpr_at_fpr.values()]
    fpr = [value.realised_fpr for value in metrics.tpr_at_fpr.values()]
    assert tpr == sorted(tpr)
    assert fpr == sorted(fpr)
    assert all(value.realised_fpr <= level for level, value in metrics.tpr_at_fpr.items())
    assert 0.5 <= metrics.balanced_accuracy <= 1
    assert metrics.auc_low <= metrics.auc <= metrics.auc_high


def test_the_dictionary_is_strict_json() -> None:
    metrics = membership_metrics(SCORES, MEMBERS)
    as_json = json.loads(json.dumps(metrics.to_dict(), allow_nan=False))
    assert set(as_json) == {"auc", "auc_low", "auc_high", "balanced_accuracy", "tpr_at_fpr", "ppv"}
    assert list(as_json["tpr_at_fpr"]) == ["0", "1e-05", "0.0001", "0.001", "0.01", "0.1"]
    assert [float(level) for level in as_json["tpr_at_fpr"]] == list(LEVELS)
    assert set(as_json["tpr_at_fpr"]["0.1"]) == {
        *("tpr", "realised_fpr", "threshold", "n_tp", "n_fp", "n_in", "n_out", "low", "high", "resolvable")
    }
    assert list(as_json["ppv"]) == ["0.5", "0.1", "0.01"]


def test_a_constant_score_says_nothing() -> None:
    metrics = membership_metrics(np.zeros(20), MEMBERS)
    assert metrics.auc == 0.5
    assert metrics.balanced_accuracy == 0.5
    assert metrics.auc_low < 0.3
    assert metrics.auc_high > 0.7
    assert metrics.tpr_at_fpr[0.1].tpr == 0.0


def test_the_auc_interval_covers() -> None:
    rng = np.random.default_rng(7)
    members = np.arange(160) < 60
    truth = 0.760249938906523  # Phi(1 / sqrt 2) for unit normals one apart
    hits = 0
    for _ in range(500):
        metrics = membership_metrics(rng.normal(size=160) + members, members, levels=[0.1])
        hits += metrics.auc_low <= truth <= metrics.auc_high
    assert 0.92 <= hits / 500 <= 0.98


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": [0.1, 1.5]}, "levels: [0.1, 1.5]"),
        ({"levels": [float("nan")]}, "levels"),
        ({"priors": [0.0]}, "priors: [0.0]"),
        ({"confidence": 95}, "confidence: 95"),
    ],
)
def test_options_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(InputError) as raised:
        membership_metrics(SCORES, MEMBERS, **options)
    assert message in str(raised.value)

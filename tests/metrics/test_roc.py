"""The ROC curve against a loop over all thresholds, and DeLong's variance against all pairs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from fastmem.errors import InputError
from fastmem.metrics import roc
from fastmem.metrics.roc import Roc, admitted

PROPERTY = settings(deadline=None, derandomize=True)


@st.composite
def scored(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, and members of both classes."""
    size = draw(st.integers(2, 40))
    members = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    members[0], members[1] = True, False
    scores = draw(st.lists(st.integers(-4, 4), min_size=size, max_size=size))
    return np.array(scores, dtype=np.float64), members


def points(scores: np.ndarray, members: np.ndarray) -> list[tuple[float, float, float]]:
    """Oracle: (fpr, tpr, threshold) of the rule "score >= threshold", one threshold at a time."""
    thresholds = [np.inf, *sorted(set(scores.tolist()), reverse=True)]
    return [((scores >= t)[~members].mean(), (scores >= t)[members].mean(), t) for t in thresholds]


def pairs(scores: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Oracle: for each (member, non-member) pair 1, 1/2 or 0."""
    return (np.sign(scores[members][:, None] - scores[~members][None, :]) + 1) / 2


@PROPERTY
@given(scored())
def test_every_point_equals_the_rule_it_stands_for(data: tuple[np.ndarray, np.ndarray]) -> None:
    curve = roc(*data)
    np.testing.assert_array_equal(np.stack([curve.fpr, curve.tpr, curve.thresholds], 1), points(*data))


@PROPERTY
@given(scored())
def test_auc_is_the_share_of_pairs_in_order(data: tuple[np.ndarray, np.ndarray]) -> None:
    curve = roc(*data)
    assert curve.auc == pytest.approx(pairs(*data).mean(), abs=1e-15)
    assert curve.auc == pytest.approx(roc_auc_score(data[1], data[0]), abs=1e-15)
    assert roc(-data[0], data[1]).auc == pytest.approx(1 - curve.auc, abs=1e-15)
    assert roc(np.exp(data[0]), data[1]).auc == curve.auc  # only the order of scores counts
    fpr, tpr, _ = roc_curve(data[1], data[0], drop_intermediate=False)
    np.testing.assert_allclose(curve.tpr, tpr, rtol=0, atol=1e-15)
    np.testing.assert_allclose(curve.fpr, fpr, rtol=0, atol=1e-15)


@PROPERTY
@given(scored())
def test_delong_variance_from_all_pairs(data: tuple[np.ndarray, np.ndarray]) -> None:
    curve, wins = roc(*data), pairs(*data)
    if min(wins.shape) < 2:
        assert np.isnan(curve.auc_variance())
        return
    expected = wins.mean(1).var(ddof=1) / wins.shape[0] + wins.mean(0).var(ddof=1) / wins.shape[1]
    assert curve.auc_variance() == pytest.approx(expected, abs=1e-15)


def test_ties_move_together() -> None:
    scores, members = np.array([1.0, 1.0, 1.0, 0.0]), np.array([True, False, True, False])
    curve = roc(scores, members)
    np.testing.assert_array_equal(curve.tp, [0, 2, 2])
    np.testing.assert_array_equal(curve.fp, [0, 1, 2])
    assert curve.auc == 0.75
    assert curve.tpr[curve.at(0.0)] == 0.0
    # One threshold per record, tied or not, is the mistake this guards against: it invents a rule with FPR 0, TPR 1/2.
    naive_tpr, naive_fpr = np.cumsum(members) / 2, np.cumsum(~members) / 2
    assert naive_tpr[naive_fpr == 0].max() == 0.5


@PROPERTY
@given(st.floats(0, 1), st.integers(1, 10**6))
def test_a_level_admits_what_does_not_exceed_it(level: float, count: int) -> None:
    k = admitted(level, count)
    assert k / count <= level
    assert k == count or (k + 1) / count > level


@PROPERTY
@given(st.integers(1, 10**6), st.data())
def test_a_rate_admits_its_own_count(count: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, count))
    assert admitted(k / count, count) == k


def test_the_product_would_round_down() -> None:
    assert int(0.29 * 100) == 28  # why admitted() is not a product
    assert admitted(0.29, 100) == 29


@PROPERTY
@given(scored(), st.floats(0, 1))
def test_the_point_at_a_level_is_the_best_rule_within_it(data: tuple[np.ndarray, np.ndarray], level: float) -> None:
    curve = roc(*data)
    best = max((fpr, tpr) for fpr, tpr, _ in points(*data) if fpr <= level)
    assert (curve.fpr[curve.at(level)], curve.tpr[curve.at(level)]) == best


def test_infinite_scores_are_ranked() -> None:
    curve = roc([np.inf, 1.0, -np.inf], np.array([True, False, False]))
    assert curve.auc == 1.0


def test_tensors_are_taken() -> None:
    scores, members = torch.tensor([0.3, 0.1], dtype=torch.bfloat16), torch.tensor([True, False])
    assert roc(scores, members).auc == 1.0


@pytest.mark.parametrize(
    ("scores", "members", "message"),
    [
        ([1.0, np.nan, np.nan], [True, False, True], "scores: 2 NaN values, first at sample 1"),
        ([1.0, 2.0], [1, 0], "members: dtype int64 is not boolean; convert a 0/1 mask with members.astype(bool)"),
        ([1.0, 2.0], [True, True], "members: there are no non-members"),
        ([1.0, 2.0], [False, False], "members: there are no members"),
        ([1.0, 2.0, 3.0], [True, False], "members: shape (2,) for scores of shape (3,)"),
        ([[1.0, 2.0]], [[True, False]], "give both as [samples]"),
        ([], np.array([], dtype=bool), "none of them empty"),
        (["a", "b"], [True, False], "scores: dtype <U1 is not numeric"),
    ],
)
def test_bad_input_is_named(scores: object, members: object, message: str) -> None:
    with pytest.raises(InputError) as raised:
        roc(scores, members)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_sorted_scores_are_not_sorted_again() -> None:
    scores, members = np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, False, True, False])
    a, b = roc(scores, members), Roc.of_sorted(scores, members)
    np.testing.assert_array_equal(a.tp, b.tp)
    np.testing.assert_array_equal(a.thresholds, b.thresholds)

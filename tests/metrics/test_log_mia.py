"""Log-MIA and its null: the published table, every labelling of small cases, and Monte Carlo at larger ones."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom

from fastmem.errors import InputError
from fastmem.metrics import log_mia, log_mia_null, log_mia_over_targets, membership_metrics, tp_from_log_mia
from fastmem.metrics.log_mia_null import null_of

# N, then for the strict and the regular regime: cap, mean, standard deviation, critical count and its L. Section 5 of
# the method's page, to the digits given there.
TABLE = [
    (15, (0, 0.178, 0.199, 4, 0.580), (4, 0.588, 0.179, 10, 0.865)),
    (50, (0, 0.128, 0.145, 5, 0.456), (5, 0.460, 0.132, 13, 0.671)),
    (100, (0, 0.110, 0.124, 5, 0.388), (6, 0.424, 0.108, 14, 0.587)),
    (1_000, (0, 0.073, 0.083, 5, 0.259), (8, 0.319, 0.067, 18, 0.426)),
    (10_000, (0, 0.055, 0.062, 5, 0.195), (10, 0.261, 0.046, 20, 0.331)),
    (25_000, (0, 0.050, 0.057, 5, 0.177), (11, 0.246, 0.040, 22, 0.310)),
]


@pytest.mark.parametrize(
    ("n", "strict", "regular"), TABLE, ids=lambda value: str(value) if value.__class__ is int else ""
)
def test_the_published_table(n: int, strict: tuple[float, ...], regular: tuple[float, ...]) -> None:
    for cap, mean, sd, critical, level in (strict, regular):
        null = null_of(n, n, int(cap))
        assert round(null.mean, 3) == mean
        assert round(null.sd, 3) == sd
        assert null.critical == critical
        assert round(math.log1p(null.critical) / math.log1p(n), 3) == level
        assert null.mean_tp == pytest.approx((cap + 1) * n / (n + 1), rel=1e-9)
        assert null.pmf.sum() == pytest.approx(1, abs=1e-9)
    scores = np.arange(2.0 * n)
    found = log_mia(scores, scores >= n)
    assert (found.strict.fp_cap, found.regular.fp_cap) == (0, regular[0])


def _by_hand(scores: np.ndarray, members: np.ndarray, cap: int) -> int:
    """The definition, threshold by threshold."""
    best = 0
    for threshold in np.unique(scores):
        called = scores >= threshold
        if (called & ~members).sum() <= cap:
            best = max(best, int((called & members).sum()))
    return best


@pytest.mark.parametrize(
    ("scores", "n_in"),
    [(range(7), 3), ([3, 2, 2, 1, 1, 1, 0], 4), ([1, 1, 1, 0, 0, 0], 2), ([5] * 6, 3), ([2, 2, 1, 0, 0], 1)],
    ids=["distinct", "ties", "two values", "constant", "one member"],
)
def test_the_null_is_that_of_every_labelling(scores: list[float], n_in: int) -> None:
    values = np.array(sorted(scores, reverse=True), dtype=float)
    ties = np.unique(-values, return_counts=True)[1]
    for cap in range(len(values) - n_in + 2):
        counts = np.zeros(n_in + 1)
        for chosen in itertools.combinations(range(len(values)), n_in):
            members = np.isin(np.arange(len(values)), chosen)
            counts[_by_hand(values, members, cap)] += 1
        expected = counts / counts.sum()
        np.testing.assert_allclose(log_mia_null(n_in, len(values) - n_in, cap, ties), expected, atol=1e-12)


def test_forgetting_the_ties_would_not_pass() -> None:
    ties = np.array([4, 4, 4])
    assert abs(log_mia_null(6, 6, 1) - log_mia_null(6, 6, 1, ties)).max() > 0.1


@given(n_in=st.integers(1, 60), n_out=st.integers(1, 60), cap=st.integers(0, 12))
def test_groups_of_one_are_no_ties(n_in: int, n_out: int, cap: int) -> None:
    from fastmem.metrics.log_mia_null import _tied

    np.testing.assert_allclose(
        _tied(n_in, n_out, cap, (1,) * (n_in + n_out)).pmf, log_mia_null(n_in, n_out, cap), atol=1e-10
    )


def test_monte_carlo_agrees() -> None:
    rng = np.random.default_rng(0)
    n_in, n_out, cap, draws = 120, 80, 6, 4_000
    members = rng.permuted(np.tile(np.arange(n_in + n_out) < n_in, (draws, 1)), axis=1)
    false = (~members).cumsum(axis=1)
    found = np.where(false <= cap, members.cumsum(axis=1), 0).max(axis=1)
    null = null_of(n_in, n_out, cap)
    values = np.log1p(found) / np.log1p(n_in)
    assert values.mean() == pytest.approx(null.mean, abs=4 * null.sd / math.sqrt(draws))
    assert (found >= null.critical).mean() == pytest.approx(null.p_value(null.critical), abs=0.014)


@given(
    scores=st.lists(st.integers(-3, 3), min_size=4, max_size=25),
    data=st.data(),
)
def test_counts_are_those_of_the_definition(scores: list[int], data: st.DataObject) -> None:
    values = np.array(scores, dtype=float)
    members = np.array(data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores))))
    if members.all() or not members.any():
        return
    cap = data.draw(st.integers(0, 6))
    found = log_mia(values, members, fp_cap=cap)
    assert found.custom is not None
    for value in (found.strict, found.regular, found.custom):
        assert value.tp == _by_hand(values, members, value.fp_cap)
        called = values >= value.threshold
        assert ((called & members).sum(), (called & ~members).sum()) == (value.tp, value.fp)
        assert value.fp <= value.fp_cap
        assert value.raw == pytest.approx(math.log1p(value.tp) / math.log1p(members.sum()))
        assert value.oracle


def test_the_strict_regime_is_the_tpr_at_no_false_positive() -> None:
    rng = np.random.default_rng(1)
    members = rng.random(300) < 0.4
    scores = rng.normal(size=300) + 1.5 * members
    at_zero = membership_metrics(scores, members, levels=[0.0]).tpr_at_fpr[0.0]
    strict = log_mia(scores, members).strict
    assert (strict.tp, strict.n_in, strict.n_out) == (at_zero.n_tp, at_zero.n_in, at_zero.n_out)
    assert (strict.low, strict.high) == (at_zero.low, at_zero.high)


def test_adjusted_is_zero_at_chance_and_one_at_best() -> None:
    rng = np.random.default_rng(2)
    members = np.arange(200) < 100
    chance = [log_mia(rng.random(200), members).regular.adjusted for _ in range(300)]
    assert abs(np.mean(chance)) < 4 * np.std(chance) / math.sqrt(300)
    assert log_mia(members.astype(float), members).strict.adjusted == 1
    assert log_mia(np.arange(200.0), members).strict.adjusted < 0  # not cut at 0
    constant = log_mia(np.zeros(200), members).strict
    assert (constant.raw, constant.chance_mean, constant.adjusted, constant.p_value) == (0, 0, 0, 1)


def test_p_values_are_honest() -> None:
    rng = np.random.default_rng(3)
    members = np.arange(60) < 30
    for scores in (rng.random((800, 60)), rng.integers(0, 9, (800, 60)).astype(float)):
        p = np.array([log_mia(row, members).regular.p_value for row in scores])
        for level in (0.05, 0.2, 0.5):
            assert (p <= level).mean() <= level + 3 * math.sqrt(level * (1 - level) / 800)


def test_a_threshold_from_elsewhere_is_judged_by_how_many_it_accepts() -> None:
    scores, members = np.array([4.0, 3, 2, 1, 0]), np.array([True, False, True, False, False])
    held = np.array([2.5, 2.0, 1.5]), np.array([True, True, False])
    strict = log_mia(scores, members, threshold_from=held).strict
    assert (strict.threshold, strict.tp, strict.fp, strict.fp_cap) == (2.0, 2, 1, 0)
    assert not strict.oracle
    assert "1 false positives" in strict.note
    assert strict.p_value == pytest.approx(hypergeom.sf(1, 5, 2, 3))
    nobody = log_mia(scores, members, threshold_from=(np.array([0.0, 9.0]), np.array([True, False]))).strict
    assert (nobody.tp, nobody.raw, nobody.adjusted, nobody.p_value) == (0, 0, 0, 1)
    assert nobody.to_dict()["threshold"] is None


def test_a_cap_that_admits_everybody_says_so() -> None:
    value = log_mia([1.0, 2.0, 3.0], np.array([True, True, False]), fp_cap=1).custom
    assert value is not None
    assert (value.tp, value.chance_mean, value.p_value, value.adjusted) == (2, 1, 1, 0)
    assert "every non-member" in value.note


def test_back_to_counts() -> None:
    assert tp_from_log_mia(0.5, 25_000) == pytest.approx(157, abs=0.5)
    assert tp_from_log_mia(1, 7) == pytest.approx(7)
    assert tp_from_log_mia(0, 7) == 0


def test_targets_are_summarised() -> None:
    rng = np.random.default_rng(4)
    members = rng.permuted(np.tile(np.arange(50) < 25, (6, 1)), axis=1)
    scores = rng.integers(0, 30, members.shape) + 10.0 * members
    summary = log_mia_over_targets(scores, members)
    single = [log_mia(*pair) for pair in zip(scores, members, strict=True)]
    for name in ("strict", "regular"):
        values = [getattr(value, name) for value in single]
        for field in ("raw", "tp", "chance_mean", "adjusted", "critical", "fpr"):
            assert summary[name][field] == pytest.approx(np.mean([getattr(value, field) for value in values]))
        assert summary[name]["above_chance"] == np.mean([value.p_value <= 0.05 for value in values])
        assert summary[name]["targets"] == 6


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: log_mia([1.0, np.nan], np.array([True, False])), "NaN"),
        (lambda: log_mia([1.0, 2.0], np.array([True, True])), "no non-members"),
        (lambda: log_mia([1.0, 2.0], [0, 1]), "not boolean"),
        (lambda: log_mia([1.0, 2.0], np.array([True, False]), fp_cap=-1), "fp_cap: -1"),
        (lambda: log_mia_null(0, 3, 1), "n_members: 0"),
        (lambda: log_mia_null(3, 3, -1), "fp_cap: -1"),
        (lambda: log_mia_null(3, 3, 1, (2, 2)), "6 scores in all"),
        (lambda: tp_from_log_mia(1.2, 10), "between 0 and 1"),
    ],
)
def test_what_cannot_be_is_refused(call: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()  # type: ignore[operator]

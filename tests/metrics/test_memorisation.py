"""Tests over models: their null is uniform, they find an effect, and the image-level test is shown to do neither job."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from fastmem.errors import InputError
from fastmem.metrics import image_tests, memorisation_test, nulls_needed, pairs_needed, rank_p_value
from fastmem.metrics.memorisation import sign_flip_p_value


def test_sign_flips_by_brute_force() -> None:
    difference = np.random.default_rng(0).normal(0.4, 1, 8)
    means = [np.mean(np.array(signs) * difference) for signs in itertools.product((-1, 1), repeat=8)]
    expected = np.mean(np.array(means) >= difference.mean() - 1e-12)
    assert sign_flip_p_value(difference) == pytest.approx(expected)
    both = np.mean(np.abs(means) >= abs(difference.mean()) - 1e-12)
    assert sign_flip_p_value(difference, "two-sided") == pytest.approx(both)


def test_drawn_flips_agree_with_the_normal_approximation_and_the_seed() -> None:
    difference = np.random.default_rng(1).normal(0.2, 1, 60)
    z = difference.sum() / np.sqrt((difference**2).sum())
    assert sign_flip_p_value(difference) == pytest.approx(stats.norm.sf(z), abs=0.01)
    assert sign_flip_p_value(difference, seed=3) == sign_flip_p_value(difference, seed=3)


def test_all_pairs_above_zero_is_the_smallest_p() -> None:
    test = memorisation_test(np.arange(1.0, 11), np.zeros(10))
    assert test.p_value == pytest.approx(2**-10)
    assert test.p_sign_flip == pytest.approx(2**-10)
    assert (test.positive, test.n, test.auc) == (10, 10, 1.0)
    assert memorisation_test(np.zeros(10), np.zeros(10)).p_value == 1.0


def test_the_interval_is_students() -> None:
    rng = np.random.default_rng(2)
    observed, null = rng.normal(1, 1, 20), rng.normal(0, 1, 20)
    test = memorisation_test(observed, null)
    expected = stats.ttest_rel(observed, null).confidence_interval(0.95)
    assert (test.low, test.high) == pytest.approx((expected.low, expected.high))
    assert test.auc == pytest.approx(np.mean(observed[:, None] > null[None]))
    loose = memorisation_test(observed, null[:15], paired=False)
    assert loose.n_null == 15
    assert loose.low < loose.effect < loose.high


@pytest.mark.parametrize("kind", ["p_value", "p_sign_flip"])
def test_p_values_are_uniform_under_the_null(kind: str) -> None:
    rng = np.random.default_rng(3)
    p = [getattr(memorisation_test(*rng.standard_t(3, (2, 20))), kind) for _ in range(200)]
    assert stats.kstest(p, "uniform").pvalue > 0.05


def test_pairs_find_what_groups_cannot() -> None:
    """Models differ far more among themselves than by the mark: only pairs see it."""
    rng = np.random.default_rng(4)
    base = rng.normal(0, 5, 20)
    observed, null = base + rng.normal(0.3, 0.2, 20), base
    assert memorisation_test(observed, null).p_value < 1e-3
    assert memorisation_test(observed, null, paired=False).p_value > 0.2


def test_rank_p_counts_ties_against_the_model() -> None:
    assert rank_p_value(1.0, [0.0, 1.0, 2.0]) == 0.75
    assert rank_p_value(3.0, np.zeros(19)) == pytest.approx(0.05)
    rng = np.random.default_rng(5)
    p = np.array([rank_p_value(scores[0], scores[1:]) for scores in rng.normal(size=(2000, 20))])
    assert np.mean(p <= 0.05) == pytest.approx(0.05, abs=0.015)


def test_how_many_are_needed() -> None:
    assert (nulls_needed(0.05), nulls_needed(0.1), nulls_needed(0.01)) == (19, 9, 99)
    assert (pairs_needed(0.05), pairs_needed(0.01)) == (5, 7)
    for level in (0.05, 0.1, 0.01):
        assert rank_p_value(1.0, np.zeros(nulls_needed(level))) <= level + 1e-12
        assert 2.0 ** -pairs_needed(level) <= level


def test_image_tests_reject_a_shift_that_training_had_no_part_in() -> None:
    rng = np.random.default_rng(6)
    without = rng.normal(size=5000)
    p = image_tests(without + 0.02 + rng.normal(0, 0.1, 5000), without)
    assert p["t"] < 1e-10
    assert image_tests(without, without)["t"] == 1.0


@pytest.mark.parametrize("decimals", [12, 1, 0])
def test_image_tests_are_scipys(decimals: int) -> None:
    rng = np.random.default_rng(7)
    without, shifted = (rng.normal(mean, 1, 300).round(decimals) for mean in (0.0, 0.1))
    p = image_tests(shifted, without)
    assert p["t"] == pytest.approx(stats.ttest_rel(shifted, without, alternative="greater").pvalue, rel=1e-9)
    expected = stats.mannwhitneyu(shifted, without, alternative="greater", method="asymptotic").pvalue
    assert p["mann_whitney"] == pytest.approx(expected, rel=1e-9)
    infinite = np.where(np.arange(300) == 0, np.inf, without)
    assert np.isnan(image_tests(infinite, without)["t"])
    assert 0 < image_tests(infinite, without)["mann_whitney"] < 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rank_p_value(0.0, np.zeros(10), level=0.05), "10 scores, so that no p-value can reach 0.05; give at least 19"),
        (lambda: memorisation_test(np.ones(4), np.zeros(4), level=0.05), "give at least 5"),
        (lambda: memorisation_test(np.ones(4), np.zeros(3)), "3 models for 4 that saw the mark"),
        (lambda: memorisation_test(np.ones(1), np.zeros(1)), "at least 2 models"),
        (lambda: memorisation_test([1.0, np.nan], [0.0, 0.0]), "NaN"),
        (lambda: memorisation_test([1.0, 2.0], [0.0, 0.0], alternative="less"), "unknown name 'less'"),
        (lambda: rank_p_value(np.nan, [0.0]), "finite"),
        (lambda: nulls_needed(0.0), "level"),
    ],
)  # fmt: skip
def test_refuses(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()

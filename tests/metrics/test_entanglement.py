"""Agreement of two rankings: against scipy, against sets counted by hand, and at chance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fastmem.errors import InputError
from fastmem.metrics import agreement, entanglement


def test_correlations_are_scipys() -> None:
    rng = np.random.default_rng(0)
    a = rng.lognormal(size=500)
    b = a * rng.lognormal(size=500)
    found = agreement(a, b)
    assert found.pearson == pytest.approx(stats.pearsonr(a, b)[0])
    assert found.pearson_log == pytest.approx(stats.pearsonr(np.log(a), np.log(b))[0])
    assert found.spearman == pytest.approx(stats.spearmanr(a, b)[0])


def test_tops_are_counted_as_sets_with_ties_by_position() -> None:
    a, b = np.array([9.0, 8, 7, 6, 5, 5, 1, 0, 0, 0]), np.array([1.0, 9, 0, 8, 7, 2, 0, 0, 0, 6])
    found = agreement(a, b, top=0.5)
    # {0, 1, 2, 3, 4}: the first of the two fives; and {1, 3, 4, 9, 5}.
    assert (found.top, found.overlap, found.jaccard) == (5, 3 / 5, 3 / 7)
    assert found.overlap_chance == 0.5


def test_unrelated_scores_are_at_chance_and_zeros_leave_no_logarithm() -> None:
    rng = np.random.default_rng(1)
    found = agreement(rng.random(200_000), rng.random(200_000), top=0.05)
    assert abs(found.pearson) < 0.01
    assert found.overlap == pytest.approx(found.overlap_chance, abs=0.01)
    assert np.isnan(agreement(np.zeros(5), np.ones(5)).pearson_log)
    assert np.isnan(agreement(np.zeros(5), np.arange(5.0)).pearson)


def test_kinds_of_layers_are_compared_by_themselves() -> None:
    rng = np.random.default_rng(2)
    a = {"x": rng.random((4, 5)), "y": rng.random(30), "z": rng.random((2, 3))}
    b = {"z": a["z"], "x": rng.random((4, 5)), "y": a["y"]}
    found = entanglement(a, b, {"x": "conv", "y": "linear", "z": "linear"}, top=0.1)
    assert list(found) == ["all", "conv", "linear"]
    assert [found[kind].count for kind in found] == [56, 20, 36]
    assert found["linear"].pearson == pytest.approx(1)
    assert found["linear"].overlap == 1
    assert found["conv"].pearson < 0.9


def test_what_cannot_be_compared_is_refused() -> None:
    for a, b in (([1.0], [1.0, 2.0]), ([-1.0, 0.0], [1.0, 2.0]), ([np.nan, 0.0], [1.0, 2.0]), ([], [])):
        with pytest.raises(InputError):
            agreement(np.array(a), np.array(b))
    with pytest.raises(InputError, match="top"):
        agreement(np.ones(3), np.ones(3), top=0)
    with pytest.raises(InputError, match="'y'"):
        entanglement({"x": np.ones(3)}, {"x": np.ones(3), "y": np.ones(3)}, {"x": "conv"})

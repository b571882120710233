"""A weighted resample must equal the plain metrics of a data set in which each record stands as often as it weighs."""

import numpy as np
import pytest

from fastmem.metrics import roc
from fastmem.metrics.bootstrap import PooledScores, resample
from fastmem.metrics.roc import Roc

LEVELS = (0.0, 0.01, 0.1, 0.5, 1.0)


def pooled(scores: np.ndarray, members: np.ndarray) -> PooledScores:
    order = np.argsort(-scores, axis=None, kind="stable")
    num_records = scores.shape[1]
    return PooledScores.of_sorted(scores.ravel()[order], members.ravel()[order], order % num_records, num_records)


@pytest.mark.parametrize("decimals", [0, 1, 8])  # many ties, some, none
def test_weights_are_repetitions(decimals: int) -> None:
    rng = np.random.default_rng(3)
    members = rng.random((4, 50)) < 0.5
    scores = (rng.normal(size=(4, 50)) + members).round(decimals)
    drawn = resample(pooled(scores, members), LEVELS, resamples=20, seed=11)

    weights = np.random.default_rng(11)
    for auc, tpr in zip(drawn.auc, drawn.tpr, strict=True):
        times = weights.poisson(1.0, 50)
        curve = roc(np.repeat(scores, times, axis=1).ravel(), np.repeat(members, times, axis=1).ravel())
        assert auc == pytest.approx(curve.auc, abs=1e-15)
        assert tpr.tolist() == [curve.tpr[curve.at(level)] for level in LEVELS]


def test_a_resample_without_members_is_left_out() -> None:
    scores, members = np.array([[1.0, 0.0]]), np.array([[True, False]])
    drawn = resample(pooled(scores, members), LEVELS, resamples=200, seed=0)
    share_with_both = (1 - np.exp(-1)) ** 2
    assert len(drawn.auc) == pytest.approx(200 * share_with_both, abs=30)
    assert (drawn.auc == 1).all()


def test_spread_of_the_auc_is_that_of_delong_for_one_target() -> None:
    rng = np.random.default_rng(5)
    members = rng.random((1, 400)) < 0.4
    scores = rng.normal(size=(1, 400)) + 0.7 * members
    drawn = resample(pooled(scores, members), (0.1,), resamples=2000, seed=1)
    order = np.argsort(-scores[0])
    delong = Roc.of_sorted(scores[0][order], members[0][order]).auc_variance()
    assert drawn.auc.std() == pytest.approx(np.sqrt(delong), rel=0.1)

"""Models that overfit: attacks that compare with references find members where thresholds do not.

All members are answered alike, whatever they are; of the others the easy ones are answered just as well. So a
threshold takes easy records for members, and only hard ones, seen against models that did not train on them, give
themselves away.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fastmem.attacks import make_attack
from fastmem.metrics import audit_metrics
from fastmem.signals import Signals

from .conftest import exact_half

Tables = tuple[Signals, Signals]


def overfitted(num_models: int, num_samples: int, population: int, seed: int) -> Tables:
    rng = np.random.default_rng(seed)
    tables = []
    for count, keep in (
        (num_samples, exact_half(num_models, num_samples, rng)),
        (population, np.zeros((num_models, population), dtype=bool)),
    ):
        labels = rng.integers(0, 4, count)
        sureness = np.where(keep, 6.0, rng.normal(4.0, 3.0, count)) + rng.normal(0.0, 1.0, keep.shape)
        logits = (
            rng.normal(0.0, 0.3, (*keep.shape, 1, 4)) + np.eye(4)[labels][None, :, None] * sureness[..., None, None]
        )
        tables.append(Signals(labels, keep, logits=logits))
    return tables[0], tables[1]


@pytest.fixture(scope="module")
def tpr_at_one_percent() -> Callable[[str], float]:
    """TPR at 1% FPR by attack key, pooled over 24 models."""
    pool, population = overfitted(24, 1500, 1000, seed=0)

    def measure(key: str) -> float:
        scores = make_attack(key)(pool, None, population)
        return audit_metrics(scores, pool.keep).to_dict()["tpr_at_fpr"]["0.01"]["tpr"]

    return measure


def test_lira_beats_loss_and_max_prob_at_low_false_positive_rates(tpr_at_one_percent: Callable[[str], float]) -> None:
    online, loss, max_prob = (tpr_at_one_percent(key) for key in ("lira_online", "loss", "max_prob"))
    assert online > 0.2
    assert loss < 0.03
    assert max_prob < 0.03


@pytest.mark.parametrize("key", ["lira_online_fixed", "lira_offline_cdf", "rmia_online", "rmia_offline", "calibrated"])
def test_so_do_other_attacks_with_references(tpr_at_one_percent: Callable[[str], float], key: str) -> None:
    assert tpr_at_one_percent(key) > 0.1 > 3 * tpr_at_one_percent("loss")


def test_the_shuffled_mask_shows_nothing() -> None:
    pool, population = overfitted(16, 1500, 300, seed=1)
    shuffled = pool.with_keep(pool.keep[:, np.random.default_rng(0).permutation(1500)])
    for key in ("lira_online", "rmia_online", "loss"):
        metrics = audit_metrics(make_attack(key)(shuffled, None, population), shuffled.keep).to_dict()
        assert metrics["auc_low"] <= 0.5 <= metrics["auc_high"]
        assert metrics["auc_high"] - metrics["auc_low"] < 0.05

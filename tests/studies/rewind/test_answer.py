"""What is said follows from the numbers: the published ordering, and the answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fastmem.studies.rewind import RewindConfig
from fastmem.studies.rewind.answer import answer_sentence, headline_attack, ordering
from fastmem.studies.rewind.evaluate import ArmOutcome, difference


def _arm(key: str, auc: float, accuracy: float, fraction: float = 0.0) -> ArmOutcome:
    wiggle = np.linspace(-0.01, 0.01, 8)
    attack = {"title": "LiRA", "auc": auc, "auc_low": auc - 0.01, "auc_high": auc + 0.01}
    entry = {"attacks": {"lira_online_fixed": attack}, "fraction": fraction or None, "title": key}
    return ArmOutcome(key, entry, [], {"lira_online_fixed": auc + wiggle}, accuracy + wiggle[::-1] * 0.1)


def _outcomes(rewound: float, alone: float) -> dict[str, ArmOutcome]:
    arms = [_arm("none", 0.8, 0.9), _arm("tune_only", alone, 0.85), _arm("cwrf_0.01", rewound, 0.86, 0.01)]
    return {arm.key: arm for arm in arms}


def test_difference_is_the_paired_interval() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(12), rng.random(12)
    found = difference(a, b)
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert math.isnan(difference(a[:1], b[:1])["low"])


@pytest.mark.parametrize(
    ("rewound", "alone", "holds", "words"),
    [(0.6, 0.7, True, "rewinding itself lowers"), (0.7, 0.6, False, "leaves less to find")],
)
def test_a_claim_holds_or_is_reversed_by_its_difference(rewound: float, alone: float, holds: bool, words: str) -> None:
    outcomes = _outcomes(rewound, alone)
    claims = ordering(outcomes, RewindConfig())
    verdicts = {claim["claim"]: claim["holds"] for claim in claims}
    assert verdicts["CWRF finds less than the same tuning without rewinding"] is holds
    assert verdicts["CWRF finds less than no defence"] is True
    assert not any("random" in claim["b"] for claim in claims)
    assert words in answer_sentence(outcomes, claims)


def test_what_cannot_be_told_apart_is_said_to_be_so() -> None:
    outcomes = _outcomes(0.7, 0.7)
    noisy = outcomes["cwrf_0.01"].auc["lira_online_fixed"]
    noisy[:] = noisy[::-1].copy()
    claims = ordering(outcomes, RewindConfig())
    claim = next(claim for claim in claims if claim["b"] == "tune_only" and claim["figure"] == "auc")
    assert claim["holds"] is None
    assert "leaves as much to find" in answer_sentence(outcomes, claims)


def test_the_headline_attack_is_chosen_before_the_results() -> None:
    assert headline_attack({"loss": 1, "rmia_online": 2}) == "rmia_online"
    assert headline_attack({"global": 1}) == "global"


def test_options_become_what_is_compared() -> None:
    config = RewindConfig(loss="ce")
    assert "tune_only" not in config.method_keys
    assert "dp_sgd" not in config.method_keys
    assert RewindConfig(methods="all,dp_sgd").method_keys[-1] == "dp_sgd"
    assert RewindConfig(tune_epochs=7).longer.epochs == 57
    assert RewindConfig(tune_epochs=7).tuning.epochs == 7

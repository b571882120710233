"""Attacks fitted on one shadow model: the published rules, doors, and chance where there is nothing to find."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.special import softmax

from fastmem.attacks import Entropy, FittedAttack, MaxProb, NotFittedError, TopK, evaluate_trust
from fastmem.errors import InputError

ATTACKS = [MaxProb(), Entropy(), TopK(3)]


def logits(seed: int, count: int, sure: float, classes: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    h = rng.normal(size=(count, classes))
    h[:, 0] += sure
    return h


def answers(seed: int, count: int, sure: float, classes: int = 6) -> np.ndarray:
    return softmax(logits(seed, count, sure, classes), axis=1)


@pytest.fixture(scope="module", params=ATTACKS, ids=lambda attack: attack.key)
def fitted(request: pytest.FixtureRequest) -> FittedAttack:
    return request.param.fit(answers(0, 300, 4.0), answers(1, 300, 2.0))


def test_scores_are_the_formulas() -> None:
    p = answers(2, 20, 1.0)
    first = MaxProb().fit(answers(0, 50, 4.0), answers(1, 50, 2.0))
    np.testing.assert_array_equal(first.score(p), p.max(axis=1))
    second = Entropy().fit(answers(0, 50, 4.0), answers(1, 50, 2.0))
    np.testing.assert_allclose(second.score(p), (p * np.log(p)).sum(axis=1), rtol=1e-12)
    assert second.score(np.array([[1.0, 0, 0, 0, 0, 0]])) == 0


def test_rules_are_the_published_ones() -> None:
    members, others = answers(0, 200, 4.0), answers(1, 200, 2.0)
    assert MaxProb().fit(members, others).rule.strict
    assert Entropy().fit(members, others).rule.strict
    top = TopK(3).fit(members, others)
    assert (top.rule.threshold, top.rule.strict) == (0.5, False)
    scores = top.score(members)
    np.testing.assert_array_equal(top.predict(members), scores >= 0.5)


def test_an_effect_is_found_and_strange_sets_are_accused(fitted: FittedAttack) -> None:
    table = evaluate_trust(fitted, answers(3, 300, 4.0), {"alike": answers(4, 300, 2.0), "surer": answers(5, 300, 9.0)})
    assert table["alike"].auc > 0.75
    assert table["surer"].fpr.value > 0.95
    assert table["alike"].recall == table["surer"].recall


def test_without_an_effect_it_is_at_chance(fitted: FittedAttack) -> None:
    table = evaluate_trust(fitted, answers(6, 2000, 3.0), {"same": answers(7, 2000, 3.0)})["same"]
    assert abs(table.auc - 0.5) < 0.03
    assert abs(table.recall.value - table.fpr.value) < 0.05


def test_float64_separates_what_float32_has_rounded_to_one() -> None:
    h = [logits(seed, 300, sure).astype(np.float32) for seed, sure in ((0, 22.0), (1, 18.0))]
    p = [np.float32(softmax(part.astype(np.float32), axis=1)) for part in h]
    with pytest.warns(UserWarning, match="% of the shadow model's scores are tied"):
        published = MaxProb().fit(*p)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        finer = MaxProb().fit(*h, from_logits=True)
    assert published.tied > 0.5 > 0.1 > finer.tied
    assert evaluate_trust(published, p[0], {"": p[1]})[""].auc < 0.75
    assert evaluate_trust(finer, h[0], {"": h[1]}, from_logits=True)[""].auc > 0.95


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.key)
def test_not_before_it_is_fitted(attack: MaxProb | Entropy | TopK) -> None:
    with pytest.raises(NotFittedError, match="has not been fitted; call fit"):
        attack.score(answers(0, 3, 1.0))
    with pytest.raises(NotFittedError):
        attack.predict(answers(0, 3, 1.0))


@pytest.mark.parametrize(
    ("members", "others", "problem"),
    [
        (answers(0, 5, 1.0), np.zeros((0, 6)), "shadow_nonmembers: shape"),
        (logits(0, 5, 1.0), answers(1, 5, 1.0), "from_logits=True"),
        (answers(0, 5, 1.0), answers(1, 5, 1.0, classes=4), "4 classes, members 6"),
        (np.full((5, 4), 0.25), np.full((5, 4), 0.25), "constant score"),
        (np.full((5, 4), np.nan), np.full((5, 4), 0.25), "NaN"),
    ],
)
def test_doors(members: np.ndarray, others: np.ndarray, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        MaxProb().fit(members, others)


def test_the_target_must_have_the_shadow_models_classes(fitted: FittedAttack) -> None:
    with pytest.raises(InputError, match="4 classes, the shadow model had 6"):
        fitted.score(answers(0, 3, 1.0, classes=4))
    with pytest.raises(InputError, match="no set"):
        evaluate_trust(fitted, answers(0, 3, 1.0), {})

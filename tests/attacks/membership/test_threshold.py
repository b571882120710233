"""Threshold attacks against probabilities computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from fastmem.attacks import Attack, Entropy, GlobalThreshold, Loss, MaxProb, ModifiedEntropy
from fastmem.signals import Signals

LOGITS = np.array([[[[2.0, 0.0, -1.0], [1.0, 1.0, 0.0]], [[0.0, 3.0, 0.5], [0.2, 0.1, 0.0]]]])  # [1, 2, 2, 3]
LABELS = np.array([0, 2])


def of_probabilities(attack: Attack, p: np.ndarray, label: int) -> float:
    rest = np.delete(p, label)
    return {
        "loss": np.log(p[label]),
        "max_prob": p.max(),
        "entropy": (p * np.log(p)).sum(),
        "modified_entropy": (1 - p[label]) * np.log(p[label]) + (rest * np.log1p(-rest)).sum(),
        "global": np.log(p[label] / (1 - p[label])),
    }[attack.key]


@pytest.mark.parametrize("attack", [Loss(), MaxProb(), Entropy(), ModifiedEntropy(), GlobalThreshold()])
def test_mean_over_queries_of_the_formula(attack: Attack) -> None:
    signals = Signals(LABELS, np.array([[True, False]]), logits=LOGITS)
    probabilities = softmax(LOGITS, axis=-1)
    expected = [
        np.mean([of_probabilities(attack, probabilities[0, n, a], LABELS[n]) for a in range(2)]) for n in range(2)
    ]
    np.testing.assert_allclose(attack(signals), [expected], rtol=1e-13)


@pytest.mark.parametrize("attack", [Loss(), ModifiedEntropy(), GlobalThreshold()])
def test_a_right_and_certain_answer_scores_higher_than_a_wrong_one(attack: Attack) -> None:
    signals = Signals([0, 1], np.array([[True, False]]), logits=np.array([[[[9.0, 0.0]], [[9.0, 0.0]]]]))
    right, wrong = attack(signals)[0]
    assert right > wrong


@pytest.mark.parametrize("attack", [MaxProb(), Entropy()])
def test_some_do_not_know_the_label(attack: Attack) -> None:
    signals = Signals([0, 1], np.array([[True, False]]), logits=np.array([[[[9.0, 0.0]], [[9.0, 0.0]]]]))
    right, wrong = attack(signals)[0]
    assert right == wrong


def test_a_certain_answer_does_not_saturate_the_loss() -> None:
    margin = np.array([[[40.0], [300.0]]])
    signals = Signals([0, 0], np.array([[True, False]]), stats={"margin": margin})
    np.testing.assert_allclose(Loss()(signals)[0], [-np.exp(-40.0), -np.exp(-300.0)], rtol=1e-13)

"""Attacks that look at the target alone: one statistic of its answer, high for members.

Loss (Yeom et al. 2018, arXiv:1709.01604), largest probability and entropy (Salem et al. 2019, arXiv:1806.01246),
modified entropy (Song and Mittal 2021, arXiv:2003.10595) and the mean margin that LiRA (Carlini et al. 2022) calls
its global threshold. They take all records for equally hard, hence are weak at low false positive rates. Over augmented
queries the score is averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import xlogy

from fastmem.attacks.membership.base import Attack, AttackResult
from fastmem.attacks.membership.one_shadow import OneShadowAttack, Scores
from fastmem.metrics import DecisionRule, fewest_errors, youden
from fastmem.signals import Signals

__all__ = ["Entropy", "GlobalThreshold", "Loss", "MaxProb", "ModifiedEntropy", "ThresholdAttack"]


class ThresholdAttack(Attack):
    """A statistic of the target, with the sign that makes it high for members."""

    names: ClassVar[tuple[str, str]]
    stat: ClassVar[str]
    sign: ClassVar[float]

    @property
    def key(self) -> str:
        """The name of the attack."""
        return self.names[0]

    @property
    def title(self) -> str:
        """The name for human readers."""
        return self.names[1]

    @property
    def required_stats(self) -> tuple[str, ...]:
        """The one statistic."""
        return (self.stat,)

    def _run(self, signals: Signals, targets: list[int], population: Signals | None) -> AttackResult:
        values = signals.stat(self.stat)
        return AttackResult(np.stack([self.sign * values[target].mean(axis=-1) for target in targets]))


@dataclass(frozen=True)
class Loss(ThresholdAttack):
    """Minus the cross-entropy, ``log p_y`` (Yeom et al. 2018)."""

    names = ("loss", "Loss")
    stat = "loss"
    sign = -1.0


@dataclass(frozen=True)
class MaxProb(ThresholdAttack, OneShadowAttack):
    """The largest probability; blind to the label, so a wrong but confident answer scores high (Salem et al. 2019)."""

    names = ("max_prob", "Maximum probability")
    stat = "max_prob"
    sign = 1.0

    def _fit(self, members: np.ndarray, others: np.ndarray) -> tuple[Scores, DecisionRule]:
        return _largest_probability, youden(_largest_probability(members), _largest_probability(others))


@dataclass(frozen=True)
class Entropy(ThresholdAttack, OneShadowAttack):
    """Minus the entropy, ``sum p log p``; comparable at equal numbers of classes only (Salem et al. 2019)."""

    names = ("entropy", "Entropy")
    stat = "entropy"
    sign = -1.0

    def _fit(self, members: np.ndarray, others: np.ndarray) -> tuple[Scores, DecisionRule]:
        return _minus_entropy, fewest_errors(_minus_entropy(members), _minus_entropy(others))


@dataclass(frozen=True)
class ModifiedEntropy(ThresholdAttack):
    """``(1 - p_y) log p_y + sum_{c != y} p_c log(1 - p_c)``: the entropy that knows the label (Song and Mittal)."""

    names = ("modified_entropy", "Modified entropy")
    stat = "modified_entropy"
    sign = -1.0


@dataclass(frozen=True)
class GlobalThreshold(ThresholdAttack):
    """The margin, ``log p_y - log(1 - p_y)``: LiRA's baseline without references (Carlini et al. 2022)."""

    names = ("global", "Global threshold on the margin")
    stat = "margin"
    sign = 1.0


def _largest_probability(p: np.ndarray) -> np.ndarray:
    return p.max(axis=1)


def _minus_entropy(p: np.ndarray) -> np.ndarray:
    return xlogy(p, p).sum(axis=1)

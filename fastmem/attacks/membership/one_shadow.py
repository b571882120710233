"""Attacks that learn their rule on one shadow model and apply it to the target: the published protocol.

The shadow model is trained like the target, on other records, and the attacker knows which. ``fit`` takes what it says
about its members and about non-members, whole probability vectors, and gives a rule for any other model's (Salem et al.
2019, arXiv:1806.01246; Hintersdorf et al. 2022, arXiv:2111.09076). The attacks do not look at true labels.

Probabilities are taken as they are: float32 ones that have rounded to 1 are ties, as in the published figures. With
``from_logits=True`` the softmax is computed in float64, which separates them: a stronger attack than published.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import softmax

from fastmem.attacks.membership.base import Attack
from fastmem.errors import InputError
from fastmem.metrics import DecisionRule
from fastmem.metrics.arrays import as_float64
from fastmem.metrics.calibration import check_probabilities
from fastmem.metrics.trust import tied_share

__all__ = ["FittedAttack", "NotFittedError", "OneShadowAttack", "Scores"]

Scores = Callable[[np.ndarray], np.ndarray]
"""Probabilities [n, C] to scores [n], higher = member."""

_MANY_TIES = 0.1


class NotFittedError(InputError):
    """An attack was asked to decide before it had a shadow model to learn from."""


@dataclass(frozen=True)
class FittedAttack:
    """An attack with the rule that it learnt.

    Args:
        attack: What was fitted.
        rule: Who is called a member.
        num_classes: C of the shadow model; the target's must be the same.
        tied: Share of the shadow model's scores that occur more than once.
    """

    attack: OneShadowAttack
    rule: DecisionRule
    num_classes: int
    tied: float
    _scores: Scores

    def score(self, p: Any, from_logits: bool = False) -> np.ndarray:
        """Scores of the target's answers.

        Args:
            p: Probabilities [n, C], or logits.
            from_logits: Whether they are logits.

        Returns:
            float64 [n], higher = more likely a member.

        Raises:
            InputError: If they are neither, or of another number of classes than the shadow model's.
        """
        probabilities = as_probabilities("p", p, from_logits)
        if probabilities.shape[1] != self.num_classes:
            raise InputError(
                "p",
                f"{probabilities.shape[1]} classes, the shadow model had {self.num_classes}",
                "attack a model of the same classes",
            )
        return self._scores(probabilities)

    def predict(self, p: Any, from_logits: bool = False) -> np.ndarray:
        """Who is called a member, bool [n]; arguments and errors as for :meth:`score`."""
        return self.rule(self.score(p, from_logits))


class OneShadowAttack(Attack):
    """A membership attack that can be fitted on one shadow model."""

    def fit(self, shadow_members: Any, shadow_nonmembers: Any, from_logits: bool = False) -> FittedAttack:
        """Learns a rule.

        Args:
            shadow_members: What the shadow model says about records that it was trained on, probabilities [n, C].
            shadow_nonmembers: The same about records that it was not trained on [m, C].
            from_logits: Whether logits are given instead.

        Returns:
            The attack with its rule; this object stays as it is.

        Raises:
            InputError: For empty sets, NaN, rows that do not sum to 1, sets of different classes, or scores that are
                all equal.
        """
        members = as_probabilities("shadow_members", shadow_members, from_logits)
        others = as_probabilities("shadow_nonmembers", shadow_nonmembers, from_logits)
        if members.shape[1] != others.shape[1]:
            raise InputError(
                "shadow_nonmembers", f"{others.shape[1]} classes, members {members.shape[1]}", "give one C"
            )
        scores, rule = self._fit(members, others)
        tied = tied_share(np.concatenate([scores(members), scores(others)]))
        if tied > _MANY_TIES:
            warnings.warn(
                f"{tied:.0%} of the shadow model's scores are tied: whether ties count as members decides the rates "
                "(from_logits=True separates what float32 has rounded to 1)",
                stacklevel=2,
            )
        return FittedAttack(self, rule, members.shape[1], tied, scores)

    def score(self, p: Any) -> np.ndarray:
        """Not before :meth:`fit`, which returns what can."""
        raise _not_fitted(self.key)

    def predict(self, p: Any) -> np.ndarray:
        """Not before :meth:`fit`, which returns what can."""
        raise _not_fitted(self.key)

    @abstractmethod
    def _fit(self, members: np.ndarray, others: np.ndarray) -> tuple[Scores, DecisionRule]:
        """The score and the rule from checked float64 probabilities."""


def _not_fitted(key: str) -> NotFittedError:
    return NotFittedError(
        key, "it has not been fitted", "call fit(shadow_members, shadow_nonmembers) and use its result"
    )


def as_probabilities(argument: str, p: Any, from_logits: bool) -> np.ndarray:
    if not from_logits:
        return check_probabilities(argument, p)
    logits = as_float64(argument, p, axes=("record", "class"))
    if logits.ndim != 2 or not len(logits) or logits.shape[1] < 2:
        raise InputError(argument, f"shape {logits.shape}", "give logits [N, C], N at least 1 and C at least 2")
    return softmax(logits, axis=1)

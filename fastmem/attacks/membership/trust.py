"""One fitted attack on members and several sets of non-members, as a table.

The same members stand against every set, so recall is one number; how often a set is accused, and how well scores tell
it from the members, is what differs (Hintersdorf et al. 2022, arXiv:2111.09076).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastmem.attacks.membership.one_shadow import FittedAttack, as_probabilities
from fastmem.errors import InputError
from fastmem.metrics import PRIORS, TrustMetrics, trust_metrics

__all__ = ["evaluate_trust"]


def evaluate_trust(
    attack: FittedAttack,
    members: Any,
    nonmembers: Mapping[str, Any],
    *,
    prevalence: Sequence[float] = PRIORS,
    from_logits: bool = False,
) -> dict[str, TrustMetrics]:
    """How an attack does on each set of non-members.

    Args:
        attack: From ``MaxProb().fit(...)``, ``Entropy().fit(...)`` or ``TopK(3).fit(...)``.
        members: What the target says about records that it was trained on: probabilities [n, C].
        nonmembers: The same by name of the set.
        prevalence: Shares of members at which precision is given beside that at the given sizes.
        from_logits: Whether logits are given instead.

    Returns:
        By name of the set: recall, false positive rate, precision, AUC (with intervals), mean maximum prediction scores
        among true and false positives and negatives, and how many scores are exactly 1 or tied.

    Raises:
        InputError: If there is no set, or one is empty, holds NaN or no probabilities, or has other classes.
    """
    if not nonmembers:
        raise InputError("nonmembers", "no set", "give at least one, by name")
    scores, sure = attack.score(members, from_logits), _confidence(members, from_logits)
    return {
        name: trust_metrics(
            attack.rule, scores, attack.score(p, from_logits), sure, _confidence(p, from_logits), prevalence
        )
        for name, p in nonmembers.items()
    }


def _confidence(p: Any, from_logits: bool) -> np.ndarray:
    return as_probabilities("p", p, from_logits).max(axis=1)

"""Attacks on models: who was in the training set, and was a mark in it learned?

``ATTACKS`` maps the keys that reports and the command line use to factories with default options; classes such as
:class:`LiRA` take the options.
"""

from __future__ import annotations

from collections.abc import Callable

from fastmem.attacks.membership.base import Attack, AttackResult
from fastmem.attacks.membership.bayes import BASE
from fastmem.attacks.membership.calibrated import Calibrated
from fastmem.attacks.membership.few_shot import EpisodeTable, FewShot, FewShotResult, episodes
from fastmem.attacks.membership.lira import LiRA
from fastmem.attacks.membership.one_shadow import FittedAttack, NotFittedError
from fastmem.attacks.membership.population import Population
from fastmem.attacks.membership.reference import AttackR
from fastmem.attacks.membership.rmia import RMIA
from fastmem.attacks.membership.stream import FalseMembers, draw_false_members
from fastmem.attacks.membership.threshold import Entropy, GlobalThreshold, Loss, MaxProb, ModifiedEntropy
from fastmem.attacks.membership.topk import TopK
from fastmem.attacks.membership.trust import evaluate_trust
from fastmem.attacks.reconstruct import Reconstruction, ReconstructSettings, reconstruct
from fastmem.attacks.unique_feature import SavedAnswers, UniqueFeatureResult, unique_feature
from fastmem.errors import UnknownNameError

__all__ = [
    "ATTACKS",
    "BASE",
    "RMIA",
    "Attack",
    "AttackR",
    "AttackResult",
    "Calibrated",
    "Entropy",
    "EpisodeTable",
    "FalseMembers",
    "FewShot",
    "FewShotResult",
    "FittedAttack",
    "GlobalThreshold",
    "LiRA",
    "Loss",
    "MaxProb",
    "ModifiedEntropy",
    "NotFittedError",
    "Population",
    "ReconstructSettings",
    "Reconstruction",
    "SavedAnswers",
    "TopK",
    "UniqueFeatureResult",
    "draw_false_members",
    "episodes",
    "evaluate_trust",
    "make_attack",
    "reconstruct",
    "unique_feature",
]

#: Every membership attack by its key, with default options.
ATTACKS: dict[str, Callable[[], Attack]] = {
    "loss": Loss,
    "max_prob": MaxProb,
    "entropy": Entropy,
    "modified_entropy": ModifiedEntropy,
    "top3": TopK,
    "global": GlobalThreshold,
    "population": Population,
    "reference": AttackR,
    "calibrated": Calibrated,
    "lira_online": LiRA,
    "lira_online_fixed": lambda: LiRA(fixed_variance=True),
    "lira_offline_cdf": lambda: LiRA("offline_cdf"),
    "lira_offline_cdf_fixed": lambda: LiRA("offline_cdf", fixed_variance=True),
    "lira_offline_pdf": lambda: LiRA("offline_pdf"),
    "lira_offline_pdf_fixed": lambda: LiRA("offline_pdf", fixed_variance=True),
    "rmia_online": RMIA,
    "rmia_offline": lambda: RMIA("offline"),
    "base_online": BASE,
    "base_offline": lambda: BASE("offline"),
}


def make_attack(key: str) -> Attack:
    """The attack of this key with default options.

    Args:
        key: One of :data:`ATTACKS`.

    Raises:
        UnknownNameError: There is no such attack; the nearest keys are given.
    """
    if key not in ATTACKS:
        raise UnknownNameError("attack", key, ATTACKS)
    return ATTACKS[key]()

"""Scores of each attack in one direction, and the rule that it learnt on the shadow model.

The published attacks read probability vectors. The others read statistics that need a label: for records that have
none of their own it is the class that the target gives them, which favours the attack. LiRA and RMIA compare with one
model of each other pair, the one that did not train on the record, so every record has equally many references. LiRA
takes each record's own spread: one pooled over the sets would be that of the strangest of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fastmem.attacks import RMIA, Attack, Entropy, FittedAttack, LiRA, Loss, MaxProb, ModifiedEntropy, TopK
from fastmem.metrics import DecisionRule, youden
from fastmem.signals import Signals
from fastmem.studies.trust.calibrated import probabilities
from fastmem.studies.trust.directions import Direction
from fastmem.studies.trust.job import Job

__all__ = ["ATTACKS", "NEED_REFERENCES", "PUBLISHED", "Scored", "scored"]

#: The attacks of the paper, then the others, with their titles.
ATTACKS = {
    "max_prob": "Maximum probability",
    "entropy": "Entropy",
    "top3": "Network on the top 3",
    "max_prob_float64": "Maximum probability, float64",
    "loss": "Loss",
    "modified_entropy": "Modified entropy",
    "lira_offline_cdf": "LiRA offline",
    "rmia_offline": "RMIA offline",
}
PUBLISHED = ("max_prob", "entropy", "top3")
NEED_REFERENCES = ("lira_offline_cdf", "rmia_offline")

_PUBLISHED: dict[str, Callable[[], MaxProb | Entropy | TopK]] = {"max_prob": MaxProb, "entropy": Entropy, "top3": TopK}
_OF_SIGNALS: dict[str, Callable[[], Attack]] = {
    "loss": Loss,
    "modified_entropy": ModifiedEntropy,
    "lira_offline_cdf": lambda: LiRA("offline_cdf", counts="all"),
    "rmia_offline": lambda: RMIA("offline"),
}


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores of one attack.

    Args:
        rule: Fitted on the shadow model.
        members: Of the target's members [n].
        sets: Of each set of non-members.
        unseen: By the shadow model, of the same members and test records, none of which it saw: the null.
        fitted: The fitted attack, where it reads probabilities alone.
    """

    rule: DecisionRule
    members: np.ndarray
    sets: dict[str, np.ndarray]
    unseen: tuple[np.ndarray, np.ndarray]
    fitted: FittedAttack | None = None


def scored(key: str, job: Job, direction: Direction, logits: np.ndarray) -> Scored:
    """Runs an attack.

    Args:
        key: One of :data:`ATTACKS`.
        job: The job.
        direction: Target, shadow model and records.
        logits: What all models say, float32 [M, R, C].
    """
    if key in _OF_SIGNALS:
        return _by_signals(_OF_SIGNALS[key](), job, direction, logits)
    in_double = key == "max_prob_float64"
    attack = _PUBLISHED["max_prob" if in_double else key]()

    def said(model: int, rows: np.ndarray) -> np.ndarray:
        return logits[model, rows] if in_double else probabilities(logits[model, rows])

    target, shadow = direction.target, direction.shadow
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # ties are counted and reported
        fitted = attack.fit(
            said(shadow, direction.shadow_members), said(shadow, direction.shadow_test), from_logits=in_double
        )
    return Scored(
        fitted.rule,
        fitted.score(said(target, direction.members), in_double),
        {name: fitted.score(said(target, rows), in_double) for name, rows in direction.sets.items()},
        (
            fitted.score(said(shadow, direction.members), in_double),
            fitted.score(said(shadow, direction.sets["test"]), in_double),
        ),
        fitted,
    )


def _by_signals(attack: Attack, job: Job, direction: Direction, logits: np.ndarray) -> Scored:
    target, shadow = direction.target, direction.shadow

    def score(model: int, *parts: np.ndarray) -> list[np.ndarray]:
        rows = np.concatenate(parts)
        table = _table(job, logits, model, rows)
        held_out = np.arange(job.places["held_out"].start, job.places["held_out"].stop)
        population = _table(job, logits, model, held_out) if attack.needs_population else None
        return np.split(attack(table, [0], population)[0], np.cumsum([len(part) for part in parts])[:-1])

    members, *sets = score(target, direction.members, *direction.sets.values())
    own, test, unseen_members, unseen_test = score(
        shadow, direction.shadow_members, direction.shadow_test, direction.members, direction.sets["test"]
    )
    return Scored(
        youden(own, test), members, dict(zip(direction.sets, sets, strict=True)), (unseen_members, unseen_test)
    )


def _table(job: Job, logits: np.ndarray, model: int, rows: np.ndarray) -> Signals:
    """A target and its references on some records, as signals of models that (but for the target) never saw them."""
    pairs = [pair for pair in range(len(logits) // 2) if pair != model // 2]
    # Of each other pair the model that did not train on the record; beyond the pool neither did, and they take turns.
    in_pool = rows < job.places["pool"].stop
    references = [2 * pair + np.where(in_pool, job.keep[2 * pair, rows], rows % 2) for pair in pairs]
    said = np.stack([logits[model, rows], *(logits[who, rows] for who in references)])[:, :, None]
    labels = np.where(_labelled(job)[rows], job.labels[rows], logits[model, rows].argmax(axis=1))
    keep = np.zeros(said.shape[:2], bool)
    keep[0] = job.keep[model, rows]
    return Signals(labels, keep, logits=said)


def _labelled(job: Job) -> np.ndarray:
    """Which records have a label of their own, bool [R]."""
    return np.concatenate([np.full(len(part.x), part.y is not None) for part in job.asked])

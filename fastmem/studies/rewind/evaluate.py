"""One arm, evaluated: what attackers find in models that all went the same way, and what those models are still good for.

Every attacker is adaptive: the models that serve as references were treated as the target was, and trained on halves
of the same records. An attack with references that were not would make any defence look good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from fastmem.attacks import Attack, make_attack
from fastmem.engine import Task
from fastmem.metrics import roc
from fastmem.signals import Signals
from fastmem.studies.membership import Outcome, Tables, evaluate
from fastmem.studies.results import spread
from fastmem.studies.rewind.job import Job

__all__ = ["ArmOutcome", "Evaluation", "difference", "evaluate_arm"]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What the evaluation of every arm shares."""

    job: Job
    attacks: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ArmOutcome:
    """One arm's results.

    Args:
        key: The arm.
        entry: Its entry in ``summary.json``.
        outcomes: Its attacks.
        auc: AUC of each target, by attack [T].
        accuracy: Test accuracy of each model [M].
    """

    key: str
    entry: dict[str, Any]
    outcomes: list[Outcome]
    auc: dict[str, np.ndarray]
    accuracy: np.ndarray


def evaluate_arm(shared: Evaluation, task: Task) -> ArmOutcome:
    """Evaluates the arm that the task names."""
    job = shared.job
    arm = next(arm for arm in job.arms if arm.key == task.group)
    whole = Signals.open(job.store, arm.key)
    pool, test = slice(0, job.pool), slice(job.pool, len(job.y))
    tables = Tables(whole.rows(pool), whole.rows(test))
    outcomes, auc = [], {}
    for key in shared.attacks:
        attack = make_attack(key)
        outcome = evaluate(attack, tables, job.targets, job.config.seed)
        outcomes.append(outcome)
        auc[key] = _auc(attack, tables, job.targets)
    use = _utility(whole, job, test)
    targets = np.array(job.targets)
    entry = {
        "title": arm.title,
        "method": arm.method,
        "variant": arm.variant,
        "score": arm.score,
        "fraction": arm.fraction or None,
        "loss": arm.loss[0],
        **{name: spread(values[targets]) for name, values in use.items()},
        "attacks": {outcome.key: outcome.entry for outcome in outcomes},
    }
    return ArmOutcome(arm.key, entry, outcomes, auc, use["test_accuracy"][targets])


def difference(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Mean of ``a - b`` over models with its 95% interval by Student's t; NaN ends for a single model.

    The models share records and references, so the interval speaks of these records and this design.
    """
    gaps = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    mean = float(gaps.mean())
    if len(gaps) < 2:
        return {"mean": mean, "low": float("nan"), "high": float("nan")}
    half = float(student.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps)))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _auc(attack: Attack, tables: Tables, targets: Sequence[int]) -> np.ndarray:
    scores = attack(tables.pool, targets, tables.population if attack.needs_population else None)
    members = tables.pool.keep[list(targets)]
    return np.array([roc(own, inside).auc for own, inside in zip(scores, members, strict=True)])


def _utility(whole: Signals, job: Job, test: slice) -> dict[str, np.ndarray]:
    """Accuracy and mean loss of each model, on its own records and on test records."""
    logits = whole.logits
    assert logits is not None, "rows of this study hold logits"
    right = logits[:, :, 0].argmax(axis=-1) == job.y
    loss = whole.stat("loss")[:, :, 0]
    own = job.keep
    return {
        "train_accuracy": _mean(right, own),
        "test_accuracy": right[:, test].mean(axis=1),
        "train_loss": _mean(loss, own),
        "test_loss": loss[:, test].mean(axis=1),
    }


def _mean(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.where(where, values, 0.0).sum(axis=1) / where.sum(axis=1)

"""What other attackers find on the same targets: thresholds on one number, and attacks with shadow models.

All are scored on the very episodes of the few-shot attacks, and each row says what its attacker was told.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmem.attacks import ATTACKS, FewShot, make_attack
from fastmem.attacks.membership.base import Attack, AttackResult
from fastmem.attacks.membership.few_shot import EpisodeScores, score_records
from fastmem.attacks.membership.text import min_k, negative_loss, zlib_ratio
from fastmem.errors import InputError
from fastmem.signals import Signals
from fastmem.studies.few_shot.cells import Bench, draw_of
from fastmem.studies.few_shot.plan import FewShotPlan
from fastmem.studies.few_shot.store import Answers
from fastmem.studies.membership import Outcome, Tables, evaluate

__all__ = ["Rival", "evaluate_all", "few_shot_attack", "rival_tables", "rivals", "tables_of"]

SHADOW_ATTACKS = ("lira_online_fixed", "lira_offline_cdf_fixed", "rmia_online", "rmia_offline", "calibrated")


@dataclass(frozen=True, eq=False)
class Rival:
    """An attack that scores every record by itself.

    Args:
        key: Its name.
        title: For human readers.
        scores: float64 [T, N].
        shadow_models: That it needs.
        needs_class: Whether it reads the record's class label.
        seconds: Time for all its scores, without training.
    """

    key: str
    title: str
    scores: np.ndarray
    shadow_models: int
    needs_class: bool
    seconds: float


def tables_of(plan: FewShotPlan, answers: list[Answers]) -> Tables:
    """What the models said, as the attacks read it."""
    assert plan.job is not None
    names = ("margin",) if plan.job.language is not None else ("margin", "hinge", "max_prob", "entropy")

    answers = answers[: len(plan.keep)]  # the blind model is no shadow model

    def signals(part: str, labels: np.ndarray, keep: np.ndarray) -> Signals:
        stats = {name: np.stack([one.arrays[f"{part}:{name}"] for one in answers])[:, :, None] for name in names}
        return Signals(labels=labels, keep=keep, stats=stats)

    population = None
    if len(plan.job.population):
        unseen = np.zeros((len(answers), len(plan.job.population)), dtype=bool)
        population = signals("population", plan.job.population_labels, unseen)
    return Tables(signals("pool", plan.labels, plan.keep), population)


def rivals(plan: FewShotPlan, answers: list[Answers], tables: Tables) -> tuple[list[Rival], list[str]]:
    """Every other attack, and a remark for each that cannot work with these models."""
    targets = range(plan.config.targets)
    found = []
    if plan.job is not None and plan.job.language is not None:
        compressed = plan.compressed
        assert compressed is not None
        log_p = [answers[target].arrays["pool:log_p"] for target in targets]
        for key, title, score in (
            ("loss", "Loss", negative_loss),
            ("min_k", "Min-20%", min_k),
            ("zlib", "Loss against zlib", lambda values: zlib_ratio(values, compressed)),
        ):
            start = time.perf_counter()
            scores = np.stack([score(values) for values in log_p])
            found.append(Rival(key, title, scores, 0, False, time.perf_counter() - start))
        keys: tuple[str, ...] = ()
    else:
        keys = ("loss", "max_prob")
    left_out = []
    if plan.config.models > 1:
        keys += SHADOW_ATTACKS
    else:
        left_out.append("Attacks with shadow models were left out: a single model was trained (--num-models)")
    for key in keys:
        attack, start = make_attack(key), time.perf_counter()
        try:
            scores = attack(tables.pool, targets, tables.population if attack.needs_population else None)
        except InputError as error:
            left_out.append(f"{attack.title} was left out: {error.problem}")
            continue
        shadows = plan.config.models - 1 if attack.needs_references else 0
        found.append(Rival(key, attack.title, scores, shadows, key != "max_prob", time.perf_counter() - start))
    return found, left_out


def rival_tables(bench: Bench, rival: Rival, shots: tuple[int, ...], episodes: int) -> dict[str, dict[str, Any]]:
    """A rival's numbers on the episodes of the few-shot attacks, by shots."""
    tables = {}
    for count in shots:
        parts = [
            score_records(rival.scores[target], draw_of(bench, target, count, episodes))
            for target in range(len(bench.members))
        ]
        tables[str(count)] = EpisodeScores.joined(parts).table().to_dict()
    return tables


def evaluate_all(plan: FewShotPlan, bench: Bench, tables: Tables, found: list[Rival], shots: int) -> list[Outcome]:
    """Every attack on every record of the pool, as an audit shows it."""
    attacks: list[Attack] = [few_shot_attack(bench, method, shots) for method in bench.episodes if method != "finetune"]
    attacks += [make_attack(rival.key) if rival.key in ATTACKS else _Scores(rival) for rival in found]
    return [evaluate(attack, tables, range(plan.config.targets), plan.config.seed) for attack in attacks]


def few_shot_attack(bench: Bench, method: str, shots: int) -> FewShot:
    """The attack on all records, with the bench's features."""
    scarce = int(min(bench.members.sum(axis=1).min(), (~bench.members).sum(axis=1).min()))
    # Each half of the records must hold enough of both kinds; leave room for the luck of the split.
    room = max(1, scarce // 3)
    shots = min(shots, max(1, room - 2))
    return FewShot(method, shots=shots, n_val=min(bench.n_val, room - shots), seed=bench.seed, features=bench.features)


class _Scores(Attack):
    """Scores of the target alone that are there already, as an attack."""

    def __init__(self, rival: Rival) -> None:
        self._rival = rival

    @property
    def key(self) -> str:
        """The rival's name."""
        return self._rival.key

    @property
    def title(self) -> str:
        """The name for human readers."""
        return self._rival.title

    @property
    def required_stats(self) -> tuple[str, ...]:
        """None."""
        return ()

    def _run(self, signals: Signals, targets: list[int], population: Signals | None) -> AttackResult:
        return AttackResult(self._rival.scores[list(targets)])

"""The audit itself: train and query what is missing, attack, and write the results.

A second call with the same config trains nothing: every row of the store carries the hash of all that decided it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmem.engine import Plan, RunFolder, make_tasks, run_plan
from fastmem.errors import StoreError
from fastmem.report.audit import write_audit_report
from fastmem.signals import Signals
from fastmem.studies.answer import HEADLINE_RULE, answer_sentence, control_warnings, headline_key
from fastmem.studies.audit.config import AuditConfig
from fastmem.studies.audit.estimate import bytes_on_disk, bytes_there
from fastmem.studies.audit.plan import AuditPlan, make_plan
from fastmem.studies.audit.store import missing_rows, prepare_store
from fastmem.studies.audit.task import train_and_query, try_training
from fastmem.studies.membership import Outcome, evaluate_stored
from fastmem.studies.results import OUTPUTS, mask_counts, spread, write_config, write_results
from fastmem.studies.terminal import Terminal

__all__ = ["AuditInterruptedError", "AuditResult", "run_audit"]

_ROUNDS = 2


class AuditInterruptedError(KeyboardInterrupt):
    """Ctrl-C, with a word on what is kept: the same call continues after it."""


@dataclass(frozen=True)
class AuditResult:
    """A finished audit.

    Args:
        run_dir: Where its files are.
        summary: The content of ``summary.json``.
        trained: How many models this call had to train.
    """

    run_dir: Path
    summary: dict[str, Any]
    trained: int


def run_audit(config: AuditConfig, fresh: bool = False, terminal: Terminal | None = None) -> AuditResult:
    """Runs an audit, or what is left of it, and writes its folder.

    Args:
        config: What to do.
        fresh: Start over: forget what an earlier run left in the folder.
        terminal: Where progress is shown; by default nowhere.

    Returns:
        Where the results are, and the summary.

    Raises:
        InputError: If the config does not fit the data, the attacks or the machine; nothing is written then.
        StoreError: If the folder is used by another process, damaged, full or cannot be written.
        AuditInterruptedError: After Ctrl-C.
    """
    terminal = terminal or Terminal(quiet=True)
    with terminal.stage("prepare", 1) as advance:
        plan = make_plan(config)
        try_training(plan.job)
        advance(1)
    folder = RunFolder(plan.config.run_dir)
    folder.require_space(bytes_on_disk(plan) - bytes_there(folder.path))
    with folder.locked():
        if fresh:
            folder.remove([*OUTPUTS, "config.yaml", "signals.zarr", "models"])
        trained = _fill_store(plan, folder, terminal)
        try:
            outcomes = _attack(plan, terminal)
            summary = _write(plan, outcomes, terminal)
        except KeyboardInterrupt as interrupt:
            raise AuditInterruptedError(f"all models are kept in {folder.path}") from interrupt
    return AuditResult(folder.path, summary, trained)


def _fill_store(plan: AuditPlan, folder: RunFolder, terminal: Terminal) -> int:
    """Trains and queries the models whose rows are missing; returns how many were trained."""
    if prepare_store(plan.job):
        terminal.say(f"{folder.path} held the rows of another audit; they are replaced")
    missing = _missing(plan)
    if any(missing.values()):
        # The old results would stand beside rows that they do not describe.
        folder.remove(OUTPUTS)
    write_config(folder.path, plan.config)
    total, done, trained = plan.num_rows, plan.num_rows - _count(missing), 0
    if done:
        terminal.say(f"{done} of {total} models are already there")
    try:
        with terminal.stage("train and query", total, done) as advance:
            for _ in range(_ROUNDS):
                tasks = make_tasks(missing, plan.workers, plan.rows_per_task)
                for report in run_plan(Plan(train_and_query, plan.job, tasks), plan.workers):
                    done, trained = done + report.rows, trained + report.trained
                    advance(report.rows)
                # Read back: the attacks are about to trust them.
                missing = _missing(plan)
                if not any(missing.values()):
                    return trained
    except KeyboardInterrupt as interrupt:
        raise AuditInterruptedError(f"{done} of {total} models are kept in {folder.path}") from interrupt
    raise StoreError(plan.job.store, f"{_count(missing)} rows are damaged as soon as written", "check the disk")


def _missing(plan: AuditPlan) -> dict[str, list[int]]:
    return {name: missing_rows(plan.job, cohort) for name, cohort in plan.job.cohorts.items()}


def _count(missing: dict[str, list[int]]) -> int:
    return sum(map(len, missing.values()))


def _attack(plan: AuditPlan, terminal: Terminal) -> list[Outcome]:
    found = {}
    with terminal.stage("attack", len(plan.attacks)) as advance:
        for outcome in evaluate_stored(
            plan.job.store, tuple(plan.attacks), plan.targets, plan.config.seed, plan.workers
        ):
            found[outcome.key] = outcome
            advance(1)
    return [found[key] for key in plan.attacks]


def _write(plan: AuditPlan, outcomes: list[Outcome], terminal: Terminal) -> dict[str, Any]:
    config, split = plan.config, plan.split
    attacks = {outcome.key: outcome.entry for outcome in outcomes}
    references = {key: attack.needs_references for key, attack in plan.attacks.items()}
    pool = Signals.open(plan.job.store)
    headline = headline_key(attacks, config.num_models)
    own = {
        "answer": answer_sentence(attacks, config.num_models, references),
        "headline": {"attack": headline, "rule": HEADLINE_RULE},
        "data": {
            "name": plan.dataset.name,
            "fingerprint": plan.fingerprint,
            "pool": config.pool,
            "population": config.population,
            "bystanders": config.bystanders,
            "num_classes": plan.dataset.num_classes,
            "input_shape": list(plan.dataset.input_shape),
            "class_names": list(plan.dataset.class_names or ()),
        },
        "design": {
            "kind": config.design,
            "num_models": config.num_models,
            "null_models": config.null_models,
            "targets": len(plan.targets),
            **mask_counts(pool.keep, plan.targets),
        },
        "models": {"name": config.model, "parameters": plan.parameters, **_accuracies(plan, pool)},
        "stages": dict(terminal.seconds),
        "warnings": control_warnings(attacks),
    }
    with terminal.stage("report", 1) as advance:
        pictures = split.pool.x.numpy() if plan.dataset.is_image else None
        summary = write_results(config.run_dir, "audit", config, outcomes, pool.labels, split.pool_index, own, pictures)
        write_audit_report(config.run_dir)
        advance(1)
    return summary


def _accuracies(plan: AuditPlan, pool: Signals) -> dict[str, dict[str, float]]:
    """Shares of right clean answers, of each model on its own records and on all records it did not train on."""
    right = pool.stat("hinge")[:, :, 0] > 0
    train = np.array([row[mask].mean() for row, mask in zip(right, pool.keep, strict=True)])
    unseen = [row[~mask] for row, mask in zip(right, pool.keep, strict=True)]
    if plan.config.population:
        population = Signals.open(plan.job.store, "population").stat("hinge")[:, :, 0] > 0
        unseen = [np.concatenate(parts) for parts in zip(unseen, population, strict=True)]
    return {"train_accuracy": spread(train), "test_accuracy": spread(np.array([row.mean() for row in unseen]))}

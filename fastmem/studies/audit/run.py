"""The audit itself: train and query what is missing, attack, and write the results.

A second call with the same config trains nothing: every row of the store carries the hash of all that decided it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastmem.engine import Engine, Plan, RunFolder, make_tasks, open_engine, write_atomically
from fastmem.errors import StoreError
from fastmem.report.audit import write_audit_report
from fastmem.signals import Signals
from fastmem.studies.answer import HEADLINE_RULE, answer_sentence, control_warnings, headline_key
from fastmem.studies.audit.config import AuditConfig
from fastmem.studies.audit.estimate import bytes_on_disk, bytes_there
from fastmem.studies.audit.plan import AuditPlan, make_plan
from fastmem.studies.audit.saved import is_url, remove_all
from fastmem.studies.audit.shard import Shard
from fastmem.studies.audit.store import load_saved, missing_rows, prepare_store, save
from fastmem.studies.audit.target import target_warnings
from fastmem.studies.audit.task import train_and_query, try_training
from fastmem.studies.interruption import StudyInterruptedError
from fastmem.studies.membership import Outcome, evaluate_stored
from fastmem.studies.results import OUTPUTS, mask_counts, spread, write_config, write_results, write_summary
from fastmem.studies.terminal import Terminal

__all__ = ["AuditResult", "run_audit", "run_shard"]

_ROUNDS = 2
# Says which audit the shards in a folder work on.
_SHARDS_NOTE = ".shards"


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
        StudyInterruptedError: After Ctrl-C.
    """
    terminal = terminal or Terminal(quiet=True)
    plan = _prepare(config, terminal)
    folder = RunFolder(plan.config.run_dir)
    with contextlib.ExitStack() as held:
        engine = held.enter_context(_engine(plan, terminal))  # first: what is refused here leaves no trace
        held.enter_context(folder.locked())
        if plan.own_store is not None:
            held.enter_context(RunFolder(plan.own_store).locked())
        if fresh:
            remove_all([plan.job.store, plan.job.models])
            folder.remove([*OUTPUTS, "config.yaml"])
        missing = _make_ready(plan, terminal)
        trained = _fill_store(plan, missing, engine, terminal)
        try:
            outcomes = _attack(plan, engine, terminal)
            summary = _write(plan, outcomes, terminal)
        except KeyboardInterrupt as interrupt:
            raise StudyInterruptedError(f"all models are kept in {plan.kept_in}") from interrupt
    return AuditResult(folder.path, summary, trained)


def run_shard(config: AuditConfig, shard: Shard, terminal: Terminal | None = None) -> int:
    """Trains and queries one shard's part of an audit's models, beside other shards, and attacks nothing.

    Once all shards have ended, :func:`run_audit` with the same config finds every row and does the rest.

    Args:
        config: What to do, the same for all shards.
        shard: Which of them this is.
        terminal: Where progress is shown; by default nowhere.

    Returns:
        How many models had to be trained.

    Raises:
        InputError: If the config does not fit the data, the attacks or the machine; nothing is written then.
        StoreError: If a whole run, the same shard, or shards of another audit work in the folder, or it is damaged, full
            or cannot be written.
        StudyInterruptedError: After Ctrl-C.
    """
    terminal = terminal or Terminal(quiet=True)
    plan = replace(_prepare(config, terminal), shard=shard)
    # Where the rows are; hosts may each have a run folder of their own.
    shared = RunFolder(plan.own_store or plan.config.run_dir)

    def prepare(others: bool) -> dict[str, list[int]]:
        _require_same_audit(shared, plan, others)
        # A URL has no lock that would tell who else is at work there.
        return _make_ready(plan, terminal, may_replace=not others and not is_url(plan.job.store))

    with _engine(plan, terminal) as engine, shared.joined(str(shard), prepare) as missing:
        return _fill_store(plan, missing, engine, terminal)


def _prepare(config: AuditConfig, terminal: Terminal) -> AuditPlan:
    """The plan, its network tried, and room for it on the disk."""
    with terminal.stage("prepare", 1) as advance:
        plan = make_plan(config)
        try_training(plan.job)
        advance(1)
    place = plan.config.run_dir if plan.own_store is None else plan.own_store
    if not is_url(plan.job.store):
        RunFolder(place).require_space(bytes_on_disk(plan) - bytes_there(place))
    return plan


def _make_ready(plan: AuditPlan, terminal: Terminal, may_replace: bool = True) -> dict[str, list[int]]:
    """Makes the tables, puts the audited model there where it is the user's own, and says which rows are missing."""
    job = plan.job
    if prepare_store(job, may_replace):
        terminal.say(f"{plan.kept_in} held the rows of another audit; they are replaced")
    cohort = job.cohorts["shadow"]
    if plan.target is not None and cohort.given is not None and load_saved(job, cohort, cohort.given) is None:
        save(job, cohort, cohort.given, plan.target.state, {"model": "target"})
    missing = _missing(plan)
    folder = RunFolder(plan.config.run_dir)
    if any(missing.values()):
        # The old results would stand beside rows that they do not describe.
        folder.remove(OUTPUTS)
    folder.make()
    write_config(folder.path, plan.config)
    return missing


def _require_same_audit(folder: RunFolder, plan: AuditPlan, others: bool) -> None:
    """Refuses to work beside shards of another audit, which would each undo what the other does."""
    note = folder.path / _SHARDS_NOTE
    if others and note.is_file() and note.read_text(encoding="utf-8") != plan.key:
        raise StoreError(
            "out",
            f"shards of another audit are at work in {folder.path}",
            "give all shards the same options, or choose another folder with --out",
        )
    with write_atomically(note) as path:
        path.write_text(plan.key, encoding="utf-8")


@contextlib.contextmanager
def _engine(plan: AuditPlan, terminal: Terminal) -> Iterator[Engine]:
    config = plan.config
    with open_engine(
        config.engine,
        plan.workers,
        ray_address=config.ray_address,
        gpus_per_task=(config.gpus_per_task or 1.0) if plan.job.device != "cpu" else 0.0,
        shared_bytes=plan.job.shared_bytes,
    ) as engine:
        if config.engine != "local":
            terminal.say(f"{config.engine}: {engine.slots} tasks at a time")
        yield engine


def _fill_store(plan: AuditPlan, missing: dict[str, list[int]], engine: Engine, terminal: Terminal) -> int:
    """Trains and queries the models whose rows are missing; returns how many were trained."""
    total, done, trained = plan.num_rows, plan.num_rows - _count(missing), 0
    if done:
        terminal.say(f"{done} of {total} models are already there")
    try:
        with terminal.stage("train and query", total, done) as advance:
            for _ in range(_ROUNDS):
                tasks = make_tasks(missing, engine.slots, plan.rows_per_task)
                for report in engine.run(Plan(train_and_query, plan.job, tasks)):
                    done, trained = done + report.rows, trained + report.trained
                    advance(report.rows)
                # Read back: the attacks are about to trust them.
                missing = _missing(plan)
                if not any(missing.values()):
                    return trained
    except KeyboardInterrupt as interrupt:
        raise StudyInterruptedError(f"{done} of {total} models are kept in {plan.kept_in}") from interrupt
    raise StoreError(plan.job.store, f"{_count(missing)} rows are damaged as soon as written", "check the disk")


def _missing(plan: AuditPlan) -> dict[str, list[int]]:
    return {name: missing_rows(plan.job, cohort, plan.models(name)) for name, cohort in plan.job.cohorts.items()}


def _count(missing: dict[str, list[int]]) -> int:
    return sum(map(len, missing.values()))


def _attack(plan: AuditPlan, engine: Engine, terminal: Terminal) -> list[Outcome]:
    found = {}
    with terminal.stage("attack", len(plan.attacks)) as advance:
        for outcome in evaluate_stored(plan.job.store, tuple(plan.attacks), plan.targets, plan.config.seed, engine):
            found[outcome.key] = outcome
            advance(1)
    return [found[key] for key in plan.attacks]


def _write(plan: AuditPlan, outcomes: list[Outcome], terminal: Terminal) -> dict[str, Any]:
    config, split = plan.config, plan.split
    attacks = {outcome.key: outcome.entry for outcome in outcomes}
    needs_references = {key: attack.needs_references for key, attack in plan.attacks.items()}
    pool = Signals.open(plan.job.store)
    # A shadow model under attack is not its own reference; the user's model has them all.
    models_in_all = config.num_models + (plan.target is not None)
    headline = headline_key(attacks, models_in_all)
    accuracies = _accuracies(plan, pool)
    shadows = {
        name: spread(np.array([each[name] for each in accuracies[: config.num_models]])) for name in accuracies[0]
    }
    own: dict[str, Any] = {
        "answer": answer_sentence(attacks, models_in_all, needs_references),
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
        "models": {"name": config.model, "parameters": plan.parameters, **shadows},
        "stages": dict(terminal.seconds),
        "warnings": control_warnings(attacks),
    }
    if plan.target is not None:
        own["target"] = {"checkpoint": plan.target.path, "sha256": plan.target.sha256, **accuracies[-1]}
        own["warnings"] += target_warnings(accuracies[-1], shadows, plan.dataset.num_classes)
    pictures = split.pool.x.numpy() if plan.dataset.is_image else None

    with terminal.stage("report", 1) as advance:
        summary = write_results(config.run_dir, "audit", config, outcomes, pool.labels, split.pool_index, own, pictures)
        write_audit_report(config.run_dir)
        advance(1)
    # Once more, now that the time of the report itself is known.
    summary["stages"] = dict(terminal.seconds)
    write_summary(config.run_dir, summary)
    return summary


def _accuracies(plan: AuditPlan, pool: Signals) -> list[dict[str, float]]:
    """Shares of right clean answers of each model, on its own records and on all records it did not train on."""
    right = pool.stat("hinge")[:, :, 0] > 0
    unseen = [row[~mask] for row, mask in zip(right, pool.keep, strict=True)]
    if plan.config.population:
        population = Signals.open(plan.job.store, "population").stat("hinge")[:, :, 0] > 0
        unseen = [np.concatenate(parts) for parts in zip(unseen, population, strict=True)]
    return [
        {"train_accuracy": float(row[mask].mean()), "test_accuracy": float(rest.mean())}
        for row, mask, rest in zip(right, pool.keep, unseen, strict=True)
    ]

"""The rewinding study itself: train, take every model through every arm, attack, and write the results.

A second call with the same config trains nothing: every model and every row of answers carries the hash of all that
decided it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmem.engine import Engine, Plan, RunFolder, Task, make_tasks, open_engine
from fastmem.errors import StoreError
from fastmem.report.rewind import write_rewind_report
from fastmem.signals.stored import open_table, stored_groups
from fastmem.studies.interruption import StudyInterruptedError
from fastmem.studies.results import OUTPUTS, write_config
from fastmem.studies.rewind.arms import make_arms
from fastmem.studies.rewind.config import RewindConfig
from fastmem.studies.rewind.entangle import read_entanglement
from fastmem.studies.rewind.evaluate import ArmOutcome, Evaluation, evaluate_arm
from fastmem.studies.rewind.job import Job
from fastmem.studies.rewind.outputs import write_rewind_results
from fastmem.studies.rewind.plan import RewindPlan, make_plan, try_training, with_alpha
from fastmem.studies.rewind.task import DELIVERED, load_saved, open_writer, repair, train, undelivered, validation_loss
from fastmem.studies.terminal import Terminal

__all__ = ["RewindResult", "run_rewind"]

# Generous: headers, the report, the comparisons.
_OVERHEAD = 8 << 20


@dataclass(frozen=True)
class RewindResult:
    """A finished study.

    Args:
        run_dir: Where its files are.
        summary: The content of ``summary.json``.
        trained: How many models this call had to train by recipe.
        repaired: How many it had to take through the arms.
    """

    run_dir: Path
    summary: dict[str, Any]
    trained: int
    repaired: int


def run_rewind(config: RewindConfig, fresh: bool = False, terminal: Terminal | None = None) -> RewindResult:
    """Runs a rewinding study, or what is left of it, and writes its folder.

    Args:
        config: What to do.
        fresh: Start over: forget what an earlier run left in the folder.
        terminal: Where progress is shown; by default nowhere.

    Returns:
        Where the results are, and the summary.

    Raises:
        InputError: If the config does not fit the data, the model, the attacks or the machine; nothing is written then.
        StoreError: If the folder is used by another process, damaged, full or cannot be written.
        StudyInterruptedError: After Ctrl-C.
    """
    terminal = terminal or Terminal(quiet=True)
    with terminal.stage("prepare", 1) as advance:
        plan = make_plan(config)
        try_training(plan)
        advance(1)
    folder = RunFolder(plan.config.run_dir)
    folder.require_space(_bytes_on_disk(plan))
    with (
        open_engine(
            plan.config.engine, plan.workers, ray_address=plan.config.ray_address, shared_bytes=plan.job.x.nbytes
        ) as engine,
        folder.locked(),
    ):
        if fresh:
            folder.remove([*OUTPUTS, "config.yaml", "signals.zarr", "models", "entanglement", DELIVERED])
        try:
            trained = _train(plan, folder, engine, terminal)
            plan = with_alpha(plan, validation_loss(plan.job))
            repaired = _repair(plan, folder, engine, terminal)
            found = _attack(plan, engine, terminal)
            with terminal.stage("report", 1) as advance:
                summary = write_rewind_results(plan, found, dict(terminal.seconds))
                write_rewind_report(folder.path)
                advance(1)
        except KeyboardInterrupt as interrupt:
            kept = len(list((folder.path / "models").rglob("*.safetensors")))
            raise StudyInterruptedError(f"{kept} models are kept in {folder.path}") from interrupt
    return RewindResult(folder.path, summary, trained, repaired)


def _bytes_on_disk(plan: RewindPlan) -> int:
    job = plan.job
    models = len(job.cohorts) * job.num_models
    answers = len(make_arms(plan.config)) * job.num_models * len(job.x) * job.num_classes * 4
    return (models + 1) * plan.parameters * 4 + answers + _OVERHEAD


def _train(plan: RewindPlan, folder: RunFolder, engine: Engine, terminal: Terminal) -> int:
    """Trains the models that are missing; returns how many."""
    job = plan.job
    rows = [row for row in range(job.num_models) if job.given is None or row > 0]
    expected = {job.checkpoint(name, row) for name in job.cohorts for row in rows}
    for path in (Path(job.folder) / "models").glob("*/*.safetensors"):
        if path not in expected:
            path.unlink()
    missing = {name: [row for row in rows if load_saved(job, name, row) is None] for name in job.cohorts}
    left, total = sum(map(len, missing.values())), len(job.cohorts) * len(rows)
    if left:
        # The old results would stand beside models that they do not describe.
        folder.remove(OUTPUTS)
    write_config(folder.path, plan.config)
    if left < total:
        terminal.say(f"{total - left} of {total} models are already there")
    with terminal.stage("train", total, total - left) as advance:
        for count in engine.run(Plan(train, job, make_tasks(missing, engine.slots, plan.rows_per_task))):
            advance(count)
    return left


def _repair(plan: RewindPlan, folder: RunFolder, engine: Engine, terminal: Terminal) -> int:
    """Takes the models through the arms; returns how many had a row missing."""
    job = plan.job
    missing = _missing(job)
    for group in set(stored_groups(job.store)) - {arm.key for arm in job.arms}:
        shutil.rmtree(Path(job.store) / group, ignore_errors=True)
    if missing:
        folder.remove(OUTPUTS)
    total = job.num_models
    with terminal.stage("score, rewind and tune", total, total - len(missing)) as advance:
        for _ in engine.run(Plan(repair, job, make_tasks({"repair": missing}, engine.slots, 1))):
            advance(1)
    if _missing(job):
        raise StoreError(job.store, "rows are damaged as soon as written", "check the disk")
    return len(missing)


def _missing(job: Job) -> list[int]:
    """Models of which a row, a comparison or the delivered file is missing."""
    done = np.ones(job.num_models, bool)
    for arm in job.arms:
        done &= np.asarray(_writer(job, arm.key).completed(job.arm_keys[arm.key]))
        if undelivered(job, arm):
            done[0] = False
    for row, key in enumerate(job.entangle_keys):
        if read_entanglement(job.entanglement(row), key) is None:
            done[row] = False
    return np.flatnonzero(~done).tolist()


def _writer(job: Job, group: str) -> Any:
    try:
        return open_writer(job, group)
    except StoreError as refusal:
        try:
            open_table(job.store, group)
        except StoreError:
            raise refusal from None
        # It is whole, so it was refused because it belongs to another config.
        return open_writer(job, group, fresh=True)


def _attack(plan: RewindPlan, engine: Engine, terminal: Terminal) -> list[ArmOutcome]:
    keys = [arm.key for arm in plan.job.arms]
    shared = Evaluation(plan.job, tuple(attack.key for attack in plan.attacks))
    found: dict[str, ArmOutcome] = {}
    with terminal.stage("attack", len(keys)) as advance:
        for outcome in engine.run(Plan(evaluate_arm, shared, tuple(map(Task, keys)))):
            found[outcome.key] = outcome
            advance(1)
    return [found[key] for key in keys]

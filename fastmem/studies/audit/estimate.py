"""What an audit will cost, before it starts: disk by counting, time and memory from a few steps on this machine."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fastmem.engine import readable_size
from fastmem.report.tables import count, duration
from fastmem.signals import Signals
from fastmem.signals.statistics import trailing_shape
from fastmem.studies.audit.job import Cohort, Job
from fastmem.studies.audit.plan import AuditPlan
from fastmem.studies.audit.task import build, query, try_training
from fastmem.studies.membership import Tables, evaluate

__all__ = ["Estimate", "bytes_on_disk", "bytes_there", "estimate"]

_MEASURED_STEPS = 8
_MEASURED_SECONDS = 0.2
_MOST_STEPS = 1 << 14
_MEASURED_RECORDS = 256
_OVERHEAD = 1 << 20  # headers, the report, the scores of a small run


@dataclass(frozen=True)
class Estimate:
    """Cost of an audit from its start, on this machine.

    Args:
        steps: Training steps of one model.
        step_seconds: Time of one of them.
        train_seconds: All training, spread over the workers.
        query_seconds: All queries, spread over the workers.
        attack_seconds: All attacks and controls, spread over the workers.
        memory: Bytes, all processes together.
        disk: Bytes in the run's folder.
    """

    steps: int
    step_seconds: float
    train_seconds: float
    query_seconds: float
    attack_seconds: float
    memory: int
    disk: int

    def lines(self, plan: AuditPlan) -> list[tuple[str, str]]:
        """The plan and its cost, a name and a text a line."""
        config, shape = plan.config, "x".join(map(str, plan.dataset.input_shape))
        total = self.train_seconds + self.query_seconds + self.attack_seconds
        null = f" + {config.null_models} that never see the pool" if config.null_models else ""
        return [
            (
                "data",
                f"{plan.dataset.name}: {count(config.pool or 0)} records under attack, {count(config.population or 0)} "
                f"of population, {count(config.bystanders or 0)} bystanders; {shape}, {plan.dataset.num_classes} classes",
            ),
            (
                "models",
                f"{config.num_models}{null}: {config.model} of {count(plan.parameters)} parameters on {plan.job.device}",
            ),
            ("training", f"{count(self.steps)} steps a model, {1000 * self.step_seconds:.3g} ms each"),
            ("attacks", f"{len(plan.attacks)} on {len(plan.targets)} targets, each with its controls"),
            (
                "time",
                f"about {duration(total)} with {plan.workers} workers: training {duration(self.train_seconds)}, "
                f"queries {duration(self.query_seconds)}, attacks {duration(self.attack_seconds)}",
            ),
            ("memory", f"about {readable_size(self.memory)}"),
            ("disk", f"up to {readable_size(self.disk)} in {config.run_dir}"),
        ]


def bytes_on_disk(plan: AuditPlan) -> int:
    """The most that the run's folder will hold."""
    job = plan.job
    values = sum(math.prod(trailing_shape(name)) for name in job.stats) * 8 + (
        4 * job.num_classes if job.save_logits else 0
    )
    tables = [table for cohort in job.cohorts.values() for table in cohort.tables]
    rows = sum(table.keep.size * plan.num_queries * values for table in tables)
    state = sum(value.numel() * value.element_size() for value in build(job, 0).state_dict().values())
    kept = sum(len(cohort.seeds) for cohort in job.cohorts.values() if cohort.keep_models)
    pictures = plan.split.pool.x.nbytes if plan.dataset.is_image else 0
    return rows + kept * (state + (1 << 14)) + min(pictures, 1 << 25) + _OVERHEAD


def bytes_there(folder: Path) -> int:
    """What the folder holds already, and a run that continues need not write."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def estimate(plan: AuditPlan) -> Estimate:
    """Times a few steps, a few queries and the attacks on made-up records, and scales them up."""
    job, cohort = plan.job, plan.job.cohorts["shadow"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        step_seconds = _step_seconds(job)
        query_seconds = _query_seconds(job, cohort)
        attack_seconds = _attack_seconds(plan)
    finally:
        torch.set_num_threads(threads)
    steps = math.ceil(cohort.train.sum(axis=1).mean() / job.recipe.batch_size) * job.recipe.epochs
    models = sum(len(each.seeds) for each in job.cohorts.values())
    queried = sum(table.keep.size for each in job.cohorts.values() for table in each.tables)
    return Estimate(
        steps=steps,
        step_seconds=step_seconds,
        train_seconds=models * steps * step_seconds / plan.workers,
        query_seconds=queried * query_seconds / plan.workers,
        attack_seconds=attack_seconds / min(plan.workers, len(plan.attacks)),
        memory=_memory(plan),
        disk=bytes_on_disk(plan),
    )


def _step_seconds(job: Job) -> float:
    """Seconds a training step takes: the difference of two trainings, so that what comes once a model drops out."""
    clock = _clock(job)

    def seconds(steps: int) -> float:
        start = clock()
        try_training(job, steps)
        return clock() - start

    seconds(1)  # the warm-up
    once, steps = seconds(1), _MEASURED_STEPS
    # A step of a small network takes microseconds: enough of them to stand out from what else the machine does.
    while (more := seconds(1 + steps) - once) < _MEASURED_SECONDS and steps < _MOST_STEPS:
        steps *= 4
    return max(more, 1e-6) / steps


def _query_seconds(job: Job, cohort: Cohort) -> float:
    """Seconds it takes to query a record, all views of it."""
    network = build(job, 0).to(job.device)
    table = cohort.tables[0]
    few = replace(table, x=table.x[:_MEASURED_RECORDS], y=table.y[:_MEASURED_RECORDS])
    query(job, {0: network}, few, cohort.name)
    clock = _clock(job)
    start = clock()
    query(job, {0: network}, few, cohort.name)
    return (clock() - start) / len(few.x)


def _attack_seconds(plan: AuditPlan) -> float:
    """Seconds of all attacks and controls in one process: a line through two numbers of made-up records."""
    few, more = (_attacks_on(plan, count) for count in (_MEASURED_RECORDS // 2, _MEASURED_RECORDS))
    slope = max(more - few, 0.0) / (_MEASURED_RECORDS // 2)
    return more + slope * max(len(plan.split.pool_index) - _MEASURED_RECORDS, 0)


def _attacks_on(plan: AuditPlan, records: int) -> float:
    tables: dict[str, Signals] = {}
    for cohort in plan.job.cohorts.values():
        for table in cohort.tables:
            keep, labels = table.keep[:, :records], table.y[:records]
            logits = np.random.default_rng(0).normal(size=(*keep.shape, plan.num_queries, plan.job.num_classes))
            signals = Signals(labels, keep, logits)
            # The run reads statistics, too.
            tables[table.group] = Signals(labels, keep, stats={name: signals.stat(name) for name in plan.job.stats})
    start = time.process_time()
    for attack in plan.attacks.values():
        evaluate(attack, Tables.of(tables), plan.targets, 0)
    return time.process_time() - start


def _clock(job: Job) -> Callable[[], float]:
    """On the CPU what this process itself computes for, so that a machine busy with other things misleads nobody."""
    return time.process_time if job.device == "cpu" else time.perf_counter


def _memory(plan: AuditPlan) -> int:
    """Peak of this process after the measured steps, for each process, and the tables that an attack holds."""
    unit = 1 if sys.platform == "darwin" else 1024
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    table = plan.job.cohorts["shadow"].tables[0].keep.size * plan.num_queries * 8
    processes = 1 + (plan.workers if plan.workers > 1 else 0)
    # The margins, and a few temporaries of their size.
    return processes * process + plan.workers * 4 * table

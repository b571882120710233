"""Runs a plan on this machine: in this process, or on worker processes of one thread each.

Small networks are bound by the overhead of each call, not by arithmetic, so one single-threaded process a core beats
one process with many threads; and single-threaded sums do not depend on how many cores there are, so the bytes that
come out do not either.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import cast

import joblib
from joblib.externals.loky.process_executor import BrokenProcessPool

from fastmem.engine.plan import Plan, Report, Shared
from fastmem.engine.worker import start_worker, work_single_threaded
from fastmem.errors import FastmemError

__all__ = ["LocalEngine", "run_plan"]


@dataclass(frozen=True)
class LocalEngine:
    """Worker processes of this machine.

    Args:
        workers: How many; 1 stays in this process.
    """

    workers: int

    @property
    def slots(self) -> int:
        """How many tasks run at the same time."""
        return self.workers

    def run(self, plan: Plan[Shared, Report]) -> Iterator[Report]:
        """Runs every task; see :func:`run_plan`."""
        return run_plan(plan, self.workers)


def run_plan(plan: Plan[Shared, Report], workers: int) -> Iterator[Report]:
    """Runs every task of a plan.

    Args:
        plan: The tasks and what they share.
        workers: Processes to use; 1 stays in this one.

    Yields:
        The tasks' reports, as they finish. Closing the iterator, or an interrupt, stops the workers.

    Raises:
        FastmemError: What a task raised, or that a worker was lost (killed by the system for its memory, say).
    """
    workers = min(workers, len(plan.tasks))
    if workers <= 1:
        for task in plan.tasks:
            yield work_single_threaded(plan.work, plan.shared, task)
        return
    with joblib.parallel_config(
        backend="loky",
        n_jobs=workers,
        inner_max_num_threads=1,
        initializer=start_worker,
        initargs=(sys.path,),
    ):
        # One call a batch: joblib's own batching waits to learn how long calls take, and a killed batch costs more.
        parallel = joblib.Parallel(return_as="generator_unordered", batch_size=cast(str, 1), pre_dispatch="2*n_jobs")
        calls = (joblib.delayed(work_single_threaded)(plan.work, plan.shared, task) for task in plan.tasks)
        reports = cast(Generator[Report, None, None], parallel(calls))
    try:
        with contextlib.closing(reports):
            yield from reports
    except BrokenProcessPool as error:
        raise FastmemError(
            "workers",
            f"one of {workers} worker processes was killed, most likely for want of memory",
            "finished rows are kept: run the same command again, with fewer --workers",
        ) from error

"""A plan: what every task shares, and the list of small tasks.

Tasks are idempotent and write their own rows, so it does not matter where they run, in which order, or whether one
runs twice; an engine needs to know nothing else about them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Plan", "Report", "Shared", "Task", "make_tasks"]

Shared = TypeVar("Shared")
Report = TypeVar("Report")

# Enough tasks that no worker idles long at the end.
_TASKS_PER_WORKER = 4


@dataclass(frozen=True)
class Task:
    """A piece of work that one process does in one go.

    Args:
        group: What it belongs to, such as a table of rows.
        rows: Row numbers in that table, ascending.
    """

    group: str
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan(Generic[Shared, Report]):
    """Tasks and what they share.

    Args:
        work: A function of a module (so that other processes can import it): does a task, writes its rows, and
            returns a small report.
        shared: The first argument of every call. Large numpy arrays in it are mapped into the workers, not copied.
        tasks: The second argument, one a call.
    """

    work: Callable[[Shared, Task], Report]
    shared: Shared
    tasks: tuple[Task, ...]


def make_tasks(missing: Mapping[str, Sequence[int]], workers: int, most: int) -> tuple[Task, ...]:
    """Cuts the rows that are still missing into tasks.

    Args:
        missing: For each group, the rows to do.
        workers: How many tasks will run at the same time.
        most: Rows in a task at most: a kill costs the tasks in flight, so they stay short.

    Returns:
        The tasks, in the order of the groups and rows.
    """
    total = sum(len(rows) for rows in missing.values())
    size = max(1, min(most, total // (_TASKS_PER_WORKER * workers)))
    return tuple(
        Task(group, tuple(rows[start : start + size]))
        for group, rows in missing.items()
        for start in range(0, len(rows), size)
    )

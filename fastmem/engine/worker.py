"""What a worker process does before its first task, and around each.

It imports little, so that it takes hold before torch loads.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["start_worker", "work_single_threaded"]

Shared = TypeVar("Shared")
Task = TypeVar("Task")
Report = TypeVar("Report")

_LOOK_EVERY_SECONDS = 0.5


def start_worker(import_paths: list[str]) -> None:
    """Leaves Ctrl-C to the parent, ends with the parent, and finds the user's own modules.

    Args:
        import_paths: The parent's ``sys.path``.
    """
    # The terminal sends Ctrl-C to the whole group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path[:] = import_paths
    parent = os.getppid()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def work_single_threaded(work: Callable[[Shared, Task], Report], shared: Shared, task: Task) -> Report:
    """Does a task on one thread, whatever engine it runs on: the bytes do not depend on the number of cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return work(shared, task)
    finally:
        torch.set_num_threads(threads)


def _end_with(parent: int) -> None:
    """A killed parent leaves no orphans that would go on writing into a folder which is no longer theirs."""
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY_SECONDS)
    os._exit(1)

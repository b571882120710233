"""The same plan gives the same reports in this process and on workers; a lost or interrupted worker does no harm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmem.engine import Plan, Task, run_plan
from fastmem.errors import FastmemError, InputError

_TASKS = tuple(Task("", (row,)) for row in range(6))


def _square(shared: np.ndarray, task: Task) -> tuple[int, float, int]:
    return task.rows[0], float(shared[task.rows[0]] ** 2), torch.get_num_threads()


def _fail(shared: None, task: Task) -> int:
    if task.rows == (3,):
        raise InputError("recipe", "diverged", "lower the learning rate")
    return task.rows[0]


def _die(shared: str, task: Task) -> int:
    if os.getpid() != int(shared):
        os.kill(os.getpid(), signal.SIGKILL)
    return 0


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_runs_once_on_one_thread(workers: int) -> None:
    threads = torch.get_num_threads()
    reports = sorted(run_plan(Plan(_square, np.arange(300_000.0), _TASKS), workers))
    assert reports == [(row, float(row) ** 2, 1) for row in range(6)]
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("workers", [1, 2])
def test_a_tasks_error_arrives_whole(workers: int) -> None:
    with pytest.raises(InputError, match=r"^recipe: diverged; lower the learning rate$"):
        list(run_plan(Plan(_fail, None, _TASKS), workers))


def test_a_killed_worker_is_an_error_of_one_line() -> None:
    with pytest.raises(FastmemError, match=r"^workers: one of 2 worker processes was killed.*run the same command"):
        list(run_plan(Plan(_die, str(os.getpid()), _TASKS), 2))


_ORPHANS = """
import os, sys, time
from pathlib import Path
from fastmem.engine import Plan, Task, run_plan
sys.path.insert(0, sys.argv[2])
from orphan_task import work
for _ in run_plan(Plan(work, sys.argv[1], tuple(Task("", (row,)) for row in range(2))), 2):
    pass
"""

_ORPHAN_TASK = """
import os, time
from pathlib import Path
def work(folder, task):
    path = Path(folder) / str(os.getpid())
    for _ in range(600):
        path.write_text(str(time.time()))
        time.sleep(0.1)
"""


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path: Path, sent: signal.Signals) -> None:
    (tmp_path / "orphan_task.py").write_text(_ORPHAN_TASK)
    marks = tmp_path / "marks"
    marks.mkdir()
    parent = subprocess.Popen(
        [sys.executable, "-c", _ORPHANS, str(marks), str(tmp_path)], stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 60
        while len(list(marks.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        pids = [int(path.name) for path in marks.iterdir()]
        assert len(pids) == 2
        # Ctrl-C reaches the whole group, as from a terminal; a kill only the parent.
        os.killpg(parent.pid, sent) if sent == signal.SIGINT else parent.kill()
        _, noise = parent.communicate(timeout=120)
        deadline = time.monotonic() + 10
        while any(map(_alive, pids)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(_alive, pids))
        # The parent's own KeyboardInterrupt is the only traceback.
        assert noise.count(b"Traceback") == (1 if sent == signal.SIGINT else 0)
    finally:
        if parent.poll() is None:
            parent.kill()

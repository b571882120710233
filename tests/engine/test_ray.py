"""Ray gives what this process gives, whatever happens to its workers, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmem.engine import LocalEngine, Plan, Task, open_engine
from fastmem.errors import FastmemError, InputError, StoreError, UnknownNameError

_TASKS = tuple(Task("", (row,)) for row in range(6))

# One Ray at a time: the machines that run this are small.
pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module")
def ray_engine() -> Iterator:
    """A Ray of two processors, for this module."""
    pytest.importorskip("ray", reason="ray is not installed: pip install 'fastmem[ray]'")
    from fastmem.engine.ray import RayEngine

    with RayEngine(workers=2, retries=1, straggler_seconds=0.2) as engine:
        yield engine


@pytest.fixture
def tasks_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that lies where only this process looks for it."""
    (tmp_path / "users_tasks.py").write_text(_USERS_TASKS)
    monkeypatch.syspath_prepend(tmp_path)
    yield "users_tasks"
    sys.modules.pop("users_tasks", None)


_USERS_TASKS = """
import os, signal, time
from pathlib import Path
from fastmem.errors import InputError


def square(shared, task):
    import torch
    assert not shared.flags.writeable  # mapped, not copied
    return task.rows[0], float(shared[task.rows[0]] ** 2), torch.get_num_threads()


def fail(shared, task):
    if task.rows == (3,):
        raise InputError("recipe", "diverged", "lower the learning rate")
    return task.rows[0]


def fail_on_purpose(shared, task):
    raise ZeroDivisionError("a bug")


def _first_time(folder, task):
    try:
        (Path(folder) / str(task.rows[0])).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def die_once(folder, task):
    if _first_time(folder, task) and task.rows[0] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return task.rows[0]


def always_die(folder, task):
    os.kill(os.getpid(), signal.SIGKILL)


def hang_once(folder, task):
    if _first_time(folder, task) and task.rows[0] == 2:
        time.sleep(600)
    return task.rows[0]
"""


def _work(module: str, name: str):
    return getattr(__import__(module), name)


def test_the_same_plan_gives_the_same_reports(ray_engine, tasks_of_a_user: str) -> None:
    plan = Plan(_work(tasks_of_a_user, "square"), _read_only(np.arange(300_000.0)), _TASKS)
    expected = [(row, float(row) ** 2, 1) for row in range(6)]
    assert sorted(LocalEngine(1).run(plan)) == expected
    assert sorted(ray_engine.run(plan)) == expected
    assert ray_engine.slots == 2
    assert list(ray_engine.run(Plan(plan.work, plan.shared, ()))) == []


def test_a_tasks_error_arrives_whole(ray_engine, tasks_of_a_user: str) -> None:
    with pytest.raises(InputError, match=r"^recipe: diverged; lower the learning rate$"):
        list(ray_engine.run(Plan(_work(tasks_of_a_user, "fail"), None, _TASKS)))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(ray_engine.run(Plan(_work(tasks_of_a_user, "fail_on_purpose"), None, _TASKS)))


def test_a_task_whose_worker_is_lost_runs_again(ray_engine, tasks_of_a_user: str, tmp_path: Path) -> None:
    plan = Plan(_work(tasks_of_a_user, "die_once"), str(tmp_path), _TASKS)
    assert sorted(ray_engine.run(plan)) == list(range(6))


def test_workers_that_are_lost_each_time_are_one_line(ray_engine, tasks_of_a_user: str) -> None:
    plan = Plan(_work(tasks_of_a_user, "always_die"), None, _TASKS[:1])
    with pytest.raises(FastmemError, match=r"^engine: a task lost its worker again and again .*rows are kept"):
        list(ray_engine.run(plan))


def test_a_task_that_hangs_is_given_to_a_second_worker(ray_engine, tasks_of_a_user: str, tmp_path: Path) -> None:
    plan = Plan(_work(tasks_of_a_user, "hang_once"), str(tmp_path), _TASKS[:4])
    assert sorted(ray_engine.run(plan)) == list(range(4))


def test_a_node_with_other_code_is_refused(ray_engine, tasks_of_a_user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmem.engine.ray.code_version", lambda *parts: "another")
    with pytest.raises(StoreError, match=r"^engine: node .* has another build of fastmem"):
        list(ray_engine.run(Plan(_work(tasks_of_a_user, "square"), np.arange(9.0), _TASKS)))


def test_a_gpu_where_there_is_none(ray_engine, tasks_of_a_user: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    refused = pytest.raises(InputError, match=r"^gpus_per_task: 0\.5, but the Ray cluster has no GPU")
    with open_engine("ray", 2, gpus_per_task=0.5) as engine, refused:  # joins the Ray that is running
        list(engine.run(Plan(_work(tasks_of_a_user, "square"), np.arange(9.0), _TASKS)))
    assert ray_engine.slots == 2  # and has left it running


_ORPHANS = """
import sys, time
from pathlib import Path
from fastmem.engine import Plan, Task, open_engine
sys.path.insert(0, sys.argv[2])
from orphan_task import work
with open_engine("ray", 1) as engine:
    for _ in engine.run(Plan(work, sys.argv[1], (Task("", (0,)),))):
        pass
"""

_ORPHAN_TASK = """
import os, time
from pathlib import Path
def work(folder, task):
    (Path(folder) / f"{os.getpid()}").touch()
    time.sleep(600)
"""


def _alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes as Linux shows them")
def test_ctrl_c_leaves_no_process_and_no_file_behind(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'fastmem[ray]'")
    (tmp_path / "orphan_task.py").write_text(_ORPHAN_TASK)
    marks = tmp_path / "marks"
    marks.mkdir()
    parent = subprocess.Popen(
        [sys.executable, "-c", _ORPHANS, str(marks), str(tmp_path)],
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not list(marks.iterdir()) and time.monotonic() < deadline and parent.poll() is None:
            time.sleep(0.05)
        (worker,) = (int(path.name) for path in marks.iterdir())
        parent.send_signal(signal.SIGINT)
        _, noise = parent.communicate(timeout=180)
        deadline = time.monotonic() + 20
        while _alive(worker) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not _alive(worker)
        assert b"KeyboardInterrupt" in noise
    finally:
        if parent.poll() is None:
            os.killpg(parent.pid, signal.SIGKILL)


# -- the door ---------------------------------------------------------------------------------------------------------


def test_without_ray_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    refused = pytest.raises(InputError, match=r"^engine: ray is not installed; pip install 'fastmem\[ray\]'")
    with refused, open_engine("ray", 2):
        pass


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "nothing answers at 127.0.0.1:1"),
        ("ray://127.0.0.1:1", "nothing answers at"),
        ("127.0.0.1", "give auto, host:port"),
        ("host:port", "give auto, host:port"),
    ],
)
def test_an_address_without_ray_is_refused_at_once(address: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'fastmem[ray]'")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    start = time.monotonic()
    refused = pytest.raises(InputError, match=rf"^ray_address: .*{message}")
    with refused, open_engine("ray", 2, ray_address=address):
        pass
    assert time.monotonic() - start < 30


def test_other_engines_names_and_options_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="engine: unknown name 'rays'"), open_engine("rays", 2):
        pass
    refused = pytest.raises(InputError, match=r"^ray_address: .*add --engine ray")
    with refused, open_engine("local", 2, ray_address="auto"):
        pass


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array

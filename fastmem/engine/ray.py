"""Runs a plan on Ray: a small one of its own on this machine, or a cluster that is already there.

Ray places the tasks, carries what they share to every node once, and runs a task again whose worker or node was lost.
What is added here is small: a node with other code than the driver's is refused, since rows would be written under
keys that do not describe them; and a task that lasts far longer than the others, on a node that hangs, say, is given to
a second worker once there are idle ones. Tasks are idempotent, so whichever ends first will do.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from fastmem.engine.hashing import code_version
from fastmem.engine.plan import Plan, Report, Shared, Task
from fastmem.engine.worker import work_single_threaded
from fastmem.errors import FastmemError, InputError, StoreError

__all__ = ["RayEngine"]

_CONNECT_SECONDS = 5.0
# Ray gives itself 30 seconds to start, which a very busy machine may exceed.
_STARTS = 2
_SMALLEST_OBJECT_STORE = 128 << 20
# A task is slow if it lasts this many times longer than a task takes on average, once others have nothing to do.
_STRAGGLES = 3.0

# A Ray that is started here lets in who has its token, so that other users of the machine cannot run code as this one.
# It takes the token from here, rather than write one to the home directory, and does not report its usage to its makers.
_OWN_RAY = {"RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}


class RayEngine:
    """Ray, from ``with`` to its end; a Ray that this process already uses is used, and left running.

    Args:
        workers: Tasks at a time, where Ray is started here.
        address: A cluster: ``"auto"``, ``"host:6379"`` or ``"ray://host:10001"``; None starts one here.
        gpus_per_task: Share of a GPU that a task takes: 0.25 puts four on each.
        shared_bytes: Size of what the tasks of a plan share.
        retries: How often a task is run again whose worker was lost: one that kills its worker must end some day.
        straggler_seconds: A task that lasts less is never given to a second worker.

    Raises:
        InputError: If Ray is not installed, or there is none at the address.
    """

    def __init__(
        self,
        workers: int,
        address: str | None = None,
        gpus_per_task: float = 0.0,
        shared_bytes: int = 0,
        retries: int = 3,
        straggler_seconds: float = 30.0,
    ) -> None:
        self._ray = _import_ray()
        self._workers = workers
        self._address = address
        self._gpus = gpus_per_task
        self._object_store = max(_SMALLEST_OBJECT_STORE, 4 * shared_bytes)
        self._retries = retries
        self._straggler_seconds = straggler_seconds
        self._open = contextlib.ExitStack()

    def __enter__(self) -> RayEngine:
        if not self._ray.is_initialized():
            with contextlib.ExitStack() as started:
                self._start(started)
                self._open = started.pop_all()
        return self

    def __exit__(self, *failure: object) -> None:
        self._open.close()

    @property
    def slots(self) -> int:
        """How many tasks the cluster as it is now runs at the same time; one that grows on demand may run more."""
        resources = self._ray.cluster_resources()
        slots = resources.get("CPU", 0.0)
        if self._gpus:
            slots = min(slots, resources.get("GPU", 0.0) / self._gpus)
        return max(1, int(slots))

    def run(self, plan: Plan[Shared, Report]) -> Iterator[Report]:
        """Runs every task of a plan.

        Args:
            plan: The tasks and what they share, which travels once to each node.

        Yields:
            The tasks' reports, one a task, as they finish. Closing the iterator, or an interrupt, cancels the others.

        Raises:
            FastmemError: What a task raised, that a node has other code, or that workers were lost again and again.
        """
        if not plan.tasks:
            return
        if self._gpus and self._ray.cluster_resources().get("GPU", 0.0) < self._gpus:
            raise InputError("gpus_per_task", f"{self._gpus:g}, but the Ray cluster has no GPU", "give --device cpu")
        calls = _Calls(self._ray, plan, {"num_cpus": 1, "num_gpus": self._gpus, "max_retries": self._retries})
        started = last = time.monotonic()
        done = 0
        try:
            while calls.open:
                for report in calls.finished(timeout=1.0):
                    last, done = time.monotonic(), done + 1
                    yield report
                # Until something is done there is no telling what is slow: the first task waits for torch to load.
                if done and len(calls.open) < (slots := self.slots):
                    usual = (last - started) * slots / done
                    if time.monotonic() - last > max(_STRAGGLES * usual, self._straggler_seconds):
                        calls.start_twins(slots - len(calls.open))
        finally:
            calls.cancel_all()

    def _start(self, started: contextlib.ExitStack) -> None:
        """Connects, or starts a Ray of this process; what has to be undone is left with ``started``."""
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self._address is not None:
            _require_listener(self._address)
            options |= {"address": self._address}
        else:
            folder = tempfile.mkdtemp(prefix="fastmem-ray-")
            started.callback(shutil.rmtree, folder, ignore_errors=True)
            started.enter_context(_environment(_OWN_RAY))
            options |= {
                "num_cpus": self._workers,
                "include_dashboard": False,
                "object_store_memory": self._object_store,
                "_temp_dir": folder,
            }
        started.callback(self._ray.shutdown)
        tries = _STARTS if self._address is None else 1
        for last in (attempt == tries for attempt in range(1, tries + 1)):
            try:
                self._ray.init(**options)
                return
            except Exception as error:  # what it raises depends on how far it came
                self._ray.shutdown()
                if not last:
                    continue
                if self._address is None:
                    problem, remedy = f"Ray does not start ({_one_line(error)})", "run with --engine local"
                    raise FastmemError("engine", problem, remedy) from error
                raise InputError("ray_address", f"{self._address} ({_one_line(error)})", _ADDRESS_REMEDY) from error


class _Calls:
    """The calls of a plan that are under way: one a task, or two where the first was slow."""

    def __init__(self, ray: Any, plan: Plan[Any, Any], options: dict[str, Any]) -> None:
        self._ray = ray
        self._plan = plan
        work = ray.cloudpickle.dumps(plan.work)
        shared = ray.put(plan.shared)  # once; the nodes map it, and its arrays are not copied
        remote = ray.remote(_work).options(**options)
        # Within a list, what is shared is fetched after a worker knows where to import from.
        self._call = lambda task: remote.remote(sys.path, code_version("."), work, [shared], task)
        self.open: dict[Task, list[Any]] = {task: [self._call(task)] for task in plan.tasks}
        self._task_of = {call: task for task, (call,) in self.open.items()}

    def finished(self, timeout: float) -> list[Any]:
        """Reports of tasks that have ended within ``timeout`` seconds, perhaps none."""
        calls = [call for twins in self.open.values() for call in twins]
        ready, _ = self._ray.wait(calls, num_returns=1, timeout=timeout)
        reports = []
        for call in ready:
            task = self._task_of[call]
            reports.append(self._result(call))
            for twin in self.open.pop(task):
                if twin != call:
                    self._ray.cancel(twin, force=True)
        return reports

    def start_twins(self, most: int) -> None:
        """Gives up to ``most`` of the tasks that are left to a second worker, each once."""
        alone = [task for task, calls in self.open.items() if len(calls) == 1]
        for task in alone[:most]:
            twin = self._call(task)
            self.open[task].append(twin)
            self._task_of[twin] = task

    def cancel_all(self) -> None:
        """Stops what is under way; rows are written in steps that each leave the store whole."""
        for call in (call for calls in self.open.values() for call in calls):
            with contextlib.suppress(Exception):  # the cluster may be what has gone
                self._ray.cancel(call, force=True)

    def _result(self, call: Any) -> Any:
        try:
            return self._ray.get(call)
        except self._ray.exceptions.RayTaskError as error:
            # The task's own error, without the layers of Ray about it.
            raise (error.cause if isinstance(error.cause, FastmemError) else error) from None
        except self._ray.exceptions.RayError as error:
            raise FastmemError(
                "engine",
                f"a task lost its worker again and again ({_one_line(error)})",
                "finished rows are kept: run the same command again, on nodes with more memory if that was the cause",
            ) from error


def _work(
    import_paths: list[str], version: str, work: bytes, shared: list[Any], task: Task
) -> Any:  # runs in a Ray worker
    ray = _import_ray()
    # The user's own modules, where the nodes share a file system; after what the node has itself.
    sys.path.extend(path for path in import_paths if path not in sys.path)
    if code_version(".") != version:
        raise StoreError(
            "engine",
            f"node {socket.gethostname()} has another build of fastmem than the one that gives out the tasks",
            "install the same wheel on every node",
        )
    call: Callable[[Any, Task], Any] = ray.cloudpickle.loads(work)
    return work_single_threaded(call, ray.get(shared[0]), task)


_ADDRESS_REMEDY = "start one with: ray start --head, or give the host:port that it printed; without it one starts here"


def _require_listener(address: str) -> None:
    """Refuses an address where nothing listens, which Ray itself would try for minutes."""
    if address == "auto":
        return
    try:
        found = urlsplit(address if "://" in address else f"tcp://{address}")
        host, port = found.hostname, found.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise InputError("ray_address", f"{address!r}", "give auto, host:port or ray://host:port")
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise InputError(
            "ray_address", f"nothing answers at {address} ({error.strerror or error})", _ADDRESS_REMEDY
        ) from error


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise InputError("engine", "ray is not installed", "pip install 'fastmem[ray]', or --engine local") from error
    return ray


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Sets variables that are not set yet; at the end all are as they were, those that Ray has set too."""
    before = dict(os.environ)
    os.environ.update({name: value for name, value in values.items() if name not in before})
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            if name in values or name.startswith("RAY_"):
                del os.environ[name]


def _one_line(error: BaseException) -> str:
    text = str(error).strip()
    return " ".join(text.splitlines()[0].split()) if text else type(error).__name__

"""What runs a plan: worker processes of this machine, or a Ray cluster, behind one small door."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

from fastmem.engine.local import LocalEngine
from fastmem.engine.plan import Plan, Report, Shared
from fastmem.errors import InputError, UnknownNameError

__all__ = ["ENGINE_NAMES", "Engine", "open_engine"]

ENGINE_NAMES = ("local", "ray")


class Engine(Protocol):
    """Runs the tasks of a plan wherever it can. Tasks are idempotent, so it may run one twice."""

    @property
    def slots(self) -> int:
        """How many tasks run at the same time."""
        ...

    def run(self, plan: Plan[Shared, Report]) -> Iterator[Report]:
        """Runs every task; closing the iterator, or an interrupt, stops what is under way.

        Yields:
            The tasks' reports, one a task, as they finish.

        Raises:
            FastmemError: What a task raised, or that workers were lost for good.
        """
        ...


@contextlib.contextmanager
def open_engine(
    name: str,
    workers: int,
    *,
    ray_address: str | None = None,
    gpus_per_task: float = 0.0,
    shared_bytes: int = 0,
) -> Iterator[Engine]:
    """The engine of that name, ready to run; what it started is stopped at the end.

    Args:
        name: ``"local"`` or ``"ray"``.
        workers: Processes of this machine; of a Ray cluster that is already there, all that it has are used.
        ray_address: That cluster: ``"auto"``, ``"host:6379"`` or ``"ray://host:10001"``; None starts one here.
        gpus_per_task: Share of a GPU that a task takes, for Ray.
        shared_bytes: Size of what the tasks of a plan share; Ray's object store has to hold it.

    Raises:
        InputError: If Ray is asked for and not installed, its address leads nowhere, or an option is another engine's.
    """
    if name not in ENGINE_NAMES:
        raise UnknownNameError("engine", name, ENGINE_NAMES)
    if name == "local":
        if ray_address is not None:
            raise InputError("ray_address", f"{ray_address!r} with the local engine", "add --engine ray")
        yield LocalEngine(workers)
        return
    from fastmem.engine.ray import RayEngine  # Ray takes a second to import, and is an extra

    with RayEngine(
        workers=workers, address=ray_address, gpus_per_task=gpus_per_task, shared_bytes=shared_bytes
    ) as engine:
        yield engine

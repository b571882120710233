"""Runs a plan of tasks and loses nothing: content keys, the run folder with its lock, worker processes or Ray."""

from fastmem.engine.engine import ENGINE_NAMES, Engine, open_engine
from fastmem.engine.folder import RunFolder, readable_size, write_atomically
from fastmem.engine.hashing import code_version, content_key, source_fingerprint
from fastmem.engine.local import LocalEngine, run_plan
from fastmem.engine.plan import Plan, Task, make_tasks

__all__ = [
    "ENGINE_NAMES",
    "Engine",
    "LocalEngine",
    "Plan",
    "RunFolder",
    "Task",
    "code_version",
    "content_key",
    "make_tasks",
    "open_engine",
    "readable_size",
    "run_plan",
    "source_fingerprint",
    "write_atomically",
]

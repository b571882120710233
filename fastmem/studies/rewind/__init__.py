"""``fastmem rewind``: do the weights that carry the privacy risk exist, and does rewinding them help?

The names load when they are first used: ``--help`` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmem.studies.rewind.config import RewindConfig
    from fastmem.studies.rewind.run import RewindInterruptedError, RewindResult, run_rewind

__all__ = ["RewindConfig", "RewindInterruptedError", "RewindResult", "run_rewind"]

_HOME = {"RewindConfig": "config", "RewindInterruptedError": "run", "RewindResult": "run", "run_rewind": "run"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value

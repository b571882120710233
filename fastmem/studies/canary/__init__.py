"""``fastmem canary``: does a mark that occurs once in training leave a trace in the model?

The names load when they are first used, as in :mod:`fastmem.studies.audit`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmem.studies.canary.config import CanaryConfig
    from fastmem.studies.canary.run import CanaryInterruptedError, CanaryResult, run_canary

__all__ = ["CanaryConfig", "CanaryInterruptedError", "CanaryResult", "run_canary"]

_HOME = {"CanaryConfig": "config", "CanaryInterruptedError": "run", "CanaryResult": "run", "run_canary": "run"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value

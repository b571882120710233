"""``fastmem few-shot``: how much leaks to an attacker who knows only a handful of members?

The names load when they are first used: ``--help`` needs neither the libraries of the attacks nor those of the report.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmem.studies.few_shot.config import FewShotConfig
    from fastmem.studies.few_shot.run import FewShotInterruptedError, FewShotResult, run_few_shot

__all__ = ["FewShotConfig", "FewShotInterruptedError", "FewShotResult", "run_few_shot"]

_HOME = {
    "FewShotConfig": "config",
    "FewShotInterruptedError": "run",
    "FewShotResult": "run",
    "run_few_shot": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value

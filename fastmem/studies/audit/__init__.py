"""``fastmem audit``: which records of a pool can an attacker name as training data of a model?

The names load when they are first used: ``--help`` needs no torch, and worker processes need neither the attacks' nor
the report's libraries.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmem.studies.audit.config import AuditConfig
    from fastmem.studies.audit.run import AuditInterruptedError, AuditResult, run_audit, run_shard
    from fastmem.studies.audit.shard import Shard

__all__ = ["AuditConfig", "AuditInterruptedError", "AuditResult", "Shard", "run_audit", "run_shard"]

_HOME = {
    "AuditConfig": "config",
    "AuditInterruptedError": "run",
    "AuditResult": "run",
    "Shard": "shard",
    "run_audit": "run",
    "run_shard": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value

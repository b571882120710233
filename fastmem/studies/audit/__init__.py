"""``fastmem audit``: which records of a pool can an attacker name as training data of a model?

The names load when they are first used: ``--help`` needs no torch, and worker processes need neither the attacks' nor
the report's libraries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmem.imports import lazy_names

if TYPE_CHECKING:
    from fastmem.studies.audit.config import AuditConfig
    from fastmem.studies.audit.run import AuditResult, run_audit, run_shard
    from fastmem.studies.audit.shard import Shard

__all__ = ["AuditConfig", "AuditResult", "Shard", "run_audit", "run_shard"]

__getattr__ = lazy_names(
    __name__,
    {
        "AuditConfig": "config",
        "AuditResult": "run",
        "Shard": "shard",
        "run_audit": "run",
        "run_shard": "run",
    },
)

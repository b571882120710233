"""``fastmem attack``: membership attacks on answers that are already there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmem.imports import lazy_names

if TYPE_CHECKING:
    from fastmem.studies.attack.config import AttackConfig
    from fastmem.studies.attack.run import run_attack

__all__ = ["AttackConfig", "run_attack"]

__getattr__ = lazy_names(__name__, {"AttackConfig": "config", "run_attack": "run"})

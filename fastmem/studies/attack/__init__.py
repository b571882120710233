"""``fastmem attack``: membership attacks on answers that are already there."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmem.studies.attack.config import AttackConfig
    from fastmem.studies.attack.run import run_attack

__all__ = ["AttackConfig", "run_attack"]

_HOME = {"AttackConfig": "config", "run_attack": "run"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value

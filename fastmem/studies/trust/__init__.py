"""``fastmem trust``: how far can prediction-score attacks be believed?

The names load when they are first used: ``--help`` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmem.studies.trust.config import TrustConfig
    from fastmem.studies.trust.run import TrustInterruptedError, TrustResult, run_trust

__all__ = ["TrustConfig", "TrustInterruptedError", "TrustResult", "run_trust"]

_HOME = {"TrustConfig": "config", "TrustInterruptedError": "run", "TrustResult": "run", "run_trust": "run"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value

"""``fastmem reconstruct``: which training images can be read out of the weights?

The names load when they are first used: ``--help`` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmem.studies.reconstruct.config import ReconstructConfig
    from fastmem.studies.reconstruct.run import ReconstructInterruptedError, ReconstructResult, run_reconstruct

__all__ = ["ReconstructConfig", "ReconstructInterruptedError", "ReconstructResult", "run_reconstruct"]

_HOME = {
    "ReconstructConfig": "config",
    "ReconstructInterruptedError": "run",
    "ReconstructResult": "run",
    "run_reconstruct": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value

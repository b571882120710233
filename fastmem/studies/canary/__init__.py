"""``fastmem canary``: does a mark that occurs once in training leave a trace in the model?

The names load when they are first used, as in :mod:`fastmem.studies.audit`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmem.imports import lazy_names

if TYPE_CHECKING:
    from fastmem.studies.canary.config import CanaryConfig
    from fastmem.studies.canary.run import CanaryResult, run_canary

__all__ = ["CanaryConfig", "CanaryResult", "run_canary"]

__getattr__ = lazy_names(__name__, {"CanaryConfig": "config", "CanaryResult": "run", "run_canary": "run"})

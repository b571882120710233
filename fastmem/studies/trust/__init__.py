"""``fastmem trust``: how far can prediction-score attacks be believed?

The names load when they are first used: ``--help`` needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmem.imports import lazy_names

if TYPE_CHECKING:
    from fastmem.studies.trust.config import TrustConfig
    from fastmem.studies.trust.run import TrustResult, run_trust

__all__ = ["TrustConfig", "TrustResult", "run_trust"]

__getattr__ = lazy_names(__name__, {"TrustConfig": "config", "TrustResult": "run", "run_trust": "run"})

"""``fastmem rewind``: do the weights that carry the privacy risk exist, and does rewinding them help?

The names load when they are first used: ``--help`` needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmem.imports import lazy_names

if TYPE_CHECKING:
    from fastmem.studies.rewind.config import RewindConfig
    from fastmem.studies.rewind.run import RewindResult, run_rewind

__all__ = ["RewindConfig", "RewindResult", "run_rewind"]

__getattr__ = lazy_names(__name__, {"RewindConfig": "config", "RewindResult": "run", "run_rewind": "run"})

"""``fastmem reconstruct``: which training images can be read out of the weights?

The names load when they are first used: ``--help`` needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmem.imports import lazy_names

if TYPE_CHECKING:
    from fastmem.studies.reconstruct.config import ReconstructConfig
    from fastmem.studies.reconstruct.run import ReconstructResult, run_reconstruct

__all__ = ["ReconstructConfig", "ReconstructResult", "run_reconstruct"]

__getattr__ = lazy_names(
    __name__,
    {
        "ReconstructConfig": "config",
        "ReconstructResult": "run",
        "run_reconstruct": "run",
    },
)

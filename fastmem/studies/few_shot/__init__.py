"""``fastmem few-shot``: how much leaks to an attacker who knows only a handful of members?

The names load when they are first used: ``--help`` needs neither the libraries of the attacks nor those of the report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmem.imports import lazy_names

if TYPE_CHECKING:
    from fastmem.studies.few_shot.config import FewShotConfig
    from fastmem.studies.few_shot.run import FewShotResult, run_few_shot

__all__ = ["FewShotConfig", "FewShotResult", "run_few_shot"]

__getattr__ = lazy_names(
    __name__,
    {
        "FewShotConfig": "config",
        "FewShotResult": "run",
        "run_few_shot": "run",
    },
)

"""What M models said about N samples: the table that every membership attack reads, and how it is made and stored.

The writer and the queries load when they are first used: attacks on saved arrays need neither zarr nor a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmem.imports import lazy_names
from fastmem.signals.names import STAT_NAMES, stored_names
from fastmem.signals.signals import Signals

if TYPE_CHECKING:
    from fastmem.signals.query import query_model, query_models
    from fastmem.signals.store import SignalsWriter
    from fastmem.signals.stored import stored_groups

__all__ = ["STAT_NAMES", "Signals", "SignalsWriter", "query_model", "query_models", "stored_groups", "stored_names"]

__getattr__ = lazy_names(
    __name__, {"SignalsWriter": "store", "query_model": "query", "query_models": "query", "stored_groups": "stored"}
)

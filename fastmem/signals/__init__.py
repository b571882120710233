"""What M models said about N samples: the table that every membership attack reads, and how it is made and stored."""

from fastmem.signals.signals import Signals
from fastmem.signals.statistics import STAT_NAMES, stored_names

__all__ = ["STAT_NAMES", "Signals", "stored_names"]

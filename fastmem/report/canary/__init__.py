"""The report of a canary study: its page and its table for the terminal."""

from fastmem.report.canary.page import write_canary_report
from fastmem.report.canary.terminal import canary_table

__all__ = ["canary_table", "write_canary_report"]

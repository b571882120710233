"""The report of a rewinding study: its page and its table for the terminal."""

from fastmem.report.rewind.page import write_rewind_report
from fastmem.report.rewind.terminal import rewind_table

__all__ = ["rewind_table", "write_rewind_report"]

"""The report of a trust study: its page and its table for the terminal."""

from fastmem.report.trust.page import write_trust_report
from fastmem.report.trust.terminal import trust_table

__all__ = ["trust_table", "write_trust_report"]

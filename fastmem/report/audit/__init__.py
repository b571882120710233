"""The report of a membership audit: its page and its table for the terminal."""

from fastmem.report.audit.page import write_audit_report
from fastmem.report.audit.terminal import audit_table

__all__ = ["audit_table", "write_audit_report"]

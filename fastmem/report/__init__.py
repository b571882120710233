"""Reports of finished runs: one self-contained HTML page, and tables for the terminal.

A report is a pure function of the files in a run folder. ``theme``, ``html``, ``tables``, ``plots`` and ``artifacts``
are building blocks for every study; ``audit`` is the membership audit's own.
"""

from fastmem.report.audit import audit_table, write_audit_report

__all__ = ["audit_table", "write_audit_report"]

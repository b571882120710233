"""Reports of finished runs: one self-contained HTML page, and tables for the terminal.

A report is a pure function of the files in a run folder. ``theme``, ``html``, ``tables``, ``plots``, ``artifacts`` and
``provenance`` are building blocks for every study; ``audit``, ``canary`` and ``trust`` are those studies' own.
"""

from fastmem.report.audit import audit_table, write_audit_report
from fastmem.report.canary import canary_table, write_canary_report
from fastmem.report.redraw import write_report
from fastmem.report.trust import trust_table, write_trust_report

__all__ = [
    "audit_table",
    "canary_table",
    "trust_table",
    "write_audit_report",
    "write_canary_report",
    "write_report",
    "write_trust_report",
]

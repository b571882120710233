"""The report of a reconstruction study: its page and its table for the terminal."""

from fastmem.report.reconstruct.page import write_reconstruct_report
from fastmem.report.reconstruct.terminal import reconstruct_table

__all__ = ["reconstruct_table", "write_reconstruct_report"]

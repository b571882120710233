"""The report of a few-shot study: its page and its table for the terminal."""

from fastmem.report.few_shot.page import write_few_shot_report
from fastmem.report.few_shot.terminal import few_shot_table

__all__ = ["few_shot_table", "write_few_shot_report"]

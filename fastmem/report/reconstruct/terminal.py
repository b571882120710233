"""The table of a reconstruction study for the terminal: the attack and its controls, one line each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from fastmem.report.artifacts import Fields, check_schema
from fastmem.report.reconstruct.results import read_counted
from fastmem.report.tables import count, fixed

__all__ = ["reconstruct_table"]


def reconstruct_table(summary: Mapping[str, Any]) -> Table:
    """How many training images each set of candidates resembles.

    Args:
        summary: The content of ``summary.json``.

    Returns:
        A table that fits 110 columns.

    Raises:
        StoreError: A field of the summary is of the wrong kind, or the summary is of a newer fastmem.
    """
    fields = check_schema(Fields(dict(summary), "summary"))
    table = Table(box=None, pad_edge=False, header_style="bold", caption_justify="left")
    table.add_column("candidates")
    rows = read_counted(fields)
    if not rows:
        table.add_column("count", justify="right")
        table.add_row("reconstructed, not matched", count(fields.child("design").number("m")))
        return table
    table.add_column("mean correlation", justify="right")
    for threshold in rows[0].above:
        table.add_column(f"> {threshold}", justify="right")
    table.add_column("SSIM > 0.4", justify="right")
    for row in rows:
        ssim = row.ssim["above"].counted if row.ssim else "-"
        table.add_row(row.title, fixed(row.mean.value), *(each.counted for each in row.above.values()), ssim)
    n = fields.child("design").number("n")
    table.caption = Text(
        f"Of {count(n)} training images; one candidate each, means over {len(fields.data['victims'])} victim(s). "
        "SSIM is clamped; the mean image shows what it is worth."
    )
    return table

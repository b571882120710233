"""The table of a rewinding study for the terminal: utility and what is found, by arm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from fastmem.report.artifacts import Fields, check_schema
from fastmem.report.rewind.run import read_arms
from fastmem.report.tables import fixed, percent, span

__all__ = ["rewind_table"]


def rewind_table(summary: Mapping[str, Any]) -> Table:
    """A row per arm: accuracy, and what the headline attack finds.

    Args:
        summary: The content of ``summary.json``.

    Returns:
        A table that fits 110 columns.

    Raises:
        StoreError: A field of the summary is of the wrong kind, or the summary is of a newer fastmem.
    """
    fields = check_schema(Fields(dict(summary), "summary"))
    attack = fields.text("headline", "loss")
    title = fields.child("attacks").child(attack).text("title", attack)
    table = Table(box=None, pad_edge=False, header_style="bold", caption_justify="left")
    table.caption = Text(f"{title}, by models that all were treated alike; 95% intervals. Chance: AUC 0.5, TPR = FPR.")
    table.add_column("models", no_wrap=True)
    for name in ("test accuracy", "AUC", "TPR at 1%", "TPR at 0.1%"):
        table.add_column(name, justify="right")
    for arm in read_arms(fields):
        auc = arm.auc(attack)
        cells = []
        for level in ("0.01", "0.001"):
            tpr = arm.tpr(attack, level)
            interval = span(percent(tpr.low, unit=False), percent(tpr.high))
            cells.append(f"{percent(tpr.value)} ({interval})" if arm.resolvable(attack, level) else "not resolvable")
        table.add_row(
            arm.title,
            percent(arm.mean("test_accuracy")),
            f"{fixed(auc.value)} ({span(fixed(auc.low), fixed(auc.high))})",
            *cells,
        )
    return table

"""The table of a trust study for the terminal: false positive rates by set and calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from fastmem.report.artifacts import Fields, check_schema
from fastmem.report.tables import fixed, percent
from fastmem.report.trust.run import read_calibrations, read_sets

__all__ = ["trust_table"]


def trust_table(summary: Mapping[str, Any]) -> Table:
    """How often each set is called a member by the maximum-probability attack, a column per calibration.

    Args:
        summary: The content of ``summary.json``.

    Returns:
        A table that fits 110 columns.

    Raises:
        StoreError: A field of the summary is of the wrong kind, or the summary is of a newer fastmem.
    """
    fields = check_schema(Fields(dict(summary), "summary"))
    calibrations, sets = read_calibrations(fields), read_sets(fields)
    table = Table(box=None, pad_edge=False, header_style="bold", caption_justify="left")
    table.caption = Text(
        "False positive rates of the maximum-probability attack, fitted on one shadow model; means over "
        f"{len(calibrations[0].attacks[next(iter(calibrations[0].attacks))].controls.get('never_saw', []))} targets."
    )
    table.add_column("called members", no_wrap=True)
    for calibration in calibrations:
        table.add_column(calibration.key.replace("_", " "), justify="right", max_width=12)
    table.add_row("members (recall)", *(percent(one.headline.recall.value) for one in calibrations))
    for name, title in sets.items():
        table.add_row(title, *(percent(one.headline.sets[name].fpr.value) for one in calibrations))
    table.add_section()
    table.add_row("AUC on test", *(fixed(one.headline.sets["test"].auc.value) for one in calibrations))
    table.add_row("calibration error", *(fixed(one.ece) for one in calibrations))
    table.add_row("test accuracy", *(percent(one.test_accuracy.value) for one in calibrations))
    return table

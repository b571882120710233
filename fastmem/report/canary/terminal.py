"""The table of a canary study for the terminal: one line per setting, its null and its control beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from fastmem.report.artifacts import Fields, check_schema
from fastmem.report.canary.results import Cell, Own, Share, p_value, read_cells, read_own
from fastmem.report.tables import signed

__all__ = ["canary_table"]

_MISSING = "-"  # plain ASCII throughout: a terminal may know nothing else


def canary_table(summary: Mapping[str, Any]) -> Table:
    """A canary study's settings, or the scores of a model of the user's own.

    Args:
        summary: The content of ``summary.json``.

    Returns:
        A table that fits 110 columns.

    Raises:
        StoreError: A field of the summary is of the wrong kind, or the summary is of a newer fastmem.
    """
    fields = check_schema(Fields(dict(summary), "summary"))
    headline = fields.child("headline")
    own = read_own(fields)
    table = Table(box=None, pad_edge=False, header_style="bold", caption_justify="left")
    if own:
        _own(table, own)
    else:
        _settings(table, read_cells(fields), headline.text("variant"))
    return table


def _settings(table: Table, cells: list[Cell], variant: str) -> None:
    for name in ("training", "k"):
        table.add_column(name, no_wrap=True)
    for name in ("paired difference", "Wilcoxon p", "found one by one", "never saw", "t test, never saw"):
        table.add_column(name, justify="right")
    table.caption = Text(
        f"{variant}: difference with its 95% interval over seed-matched pairs; shares of models found by their rank "
        "among models that never saw the mark. The t test over images is no evidence: see its last column."
    )
    for cell in cells:
        entry = cell.variants[variant]
        null = entry.sensitivity.get("t", {}).get("null")
        table.add_row(
            cell.title,
            str(cell.copies),
            f"{signed(entry.paired.effect)} ({entry.paired.interval})",
            p_value(entry.paired.p_value),
            _share(entry.power),
            _share(entry.null_power),
            _share(null) if null else _MISSING,
        )


def _own(table: Table, own: list[Own]) -> None:
    table.add_column("variant", no_wrap=True)
    for name in ("your model", "null models", "rank p, nulls", "rank p, control marks", "t test p (no evidence)"):
        table.add_column(name, justify="right")
    for entry in own:
        table.add_row(
            entry.key,
            signed(entry.value),
            f"{signed(entry.null[0])} +- {entry.null[1]:.2g}",
            p_value(entry.rank_p),
            p_value(entry.control_rank_p) if math.isfinite(entry.control_rank_p) else _MISSING,
            p_value(entry.t),
        )


def _share(share: Share) -> str:
    return f"{share.k:.0f}/{share.n:.0f}" if math.isfinite(share.value) else _MISSING

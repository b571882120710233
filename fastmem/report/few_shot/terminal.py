"""The table of a few-shot study for the terminal: a line a method and number of shots, in 100 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from fastmem.report.artifacts import Fields, check_schema
from fastmem.report.few_shot.results import Cells, read_rivals, read_variants
from fastmem.report.tables import MISSING, percent

__all__ = ["few_shot_table"]


def few_shot_table(summary: Mapping[str, Any]) -> Table:
    """Few-shot methods by shots, then the other attacks on the same episodes.

    Args:
        summary: The content of ``summary.json``.

    Returns:
        A table that fits 100 columns.

    Raises:
        StoreError: A field of the summary is of the wrong kind, or the summary is of a newer fastmem.
    """
    fields = check_schema(Fields(dict(summary), "summary"))
    table = Table(box=None, pad_edge=False, header_style="bold", caption=_caption(), caption_justify="left")
    table.add_column("attack", no_wrap=True)
    table.add_column("labels", justify="right")
    table.add_column("shadows", justify="right")
    table.add_column("TPR%, no FP", justify="right")
    table.add_column("guess", justify="right")
    table.add_column("adjusted Log-MIA", justify="right")
    table.add_column("AUC", justify="right")
    table.add_column("blind AUC", justify="right")
    variants = read_variants(fields)
    labels = {shots: cells.n_labels for variant in variants for shots, cells in variant.shots.items()}
    for variant in variants:
        for shots, cells in variant.shots.items():
            blind = variant.controls.get("blind", {}).get(shots)
            table.add_row(f"{variant.key} {shots}", f"{cells.n_labels:.0f}", "0", *_found(cells), _auc(blind))
    for rival in read_rivals(fields):
        for shots, cells in list(rival.shots.items())[-1:]:
            known = "0" if rival.shadow_models else f"{labels.get(shots, 0):.0f}"
            table.add_row(rival.key, known, f"{rival.shadow_models:.0f}", *_found(cells), "-")
    return table


def _found(cells: Cells) -> list[Text | str]:
    strict, regular = cells.regimes.get("strict"), cells.regimes.get("regular")
    if strict is None or regular is None:
        return ["-"] * 4
    tpr = Text(percent(strict.tpr.mean, unit=False))
    low, high = percent(max(strict.tpr.low, 0.0), unit=False), percent(strict.tpr.high, unit=False)
    if MISSING not in (low, high):
        tpr.append(f" {low}-{high}", style="dim")
    return [
        tpr,
        percent(strict.tpr_chance, unit=False),
        f"{strict.adjusted:.3f} / {regular.adjusted:.3f}",
        _auc(cells),
    ]


def _auc(cells: Cells | None) -> str:
    return "-" if cells is None else f"{cells.auc.mean:.3f} {cells.auc.low:.3f}-{cells.auc.high:.3f}"


def _caption() -> Text:
    return Text(
        "Means over episodes with 95% intervals. labels: records whose membership the attacker knows, tuning included. "
        "Log-MIA at no / few false positives, 0 for guessing. blind: a model that never saw the records.",
        style="dim",
    )

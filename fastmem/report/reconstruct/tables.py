"""The tables of a reconstruction study: counts with controls, and the runs."""

from __future__ import annotations

import math

from markupsafe import Markup

from fastmem.report.reconstruct.results import Counted, Results
from fastmem.report.tables import MISSING, Cell, Column, Table, compact, count, fixed, percent, signed, span

__all__ = ["count_table", "run_table", "victim_table"]


def count_table(results: Results) -> Markup:
    """A row for each set of candidates: mean correlation, counts over thresholds, SSIM."""
    thresholds = list(results.counted[0].above)
    images = any(row.ssim for row in results.counted)
    columns = [
        Column("Candidates", numeric=False),
        Column("Mean correlation", "95% interval over victims"),
        *(Column(f"Above {threshold}", "images") for threshold in thresholds),
        Column("Excess above 0.8", "reconstruction less this"),
    ]
    if images:
        columns += [Column("Mean SSIM", "clamped"), Column("SSIM > 0.4", "clamped; min-max")]
    rows = []
    for row in results.counted:
        cells = [
            Cell(row.title),
            Cell(fixed(row.mean.value), _lines(row.mean.interval)),
            *(Cell(each.counted, _lines(each.count_interval)) for each in row.above.values()),
            _excess(row),
        ]
        if images:
            cells += _ssim(row)
        rows.append(cells)
    n = results.summary.child("design").number("n")
    caption = f"{count(n)} training images, each with one candidate at most and each candidate with one image"
    return Table(caption, columns, rows, highlight=0).html()


def victim_table(results: Results) -> Markup:
    """A row for each victim: how it was trained, what was found, and the tests."""
    columns = [
        Column("Victim", numeric=False),
        Column("Training loss", "steps"),
        Column("Margins", "largest over smallest"),
        Column("Mean correlation", "first-layer rows"),
        Column("Above 0.8", "first-layer rows"),
        Column("p, held-out images", "exchange"),
        Column("p, first-layer rows", "sign flips; all rows"),
        Column("Nearest is a training image", "chance"),
    ]
    rows = []
    for victim in results.victims:
        training, held_out = victim.child("training"), victim.child("held_out")
        attack, control = victim.child("attack"), victim.child("controls").child("first_layer")
        rows.append(
            [
                Cell(victim.text("name")),
                Cell(compact(training.number("loss")), _lines(_steps(training.number("epochs")))),
                Cell(fixed(training.number("largest_over_smallest"), 2)),
                Cell(fixed(attack.number("mean")), _lines(fixed(control.number("mean")))),
                Cell(count(attack.child("above").number("0.8")), _lines(count(control.child("above").number("0.8")))),
                Cell(compact(victim.number("p_held_out"))),
                Cell(compact(victim.number("p_first_layer")), _lines(compact(victim.number("p_first_layer_all")))),
                Cell(
                    f"{count(held_out.number('nearest_is_train'))} of {count(held_out.number('candidates_alike'))}",
                    _lines(percent(held_out.number("chance"))),
                ),
            ]
        )
    return Table("Tests are one-sided; p-values are of each victim by itself", columns, rows).html()


def run_table(results: Results) -> Markup:
    """A row for each run on the first victim, the smallest residual first."""
    victim = results.victims[0]
    runs = victim.data.get("runs")
    if not isinstance(runs, list) or len(runs) < 2:
        return Markup()
    shown = victim.number("shown")
    columns = [
        Column("Run", numeric=False),
        Column("Residual", "what an attacker sees"),
        Column("Mean correlation", "an oracle's"),
        Column("Above 0.8", "an oracle's"),
    ]
    order = sorted(range(len(runs)), key=lambda at: (runs[at].get("residual") is None, runs[at].get("residual") or 0))
    rows = []
    for at in order:
        run = runs[at]
        mark = "shown" if at == shown else "diverged" if run.get("diverged") else ""
        rows.append(
            [
                Cell(f"{at}", mark=mark),
                Cell(compact(_number(run.get("residual")))),
                Cell(fixed(_number(run.get("oracle_mean")))),
                Cell(count(_number(run.get("oracle_above")))),
            ]
        )
    return Table("Runs on the first victim", columns, rows).html()


def _ssim(row: Counted) -> list[Cell]:
    if not row.ssim:
        return [Cell(MISSING, tone="muted"), Cell(MISSING, tone="muted")]
    return [
        Cell(fixed(row.ssim["mean"].value), _lines(row.ssim["mean"].interval)),
        Cell(row.ssim["above"].counted, _lines(row.ssim["above_minmax"].counted)),
    ]


def _excess(row: Counted) -> Cell:
    excess = row.excess_above
    if not math.isfinite(excess.value):
        return Cell(MISSING, tone="muted")
    ends = span(signed(excess.low), signed(excess.high)) if math.isfinite(excess.low) else ""
    return Cell(signed(excess.value), _lines(ends))


def _steps(number: float) -> str:
    return f"{count(number)} steps" if math.isfinite(number) else ""


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _lines(*lines: str) -> list[str]:
    return [line for line in lines if line and line != MISSING]

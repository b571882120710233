"""The tables of a trust study: sets by calibration, sets by attack, calibrations, confidence of the groups, controls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from markupsafe import Markup

from fastmem.report.artifacts import Fields
from fastmem.report.tables import MISSING, Cell, Column, Table, count, fixed, percent, signed, span
from fastmem.report.trust.run import HEADLINE, Estimate, NonMembers, Run, Swap

__all__ = ["attack_table", "calibration_table", "control_table", "group_table", "set_table"]

_PRIOR = "0.01"
# More targets than these have their mean and range in a cell.
_LISTED = 4


def set_table(run: Run) -> Markup:
    """A row per set, a column per calibration, by the headline attack."""
    columns = [
        Column("Non-members", numeric=False),
        *(Column(one.title, f"recall {percent(one.headline.recall.value)}") for one in run.calibrations),
        Column("Untrained target", "AUC: no membership"),
    ]
    untrained = run.summary.child("untrained").child("sets").child(HEADLINE)
    rows = []
    for name, title in run.sets.items():
        cells = [_cell(one.headline.sets.get(name)) for one in run.calibrations]
        null = untrained.child(name)
        rows.append([Cell(title, [_size(run, name)]), *cells, _area(null)])
    caption = "False positive rate with its 95% interval, and AUC against the same members"
    return Table(caption, columns, rows).html()


def attack_table(run: Run) -> Markup:
    """A row per set, a column per attack, on the uncalibrated targets; and which mistakes they share."""
    attacks = list(run.calibrations[0].attacks.values())
    agreement = run.summary.child("agreement")
    columns = [Column("Non-members", numeric=False)]
    columns += [Column(attack.title, f"recall {percent(attack.recall.value)}") for attack in attacks]
    rows = []
    for name, title in run.sets.items():
        shared = agreement.child(name).child("shared")
        cells = []
        for attack in attacks:
            cell = _cell(attack.sets.get(name))
            both = shared.child(attack.key).number("value")
            if math.isfinite(both):
                cell = Cell(cell.text, [*cell.lines, f"shares {percent(both)}"])
            cells.append(cell)
        rows.append([Cell(title), *cells])
    caption = (
        "False positive rate and AUC; “shares”: of the false members of the first attack, how many this one accuses too "
        "(first target)"
    )
    return Table(caption, columns, rows).html()


def calibration_table(run: Run) -> Markup:
    """A row per calibration: how well it knows, and how much it tells."""
    columns = [
        Column("Calibration", numeric=False),
        Column("Accuracy", "train / test"),
        Column("ECE", "overconfidence error"),
        Column("Exactly 1 in float32", "members / test records"),
        Column("Recall", "with ties"),
        Column("FPR on test", "95% interval"),
        Column("AUC on test", "95% interval"),
        Column("Precision", f"at equal sizes; at {float(_PRIOR):.0%} members"),
    ]
    lira = "lira_offline_cdf" in run.calibrations[0].attacks
    if lira:
        columns.append(Column("LiRA, AUC on test", "95% interval"))
    rows = []
    for one in run.calibrations:
        attack, test = one.headline, one.headline.sets["test"]
        fitted = f"T = {fixed(sum(one.temperatures) / len(one.temperatures), 2)}" if one.temperatures else ""
        row = [
            Cell(one.title, [fitted] if fitted else []),
            Cell(f"{percent(one.train_accuracy, unit=False)} / {percent(one.test_accuracy.value)}"),
            Cell(fixed(one.ece), [fixed(one.overconfidence)]),
            Cell(
                f"{percent(_share(test.saturated_in, test.n_in))} / {percent(_share(test.saturated_out, test.n_out))}"
            ),
            Cell(percent(attack.recall.value), [percent(attack.recall_with_ties.value)]),
            Cell(percent(test.fpr.value), _lines(test.fpr.percent_interval)),
            Cell(fixed(test.auc.value), _lines(test.auc.interval)),
            Cell(fixed(test.precision.value), [fixed(test.precision_at.get(_PRIOR, math.nan))]),
        ]
        if lira:
            auc = one.attacks["lira_offline_cdf"].sets["test"].auc
            row.append(Cell(fixed(auc.value), _lines(auc.interval)))
        rows.append(row)
    return Table("The maximum-probability attack under each calibration", columns, rows).html()


def group_table(run: Run) -> Markup:
    """Mean maximum prediction score of true and false positives and negatives, by set, uncalibrated."""
    columns = [
        Column("Non-members", numeric=False),
        *(
            Column(f"Mean score of {words}")
            for words in ("true positives", "false positives", "false negatives", "true negatives")
        ),
        Column("Exactly 1", "of the set"),
        Column("Tied scores"),
    ]
    rows = []
    for name, title in run.sets.items():
        one = run.calibrations[0].headline.sets[name]
        rows.append(
            [
                title,
                *(fixed(one.mmps[group], 4) for group in ("tp", "fp", "fn", "tn")),
                percent(_share(one.saturated_out, one.n_out)),
                percent(one.tied),
            ]
        )
    return Table("Maximum probability attack, uncalibrated; a dash: nobody in that group", columns, rows).html()


def control_table(run: Run) -> Markup:
    """A row per attack: its nulls, and what a change of places does."""
    columns = [
        Column("Attack", numeric=False),
        Column("Never saw", "AUC by target: a trained model on records that it never saw"),
        Column("Shuffled", "AUC by target: membership drawn anew"),
        Column("Untrained target", "AUC on test records"),
        Column(
            "Target and shadow swapped", "difference of the AUC on test records; intervals of FPR and AUC in all sets"
        ),
    ]
    untrained = run.summary.child("untrained").child("sets")
    rows = [
        [
            Cell(attack.title),
            _areas(attack.controls.get("never_saw", [])),
            _areas(attack.controls.get("shuffled", [])),
            _area(untrained.child(attack.key).child("test")),
            _swapped(attack.swap),
        ]
        for attack in run.calibrations[0].attacks.values()
    ]
    return Table("Uncalibrated; all areas belong at 0.5, differences at 0", columns, rows).html()


def _cell(one: NonMembers | None) -> Cell:
    if one is None:
        return Cell(MISSING, tone="muted")
    return Cell(percent(one.fpr.value), [*_lines(one.fpr.percent_interval), f"AUC {fixed(one.auc.value)}"])


def _swapped(swap: Swap) -> Cell:
    if not swap.total:
        return Cell(MISSING, tone="muted")
    pairs = f"over {swap.pairs} pairs" if swap.pairs > 1 else "over the records of one pair"
    return Cell(signed(swap.test.value), _lines(swap.test.interval, f"{swap.inside} of {swap.total} hold 0", pairs))


def _areas(areas: Sequence[Estimate]) -> Cell:
    if not areas:
        return Cell(MISSING, ["not run"], tone="muted")
    held = sum(one.low <= 0.5 <= one.high for one in areas)
    values = [one.value for one in areas]
    text, lines = ", ".join(map(fixed, values)), []
    if len(values) > _LISTED:
        text, lines = fixed(fmean(values)), [f"mean of {span(fixed(min(values)), fixed(max(values)))}"]
    tone = "" if held == len(areas) else "warn"
    return Cell(text, [*lines, f"{held} of {len(areas)} intervals hold 0.5"], tone=tone)


def _area(entry: Fields) -> Cell:
    auc = Estimate(*(entry.number(name) for name in ("auc", "auc_low", "auc_high")))
    return Cell(fixed(auc.value), _lines(auc.interval)) if math.isfinite(auc.value) else Cell(MISSING, tone="muted")


def _size(run: Run, name: str) -> str:
    kind = run.summary.child("sets").child(name).text("kind")
    one = run.calibrations[0].headline.sets.get(name)
    return f"{kind}, {count(one.n_out)} a target" if one else kind


def _share(some: float, total: float) -> float:
    return some / total if total else math.nan


def _lines(*lines: str) -> list[str]:
    return [line for line in lines if line]

"""The attack table for the terminal: one line per attack in 100 columns, its controls beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from fastmem.report.artifacts import Fields, check_schema
from fastmem.report.audit.results import AttackResult, Estimate, read_attacks
from fastmem.report.tables import MISSING, level_name, percent

__all__ = ["audit_table"]

_LEVELS = (0.001, 0.01)
_MISSING = "-"  # plain ASCII throughout: a terminal may know nothing else


def audit_table(summary: Mapping[str, Any]) -> Table:
    """The attacks of an audit, strongest first by TPR at 1% FPR, with 95% intervals.

    A level that the data cannot resolve is shown as ``n/r``. Beside each attack stand the AUC intervals of its two
    controls; one that does not hold .5 is marked ``!``, one far off ``!!``.

    Args:
        summary: The content of ``summary.json``.

    Returns:
        A table that fits 100 columns.

    Raises:
        StoreError: A field of the summary is of the wrong kind, or the summary is of a newer fastmem.
    """
    attacks = read_attacks(check_schema(Fields(dict(summary), "summary")))
    table = Table(box=None, pad_edge=False, header_style="bold", caption=_caption(attacks), caption_justify="left")
    table.add_column("attack", no_wrap=True)
    table.add_column("AUC", justify="right", no_wrap=True)
    for level in _LEVELS:
        table.add_column(f"TPR%@{level_name(level)} FPR", justify="right")
    table.add_column("shuffled AUC", justify="right")
    table.add_column("never-saw AUC", justify="right")
    for place, attack in enumerate(attacks):
        cells = [
            Text(attack.key, style="bold" if place == 0 else ""),
            _estimate(_auc(attack.auc.value), _auc(attack.auc.low), _auc(attack.auc.high)),
            *(_level(attack, level) for level in _LEVELS),
            _control(attack, "shuffled"),
            _control(attack, "never_saw"),
        ]
        table.add_row(*cells)
    return table


def _caption(attacks: list[AttackResult]) -> Text:
    notes = ["Ranges are 95% intervals. Guessing gives an AUC of .500 and a TPR equal to the FPR."]
    if any(not level.resolvable for attack in attacks for at, level in attack.levels.items() if at in _LEVELS):
        notes.append("n/r: too few non-members, or too many equal scores, to resolve the level.")
    if any(control.covers_chance is False for attack in attacks for control in attack.controls.values()):
        notes.append("!: a control that misses .500, as 1 in 20 does by luck; !!: by more than luck explains.")
    return Text(" ".join(notes), style="dim")


def _auc(value: float, decimals: int = 3) -> str:
    return f"{value:.{decimals}f}".removeprefix("0") if math.isfinite(value) else MISSING


def _estimate(value: str, low: str, high: str) -> Text:
    text = Text(value.replace(MISSING, _MISSING))
    if MISSING not in (low, high):
        text.append(f" {low}-{high}", style="dim")
    return text


def _level(attack: AttackResult, level: float) -> Text:
    result = attack.levels.get(level)
    if result is None:
        return Text(_MISSING, style="dim")
    if not result.resolvable:
        return Text("n/r", style="yellow")
    tpr: Estimate = result.tpr
    return _estimate(*(percent(value, unit=False) for value in (tpr.value, tpr.low, tpr.high)))


def _control(attack: AttackResult, name: str) -> Text:
    control = attack.controls.get(name)
    if control is None or not math.isfinite(control.auc.value):
        return Text(_MISSING, style="dim")
    if not control.auc.has_interval:
        return Text(_auc(control.auc.value))
    text = Text("-".join(_auc(end, control.decimals) for end in (control.auc.low, control.auc.high)))
    return text.append(
        " !!" if control.far_off else " ! " if control.covers_chance is False else "   ", style="bold red"
    )

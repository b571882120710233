"""The tables of an audit's page: attacks beside their controls, every level of each attack, and the run's own figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from fastmem.report.audit.results import CONTROLS, HEADLINE_LEVEL, AttackResult, Control, Level, Spread
from fastmem.report.html import details
from fastmem.report.tables import (
    MISSING,
    Cell,
    Column,
    Table,
    compact,
    count,
    duration,
    fixed,
    level_name,
    percent,
    span,
)

__all__ = ["attack_details", "attack_table"]

_TABLE_LEVELS = (0.01, 0.001)
_HEADINGS = {"shuffled": "Shuffled membership", "never_saw": "Never saw the pool"}


def attack_table(attacks: Sequence[AttackResult], headline: AttackResult | None = None) -> Markup:
    """One row per attack, strongest first, with both controls at the end of the row.

    Args:
        attacks: Strongest first.
        headline: The one to set apart.
    """
    priors = sorted({prior for attack in attacks for prior in attack.ppv}, reverse=True)
    columns = [
        Column("Attack", numeric=False),
        *(Column(f"TPR at {level_name(level)} FPR", "95% interval; realised FPR") for level in _TABLE_LEVELS),
        Column("AUC", "95% interval"),
        Column("Balanced accuracy", "best threshold"),
    ]
    if priors:
        columns.append(
            Column(f"PPV at {level_name(HEADLINE_LEVEL)} FPR", "prior " + " / ".join(map(level_name, priors)))
        )
    columns += [Column(_HEADINGS[name], "control: AUC; TPR at 1% FPR") for name in CONTROLS]
    rows = [_row(attack, priors) for attack in attacks]
    highlight = next((place for place, attack in enumerate(attacks) if attack is headline), None)
    return Table("Attacks, by TPR at 1% FPR", columns, rows, highlight).html()


def _row(attack: AttackResult, priors: Sequence[float]) -> list[Cell]:
    auc = attack.auc
    row = [
        Cell(attack.title, [attack.key], swatch=attack.token),
        *(_level_cell(attack.levels.get(level)) for level in _TABLE_LEVELS),
        Cell(fixed(auc.value), _lines(span(fixed(auc.low), fixed(auc.high)))),
        Cell(percent(attack.balanced_accuracy)),
    ]
    if priors:
        row.append(Cell(_ppv(attack, HEADLINE_LEVEL, priors)))
    return row + [_control_cell(attack.controls.get(name)) for name in CONTROLS]


def _level_cell(level: Level | None) -> Cell:
    if level is None:
        return Cell(MISSING, tone="muted")
    if not level.resolvable:
        return Cell("", [level.reason], tone="warn", mark="not resolvable")
    tpr = level.tpr
    realised = f"FPR {percent(level.realised_fpr)}" if math.isfinite(level.realised_fpr) else ""
    return Cell(percent(tpr.value), _lines(span(percent(tpr.low, unit=False), percent(tpr.high)), realised))


def _control_cell(control: Control | None) -> Cell:
    if control is None or not math.isfinite(control.auc.value):
        return Cell(MISSING, ["not run"], tone="muted")
    auc, at = control.auc, control.levels.get(HEADLINE_LEVEL)
    rate = f"TPR {percent(at.tpr.value)}" if at is not None and math.isfinite(at.tpr.value) else ""
    lines = _lines(span(fixed(auc.low, control.decimals), fixed(auc.high, control.decimals)), rate)
    if control.far_off:
        return Cell(fixed(auc.value), lines, tone="bad", mark="far off chance")
    if control.covers_chance is False:
        return Cell(fixed(auc.value), lines, tone="warn", mark="misses 0.5")
    return Cell(fixed(auc.value), lines)


def _lines(*texts: str) -> list[str]:
    return [text for text in texts if text]


def attack_details(attacks: Sequence[AttackResult]) -> Markup:
    """Every level of every attack, pooled and per target, behind one click each."""
    parts = [details(attack.title, _level_table(attack)) for attack in attacks if attack.levels]
    return details("Every level of each attack", Markup("\n").join(parts)) if parts else Markup()


def _level_table(attack: AttackResult) -> Markup:
    columns = [
        Column("FPR level"),
        Column("TPR", "pooled over targets"),
        Column("95% interval"),
        Column("Realised FPR"),
        Column("Threshold", "score"),
        Column("True positives", "of members"),
        Column("False positives", "of non-members"),
        Column("TPR of one target", "mean ± s.d."),
    ]
    priors = sorted(attack.ppv, reverse=True)
    if priors:
        columns.append(Column("PPV", "prior " + " / ".join(map(level_name, priors))))
    rows = [_level_row(attack, level, priors) for level in attack.levels.values()]
    facts = [
        _listed("Options", attack.options),
        _listed("Found on the way", attack.details),
        f"Over single targets: AUC {_spread(attack.target_auc, fixed)}, "
        f"balanced accuracy {_spread(attack.target_balanced_accuracy, percent)}.",
        f"Computed in {duration(attack.seconds)}." if math.isfinite(attack.seconds) else "",
    ]
    return Table(" ".join(fact for fact in facts if fact), columns, rows).html()


def _listed(title: str, values: Mapping[str, object]) -> str:
    return f"{title}: {', '.join(f'{name} {_plain(value)}' for name, value in values.items())}." if values else ""


def _level_row(attack: AttackResult, level: Level, priors: Sequence[float]) -> list[Cell | str]:
    spread = attack.target_tpr.get(level.level)
    # The strictest threshold of all has a meaning of its own; only its name, 0%, promises more than the data hold.
    shown = level.resolvable or level.level == 0
    row: list[Cell | str] = [
        level_name(level.level),
        Cell(percent(level.tpr.value), _lines(level.reason)) if shown else _level_cell(level),
        (span(percent(level.tpr.low, unit=False), percent(level.tpr.high)) or MISSING) if shown else MISSING,
        percent(level.realised_fpr),
        compact(level.threshold),
        f"{count(level.n_tp)} of {count(level.n_in)}",
        f"{count(level.n_fp)} of {count(level.n_out)}",
        _spread(spread, percent) if spread else MISSING,
    ]
    return [*row, _ppv(attack, level.level, priors)] if priors else row


def _ppv(attack: AttackResult, level: float, priors: Sequence[float]) -> str:
    return " / ".join(percent(attack.ppv.get(prior, {}).get(level, math.nan)) for prior in priors)


def _spread(spread: Spread, form: Callable[[float], str]) -> str:
    if not math.isfinite(spread.mean):
        return MISSING
    return f"{form(spread.mean)} ± {form(spread.std)}" if math.isfinite(spread.std) else form(spread.mean)


def _plain(value: object) -> str:
    if isinstance(value, float):
        return compact(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

"""Log-MIA of an audit's attacks, each beside its controls."""

from __future__ import annotations

import math
from collections.abc import Mapping

from markupsafe import Markup

from fastmem.report.audit.results import CONTROLS
from fastmem.report.audit.run import Run
from fastmem.report.html import Section
from fastmem.report.log_mia import LOG_MIA_LEAD, Regime, read_regimes, regime_cell
from fastmem.report.tables import MISSING, Cell, Column, Table, fixed, percent

__all__ = ["log_mia_section"]


def log_mia_section(run: Run) -> Section:
    """A row an attack; empty where the run was made before the measure was."""
    rows, cap = [], math.nan
    for attack in run.attacks:
        fields = run.summary.child("attacks").child(attack.key)
        regimes = read_regimes(fields.child("log_mia"))
        if not regimes:
            continue
        cap = regimes["regular"].fp_cap if "regular" in regimes else cap
        controls = fields.child("controls")
        row = [
            Cell(attack.title, [attack.key], swatch=attack.token),
            *(regime_cell(regimes.get(name)) for name in ("strict", "regular")),
            _targets_cell(regimes),
        ]
        row += [_control_cell(read_regimes(controls.child(name).child("log_mia"))) for name in CONTROLS]
        rows.append(row)
    if not rows:
        return Section("log-mia", "Log-MIA", Markup())
    columns = [
        Column("Attack", numeric=False),
        Column("No false positive", "mean over targets"),
        Column(f"At most {cap:.0f} false positives", "mean over targets"),
        Column("Targets above chance", "p ≤ 0.05, either regime; luck: 5%"),
        Column("Shuffled membership", "control: adjusted value"),
        Column("Never saw the pool", "control: adjusted value"),
    ]
    return Section("log-mia", "Log-MIA", Table("Log-MIA beside its chance level", columns, rows).html(), LOG_MIA_LEAD)


def _targets_cell(regimes: Mapping[str, Regime]) -> Cell:
    shares = " / ".join(percent(regimes[name].above_chance) for name in ("strict", "regular") if name in regimes)
    return Cell(shares, [f"of {next(iter(regimes.values())).targets:.0f}"])


def _control_cell(regimes: Mapping[str, Regime]) -> Cell:
    if not regimes:
        return Cell(MISSING, ["not run"], tone="muted")
    return Cell(" / ".join(fixed(regimes[name].adjusted) for name in ("strict", "regular") if name in regimes))

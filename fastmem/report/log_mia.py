"""Log-MIA in words and tables: every value beside its chance level, none of them called high or low."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fastmem.report.artifacts import Fields
from fastmem.report.tables import MISSING, Cell, count, fixed

__all__ = ["LOG_MIA_LEAD", "Regime", "read_regimes", "regime_cell"]

LOG_MIA_LEAD = (
    "The members found with no false alarm (or almost none), on a logarithmic scale: 0 is none, 1 is all of them. Guessing "
    "is well above 0 on this scale, so the exact mean of guessing stands beside each value, and so does the value that "
    "guessing reaches in 1 case of 20; the adjusted value is 0 for guessing and 1 for everything. Thresholds are chosen on "
    "the evaluated scores themselves (an oracle), as the measure was published."
)


@dataclass(frozen=True)
class Regime:
    """Log-MIA at one cap on the false positives, as a mean over targets; NaN where unknown."""

    raw: float
    tp: float
    fp_cap: float
    n_in: float
    chance_mean: float
    critical: float
    adjusted: float
    p_value: float
    above_chance: float
    targets: float

    @property
    def critical_raw(self) -> float:
        """The value that chance reaches in 5% of cases."""
        return math.log1p(self.critical) / math.log1p(self.n_in) if self.n_in > 0 else math.nan


def read_regimes(fields: Fields) -> dict[str, Regime]:
    """The regimes of a ``log_mia`` entry of summary.json; empty where the run has none."""
    return {
        name: Regime(**{field: item.number(field) for field in Regime.__dataclass_fields__})
        for name, item in fields.children().items()
        if item.data
    }


def regime_cell(regime: Regime | None) -> Cell:
    """Value, count of members, chance and the adjusted value, one below the other."""
    if regime is None or not math.isfinite(regime.raw):
        return Cell(MISSING, tone="muted")
    lines: Sequence[str] = [
        f"{count(round(regime.tp, 1))} of {count(round(regime.n_in, 1))} members",
        f"guessing {fixed(regime.chance_mean)}; 1 in 20 reaches {fixed(regime.critical_raw)}",
        f"adjusted {fixed(regime.adjusted)}",
    ]
    return Cell(fixed(regime.raw), lines)

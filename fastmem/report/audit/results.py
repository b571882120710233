"""An audit's results as the report reads them: estimates with their intervals, and each attack beside its controls.

Rates are fractions. "Chance" is an AUC of 1/2, and a true positive rate equal to the realised false positive rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

from fastmem.report.artifacts import Fields
from fastmem.report.tables import count

__all__ = [
    "CONTROLS",
    "FAMILIES",
    "AttackResult",
    "Control",
    "Estimate",
    "Level",
    "control_tally",
    "read_attacks",
]

# Key in summary.json -> what the reader is told that it is.
CONTROLS = {"shuffled": "shuffled membership", "never_saw": "models that never saw the pool"}

# Attacks that ask the same question share a colour: (family, keys or key prefixes, colour token).
FAMILIES = (
    ("LiRA", ("lira_",), "series-1"),
    ("RMIA", ("rmia_",), "series-2"),
    ("BASE", ("base_",), "series-4"),
    ("other reference models", ("reference", "calibrated"), "series-3"),
    (
        "no reference models",
        ("loss", "max_prob", "entropy", "modified_entropy", "top", "global", "population"),
        "series-5",
    ),
    ("other", ("",), "series-6"),
)
HEADLINE_LEVEL = 0.01
_FAR_OFF = 3.29 / 1.96  # half-widths of a 95% interval in one that misses once in a thousand


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval; NaN where unknown."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def has_interval(self) -> bool:
        """Whether both ends are known."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def covers(self, chance: float) -> bool | None:
        """Whether the interval holds ``chance``; None where there is no interval or no chance level."""
        return self.low <= chance <= self.high if self.has_interval and math.isfinite(chance) else None


@dataclass(frozen=True)
class Level:
    """The true positive rate at one level of the false positive rate, pooled over targets."""

    level: float
    tpr: Estimate
    realised_fpr: float
    threshold: float
    n_tp: float
    n_fp: float
    n_in: float
    n_out: float
    resolvable: bool
    unresolved: str = ""

    @property
    def reason(self) -> str:
        """Why the level cannot be resolved; empty where it can."""
        if self.resolvable:
            return ""
        if self.unresolved:
            return self.unresolved
        if self.level == 0:
            return f"below 1 in {count(self.n_out)}"
        if math.isfinite(self.n_out):
            return f"needs {count(math.ceil(1 / self.level - 1e-6))} non-members, has {count(self.n_out)}"
        return "too few non-members"


@dataclass(frozen=True)
class Control:
    """The same attack where there is nothing to find."""

    name: str
    auc: Estimate
    levels: dict[float, Level]

    @property
    def covers_chance(self) -> bool | None:
        """Whether the AUC's interval holds 1/2."""
        return self.auc.covers(0.5)

    @property
    def decimals(self) -> int:
        """Decimals of the AUC: 3, or 4 where an interval that misses 1/2 would be shown as one that ends there."""
        rounded = round(self.auc.low, 3) <= 0.5 <= round(self.auc.high, 3)
        return 4 if self.covers_chance is False and rounded else 3

    @property
    def far_off(self) -> bool:
        """Whether the AUC is further from 1/2 than luck explains.

        One 95% interval in twenty misses by luck, and a report shows dozens; this asks for one in a thousand.
        """
        return self.covers_chance is False and abs(self.auc.value - 0.5) > _FAR_OFF * (self.auc.high - self.auc.low) / 2


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over targets."""

    mean: float
    std: float


@dataclass(frozen=True)
class AttackResult:
    """One attack of the summary."""

    key: str
    title: str
    family: str
    token: str
    options: dict[str, object]
    details: dict[str, object]
    auc: Estimate
    balanced_accuracy: float
    levels: dict[float, Level]
    target_auc: Spread
    target_balanced_accuracy: Spread
    target_tpr: dict[float, Spread]
    ppv: dict[float, dict[float, float]] = field(default_factory=dict)  # prior -> level -> value
    controls: dict[str, Control] = field(default_factory=dict)
    seconds: float = math.nan
    warnings: tuple[str, ...] = ()

    def tpr(self, level: float) -> float:
        """TPR at a level, NaN where it was not computed."""
        return self.levels[level].tpr.value if level in self.levels else math.nan

    def resolved_tpr(self, level: float) -> float:
        """TPR at a level, NaN where the level was not computed or cannot be resolved."""
        return self.tpr(level) if level in self.levels and self.levels[level].resolvable else math.nan


def read_attacks(summary: Fields) -> list[AttackResult]:
    """The attacks of a summary, strongest first: by TPR at 1% FPR, then by AUC.

    Args:
        summary: ``summary.json``.

    Returns:
        One result per attack.

    Raises:
        StoreError: A field is of the wrong kind.
    """
    results = [_attack(key, fields) for key, fields in summary.child("attacks").children().items()]
    return sorted(results, key=_strength, reverse=True)


def _strength(attack: AttackResult) -> tuple[float, float]:
    values = (attack.resolved_tpr(HEADLINE_LEVEL), attack.auc.value)
    return values[0] if math.isfinite(values[0]) else -1.0, values[1] if math.isfinite(values[1]) else -1.0


def _attack(key: str, fields: Fields) -> AttackResult:
    family, token = next((name, token) for name, keys, token in FAMILIES if key.startswith(keys))
    targets = fields.child("per_target")
    return AttackResult(
        key=key,
        title=fields.text("title", key),
        family=family,
        token=token,
        options=fields.child("options").data,
        details=fields.child("details").data,
        auc=_auc(fields),
        balanced_accuracy=fields.number("balanced_accuracy"),
        levels=_levels(fields),
        target_auc=_spread(targets.child("auc")),
        target_balanced_accuracy=_spread(targets.child("balanced_accuracy")),
        target_tpr={level: _spread(item) for level, item in _by_number(targets.child("tpr_at_fpr")).items()},
        ppv={prior: _numbers(item) for prior, item in _by_number(fields.child("ppv")).items()},
        controls={
            name: Control(name, _auc(item), _levels(item))
            for name, item in fields.child("controls").children().items()
            if item.data
        },
        seconds=fields.number("seconds"),
        warnings=tuple(fields.texts("warnings")),
    )


def _auc(fields: Fields) -> Estimate:
    return Estimate(fields.number("auc"), fields.number("auc_low"), fields.number("auc_high"))


def _spread(fields: Fields) -> Spread:
    return Spread(fields.number("mean"), fields.number("std"))


def _levels(fields: Fields) -> dict[float, Level]:
    return {level: _level(level, item) for level, item in _by_number(fields.child("tpr_at_fpr")).items()}


def _level(level: float, fields: Fields) -> Level:
    n_out = fields.number("n_out")
    # A summary that does not say is judged by the definition: at least one non-member above the threshold.
    resolvable = fields.data.get("resolvable", not math.isfinite(n_out) or level * n_out >= 1)
    return Level(
        level=level,
        tpr=Estimate(fields.number("tpr"), fields.number("low"), fields.number("high")),
        realised_fpr=fields.number("realised_fpr"),
        threshold=fields.number("threshold"),
        n_tp=fields.number("n_tp"),
        n_fp=fields.number("n_fp"),
        n_in=fields.number("n_in"),
        n_out=n_out,
        resolvable=bool(resolvable),
        unresolved=fields.text("unresolved"),
    )


def _by_number(fields: Fields) -> dict[float, Fields]:
    """The objects of a mapping whose names are numbers, such as FPR levels, in order."""
    return {number: fields.child(name) for number, name in _number_names(fields)}


def _numbers(fields: Fields) -> dict[float, float]:
    return {number: fields.number(name) for number, name in _number_names(fields)}


def _number_names(fields: Fields) -> list[tuple[float, str]]:
    pairs = []
    for name in fields.data:
        try:
            pairs.append((float(name), name))
        except ValueError as error:
            raise fields.wrong(name, "named by a number") from error
    return sorted(pairs)


def control_tally(attacks: Sequence[AttackResult]) -> tuple[int, int]:
    """How many control AUC intervals hold 1/2, and how many there are."""
    verdicts = [control.covers_chance for control in chain(*(attack.controls.values() for attack in attacks))]
    return verdicts.count(True), len(verdicts) - verdicts.count(None)

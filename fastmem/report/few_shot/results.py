"""A few-shot study's results as the report reads them: means over episodes with intervals, each beside its chance level."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fastmem.report.artifacts import Fields
from fastmem.report.theme import SERIES

__all__ = ["CONTROLS", "REGIMES", "Cells", "Mean", "Regime", "Rival", "Variant", "read_rivals", "read_variants"]

# Key in summary.json -> what the reader is told that it is.
CONTROLS = {"blind": "model that never saw them", "shuffled": "shuffled membership", "random": "random features"}
REGIMES = ("strict", "regular")


@dataclass(frozen=True)
class Mean:
    """A mean over episodes with its 95% interval; NaN where unknown."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Regime:
    """Means over episodes at one cap on the false positives."""

    tpr: Mean
    tpr_chance: float
    fpr: float
    fp_cap: float
    raw: Mean
    chance_mean: float
    critical_mean: float
    adjusted: float
    p_value: float


@dataclass(frozen=True)
class Cells:
    """One method, or one rival, at one number of shots."""

    episodes: float
    n_labels: float
    n_in: float
    auc: Mean
    regimes: dict[str, Regime]
    held_out: dict[str, Regime]
    seconds: float


@dataclass(frozen=True)
class Variant:
    """A few-shot method: its cells and its controls by shots."""

    key: str
    title: str
    access: str
    transductive: bool
    token: str
    shots: dict[int, Cells]
    controls: dict[str, dict[int, Cells]] = field(default_factory=dict)
    alone: Cells | None = None
    with_the_others: Cells | None = None
    rank_correlation: float = math.nan


@dataclass(frozen=True)
class Rival:
    """Another attack on the same episodes."""

    key: str
    title: str
    shadow_models: float
    needs_class: bool
    seconds: float
    shots: dict[int, Cells]


def read_variants(summary: Fields) -> list[Variant]:
    """The few-shot methods of a summary, in its order.

    Raises:
        StoreError: A field is of the wrong kind.
    """
    variants = []
    for place, (key, fields) in enumerate(summary.child("variants").children().items()):
        alone = fields.child("alone")
        variants.append(
            Variant(
                key=key,
                title=fields.text("title", key),
                access=fields.text("access"),
                transductive=bool(fields.data.get("transductive")),
                token=SERIES[place % len(SERIES)],
                shots=_by_shots(fields.child("shots")),
                controls={name: _by_shots(item) for name, item in fields.child("controls").children().items()},
                alone=_cells(alone) if alone.data else None,
                with_the_others=_cells(alone.child("with_the_others")) if alone.data else None,
                rank_correlation=alone.number("rank_correlation"),
            )
        )
    return variants


def read_rivals(summary: Fields) -> list[Rival]:
    """The attacks that few-shot is compared with.

    Raises:
        StoreError: A field is of the wrong kind.
    """
    return [
        Rival(
            key=key,
            title=fields.text("title", key),
            shadow_models=fields.number("shadow_models"),
            needs_class=bool(fields.data.get("needs_class")),
            seconds=fields.number("seconds"),
            shots=_by_shots(fields.child("shots")),
        )
        for key, fields in summary.child("baselines").children().items()
    ]


def _by_shots(fields: Fields) -> dict[int, Cells]:
    found = {}
    for name, item in fields.children().items():
        if not name.isdecimal():
            raise fields.wrong(name, "named by a number of shots")
        found[int(name)] = _cells(item)
    return dict(sorted(found.items()))


def _cells(fields: Fields) -> Cells:
    return Cells(
        episodes=fields.number("episodes"),
        n_labels=fields.number("n_labels"),
        n_in=fields.number("n_in"),
        auc=_mean(fields.child("auc")),
        regimes=_regimes(fields.data and {name: fields.child(name) for name in REGIMES}),
        held_out=_regimes(fields.child("held_out").children()),
        seconds=fields.number("seconds"),
    )


def _regimes(fields: Mapping[str, Fields]) -> dict[str, Regime]:
    return {
        name: Regime(
            tpr=_mean(item.child("tpr")),
            tpr_chance=item.number("tpr_chance"),
            fpr=item.number("fpr"),
            fp_cap=item.number("fp_cap"),
            raw=_mean(item.child("raw")),
            chance_mean=item.number("chance_mean"),
            critical_mean=item.number("critical_mean"),
            adjusted=item.number("adjusted"),
            p_value=item.number("p_value"),
        )
        for name, item in fields.items()
        if item.data
    }


def _mean(fields: Fields) -> Mean:
    return Mean(fields.number("mean"), fields.number("low"), fields.number("high"))

"""A finished trust study as the report's parts read it: calibrations, their attacks, their sets, and the arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmem.errors import StoreError
from fastmem.report.artifacts import Fields, load_arrays, load_summary
from fastmem.report.tables import fixed, percent, span

__all__ = [
    "HEADLINE",
    "Attack",
    "Calibration",
    "Estimate",
    "NonMembers",
    "Run",
    "Swap",
    "load_run",
    "read_calibrations",
]

#: The attack that the page speaks of.
HEADLINE = "max_prob"


@dataclass(frozen=True)
class Estimate:
    """A figure over targets; the interval covers each target's own; NaN where unknown."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def percent_interval(self) -> str:
        """``1.2–3.4%``, or nothing."""
        return span(percent(self.low, unit=False), percent(self.high))

    @property
    def interval(self) -> str:
        """``.512–.534`` with three decimals, or nothing."""
        return span(fixed(self.low), fixed(self.high))


@dataclass(frozen=True)
class NonMembers:
    """One attack on one set."""

    fpr: Estimate
    auc: Estimate
    precision: Estimate
    precision_at: dict[str, float]
    mmps: dict[str, float]
    n_in: float
    n_out: float
    saturated_in: float
    saturated_out: float
    tied: float


@dataclass(frozen=True)
class Swap:
    """What changes when target and shadow model change places: differences of FPR and AUC over the sets.

    Args:
        inside: How many intervals hold 0.
        total: How many there are.
        pairs: Pairs of models. With several the intervals are over pairs, with one over its records.
        test: The difference of the AUC on test records.
    """

    inside: int
    total: int
    pairs: int
    test: Estimate


@dataclass(frozen=True)
class Attack:
    """One attack under one calibration."""

    key: str
    title: str
    recall: Estimate
    recall_with_ties: Estimate
    sets: dict[str, NonMembers]
    controls: dict[str, list[Estimate]]
    swap: Swap


@dataclass(frozen=True)
class Calibration:
    """One calibration; accuracies and errors are means over the targets."""

    key: str
    title: str
    train_accuracy: float
    test_accuracy: Estimate
    test_loss: float
    ece: float
    overconfidence: float
    temperatures: list[float]
    attacks: dict[str, Attack]

    @property
    def headline(self) -> Attack:
        """The attack that the page speaks of."""
        return self.attacks.get(HEADLINE) or next(iter(self.attacks.values()))


@dataclass(frozen=True)
class Run:
    """Everything that the page is made of.

    Attributes:
        summary: ``summary.json``.
        calibrations: ``none`` first.
        sets: Title of each set of non-members.
        arrays: ``report_data.npz``.
    """

    summary: Fields
    calibrations: list[Calibration]
    sets: dict[str, str]
    arrays: Mapping[str, np.ndarray]

    def array(self, name: str, dims: int) -> np.ndarray | None:
        """An array of that many dimensions, None where it is missing.

        Raises:
            StoreError: It has other dimensions.
        """
        values = self.arrays.get(name)
        if values is not None and values.ndim != dims:
            file = Path(self.summary.source).with_name("report_data.npz")
            raise StoreError(str(file), f"{name} has {values.ndim} dimensions, not {dims}", "run the study again")
        return values


def load_run(folder: Path) -> Run:
    """Read a run's folder.

    Raises:
        StoreError: A file is missing, corrupt or of a newer fastmem.
    """
    summary = load_summary(folder)
    return Run(summary, read_calibrations(summary), read_sets(summary), load_arrays(folder))


def read_sets(summary: Fields) -> dict[str, str]:
    """Titles of the sets, in order."""
    return {name: entry.text("title", name) for name, entry in summary.child("sets").children().items()}


def read_calibrations(summary: Fields) -> list[Calibration]:
    """The calibrations of a summary.

    Raises:
        StoreError: There is none, or a field is of the wrong kind.
    """
    found = [
        Calibration(
            key=key,
            title=entry.text("title", key),
            train_accuracy=entry.child("train_accuracy").number("mean"),
            test_accuracy=_estimate(entry.child("test_accuracy")),
            test_loss=entry.child("test_loss").number("mean"),
            ece=entry.child("ece").number("mean"),
            overconfidence=entry.child("overconfidence").number("mean"),
            temperatures=_numbers(entry, "temperatures"),
            attacks={name: _attack(name, attack) for name, attack in entry.child("attacks").children().items()},
        )
        for key, entry in summary.child("calibrations").children().items()
    ]
    if not found or not all(calibration.attacks for calibration in found):
        raise summary.wrong("calibrations", "the calibrations of a trust study, each with its attacks")
    return found


def _attack(key: str, entry: Fields) -> Attack:
    return Attack(
        key,
        entry.text("title", key),
        _estimate(entry.child("recall")),
        _estimate(entry.child("recall_with_ties")),
        {name: _set(one) for name, one in entry.child("sets").children().items()},
        {
            name: [_area(Fields(dict(area), entry.source)) for area in _list(entry.child("controls"), name)]
            for name in entry.child("controls").data
        },
        _swap(entry.child("swap")),
    )


def _swap(entry: Fields) -> Swap:
    figures = [one.child(figure) for one in entry.children().values() for figure in ("auc", "fpr")]
    means = [_over_pairs(figure) for figure in figures]
    pairs = len(_list(figures[0], "differences")) if figures else 0
    if pairs > 1:
        inside = [one.low <= 0 <= one.high for one in means]
    else:
        inside = [bool(value) for figure in figures for value in _list(figure, "inside")]
    return Swap(sum(inside), len(inside), pairs, _over_pairs(entry.child("test").child("auc")))


def _over_pairs(figure: Fields) -> Estimate:
    one = figure.child("over_pairs")
    return Estimate(one.number("value"), one.number("low"), one.number("high"))


def _set(entry: Fields) -> NonMembers:
    return NonMembers(
        _estimate(entry.child("fpr")),
        _estimate(entry.child("auc")),
        _estimate(entry.child("precision")),
        {prior: entry.child("precision_at").number(prior) for prior in entry.child("precision_at").data},
        {group: entry.child("mmps").number(group) for group in ("tp", "fp", "fn", "tn")},
        entry.number("n_in"),
        entry.number("n_out"),
        _mean(_numbers(entry, "saturated_in")),
        _mean(_numbers(entry, "saturated_out")),
        entry.number("tied"),
    )


def _estimate(entry: Fields) -> Estimate:
    return Estimate(entry.number("mean"), entry.number("low"), entry.number("high"))


def _area(entry: Fields) -> Estimate:
    return Estimate(entry.number("auc"), entry.number("auc_low"), entry.number("auc_high"))


def _list(entry: Fields, name: str) -> list[Any]:
    value = entry.data.get(name, [])
    if not isinstance(value, list):
        raise entry.wrong(name, "a list")
    return value


def _numbers(entry: Fields, name: str) -> list[float]:
    values = _list(entry, name)
    if not all(isinstance(value, int | float) for value in values):
        raise entry.wrong(name, "a list of numbers")
    return [float(value) for value in values]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan

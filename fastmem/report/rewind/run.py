"""A rewinding study as its page needs it, read from the files of its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmem.errors import StoreError
from fastmem.report.artifacts import Fields, load_arrays, load_summary

__all__ = ["Arm", "Estimate", "Run", "load_run", "read_arms", "readable_level"]


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval, whose ends may be NaN."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Arm:
    """One way of treating every model.

    Attributes:
        key: Its name in the files.
        title: For human readers.
        method: What it is a case of.
        fraction: Share of the weights that were touched; NaN where none were ranked.
        entry: Everything else.
    """

    key: str
    title: str
    method: str
    fraction: float
    entry: Fields

    def auc(self, attack: str) -> Estimate:
        """AUC of an attack, pooled over targets."""
        found = self.entry.child("attacks").child(attack)
        return Estimate(*(found.number(name) for name in ("auc", "auc_low", "auc_high")))

    def tpr(self, attack: str, level: str) -> Estimate:
        """True positive rate at a false positive rate."""
        found = self.entry.child("attacks").child(attack).child("tpr_at_fpr").child(level)
        return Estimate(*(found.number(name) for name in ("tpr", "low", "high")))

    def resolvable(self, attack: str, level: str) -> bool:
        """Whether the records can show that level."""
        found = self.entry.child("attacks").child(attack).child("tpr_at_fpr").child(level)
        return bool(found.data.get("resolvable", False))

    def mean(self, name: str) -> float:
        """Mean over targets of an accuracy or a loss."""
        return self.entry.child(name).number("mean")

    def std(self, name: str) -> float:
        """Its standard deviation over targets."""
        return self.entry.child(name).number("std")

    def accuracy_gap(self) -> Estimate:
        """Test accuracy less that of the undefended models."""
        return _estimate(self.entry.child("against_none").child("test_accuracy"))

    def auc_gap(self, attack: str) -> Estimate:
        """AUC less that of the undefended models, model by model."""
        return _estimate(self.entry.child("against_none").child("auc").child(attack))


@dataclass(frozen=True)
class Run:
    """Everything that the page is made of.

    Attributes:
        summary: ``summary.json``.
        arms: ``none`` first.
        attack: The attack that the page speaks of.
        arrays: ``report_data.npz``.
    """

    summary: Fields
    arms: list[Arm]
    attack: str
    arrays: Mapping[str, np.ndarray]

    @property
    def attacks(self) -> dict[str, str]:
        """Titles of the attacks by key."""
        return {key: entry.text("title", key) for key, entry in self.summary.child("attacks").children().items()}

    def arm(self, key: str) -> Arm | None:
        """An arm by its key."""
        return next((arm for arm in self.arms if arm.key == key), None)

    @property
    def main(self) -> Arm | None:
        """The rewound models that the answer speaks of: those of the controls' fraction, else the first."""
        rewound = [arm for arm in self.arms if arm.method == "cwrf"]
        wanted = self.summary.child("config").number("control_fraction")
        return next((arm for arm in rewound if arm.fraction == wanted), rewound[0] if rewound else None)

    @property
    def untouched(self) -> Arm | None:
        """The same tuning without rewinding."""
        return self.arm("tune_only") or self.arm("tune")

    @property
    def claims(self) -> list[Fields]:
        """The published ordering, claim by claim."""
        value = self.summary.data.get("ordering") or []
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise self.summary.wrong("ordering", "a list of claims")
        return [Fields(dict(entry), self.summary.source, "ordering") for entry in value]

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
    return Run(summary, read_arms(summary), summary.text("headline", "loss"), load_arrays(folder))


def read_arms(summary: Fields) -> list[Arm]:
    """The arms of a summary.

    Raises:
        StoreError: There is none, or a field is of the wrong kind.
    """
    arms = [
        Arm(key, entry.text("title", key), entry.text("method", key), entry.number("fraction"), entry)
        for key, entry in summary.child("arms").children().items()
    ]
    if not arms:
        raise summary.wrong("arms", "the arms of a rewinding study")
    return arms


def readable_level(level: str) -> str:
    """``0.001`` as ``0.1%``."""
    return f"{100 * float(level):g}%"


def _estimate(entry: Fields) -> Any:
    return Estimate(*(entry.number(name) for name in ("mean", "low", "high")))

"""A finished audit as the report's parts read it: summary, attacks, arrays and the scores of every record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmem.errors import StoreError
from fastmem.report.artifacts import Fields, ScoreTable, load_arrays, load_scores, load_summary
from fastmem.report.audit.results import AttackResult, read_attacks

__all__ = ["Run", "load_run"]


@dataclass(frozen=True)
class Run:
    """Everything that the page is made of.

    Attributes:
        summary: ``summary.json``.
        attacks: Its attacks, strongest first.
        arrays: ``report_data.npz``.
        scores: ``scores.csv``.
    """

    summary: Fields
    attacks: list[AttackResult]
    arrays: dict[str, np.ndarray]
    scores: ScoreTable

    @property
    def headline(self) -> AttackResult | None:
        """The attack that the head speaks of: the one the study names, else the strongest."""
        named = self.attack(self.summary.child("headline").text("attack"))
        return named or next(iter(self.attacks), None)

    def attack(self, key: str) -> AttackResult | None:
        """The attack of that key."""
        return next((attack for attack in self.attacks if attack.key == key), None)

    def label(self, label: Any) -> str:
        """A label with its name, where the data set has names."""
        names = self.summary.child("data").texts("class_names")
        number = int(label)
        return f"{number} {names[number]}" if 0 <= number < len(names) and names[number] != str(number) else str(number)

    def bad_array(self, problem: str) -> StoreError:
        """The error for an array that does not fit the others."""
        file = Path(self.summary.source).with_name("report_data.npz")
        return StoreError(str(file), problem, "run the study again with --fresh, or restore the file from a copy")


def load_run(folder: Path) -> Run:
    """Read a run's folder.

    Raises:
        StoreError: A file is missing, corrupt or of a newer fastmem.
    """
    summary = load_summary(folder)
    return Run(summary, read_attacks(summary), load_arrays(folder), load_scores(folder))

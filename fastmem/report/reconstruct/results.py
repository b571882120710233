"""A finished reconstruction study as the report's parts read it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastmem.report.artifacts import Fields, load_arrays, load_summary
from fastmem.report.tables import count, fixed, span

__all__ = ["Counted", "Estimate", "Results", "load_results", "read_counted"]


@dataclass(frozen=True)
class Estimate:
    """A mean over victims; no interval where there is one."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @classmethod
    def of(cls, fields: Fields) -> Estimate:
        """From the summary."""
        return cls(*(fields.number(name) for name in ("value", "low", "high")))

    @property
    def interval(self) -> str:
        """With three decimals, or nothing."""
        return span(fixed(self.low), fixed(self.high))

    @property
    def count_interval(self) -> str:
        """With one decimal, or nothing."""
        return span(fixed(self.low, 1), fixed(self.high, 1))

    @property
    def counted(self) -> str:
        """As a count."""
        return count(self.value)


@dataclass(frozen=True)
class Counted:
    """What one set of candidates gave.

    Attributes:
        key: ``attack``, ``held_out`` or a control.
        title: For readers.
        mean: Mean correlation of the pairs.
        above: Pairs above each threshold.
        ssim: Mean SSIM and counts, by name; empty where samples are no images.
        excess_mean: The attack's mean less this one's, victim by victim.
        excess_above: And its count above 0.8.
    """

    key: str
    title: str
    mean: Estimate
    above: dict[str, Estimate]
    ssim: dict[str, Estimate]
    excess_mean: Estimate
    excess_above: Estimate


@dataclass(frozen=True, eq=False)
class Results:
    """The summary and the arrays of a run."""

    summary: Fields
    counted: list[Counted]
    arrays: dict[str, np.ndarray]

    def array(self, name: str, ndim: int) -> np.ndarray | None:
        """An array of the run, or None where it is not there or of another shape."""
        array = self.arrays.get(name)
        return array if array is not None and array.ndim == ndim and array.size else None

    @property
    def victims(self) -> list[Fields]:
        """A part of the summary for each victim."""
        entries = self.summary.data.get("victims")
        if not isinstance(entries, list):
            raise self.summary.wrong("victims", "a list")
        return [Fields(entry, self.summary.source, "victims") for entry in entries if isinstance(entry, dict)]


def load_results(folder: Path) -> Results:
    """Reads a run's folder.

    Raises:
        StoreError: A file is missing, corrupt or of a newer fastmem.
    """
    summary = load_summary(folder)
    return Results(summary, read_counted(summary), load_arrays(folder))


def read_counted(summary: Fields) -> list[Counted]:
    """The attack, held-out images, and the controls; nothing where the training images are not known."""
    total = summary.child("total")
    if not total.data:
        return []
    titles = summary.child("controls")
    rows = [_counted("attack", "Reconstruction", total.child("attack"), None)]
    rows.append(_counted("held_out", "Reconstruction, against images never trained on", total.child("held_out"), None))
    for name, fields in total.child("controls").children().items():
        rows.append(_counted(name, titles.text(name, name), fields, total.child("excess").child(name)))
    return rows


def _counted(key: str, title: str, fields: Fields, excess: Fields | None) -> Counted:
    nothing = Estimate(math.nan)
    return Counted(
        key,
        title,
        Estimate.of(fields.child("mean")),
        {name: Estimate.of(each) for name, each in fields.child("above").children().items()},
        {name: Estimate.of(each) for name, each in fields.child("ssim").children().items()},
        nothing if excess is None else Estimate.of(excess.child("mean")),
        nothing if excess is None else Estimate.of(excess.child("above").child("0.8")),
    )

"""A canary study's results as the report reads them: every score beside its null, every test beside its control."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastmem.errors import StoreError
from fastmem.report.artifacts import Fields, load_arrays, load_summary
from fastmem.report.tables import MISSING, percent, signed, span

__all__ = [
    "CONTROLS",
    "Cell",
    "Own",
    "Run",
    "Share",
    "Test",
    "Variant",
    "load_run",
    "p_value",
    "read_cells",
    "read_own",
]

# Key in summary.json -> what the reader is told that it is.
CONTROLS = {
    "never_saw": "two models that never saw the mark",
    "other_marks": "control marks, mean of all",
}
_TITLES = {
    "none": "none",
    "dropout": "dropout",
    "batchnorm": "batch normalisation",
    "weight-decay": "weight decay",
    "augment": "augmentation",
    "early-stopping": "early stopping",
    "all": "all of them",
}


@dataclass(frozen=True)
class Share:
    """A share of models with its exact interval; NaN where unknown."""

    value: float
    k: float
    n: float
    low: float
    high: float

    @property
    def text(self) -> str:
        """For example ``45.0% (9 of 20)``."""
        return f"{percent(self.value)} ({self.k:.0f} of {self.n:.0f})" if math.isfinite(self.value) else MISSING

    @property
    def interval(self) -> str:
        """Its 95% interval."""
        return span(percent(self.low, unit=False), percent(self.high))


@dataclass(frozen=True)
class Test:
    """A test over models."""

    effect: float
    low: float
    high: float
    standardised: float
    auc: float
    p_value: float
    p_sign_flip: float
    positive: float
    n: float

    @property
    def interval(self) -> str:
        """The effect's interval."""
        return f"{signed(self.low)} to {signed(self.high)}" if math.isfinite(self.low) else ""


@dataclass(frozen=True)
class Variant:
    """One variant of the score in one setting."""

    key: str
    title: str
    canary: tuple[float, float]  # mean, standard deviation
    null: tuple[float, float]
    paired: Test
    power: Share
    null_power: Share
    control_rank: dict[str, Share]
    sensitivity: dict[str, dict[str, Share]]
    controls: dict[str, Test]


@dataclass(frozen=True)
class Cell:
    """One training variant and one count of marked records."""

    regularise: str
    copies: int
    pairs: float
    train_accuracy: float
    test_accuracy: float
    variants: dict[str, Variant]

    @property
    def title(self) -> str:
        """The training variant in words."""
        return _TITLES.get(self.regularise, self.regularise)

    @property
    def name(self) -> str:
        """The training variant and the number of marked records."""
        return f"{self.title}, k = {self.copies}"


@dataclass(frozen=True)
class Own:
    """One variant of the score of a model of the user's own."""

    key: str
    title: str
    value: float
    null: tuple[float, float]
    rank_p: float
    control_rank_p: float
    n_null: float
    n_controls: float
    t: float
    null_share: Share


@dataclass(frozen=True)
class Run:
    """Everything that the page is made of.

    Attributes:
        summary: ``summary.json``.
        cells: Its settings, in the config's order; none where a model of the user's own was scored.
        own: Its variants of the score in that model.
        arrays: ``report_data.npz``.
    """

    summary: Fields
    cells: list[Cell]
    own: list[Own]
    arrays: dict[str, np.ndarray]

    @property
    def variant(self) -> str:
        """The variant of the score that the head speaks of."""
        named = self.summary.child("headline").text("variant")
        known = [entry.key for entry in self.own] or (list(self.cells[0].variants) if self.cells else [])
        return named if named in known else next(iter(known), "")

    @property
    def level(self) -> float:
        """Level of the tests."""
        level = self.summary.child("headline").number("level")
        return level if math.isfinite(level) else 0.05

    def place(self, variant: str) -> int:
        """Where a variant's scores are in the arrays; -1 where they are not."""
        names = [str(name) for name in self.arrays.get("variants", [])]
        return names.index(variant) if variant in names else -1

    def array(self, name: str, *shape: int | None) -> np.ndarray | None:
        """A numeric array of the report, or None where it is missing.

        Args:
            name: Its name.
            shape: The expected sizes, None for any.

        Raises:
            StoreError: It has another shape, or holds no numbers.
        """
        values = self.arrays.get(name)
        if values is None:
            return None
        fits = values.ndim == len(shape) and all(
            want is None or size == want for size, want in zip(values.shape, shape, strict=True)
        )
        if not fits or values.dtype.kind not in "iuf":
            file = Path(self.summary.source).with_name("report_data.npz")
            raise StoreError(
                str(file),
                f"{name} is {values.dtype} {list(values.shape)}",
                "run the study again with --fresh, or restore the file from a copy",
            )
        return values


def load_run(folder: Path) -> Run:
    """Read a run's folder.

    Raises:
        StoreError: A file is missing, corrupt or of a newer fastmem.
    """
    summary = load_summary(folder)
    return Run(summary, read_cells(summary), read_own(summary), load_arrays(folder))


def read_cells(summary: Fields) -> list[Cell]:
    """The settings of a summary.

    Raises:
        StoreError: A field is of the wrong kind.
    """
    entries = summary.data.get("cells") or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise summary.wrong("cells", "a list of objects")
    return [_cell(Fields(entry, summary.source, f"cells[{place}]")) for place, entry in enumerate(entries)]


def p_value(p: float) -> str:
    """A p-value in two digits."""
    if not math.isfinite(p):
        return MISSING
    return f"{p:.2g}" if p >= 1e-5 else "< 1e-5"


def _cell(fields: Fields) -> Cell:
    copies = fields.number("copies")
    return Cell(
        regularise=fields.text("regularise"),
        copies=int(copies) if math.isfinite(copies) else 0,
        pairs=fields.number("pairs"),
        train_accuracy=fields.child("train_accuracy").number("mean"),
        test_accuracy=fields.child("test_accuracy").number("mean"),
        variants={key: _variant(key, item) for key, item in fields.child("variants").children().items()},
    )


def _variant(key: str, fields: Fields) -> Variant:
    return Variant(
        key=key,
        title=fields.text("title", key),
        canary=_spread(fields.child("canary")),
        null=_spread(fields.child("null")),
        paired=_test(fields.child("paired")),
        power=_share(fields.child("power")),
        null_power=_share(fields.child("null_power")),
        control_rank={name: _share(item) for name, item in fields.child("control_rank").children().items()},
        sensitivity={
            test: {name: _share(share) for name, share in item.children().items()}
            for test, item in fields.child("sensitivity").children().items()
        },
        controls={name: _test(item) for name, item in fields.child("controls").children().items() if item.data},
    )


def read_own(summary: Fields) -> list[Own]:
    """The scores of a model of the user's own in a summary; none where none was scored."""
    return [
        Own(
            key=key,
            title=item.text("title", key),
            value=item.number("value"),
            null=_spread(item.child("null")),
            rank_p=item.number("rank_p"),
            control_rank_p=item.number("control_rank_p"),
            n_null=item.number("n_null"),
            n_controls=item.number("n_controls"),
            t=item.child("sensitivity").number("t"),
            null_share=_share(item.child("sensitivity").child("null_share")),
        )
        for key, item in summary.child("own").child("variants").children().items()
    ]


def _spread(fields: Fields) -> tuple[float, float]:
    return fields.number("mean"), fields.number("std")


def _share(fields: Fields) -> Share:
    return Share(*(fields.number(name) for name in ("share", "k", "n", "low", "high")))


def _test(fields: Fields) -> Test:
    names = ("effect", "low", "high", "standardised", "auc", "p_value", "p_sign_flip", "positive", "n")
    return Test(*(fields.number(name) for name in names))

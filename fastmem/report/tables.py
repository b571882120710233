"""Numbers as people read them, and tables of them in HTML.

Rates are fractions in [0, 1] and are shown in percent with two significant digits; a number that is missing or not
finite is shown as a dash, never as ``nan``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from fastmem.report.html import render

__all__ = [
    "MISSING",
    "TIMES",
    "Cell",
    "Column",
    "Table",
    "Tone",
    "compact",
    "count",
    "duration",
    "fixed",
    "percent",
    "signed",
    "span",
]

MISSING = DASH = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
Tone = Literal["", "good", "warn", "bad", "muted"]


def percent(fraction: float, *, unit: bool = True) -> str:
    """A measured fraction in percent: one decimal, or two significant digits below 1%.

    Args:
        fraction: In [0, 1].
        unit: Whether the sign follows.
    """
    if not math.isfinite(fraction):
        return MISSING
    value = 100.0 * fraction
    decimals = 1 if value == 0 else min(max(1, 1 - math.floor(math.log10(abs(value)))), 6)
    return f"{value:.{decimals}f}" + ("%" if unit else "")


def level_name(fraction: float) -> str:
    """A chosen fraction in percent, exactly: ``0.001%``, ``1%``, ``50%``."""
    return f"{100.0 * fraction:.10g}%"


def fixed(value: float, decimals: int = 3) -> str:
    """A number with a fixed count of decimals."""
    return f"{value:.{decimals}f}" if math.isfinite(value) else MISSING


def compact(value: float) -> str:
    """A number of unknown size in 3 significant digits."""
    return f"{value:.3g}" if math.isfinite(value) else MISSING


def signed(value: float) -> str:
    """A difference with its sign, in 2 significant digits below 0.1 and 3 above: ``+0.25``, ``-0.0032``."""
    return f"{value:+.2g}" if abs(value) < 0.1 else f"{value:+.3g}" if math.isfinite(value) else MISSING


def count(value: float) -> str:
    """A whole number with thousands apart; a mean of counts keeps one decimal."""
    if not math.isfinite(value):
        return MISSING
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def duration(seconds: float) -> str:
    """Seconds as ``0.4 s``, ``12 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    if not math.isfinite(seconds):
        return MISSING
    if seconds < 9.95:
        return f"{seconds:.1f} s" if seconds >= 0.05 else "< 0.1 s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def span(low: str, high: str) -> str:
    """An interval from its formatted ends; nothing if either end is missing."""
    return "" if MISSING in (low, high) else f"{low}{DASH}{high}"


@dataclass(frozen=True)
class Column:
    """A column's heading.

    Attributes:
        title: The heading.
        detail: A second, smaller line of it.
        numeric: Numbers are set flush right.
    """

    title: str
    detail: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Cell:
    """One field of a table.

    Attributes:
        text: The value.
        lines: Smaller lines below it: an interval, a count, a reason.
        tone: Colours the value; the words must say the same, for readers who do not see colours.
        mark: A short word in a box below the value, such as ``misses 0.5``.
        swatch: A colour token (:mod:`fastmem.report.theme`) shown as a dot before the text.
        bar: A share in [0, 1] drawn as a bar behind the value.
    """

    text: str
    lines: Sequence[str] = ()
    tone: Tone = ""
    mark: str = ""
    swatch: str = ""
    bar: float | None = None


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows.

    Attributes:
        caption: What the table holds, read out by screen readers and shown above it.
        columns: Headings.
        rows: One sequence of cells per row; a plain string is a cell with that text.
        highlight: Index of a row to set apart, or None.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell | str]]
    highlight: int | None = None

    def html(self) -> Markup:
        """The table as HTML; on a narrow screen it scrolls sideways under its fixed first column."""
        cells = [[Cell(cell) if isinstance(cell, str) else cell for cell in row] for row in self.rows]
        return render("table.html.j2", table=self, cells=cells)

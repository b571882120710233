"""Numbers as people read them, and tables that say what they hold."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmem.report import tables
from fastmem.report.tables import Cell, Column, Table

DASH = "\N{EN DASH}"


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (0.0, "0.0%"),
        (1.0, "100.0%"),
        (0.2178, "21.8%"),
        (0.0999, "10.0%"),
        (0.01, "1.0%"),
        (0.00998, "1.00%"),
        (0.00123, "0.12%"),
        (0.000034, "0.0034%"),
        (1e-12, "0.000000%"),
        (-0.05, "-5.0%"),
        (math.nan, DASH),
        (math.inf, DASH),
    ],
)
def test_percent(fraction: float, text: str) -> None:
    assert tables.percent(fraction) == text
    assert tables.percent(fraction, unit=False) == text.removesuffix("%")


@given(st.floats(1e-5, 1))
def test_percent_loses_at_most_half_a_unit_of_its_last_digit(fraction: float) -> None:
    text = tables.percent(fraction, unit=False)
    unit = 10.0 ** -len(text.partition(".")[2])
    assert abs(float(text) - 100 * fraction) <= 0.5 * unit * (1 + 1e-9)
    assert unit <= 0.1
    assert unit <= 100 * fraction, "a value that is not zero is not shown as zero"


@pytest.mark.parametrize(
    ("level", "text"), [(0.0, "0%"), (1e-5, "0.001%"), (0.001, "0.1%"), (0.01, "1%"), (0.5, "50%"), (1.0, "100%")]
)
def test_level_name(level: float, text: str) -> None:
    assert tables.level_name(level) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.01, "< 0.1 s"),
        (4.44, "4.4 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3599.7, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (math.nan, DASH),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert tables.duration(seconds) == text


def test_counts_and_spans() -> None:
    assert tables.count(25000) == "25,000"
    assert tables.count(499.53) == "499.5"
    assert tables.count(math.nan) == DASH
    assert tables.span("1", "2") == f"1{DASH}2"
    assert tables.span("1", DASH) == ""
    assert tables.fixed(0.12345) == "0.123"
    assert tables.compact(12345.6) == "1.23e+04"


def test_a_table_names_itself_its_columns_and_its_rows(read_page) -> None:
    table = Table("Caption", [Column("Name", numeric=False), Column("Value", "unit")], [["first", Cell("7", ["note"])]])
    page = read_page(str(table.html()))
    assert page.text.split() == ["Caption", "Name", "Value", "unit", "first", "7", "note"]
    assert [cell.get("scope") for cell in page.tags("th")] == ["col", "col", "row"]
    assert page.tags("div")[0]["tabindex"] == "0", "a region that scrolls must be reachable by keyboard"


def test_cells_are_escaped(read_page) -> None:
    evil = "<img src=x onerror=alert(1)>"
    cells = [Cell(evil, [evil], mark=evil)]
    page = read_page(str(Table(evil, [Column(evil, evil)], [cells]).html()))
    assert not page.tags("img")
    assert page.text.count(evil) == 6
    assert page.tags("div")[0]["aria-label"] == evil


def test_bars_swatches_and_the_highlight() -> None:
    table = Table("t", [Column("a"), Column("b")], [["x", "y"], [Cell("p", swatch="series-1"), Cell("q", bar=0.25)]], 1)
    html = str(table.html())
    assert html.count('class="highlight"') == 1
    assert "width: 25.00%" in html
    assert "var(--series-1)" in html

"""Figures: the same bytes for the same drawing, colours as variables, text as text."""

from __future__ import annotations

import re

import numpy as np
from matplotlib.figure import Figure

from fastmem.report.plots import draw, rate_axes, step_path
from fastmem.report.theme import TOKENS, light

NAME = r"$\alpha$ <script> & \undefined{"


def paint(canvas: Figure) -> None:
    axes = canvas.subplots()
    axes.plot([0, 1], [0, 1], color=light("series-2"), label=NAME)
    axes.fill_between([0, 1], [0, 1], color=light("shade"), hatch="//")
    axes.set_title(NAME)


def test_the_same_drawing_gives_the_same_bytes() -> None:
    assert draw("one", "alt", (3, 2), paint) == draw("one", "alt", (3, 2), paint)


def test_colours_are_the_pages_own(read_page) -> None:
    svg = str(draw("one", "alt", (3, 2), paint))
    assert "var(--series-2)" in svg
    assert not any(values[0] in svg for values in TOKENS.values())
    colours = set(re.findall(r"#[0-9a-fA-F]{3,6}\b", re.sub(r'(?:href|id)="[^"]*"|url\([^)]*\)', "", svg)))
    assert not colours, f"colours that do not follow the scheme: {colours}"
    read_page(svg)


def test_names_are_text_and_not_mathematics(read_page) -> None:
    page = read_page(str(draw("one", NAME, (3, 2), paint)))
    assert NAME in page.text
    assert page.tags("svg")[0]["aria-label"] == NAME


def test_figures_on_one_page_do_not_share_ids(read_page) -> None:
    read_page(f"<div>{draw('one', 'a', (3, 2), paint)}{draw('two', 'b', (3, 2), paint)}</div>")


def test_drawing_leaves_matplotlibs_settings_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    draw("one", "alt", (3, 2), paint)
    assert dict(matplotlib.rcParams) == before


def test_rates_are_labelled_in_percent() -> None:
    axes = Figure().subplots()
    rate_axes(axes, 1e-5)
    axes.figure.canvas.draw()
    labels = ["0.001%", "0.01%", "0.1%", "1%", "10%", "100%"]
    assert [label.get_text() for label in axes.get_xticklabels()] == labels
    assert [label.get_text() for label in axes.get_yticklabels()] == labels
    assert axes.get_xlim() == axes.get_ylim() == (1e-5, 1.0)


def test_a_step_path_starts_at_the_edge_with_the_best_rate_left_of_it() -> None:
    x, y = step_path(np.array([0, 0, 1e-6, 1e-3, 1]), np.array([0, 0.1, 0.2, 0.5, 1]), 1e-5)
    assert x.tolist() == [1e-5, 1e-3, 1]
    assert y.tolist() == [0.2, 0.5, 1]
    x, y = step_path(np.array([0.5, 1.0]), np.array([0.7, 1.0]), 1e-5)
    assert x.tolist() == [0.5, 1.0]

"""Figures that follow the page: matplotlib draws them, the page's colour scheme colours them.

A figure becomes inline SVG whose colours are the CSS variables of :mod:`fastmem.report.theme` and whose text is text
in the page's own font, so one drawing serves light mode, dark mode and print, stays sharp, and is small. Figures are
about 340 points wide: that is a phone's width, and half of a wide page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fastmem.report.tables import level_name
from fastmem.report.theme import TOKENS, light

__all__ = ["draw", "rate_axes", "roc_curve", "step_path"]

_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": light("line"),
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": light("muted"),
    "axes.labelsize": 8.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.family": "sans-serif",
    "font.size": 8.8,
    "grid.color": light("line"),
    "grid.linewidth": 0.6,
    "hatch.color": light("line"),
    "lines.linewidth": 1.6,
    "path.simplify_threshold": 0.2,
    "svg.fonttype": "none",
    "text.color": light("ink"),
    "text.parse_math": False,  # a dollar sign in a user's name is a dollar sign
    "xtick.color": light("line"),
    "xtick.labelcolor": light("muted"),
    "xtick.labelsize": 8.2,
    "ytick.color": light("line"),
    "ytick.labelcolor": light("muted"),
    "ytick.labelsize": 8.2,
}
_TOKEN_OF = {values[0]: name for name, values in TOKENS.items()}


def draw(name: str, alt: str, size: tuple[float, float], paint: Callable[[Figure], None]) -> Markup:
    """Draw a figure as inline SVG.

    Args:
        name: Letters, digits and dashes, unique on the page; it keeps the ids inside the SVG apart.
        alt: What the figure shows, for readers who do not see it.
        size: Width and height in inches (72 points; 4.7 inches fill a phone).
        paint: Draws onto the empty figure it is given, with colours from :func:`fastmem.report.theme.light`.

    Returns:
        An ``<svg>``, the same bytes for the same drawing.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _inline(buffer.getvalue(), name, alt)


def _inline(svg: str, name: str, alt: str) -> Markup:
    """Matplotlib's SVG file as part of an HTML page: no prolog, no metadata, own ids, variables for colours."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    # Its style sheet would apply to the whole page; page.css says the same for figures only.
    body = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    view_box = re.search(r'viewBox="([^"]+)"', body)
    assert view_box is not None, "matplotlib always writes a viewBox"
    opening = f'<svg class="plot" viewBox="{view_box[1]}" role="img" aria-label="{escape(alt)}">'
    body = opening + body[body.index(">") + 1 :]
    body = re.sub(r' id="([^"]+)"', rf' id="{name}-\1"', body)
    body = re.sub(r'xlink:href="#', f'href="#{name}-', body)
    body = re.sub(r"url\(#", f"url(#{name}-", body)
    body = re.sub(r"font: (?:[a-z0-9]+ )*?([\d.]+)px [^;\"]*", r"font: \1px var(--sans)", body)
    body = re.sub(r"#[0-9a-f]{6}\b", lambda found: _variable(found[0]), body)
    return Markup(re.sub(r"\n\s*", "\n", body))


def _variable(colour: str) -> str:
    name = _TOKEN_OF.get(colour)
    return f"var(--{name})" if name else colour


def rate_axes(axes: Axes, lowest: float) -> None:
    """Make both axes logarithmic rates from ``lowest`` to 1, labelled in percent, of equal scale."""
    decades = 10.0 ** np.arange(np.ceil(np.log10(lowest) - 1e-9), 1)
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(decades.tolist()))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: level_name(value)))
    axes.set(xlim=(lowest, 1.0), ylim=(lowest, 1.0), aspect="equal")


def step_path(x: np.ndarray, y: np.ndarray, left: float) -> tuple[np.ndarray, np.ndarray]:
    """A curve for a logarithmic axis: points left of its edge become one point on the edge, with the best y of them.

    Args:
        x: [K] not falling.
        y: [K] not falling.
        left: The axis' left edge, above 0.

    Returns:
        x and y from the edge on.
    """
    inside = x > left
    before = y[~inside]
    start = before[-1:] if before.size else y[:0]
    return np.concatenate([np.full(start.size, left), x[inside]]), np.concatenate([start, y[inside]])


def roc_curve(axes: Axes, fpr: np.ndarray, tpr: np.ndarray, lowest: float, **style: Any) -> None:
    """Draws a ROC curve on axes that begin at ``lowest``; what lies below them runs along their edge."""
    x, y = step_path(fpr, tpr, lowest)
    axes.plot(x, np.maximum(y, lowest / 10), drawstyle="steps-post", **style)

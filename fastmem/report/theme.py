"""The colours of every report: one table for the page and for the figures in it.

A token has a light and a dark value. The page declares them as CSS variables; figures are drawn with the light values,
which :mod:`fastmem.report.plots` then turns into references to the same variables, so that a figure follows the
reader's colour scheme. Tests hold the text to a contrast of 4.5:1, lines and marks to 3:1 (WCAG 2.1), and the series
apart for readers with protanopia, deuteranopia and tritanopia.
"""

from __future__ import annotations

__all__ = ["MEMBER", "NON_MEMBER", "SERIES", "TOKENS", "css_variables", "light"]

# name: (light, dark). The light values are all different, or a figure could not be mapped back to its tokens.
TOKENS: dict[str, tuple[str, str]] = {
    "page": ("#fbfbf9", "#14171b"),
    "card": ("#ffffff", "#1c2026"),
    "ink": ("#1b1f24", "#e7eaee"),
    "muted": ("#565e6b", "#a7afbb"),
    "line": ("#d5d9df", "#3a414c"),
    "shade": ("#eceef1", "#262b33"),
    "good": ("#0d6b42", "#62d49c"),
    "warn": ("#855400", "#f2b64f"),
    "bad": ("#b42318", "#ff8f85"),
    "series-1": ("#d2450a", "#f58a4b"),
    "series-2": ("#0b4a80", "#45a9f5"),
    "series-3": ("#0f8f68", "#8feccd"),
    "series-4": ("#d822b4", "#e560cc"),
    "series-5": ("#4f3c00", "#f2dc94"),
    "series-6": ("#747c92", "#9aa1ac"),
}
SERIES = tuple(name for name in TOKENS if name.startswith("series-"))
MEMBER, NON_MEMBER = "series-1", "series-2"


def light(token: str) -> str:
    """The light value of a token, which is the colour that figures are drawn with."""
    return TOKENS[token][0]


def css_variables(scheme: str) -> str:
    """The CSS declarations of one colour scheme.

    Args:
        scheme: ``"light"`` or ``"dark"``.

    Returns:
        ``--name: #rrggbb;`` for each token.
    """
    column = ("light", "dark").index(scheme)
    return " ".join(f"--{name}: {values[column]};" for name, values in TOKENS.items())

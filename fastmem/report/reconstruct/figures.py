"""The residuals of a reconstruction, parameter by parameter."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from fastmem.report.html import LegendEntry, figure
from fastmem.report.plots import draw
from fastmem.report.reconstruct.results import Results
from fastmem.report.theme import SERIES, light

__all__ = ["residual_figure"]

_DASHES = ("", "6 3", "2 2")


def residual_figure(results: Results) -> Markup | None:
    """Squared residual of each parameter against iterations; what stays flat keeps its initial weights."""
    steps, residuals = results.array("steps", 1), results.array("residuals", 2)
    names = results.array("parameters", 1)
    if steps is None or residuals is None or names is None:
        return None
    lines = [(name, residuals[:, at]) for at, name in enumerate(names.tolist()) if np.isfinite(residuals[:, at]).any()]
    lines = lines[: len(SERIES)]

    def paint(canvas: Figure) -> None:
        axes = canvas.subplots()
        for at, (_, values) in enumerate(lines):
            known = np.isfinite(values) & (values > 0)
            axes.plot(steps[known], values[known], color=light(SERIES[at]), linestyle=("-", "--", ":")[at % 3])
        axes.set(xlabel="iteration", ylabel="squared residual", yscale="log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())

    first, last = (" ".join(f"{name} {values[at]:.3g}" for name, values in lines) for at in (0, -1))
    svg = draw("residuals", f"Squared residuals by parameter, at first {first}, at last {last}", (4.7, 3.0), paint)
    legend = [LegendEntry(name, SERIES[at], _DASHES[at % 3]) for at, (name, _) in enumerate(lines)]
    caption = (
        "Squared distance of each parameter from the sum of gradients, of the run that is shown. Layers that keep much of "
        "their initial weights level off: only what falls below that level tells anything."
    )
    return figure(svg, caption, legend)

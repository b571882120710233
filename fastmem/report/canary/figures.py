"""The figures of a canary study: every model's score as a dot beside its null, and the paired differences."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastmem.report.canary.results import Cell, Run
from fastmem.report.html import LegendEntry, figure
from fastmem.report.plots import draw
from fastmem.report.tables import signed
from fastmem.report.theme import MEMBER, NON_MEMBER, light

__all__ = ["difference_figure", "own_figure", "strip_figure"]

_ROW = 0.62  # inches a setting
_CONTROL_DOTS = 150
_LEGEND = (LegendEntry("trained with the mark", MEMBER), LegendEntry("same models without it", NON_MEMBER))


def strip_figure(run: Run, variant: str) -> Markup | None:
    """Scores of every model by setting: marked models above their null models, control marks as small dots.

    Args:
        run: The run.
        variant: Of the score.

    Returns:
        The figure; None where scores are missing.
    """
    scores = _scores(run, variant)
    if scores is None:
        return None
    canary, null, controls = scores
    rows = np.arange(len(run.cells))[::-1] * 1.0

    def paint(canvas: Figure) -> None:
        axes = canvas.subplots()
        axes.axvline(0, color=light("muted"), linewidth=0.9)
        for row, ours, theirs, others in zip(rows, canary, null, controls, strict=True):
            few = others.reshape(-1)[:: max(1, others.size // _CONTROL_DOTS)]
            _dots(axes, few, row + 0.0, "series-6", 1.6, 0.14, alpha=0.5)
            _dots(axes, theirs, row - 0.26, NON_MEMBER, 3.6, 0.07)
            _dots(axes, ours, row + 0.26, MEMBER, 3.6, 0.07)
        _settings(axes, run.cells, rows)
        axes.set_xlabel(f"M score ({_unit(variant)})")

    alt = "Scores by setting. " + "; ".join(
        f"{cell.name}: mean {signed(float(ours.mean()))} with the mark, {signed(float(theirs.mean()))} without"
        for cell, ours, theirs in zip(run.cells, canary, null, strict=True)
    )
    svg = draw("strips", alt, (4.7, 0.7 + _ROW * len(rows)), paint)
    caption = (
        "A dot is a model. What counts is orange against blue, not either against 0: models that never saw the mark do "
        "not score 0. Grey: control marks in the orange models."
    )
    return figure(svg, caption, (*_LEGEND, LegendEntry("control marks", "series-6")))


def difference_figure(run: Run, variant: str) -> Markup | None:
    """Paired differences by setting, with their mean and its interval.

    Args:
        run: The run.
        variant: Of the score.

    Returns:
        The figure; None where scores are missing.
    """
    scores = _scores(run, variant)
    if scores is None:
        return None
    rows = np.arange(len(run.cells))[::-1] * 1.0

    def paint(canvas: Figure) -> None:
        axes = canvas.subplots()
        axes.axvline(0, color=light("muted"), linewidth=0.9)
        for row, ours, theirs, cell in zip(rows, scores[0], scores[1], run.cells, strict=True):
            test = cell.variants[variant].paired
            _dots(axes, ours - theirs, row - 0.12, MEMBER, 3.2, 0.08, alpha=0.55)
            axes.plot([test.low, test.high], [row + 0.26] * 2, color=light("ink"), linewidth=1.4)
            axes.plot([test.effect], [row + 0.26], marker="D", markersize=4.4, color=light("ink"), linestyle="none")
        _settings(axes, run.cells, rows)
        axes.set_xlabel(f"difference within a pair ({_unit(variant)})")

    alt = "Paired differences by setting. " + "; ".join(
        f"{cell.name}: {signed(cell.variants[variant].paired.effect)} ({cell.variants[variant].paired.interval})"
        for cell in run.cells
    )
    svg = draw("differences", alt, (4.7, 0.7 + _ROW * len(rows)), paint)
    caption = (
        "A dot is a seed-matched pair: the same initial weights, order and images, but for the mark. The diamond is the "
        "mean with its 95% interval; right of 0, training on the mark left a trace."
    )
    return figure(svg, caption)


def own_figure(run: Run, variant: str) -> Markup | None:
    """The user's model among the null models and among control marks."""
    place = run.place(variant)
    own, null = run.array("own_scores", None, None), run.array("null_scores", 1, None, None)
    if own is None or null is None or not 0 <= place < min(len(own), null.shape[1]):
        return None
    rows = {
        "null models, the mark": (null[0, place], NON_MEMBER),
        "your model, control marks": (own[place, 1:], "series-6"),
    }

    def paint(canvas: Figure) -> None:
        axes = canvas.subplots()
        axes.axvline(own[place, 0], color=light(MEMBER), linewidth=2.0)
        for row, (values, token) in zip((1.0, 0.0), rows.values(), strict=True):
            _dots(axes, values, row, token, 3.6, 0.16)
        axes.set_yticks([1.0, 0.0], list(rows))
        axes.set(ylim=(-0.6, 1.6), xlabel=f"M score ({_unit(variant)})")
        axes.grid(visible=False, axis="y")

    alt = f"The model's score {signed(float(own[place, 0]))} among {null.shape[2]} null models and control marks"
    svg = draw("own", alt, (4.7, 2.2), paint)
    caption = "The line is your model's score of the mark. It means something only where it stands apart from the dots."
    return figure(svg, caption, [LegendEntry("your model, the mark", MEMBER)])


def _scores(run: Run, variant: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Marked and null scores [cells, P] and control marks [cells, P, G] of a variant."""
    place, cells = run.place(variant), len(run.cells)
    names = ("canary_scores", "null_scores", "control_scores")
    found = [
        run.array(name, cells, None, *([None] * (1 + place_))) for place_, name in zip((0, 0, 1), names, strict=True)
    ]
    if not cells or place < 0 or any(values is None or values.shape[1] <= place for values in found):
        return None
    canary, null, controls = (values[:, place] for values in found if values is not None)
    return canary, null, controls


def _dots(
    axes: Axes, values: np.ndarray, row: float, token: str, size: float, height: float, alpha: float = 0.8
) -> None:
    # Spread by the golden ratio: even, and the same every time.
    spread = ((np.arange(len(values)) * 0.618034) % 1.0 - 0.5) * 2 * height
    axes.plot(values, row + spread, marker="o", markersize=size, color=light(token), linestyle="none", alpha=alpha,
              markeredgewidth=0)  # fmt: skip


def _settings(axes: Axes, cells: list[Cell], rows: np.ndarray) -> None:
    axes.set_yticks(rows.tolist(), [cell.name for cell in cells])
    axes.set_ylim(rows.min() - 0.6, rows.max() + 0.6)
    axes.grid(visible=False, axis="y")


def _unit(variant: str) -> str:
    return "probability" if variant.startswith("prob") else "nats"

"""The figures of a few-shot study: what is found by the number of known records, beside guessing and the blind model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from fastmem.report.few_shot.results import Mean, Regime, Variant
from fastmem.report.html import LegendEntry, figure
from fastmem.report.plots import draw
from fastmem.report.tables import fixed, level_name, percent
from fastmem.report.theme import light

__all__ = ["shots_figure"]

_SPREAD = 0.5  # of the room between two numbers of shots, taken by the methods side by side
_MARKERS = "osD^vP"


def shots_figure(variants: Sequence[Variant], regime: str, quantity: str) -> Markup | None:
    """Means over episodes with their intervals, by shots and method; hollow marks are the blind model.

    Args:
        variants: The methods.
        regime: ``"strict"`` or ``"regular"``.
        quantity: ``"tpr"`` or ``"raw"`` (Log-MIA).

    Returns:
        The figure; None if there is nothing to draw.
    """
    shots = sorted({count for variant in variants for count in variant.shots})
    drawn = [variant for variant in variants if any(regime in cells.regimes for cells in variant.shots.values())]
    if not drawn or not shots:
        return None
    first = next(
        cells.regimes[regime] for variant in drawn for cells in variant.shots.values() if regime in cells.regimes
    )
    name = "TPR" if quantity == "tpr" else "Log-MIA"
    cap = "no false positive" if regime == "strict" else f"at most {first.fp_cap:.0f} false positives"

    def paint(canvas: Figure) -> None:
        axes = canvas.subplots()
        for place, variant in enumerate(drawn):
            move = _SPREAD * ((place + 0.5) / len(drawn) - 0.5)
            for position, count in enumerate(shots):
                x, marker = position + move, _MARKERS[place % len(_MARKERS)]
                blind = variant.controls.get("blind", {})
                for by_shots, filled in ((blind, False), (variant.shots, True)):
                    if count in by_shots and regime in by_shots[count].regimes:
                        value = _value(by_shots[count].regimes[regime], quantity)
                        _mark(axes, value, x, variant.token, marker, filled=filled)
                if count in variant.shots and regime in variant.shots[count].regimes:
                    # Guessing depends on the method: its scores may be tied.
                    level = _chance(variant.shots[count].regimes[regime], quantity)
                    half = 0.4 * _SPREAD / len(drawn)
                    axes.plot([x - half, x + half], [level, level], color=light("ink"), linewidth=1.4)
        axes.set_xticks(range(len(shots)), [str(count) for count in shots])
        axes.set(xlim=(-0.5, len(shots) - 0.5), ylim=(0, None), xlabel="known records of each kind (shots)")
        axes.set_ylabel(f"{name}, {cap}")
        axes.grid(visible=False, axis="x")
        if quantity == "tpr":
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: level_name(round(value, 4))))

    alt = f"{name} with {cap}: " + "; ".join(
        f"{variant.title} at {count} shots {_words(_value(cells.regimes[regime], quantity).mean, quantity)}"
        for variant in drawn
        for count, cells in variant.shots.items()
        if regime in cells.regimes
    )
    caption = (
        f"{name} with {cap}, mean over episodes and 95% interval. Bars: guessing. Hollow: a model that never saw them."
    )
    legend = [LegendEntry(variant.title, variant.token) for variant in drawn]
    legend.append(LegendEntry("guessing", "ink", "", 1.4))
    return figure(draw(f"shots-{regime}-{quantity}", alt, (4.7, 3.3), paint), caption, legend)


def _mark(axes: Axes, value: Mean, x: float, token: str, marker: str, *, filled: bool) -> None:
    colour = light(token)
    if math.isfinite(value.low):
        axes.plot([x, x], [max(value.low, 0), value.high], color=colour, linewidth=2.6 if filled else 1.2, alpha=0.5)
    face = colour if filled else light("page")
    axes.plot(x, value.mean, marker, color=colour, markerfacecolor=face, markersize=5.2, zorder=3)


def _value(regime: Regime, quantity: str) -> Mean:
    return regime.tpr if quantity == "tpr" else regime.raw


def _chance(regime: Regime, quantity: str) -> float:
    return regime.tpr_chance if quantity == "tpr" else regime.chance_mean


def _words(value: float, quantity: str) -> str:
    return percent(value) if quantity == "tpr" else fixed(value)

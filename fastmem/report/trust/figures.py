"""The figures of a trust study: false positive rates, reliability, confidence by set, and the trade-off."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastmem.report.html import LegendEntry, figure
from fastmem.report.plots import draw
from fastmem.report.tables import fixed, percent
from fastmem.report.theme import MEMBER, NON_MEMBER, SERIES, light
from fastmem.report.trust.run import Calibration, Run

__all__ = ["confidence_figures", "fpr_figure", "reliability_figures", "trade_off_figure"]

_COLOURS = ("ink", *SERIES)
_BAR = 0.8  # share of a set's row that its bars fill


def fpr_figure(run: Run) -> Markup:
    """Share of each set that the headline attack calls members, a bar per calibration."""
    sets = [name for name in run.sets if name in run.calibrations[0].headline.sets]
    height = _BAR / len(run.calibrations)

    def paint(canvas: Figure) -> None:
        axes = canvas.subplots()
        for place, calibration in enumerate(run.calibrations):
            rows = np.arange(len(sets)) - _BAR / 2 + (place + 0.5) * height
            rates = [calibration.headline.sets[name].fpr for name in sets]
            colour = light(_colour(place))
            axes.barh(rows, [rate.value for rate in rates], height * 0.86, color=colour, linewidth=0)
            for row, rate in zip(rows, rates, strict=True):
                if np.isfinite(rate.low):
                    axes.plot([rate.low, rate.high], [row, row], color=light("muted"), linewidth=0.9)
        _percent_axis(axes)
        axes.set(yticks=range(len(sets)), ylim=(len(sets) - 0.5, -0.5), xlabel="called members (false positive rate)")
        axes.set_yticklabels([run.sets[name] for name in sets], color=light("ink"))
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)

    alt = "False positive rate by set, uncalibrated: " + "; ".join(
        f"{run.sets[name]} {percent(run.calibrations[0].headline.sets[name].fpr.value)}" for name in sets
    )
    svg = draw("fpr", alt, (4.7, 0.7 + len(sets) * (0.16 + 0.085 * len(run.calibrations))), paint)
    caption = "Thin lines: from the lowest to the highest end of the targets' own 95% intervals."
    return figure(svg, caption, _legend(run.calibrations))


def trade_off_figure(run: Run) -> Markup:
    """How much is told about members against how well a model knows what it does not know."""

    def paint(canvas: Figure) -> None:
        axes = canvas.subplots()
        axes.axhline(0.5, color=light("muted"), linewidth=0.9)
        for place, calibration in enumerate(run.calibrations):
            auc = calibration.headline.sets["test"].auc
            colour = light(_colour(place))
            if np.isfinite(auc.low):
                axes.plot([calibration.ece] * 2, [auc.low, auc.high], color=colour, linewidth=2.4, alpha=0.4)
            axes.plot(calibration.ece, auc.value, "o", color=colour, markersize=6)
        axes.set(xlabel="expected calibration error on test records", ylabel="AUC, members against test records")
        axes.set_xlim(left=0)

    alt = "AUC on test records against calibration error: " + "; ".join(
        f"{one.title} ECE {fixed(one.ece)}, AUC {fixed(one.headline.sets['test'].auc.value)}"
        for one in run.calibrations
    )
    caption = (
        "To the left: a model that is right as often as it says. Upwards: one that tells members apart better. If "
        "calibration came at the price of privacy, the dots would rise to the left. The line is chance."
    )
    return figure(draw("trade-off", alt, (4.7, 3.2), paint), caption, _legend(run.calibrations))


def reliability_figures(run: Run) -> list[Markup]:
    """Accuracy by confidence, a small diagram per calibration."""
    panels = []
    for place, calibration in enumerate(run.calibrations):
        count = run.array(f"bin_count__{calibration.key}", 1)
        sure, right = (run.array(f"bin_{name}__{calibration.key}", 1) for name in ("confidence", "accuracy"))
        if count is None or sure is None or right is None:
            continue
        panels.append(_reliability(calibration, place, count, sure, right))
    return panels


def _reliability(
    calibration: Calibration, place: int, count: np.ndarray, sure: np.ndarray, right: np.ndarray
) -> Markup:
    edges = np.linspace(0, 1, len(count) + 1)
    filled = count > 0

    def paint(canvas: Figure) -> None:
        axes = canvas.subplots()
        axes.plot([0, 1], [0, 1], color=light("muted"), linewidth=0.9)
        axes.bar(
            edges[:-1][filled],
            right[filled],
            width=np.diff(edges)[filled],
            align="edge",
            color=light(_colour(place)),
            alpha=0.3,
            linewidth=0,
        )
        # The dot says how many: a bin of few records proves little.
        axes.scatter(sure[filled], right[filled], s=4 + 40 * count[filled] / count.sum(), color=light(_colour(place)))
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))

    alt = f"{calibration.title}: accuracy by confidence, calibration error {fixed(calibration.ece)}"
    svg = draw(f"reliability-{_safe(calibration.key)}", alt, (2.3, 2.0), paint)
    return figure(svg, f"{calibration.title}: ECE {fixed(calibration.ece)}")


def confidence_figures(run: Run, calibration: Calibration) -> list[Markup]:
    """How sure the first target is of the records of each set, beside its members."""
    edges = run.array(f"hist_edges__{calibration.key}", 1)
    members = run.array(f"hist_members__{calibration.key}", 1)
    if edges is None or members is None or len(edges) != len(members) + 1 or not members.sum():
        return []
    panels = []
    for name, title in run.sets.items():
        others = run.array(f"hist_{name}__{calibration.key}", 1)
        if others is not None and others.shape == members.shape and others.sum():
            panels.append(_confidence(calibration, name, title, edges, members, others))
    return panels


def _confidence(
    calibration: Calibration, name: str, title: str, edges: np.ndarray, members: np.ndarray, others: np.ndarray
) -> Markup:
    def paint(canvas: Figure) -> None:
        axes = canvas.subplots()
        for counts, token, style in ((others, NON_MEMBER, (0, (3.0, 1.2))), (members, MEMBER, "-")):
            share = counts / counts.sum()
            axes.stairs(share, edges, fill=True, color=light(token), alpha=0.22, linewidth=0)
            axes.stairs(share, edges, color=light(token), linewidth=1.1, linestyle=style)
        axes.set(xlim=(edges[0], edges[-1]), ylim=(0, None), yticks=[])
        axes.locator_params(axis="x", nbins=4)
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False)

    auc = calibration.headline.sets[name].auc.value if name in calibration.headline.sets else float("nan")
    alt = f"{calibration.title}: log-odds of the largest probability of members and of {title}, AUC {fixed(auc)}"
    svg = draw(f"sure-{_safe(calibration.key)}-{_safe(name)}", alt, (2.3, 1.35), paint)
    return figure(svg, title)


def _percent_axis(axes: Axes) -> None:
    ticks = (0, 0.25, 0.5, 0.75, 1)
    axes.set(xlim=(0, 1))
    axes.set_xticks(ticks, [f"{100 * tick:.0f}%" for tick in ticks])


def _colour(place: int) -> str:
    return _COLOURS[place % len(_COLOURS)]


def _legend(calibrations: Sequence[Calibration]) -> list[LegendEntry]:
    return [LegendEntry(one.title, _colour(place), width=5.0) for place, one in enumerate(calibrations)]


def _safe(key: str) -> str:
    return "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in key)

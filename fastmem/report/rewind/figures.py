"""The figures of a rewinding study: the trade-off, ROC before and after, where critical weights sit, entanglement."""

from __future__ import annotations

import math

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from fastmem.report.html import LegendEntry, figure
from fastmem.report.plots import draw, rate_axes, roc_curve
from fastmem.report.rewind.run import Arm, Estimate, Run, readable_level
from fastmem.report.tables import fixed, percent
from fastmem.report.theme import light

__all__ = ["cloud_figure", "roc_figure", "strip_figure", "trade_off_figure"]

_LOWEST_RATE = 1e-4
# What an arm is drawn as: token, marker, and the words of the legend.
_STYLES = {
    "none": ("ink", "o", "no defence"),
    "cwrf": ("series-1", "o", "rewound, frozen, tuned (line: by fraction)"),
    "tune_only": ("series-2", "s", "the same tuning, nothing rewound"),
    "random": ("series-3", "^", "random, |w|, TFO, PAST, KL alone instead of PVE"),
    "zero_tune": ("series-4", "D", "other variants: A1, A2, not tuned"),
    "relaxloss": ("series-6", "P", "RelaxLoss from scratch, early stopping, plain fine-tuning, DP-SGD"),
}
_AS = {
    "tfo": "random",
    "weight": "random",
    "past": "random",
    "kl_only": "random",
    "rewind_tune": "zero_tune",
    "rewind_only": "zero_tune",
    "early_stopping": "relaxloss",
    "tune": "relaxloss",
    "dp_sgd": "relaxloss",
}
_SVG_DASHES = {"-": "", "--": "7 3", ":": "2 3"}
# A layer with its share of the critical weights has a lift of 1; the strip's colour is full at this one.
_FULL_LIFT = 8.0
_CLOUD_LEVELS = 6


def trade_off_figure(run: Run, level: str | None) -> Markup:
    """Test accuracy against what the headline attack finds.

    Args:
        run: The run.
        level: A false positive rate, whose TPR goes up; None for the AUC.
    """

    def found(arm: Arm) -> Estimate:
        return arm.auc(run.attack) if level is None else arm.tpr(run.attack, level)

    def paint(canvas: Figure) -> None:
        axes = canvas.subplots()
        chance = 0.5 if level is None else float(level)
        axes.axhline(chance, color=light("muted"), linewidth=0.9)
        line = [arm for arm in run.arms if arm.method == "cwrf"]
        path = [(100 * arm.mean("test_accuracy"), found(arm).value) for arm in line]
        axes.plot(*zip(*path, strict=True), color=light("series-1"), linewidth=1.0) if len(path) > 1 else None
        for arm in run.arms:
            token, marker, _ = _STYLES[_AS.get(arm.method, arm.method)]
            x, estimate = 100 * arm.mean("test_accuracy"), found(arm)
            if math.isfinite(estimate.low):
                axes.plot([x, x], [estimate.low, estimate.high], color=light(token), linewidth=1.8, alpha=0.35)
            axes.plot(x, estimate.value, marker, color=light(token), markersize=5.5)
            if arm.method == "cwrf":
                axes.annotate(
                    f"{100 * arm.fraction:g}%",
                    (x, estimate.value),
                    xytext=(4, 4),
                    textcoords="offset points",
                    fontsize=7,
                    color=light("muted"),
                )
        what = "AUC" if level is None else f"TPR at {readable_level(level)} FPR"
        axes.set(xlabel="test accuracy, %", ylabel=what)
        axes.margins(0.08)
        if level is not None:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))

    def words(value: float) -> str:
        return fixed(value) if level is None else percent(value)

    title = run.attacks.get(run.attack, run.attack)
    alt = f"{title} against test accuracy: " + "; ".join(
        f"{arm.title}: accuracy {percent(arm.mean('test_accuracy'))}, {words(found(arm).value)}" for arm in run.arms
    )
    svg = draw(f"trade-off-{'auc' if level is None else level.replace('.', '-')}", alt, (4.7, 3.4), paint)
    caption = f"{title}. To the right: more useful; down: tells less. Bars: 95% intervals; grey line: guessing."
    return figure(svg, caption, _legend(run) if level is None else [])


def roc_figure(run: Run) -> Markup | None:
    """ROC of the headline attack on logarithmic axes: no defence, the same tuning alone, rewound."""
    chosen = [
        (arm, token, style)
        for arm, token, style in (
            (run.arms[0], "ink", "-"),
            (run.untouched, "series-2", "--"),
            (run.main, "series-1", "-"),
        )
        if arm is not None and f"roc_{run.attack}_fpr@{arm.key}" in run.arrays
    ]
    if not chosen:
        return None

    def paint(canvas: Figure) -> None:
        axes = canvas.subplots()
        rate_axes(axes, _LOWEST_RATE)
        axes.set(xlabel="false positive rate", ylabel="true positive rate")
        axes.plot([_LOWEST_RATE, 1], [_LOWEST_RATE, 1], color=light("muted"), linewidth=0.9)
        for arm, token, style in chosen:
            _curve(axes, run, f"{run.attack}", arm, color=light(token), linestyle=style, linewidth=1.8)
        _curve(axes, run, f"{run.attack}__shuffled", run.arms[0], color=light("ink"), linestyle=":", linewidth=0.9)

    alt = "ROC before and after: " + "; ".join(
        f"{arm.title}: AUC {fixed(arm.auc(run.attack).value)}, TPR {percent(arm.tpr(run.attack, '0.01').value)} at 1%"
        for arm, *_ in chosen
    )
    legend = [LegendEntry(arm.title, token, _SVG_DASHES[style]) for arm, token, style in chosen]
    legend.append(LegendEntry("no defence, membership shuffled", "ink", _SVG_DASHES[":"], 1.0))
    caption = f"{run.attacks.get(run.attack, run.attack)}, pooled over targets. The diagonal is guessing."
    return figure(draw("roc-before-after", alt, (4.7, 4.2), paint), caption, legend)


def _curve(axes: Axes, run: Run, name: str, arm: Arm, **style: object) -> None:
    fpr, tpr = (run.array(f"roc_{name}_{axis}@{arm.key}", 1) for axis in ("fpr", "tpr"))
    if fpr is None or tpr is None:
        return
    roc_curve(axes, fpr, tpr, _LOWEST_RATE, **style)


def strip_figure(run: Run) -> Markup | None:
    """Share of each layer's weights that is critical, beside the share that it would be everywhere."""
    layers = run.summary.child("entanglement").child("layers").children()
    rows = []
    for name in sorted(run.arrays):
        _, _, rest = name.partition("share_")
        score, _, fraction = rest.rpartition("_")
        shares = run.array(name, 1) if rest else None
        if shares is not None and len(shares) == len(layers):
            rows.append((score, float(fraction), shares))
    if not rows or not layers:
        return None
    rows.sort(key=lambda row: (row[0] != "pve", row[1]))
    names = list(layers)

    def paint(canvas: Figure) -> None:
        axes = canvas.subplots()
        for place, (_, fraction, shares) in enumerate(rows):
            for column, share in enumerate(shares):
                lift = share / fraction
                strength = min(1.0, math.log1p(lift) / math.log1p(_FULL_LIFT))
                cell = Rectangle((column, place), 1, 1, facecolor=light("series-1"), alpha=strength, linewidth=0)
                axes.add_patch(cell)
                if len(names) <= 12:
                    axes.text(
                        column + 0.5,
                        place + 0.5,
                        f"{lift:.1f}",
                        ha="center",
                        va="center",
                        fontsize=7,
                        color=light("ink"),
                    )
        axes.set(xlim=(0, len(names)), ylim=(len(rows), 0))
        axes.set_yticks(
            np.arange(len(rows)) + 0.5, [f"{score.upper()} {100 * fraction:g}%" for score, fraction, _ in rows]
        )
        step = max(1, -(-len(names) // 16))
        axes.set_xticks(np.arange(0, len(names), step) + 0.5, names[::step], rotation=60, ha="right", fontsize=6.5)
        axes.grid(visible=False)
        axes.tick_params(length=0)

    most = max(zip(names, rows[0][2], strict=True), key=lambda pair: pair[1])
    alt = (
        f"Heat strip by layer. At {rows[0][1]:g} by {rows[0][0].upper()}, {most[0]} has the largest share: "
        f"{percent(float(most[1]))} of its weights"
    )
    caption = (
        "Columns are layers from input to output; a cell's colour and number say how many times more of its weights are "
        "among the top than if they were spread evenly (1). Means over the compared models."
    )
    return figure(draw("strip", alt, (4.7, 1.3 + 0.24 * len(rows)), paint), caption)


def cloud_figure(run: Run) -> Markup | None:
    """Weights by the logarithms of PVE and TFO, of the first model."""
    counts, x, y = run.array("cloud", 2), run.array("cloud_x", 1), run.array("cloud_y", 1)
    if counts is None or x is None or y is None or not counts.sum():
        return None
    logs = np.log1p(counts) / np.log1p(counts.max())
    levels = np.ceil(logs * _CLOUD_LEVELS).astype(int)
    centres = [(edges[:-1] + edges[1:]) / 2 for edges in (x, y)]

    def paint(canvas: Figure) -> None:
        axes = canvas.subplots()
        for level in range(1, _CLOUD_LEVELS + 1):
            first, second = np.nonzero(levels == level)
            strength = 0.12 + 0.88 * level / _CLOUD_LEVELS
            axes.scatter(
                centres[0][first],
                centres[1][second],
                s=9,
                marker="s",
                linewidths=0,
                color=light("series-2"),
                alpha=strength,
            )
        axes.set(xlabel="PVE, log10", ylabel="TFO, log10")

    pair = run.summary.child("entanglement").child("pairs").child("pve/tfo").child("all")
    numbers = ", ".join(
        f"{name.replace('_', ' of ')} {fixed(pair.child(name).number('mean'))}"
        for name in ("pearson", "pearson_log", "spearman")
    )
    caption = (
        f"All eligible weights of the first model by both scores; darker: more weights, logarithmically. {numbers}."
    )
    return figure(draw("cloud", f"PVE against TFO: {numbers}", (4.7, 3.6), paint), caption)


def _legend(run: Run) -> list[LegendEntry]:
    drawn = {_AS.get(arm.method, arm.method) for arm in run.arms}
    return [LegendEntry(words, token, width=5.0) for key, (token, _, words) in _STYLES.items() if key in drawn]

"""The figures of an audit: ROC on logarithmic axes, each attack beside its controls, and histograms of the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import AsinhLocator, FuncFormatter, NullFormatter

from fastmem.report.audit.results import CONTROLS, HEADLINE_LEVEL, AttackResult
from fastmem.report.html import LegendEntry, figure
from fastmem.report.plots import draw, rate_axes, roc_curve
from fastmem.report.tables import level_name, percent
from fastmem.report.theme import MEMBER, NON_MEMBER, light

__all__ = ["comparison_figure", "histogram_figure", "roc_figure"]

Arrays = Mapping[str, np.ndarray]
_LOWEST_RATE = 1e-5
# Matplotlib's pattern in line widths, and the same as SVG for the legend.
_DASHES: dict[str, tuple[tuple[float, ...], str]] = {
    "": ((), ""),
    "dash": ((4.0, 1.6), "7 3"),
    "dot": ((1.0, 1.6), "2 3"),
    "dash-dot": ((4.0, 1.4, 1.0, 1.4), "7 2 2 2"),
    "long": ((8.0, 2.0), "13 3"),
    "dense": ((2.0, 0.8), "4 2"),
}
_FAMILY_DASHES = tuple(_DASHES)
_BINS = 60
_FINE = 8  # edges among the middle half of the scores, or stretching it would invent a shape
_LONG_TAILS = 20.0
_CONTROL_DASHES = {"shuffled": "dot", "never_saw": "dash"}


def roc_figure(attacks: Sequence[AttackResult], arrays: Arrays, headline: AttackResult | None = None) -> Markup | None:
    """ROC of every attack, pooled over targets, on logarithmic axes from 0.001%.

    The headline and the strongest attack of each other family are strong lines, their siblings thin ones of the same
    colour. The diagonal is chance; the shaded strip is where a false positive rate is less than one non-member. The
    headline's controls are thin broken lines.

    Args:
        attacks: Strongest first.
        arrays: ``roc_<key>_fpr`` and ``_tpr`` [K], and ``roc_<key>__<control>_fpr`` and ``_tpr``.
        headline: The attack that the report speaks of; by default the strongest.

    Returns:
        The figure; None if no attack has a curve.
    """
    drawn = [attack for attack in attacks if f"roc_{attack.key}_fpr" in arrays and f"roc_{attack.key}_tpr" in arrays]
    if not drawn:
        return None
    first = headline if headline in drawn else drawn[0]
    leaders = {first.family: first}
    for attack in drawn:
        leaders.setdefault(attack.family, attack)
    dashes = dict(zip(leaders, _FAMILY_DASHES, strict=False))
    limit = _resolution_limit(drawn)

    def paint(canvas: Figure) -> None:
        axes = canvas.subplots()
        rate_axes(axes, _LOWEST_RATE)
        axes.set(xlabel="false positive rate", ylabel="true positive rate")
        if limit > _LOWEST_RATE:
            axes.axvspan(_LOWEST_RATE, limit, color=light("shade"), linewidth=0, zorder=0)
        axes.plot([_LOWEST_RATE, 1], [_LOWEST_RATE, 1], color=light("muted"), linewidth=0.9)
        for attack in reversed(drawn):
            if attack is not leaders[attack.family]:
                _curve(axes, arrays, attack.key, color=light(attack.token), linewidth=0.7, alpha=0.55)
        for control, dash in _CONTROL_DASHES.items():
            style = (0, _DASHES[dash][0])
            _curve(axes, arrays, f"{first.key}__{control}", color=light("ink"), linewidth=0.9, linestyle=style)
        for family, attack in reversed(leaders.items()):
            style = (0, _DASHES[dashes[family]][0]) if dashes[family] else "-"
            width = 2.4 if attack is first else 1.6
            _curve(axes, arrays, attack.key, color=light(attack.token), linewidth=width, linestyle=style)

    alt = "ROC on logarithmic axes. " + "; ".join(
        f"{attack.title}: AUC {attack.auc.value:.3f}, true positive rate {percent(attack.tpr(HEADLINE_LEVEL))} at 1%"
        for attack in leaders.values()
    )
    svg = draw("roc", alt, (4.7, 4.4), paint)
    return figure(svg, _roc_caption(drawn, limit), _roc_legend(leaders, dashes, first, arrays))


def _curve(axes: Axes, arrays: Arrays, name: str, **style: object) -> None:
    fpr, tpr = arrays.get(f"roc_{name}_fpr"), arrays.get(f"roc_{name}_tpr")
    if fpr is None or tpr is None:
        return
    roc_curve(axes, fpr, tpr, _LOWEST_RATE, **style)


def _resolution_limit(attacks: Sequence[AttackResult]) -> float:
    counts = [level.n_out for attack in attacks for level in attack.levels.values() if level.n_out > 0]
    return 1.0 / max(counts) if counts else 0.0


def _roc_caption(drawn: Sequence[AttackResult], limit: float) -> str:
    parts = ["The diagonal is guessing; a curve far above it at the left edge names members almost without error."]
    if limit > _LOWEST_RATE:
        parts.append(f"Shaded: rates below one non-member ({percent(limit)}), which these data cannot resolve.")
    if len(drawn) > 1:
        parts.append("Strong lines: one attack of each family; thin lines of the same colour: its other variants.")
    return " ".join(parts)


def _roc_legend(
    leaders: Mapping[str, AttackResult], dashes: Mapping[str, str], first: AttackResult, arrays: Arrays
) -> list[LegendEntry]:
    entries = [
        LegendEntry(attack.title, attack.token, _DASHES[dashes[family]][1], 2.4 if attack is first else 1.8)
        for family, attack in leaders.items()
    ]
    for control, dash in _CONTROL_DASHES.items():
        if f"roc_{first.key}__{control}_fpr" in arrays:
            entries.append(LegendEntry(f"control: {CONTROLS[control]}", "ink", _DASHES[dash][1], 1.0))
    return [*entries, LegendEntry("guessing", "muted", "", 1.0)]


def comparison_figure(attacks: Sequence[AttackResult], level: float = HEADLINE_LEVEL) -> Markup | None:
    """Each attack's TPR at one FPR with its interval, and its controls on the same line.

    Args:
        attacks: Strongest first.
        level: The false positive rate.

    Returns:
        The figure; None if no attack resolves the level.
    """
    drawn = [attack for attack in attacks if np.isfinite(attack.resolved_tpr(level))]
    if not drawn:
        return None
    rows = np.arange(len(drawn))[::-1]
    shown = [attack.resolved_tpr(level) for attack in drawn]
    lowest = max(min([level / 4, *(value / 2 for value in shown if value > 0)]), 1e-5)

    def paint(canvas: Figure) -> None:
        axes = canvas.subplots()
        axes.axvline(level, color=light("muted"), linewidth=0.9)
        for row, attack in zip(rows, drawn, strict=True):
            for control, marker in (("shuffled", "o"), ("never_saw", "D")):
                if control in attack.controls and level in attack.controls[control].levels:
                    value = max(attack.controls[control].levels[level].tpr.value, lowest)
                    style = {"markerfacecolor": "none", "markersize": 4.2, "markeredgewidth": 0.9, "clip_on": False}
                    axes.plot(value, row, marker, color=light("ink"), **style)
            estimate = attack.levels[level].tpr
            if estimate.has_interval:
                ends = np.maximum([estimate.low, estimate.high], lowest)
                axes.plot(ends, [row, row], color=light(attack.token), linewidth=3.2, alpha=0.45)
            axes.plot(max(estimate.value, lowest), row, "o", color=light(attack.token), markersize=5.5)
        axes.set(xscale="log", xlim=(lowest, 1.0), ylim=(-0.7, len(drawn) - 0.3), yticks=rows)
        axes.set_yticklabels([attack.title for attack in drawn], color=light("ink"))
        ticks = [tick for tick in (1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0) if tick >= lowest]
        axes.set_xticks(ticks, [level_name(tick) for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlabel(f"TPR at {level_name(level)} FPR")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)

    alt = f"True positive rate at {level_name(level)} false positive rate: " + "; ".join(
        f"{attack.title} {percent(value)}" for attack, value in zip(drawn, shown, strict=True)
    )
    svg = draw("comparison", alt, (4.7, 0.9 + 0.225 * len(drawn)), paint)
    caption = (
        f"Dots with bars: each attack and its 95% interval. Hollow circles: shuffled membership; hollow diamonds: "
        f"models that never saw the pool; both belong on the line of guessing at {level_name(level)}."
    )
    return figure(svg, caption)


def histogram_figure(
    attack: AttackResult, arrays: Arrays, *, large: bool = False, logarithmic: bool = False
) -> Markup | None:
    """Distribution of an attack's scores for members and non-members.

    Args:
        attack: The attack.
        arrays: ``hist_<key>_edges`` [B + 1] rising, ``hist_<key>_in`` and ``_out`` [B], counts; uneven bins will do.
        large: With axes, legend and caption; else a small multiple named by its title.
        logarithmic: Shares on a logarithmic axis, which shows the tails.

    Returns:
        The figure; None if the arrays are missing or empty.
    """
    names = [f"hist_{attack.key}_{part}" for part in ("edges", "in", "out")]
    if any(name not in arrays for name in names):
        return None
    edges, *groups = (np.asarray(arrays[name], dtype=np.float64) for name in names)
    if (
        any(group.shape != (edges.size - 1,) or not group.sum() > 0 for group in groups)
        or not (np.diff(edges) > 0).all()
    ):
        return None
    width = _asinh_width(edges, groups)
    view = _view(edges, width)
    members, others = (_density(edges, group, view, width) for group in groups)
    bottom = 0.5 * min(heights[heights > 0].min() for heights in (members, others))

    def paint(canvas: Figure) -> None:
        axes = canvas.subplots()
        for heights, token, style in ((others, NON_MEMBER, (0, (3.0, 1.2))), (members, MEMBER, "-")):
            if not logarithmic:
                axes.stairs(heights, view, fill=True, color=light(token), alpha=0.22, linewidth=0)
            axes.stairs(heights, view, color=light(token), linewidth=1.5 if large else 1.1, linestyle=style)
        if width:
            axes.set_xscale("asinh", linear_width=width)
            axes.xaxis.set_major_locator(AsinhLocator(width, numticks=7 if large else 3))
            axes.xaxis.set_major_formatter(
                FuncFormatter(lambda value, _: f"{value if abs(value) > width / 1e3 else 0:g}")
            )
        elif not large:
            axes.locator_params(axis="x", nbins=4)
        axes.set(xlim=(view[0], view[-1]), ylim=(0, None), yticks=[])
        if logarithmic:
            axes.set(yscale="log", ylim=(bottom, None))
            axes.yaxis.set_major_formatter(NullFormatter())  # a density: only ratios mean something
            axes.set_yticks([], minor=True)
        axes.spines["left"].set_visible(False)
        axes.grid(visible=large, axis="x")
        if large:
            axes.set(xlabel=f"score of {attack.title}", ylabel="share (log)" if logarithmic else "share")

    alt = f"Histogram of {attack.title} scores of members and non-members, AUC {attack.auc.value:.3f}"
    name = f"scores-{'log-' if logarithmic else ''}{_safe(attack.key)}"
    svg = draw(name, alt, (4.7, 2.9) if large else (2.3, 1.35), paint)
    if not large:
        return figure(svg, attack.title)
    if logarithmic:
        caption = "The same on a logarithmic scale: few false alarms means the far right, where members stand alone."
        return figure(svg, caption, HISTOGRAM_LEGEND)
    caption = "Higher means more likely a member. Where the two shapes overlap, the attack cannot tell them apart."
    if width:
        caption += " The score's axis is stretched around 0, since a few scores lie far out."
    return figure(svg, caption, HISTOGRAM_LEGEND)


HISTOGRAM_LEGEND = (LegendEntry("members", MEMBER), LegendEntry("non-members", NON_MEMBER, "6 3"))


def _asinh_width(edges: np.ndarray, groups: Sequence[np.ndarray]) -> float:
    """The width of the linear part of an asinh axis for scores with long tails around 0; 0.0 where a plain one will do.

    Likelihood ratios of a few records are hundreds of times those of the rest and would flatten them to one bar.
    """
    below, share = _cumulative(edges, np.sum(groups, axis=0))
    low, high = np.interp([0.25, 0.75], share, below)
    width = float(high - low)
    fine = np.count_nonzero((edges >= low) & (edges <= high)) >= _FINE
    around_zero = low - 2 * width <= 0 <= high + 2 * width
    return width if fine and around_zero and edges[-1] - edges[0] > _LONG_TAILS * width else 0.0


def _view(edges: np.ndarray, width: float) -> np.ndarray:
    """Bins that are even on the axis, no more than the data were counted in."""
    bins = min(_BINS, edges.size - 1)
    if not width:
        return np.linspace(edges[0], edges[-1], bins + 1)
    first, last = np.arcsinh(edges[[0, -1]] / width)
    return np.sinh(np.linspace(first, last, bins + 1)) * width


def _density(edges: np.ndarray, group: np.ndarray, view: np.ndarray, width: float) -> np.ndarray:
    """The group's share per unit of the axis in each bin of ``view``, taken as even inside a stored bin."""
    places = np.arcsinh(view / width) if width else view
    return np.diff(np.interp(view, *_cumulative(edges, group))) / np.diff(places)


def _cumulative(edges: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return edges, np.concatenate([[0.0], np.cumsum(group) / group.sum()])


def _safe(key: str) -> str:
    return "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in key)

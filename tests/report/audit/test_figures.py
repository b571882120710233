"""The audit's figures: what they draw, and that they drop out where there is nothing to draw."""

from __future__ import annotations

import re

import numpy as np
import pytest
from markupsafe import Markup
from matplotlib.figure import Figure

from fastmem.report.artifacts import Fields, load_arrays, load_summary
from fastmem.report.audit import figures
from fastmem.report.audit.figures import comparison_figure, histogram_figure, roc_figure
from fastmem.report.audit.results import read_attacks


@pytest.fixture
def run(run_dir):
    return read_attacks(load_summary(run_dir)), load_arrays(run_dir)


def strokes(svg: str, token: str) -> int:
    return len(re.findall(rf'style="fill: none;[^"]*stroke: var\(--{token}\)', svg))


def test_roc_draws_every_attack_its_family_and_the_controls(run, read_page) -> None:
    attacks, arrays = run
    svg = str(roc_figure(attacks, arrays))
    page = read_page(svg)
    # Two LiRA variants, one RMIA, one reference, two without references; each family's leader is in the legend.
    assert [strokes(svg, f"series-{place}") for place in (1, 2, 3, 5)] == [2, 1, 1, 2]
    legend = page.text
    assert "LiRA online" in legend
    assert "LiRA offline" not in legend
    assert "control: shuffled membership" in legend
    assert "control: models that never saw the pool" in legend
    assert "Shaded" in legend
    assert "AUC" in page.tags("svg")[0]["aria-label"]


def test_roc_without_controls_or_curves(run) -> None:
    attacks, arrays = run
    bare = {name: values for name, values in arrays.items() if "__" not in name}
    assert "control" not in str(roc_figure(attacks, bare))
    assert roc_figure(attacks, {}) is None
    assert roc_figure([], arrays) is None


def test_roc_of_large_data_needs_no_shade(run) -> None:
    attacks, arrays = run
    (many,) = read_attacks(Fields({"attacks": {"loss": {"tpr_at_fpr": {"0.01": {"tpr": 0.1, "n_out": 200000}}}}}, "s"))
    assert "Shaded" not in str(roc_figure([many], arrays))
    assert "Shaded" in str(roc_figure(attacks, arrays))


def test_comparison_shows_attacks_that_resolve_the_level(run, read_page) -> None:
    attacks, _ = run
    page = read_page(str(comparison_figure(attacks)))
    for attack in attacks:
        assert attack.title in page.text
    unresolved = read_attacks(Fields({"attacks": {"x": {"tpr_at_fpr": {"0.01": {"tpr": 0.1, "n_out": 50}}}}}, "s"))
    assert comparison_figure(unresolved) is None
    assert comparison_figure([]) is None


@pytest.mark.parametrize(
    "change",
    [
        {"hist_{key}_in": None},
        {"hist_{key}_in": np.zeros(60)},
        {"hist_{key}_in": np.ones(59)},
        {"hist_{key}_edges": np.full(61, np.nan)},
        {"hist_{key}_edges": np.zeros(61)},
    ],
    ids=["missing", "empty", "wrong length", "NaN", "not rising"],
)
def test_histogram_drops_out_where_there_is_nothing_to_draw(run, change) -> None:
    attacks, arrays = run
    changed = dict(arrays)
    for name, values in change.items():
        changed[name.format(key=attacks[0].key)] = values
    changed = {name: values for name, values in changed.items() if values is not None}
    assert histogram_figure(attacks[0], arrays, large=True) is not None
    assert histogram_figure(attacks[0], changed, large=True) is None


def ticks(svg: str) -> list[float]:
    texts = re.findall(r"<text[^>]*>([-\d.e\u2212]+)</text>", svg)
    return [float(text.replace("\N{MINUS SIGN}", "-")) for text in texts]


def histogram(run, members: np.ndarray, others: np.ndarray, edges: np.ndarray) -> str:
    attacks, arrays = run
    counts = {"edges": edges, "in": np.histogram(members, edges)[0], "out": np.histogram(others, edges)[0]}
    changed = arrays | {f"hist_{attacks[0].key}_{part}": values for part, values in counts.items()}
    return str(histogram_figure(attacks[0], changed, large=True))


def test_long_tails_stretch_the_axis_around_zero(run) -> None:
    random = np.random.default_rng(0)
    members, others = random.standard_t(1.2, 4000), random.standard_t(1.2, 4000) - 1
    both = np.concatenate([members, others])
    fine = np.unique(
        np.concatenate([np.quantile(both, np.linspace(0, 1, 201)), np.linspace(both.min(), both.max(), 61)])
    )
    stretched = histogram(run, members, others, fine)
    assert "stretched around 0" in stretched
    assert {-100, -10, 0, 10, 100} <= set(ticks(stretched))
    coarse = histogram(run, members, others, np.linspace(both.min(), both.max(), 61))
    assert "stretched" not in coarse, "a shape must not be invented where the stored bins are coarse"


def test_short_tails_and_probabilities_keep_a_plain_axis(run) -> None:
    random = np.random.default_rng(0)
    normal = random.normal(0, 1, (2, 4000))
    assert "stretched" not in histogram(run, *normal, np.unique(np.quantile(normal, np.linspace(0, 1, 201))))
    near_one = 1 - random.random((2, 4000)) ** 20
    edges = np.unique(np.quantile(near_one, np.linspace(0, 1, 201)))
    assert "stretched" not in histogram(run, *near_one, edges)


def test_densities_integrate_to_one_on_either_axis() -> None:
    random = np.random.default_rng(0)
    scores = random.standard_t(1.5, 1000)
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, 101)))
    counts = np.histogram(scores, edges)[0].astype(float)
    for width in (0.0, 0.7):
        view = figures._view(edges, width)
        places = np.arcsinh(view / width) if width else view
        assert np.allclose(np.diff(places), np.diff(places)[0]), "bins are even on the axis"
        assert figures._density(edges, counts, view, width) @ np.diff(places) == pytest.approx(1)


@pytest.fixture
def painted(monkeypatch):
    """The figures as matplotlib holds them, by name."""
    canvases: dict[str, Figure] = {}

    def keep(name, alt, size, paint):
        canvases[name] = Figure(figsize=size)
        paint(canvases[name])
        return Markup("<svg/>")

    monkeypatch.setattr(figures, "draw", keep)
    return canvases


def test_roc_lines_lie_where_the_rates_are(run, painted) -> None:
    attacks, arrays = run
    roc_figure(attacks, arrays)
    (axes,) = painted["roc"].axes
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert axes.get_xlim() == axes.get_ylim() == (1e-5, 1.0)
    drawn = [(line.get_xdata(), line.get_ydata()) for line in axes.get_lines()]
    for name in [attack.key for attack in attacks] + [f"{attacks[0].key}__shuffled", f"{attacks[0].key}__never_saw"]:
        fpr, tpr = arrays[f"roc_{name}_fpr"], arrays[f"roc_{name}_tpr"]
        x, y = fpr[fpr > 1e-5], np.maximum(tpr[fpr > 1e-5], 1e-6)  # 0 has no place on a logarithmic axis
        assert any(len(a) == len(x) + 1 and np.array_equal(a[1:], x) and np.allclose(b[1:], y) for a, b in drawn), name
    assert any(list(x) == [1e-5, 1] and list(y) == [1e-5, 1] for x, y in drawn), "the diagonal"
    assert len(drawn) == len(attacks) + 3
    n_out = attacks[0].levels[0.01].n_out
    assert axes.patches[0].get_bbox().x1 == pytest.approx(1 / n_out), "the shade ends at one non-member"


def test_comparison_dots_lie_at_the_rates_and_bars_at_their_intervals(run, painted) -> None:
    attacks, _ = run
    comparison_figure(attacks)
    (axes,) = painted["comparison"].axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    rows = dict(zip(labels, axes.get_yticks().tolist(), strict=True))
    assert [label for label, _ in sorted(rows.items(), key=lambda item: -item[1])] == [a.title for a in attacks]
    drawn = {(round(float(x), 9), float(y)) for line in axes.get_lines() for x, y in zip(*line.get_data(), strict=True)}
    lowest = axes.get_xlim()[0]
    for attack in attacks:
        tpr = attack.levels[0.01].tpr
        controls = [control.levels[0.01].tpr.value for control in attack.controls.values()]
        for value in (tpr.value, tpr.low, tpr.high, *controls):
            assert (round(max(value, lowest), 9), rows[attack.title]) in drawn


def test_histogram_heights_are_shares(run, painted) -> None:
    attacks, arrays = run
    histogram_figure(attacks[0], arrays, large=True)
    (axes,) = painted[f"scores-{attacks[0].key.replace('_', '-')}"].axes
    outlines = [patch for patch in axes.patches if not patch.get_fill()]
    for patch, part in zip(outlines, ("out", "in"), strict=True):
        counts = arrays[f"hist_{attacks[0].key}_{part}"]
        heights, edges, _ = patch.get_data()
        assert np.allclose(heights * np.diff(edges), counts / counts.sum())

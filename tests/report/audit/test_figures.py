"""The audit's figures: what they draw, and that they drop out where there is nothing to draw."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fastmem.report.artifacts import Fields, load_arrays, load_summary
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


def test_histogram_normalises_each_group_and_frames_the_bulk(run) -> None:
    attacks, arrays = run
    key = attacks[0].key
    edges = np.arange(102.0)
    members, others = np.zeros(101), np.zeros(101)
    members[40:60], others[30:50] = 1000, 10
    members[100] = 1  # far outside: the frame must not stretch to it
    arrays |= {f"hist_{key}_edges": edges, f"hist_{key}_in": members, f"hist_{key}_out": others}
    figure = str(histogram_figure(attacks[0], arrays, large=True))
    assert "Scores outside the frame" not in figure or "0.0050%" in figure
    labels = [
        float(text.replace("\N{MINUS SIGN}", "-")) for text in re.findall(r"<text[^>]*>([-\d.\u2212]+)</text>", figure)
    ]
    assert min(labels) >= 30
    assert max(labels) <= 60


@pytest.mark.parametrize(
    "change",
    [
        {"hist_{key}_in": None},
        {"hist_{key}_in": np.zeros(60)},
        {"hist_{key}_in": np.ones(59)},
        {"hist_{key}_edges": np.full(61, np.nan)},
    ],
    ids=["missing", "empty", "wrong length", "NaN"],
)
def test_histogram_drops_out_where_there_is_nothing_to_draw(run, change) -> None:
    attacks, arrays = run
    changed = dict(arrays)
    for name, values in change.items():
        changed[name.format(key=attacks[0].key)] = values
    changed = {name: values for name, values in changed.items() if values is not None}
    assert histogram_figure(attacks[0], arrays, large=True) is not None
    assert histogram_figure(attacks[0], changed, large=True) is None

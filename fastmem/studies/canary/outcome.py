"""From the scores of single models to numbers with their nulls: a cell is one training variant and one count of copies.

Scores of a null model that is compared with a marked one are always for the marked one's label, and where a variant
guesses the label, every null score guesses its own: the maximum over labels is taken on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmem.metrics import VARIANTS, clopper_pearson, memorisation_test, rank_p_value
from fastmem.studies.canary.job import Cohort, Job
from fastmem.studies.canary.store import Row
from fastmem.studies.results import spread

__all__ = ["Cell", "cells_of", "own_entry", "score_columns"]

_TESTS = ("t", "mann_whitney")
_LEAST_CONTROL_PAIRS = 2


@dataclass(frozen=True, eq=False)
class Cell:
    """One training variant and one count of copies.

    Args:
        entry: Its entry in ``summary.json``.
        canary: Scores of the mark in the marked models [V, P].
        null: The same in their partners [V, P].
        controls: Scores of the control marks in the marked models [V, P, G].
        rank_p: Each marked model's rank p-value among the null models [V, P].
        control_rank_p: The same among the control marks [V, P]; NaN without any.
        sensitivity_p: p-values of the paired t test over images, in the marked models [V, P].
    """

    entry: dict[str, Any]
    canary: np.ndarray
    null: np.ndarray
    controls: np.ndarray
    rank_p: np.ndarray
    control_rank_p: np.ndarray
    sensitivity_p: np.ndarray


@dataclass(frozen=True, eq=False)
class _Group:
    """The rows of the models of a cohort with one count of copies, by pair."""

    scores: np.ndarray  # [P, V, L, 1 + G]
    sensitivity: np.ndarray  # [P, V, L, 2]
    accuracy: np.ndarray  # [P, 2]
    label: np.ndarray  # [P] the place of each pair's label
    copies: int


def cells_of(job: Job, rows: Mapping[str, Sequence[Row]], level: float, seed: int) -> list[Cell]:
    """All cells, training variant by training variant.

    Args:
        job: The job.
        rows: Every model's row, by cohort.
        level: Of the tests whose rejections are counted.
        seed: Of the sign flips.
    """
    cells = []
    for name, cohort in job.cohorts.items():
        null, *marked = (
            _group(job, cohort, rows[name], copies)
            for copies in dict.fromkeys(member.copies for member in cohort.members)
        )
        cells += [_cell(job, name, group, null, level, seed) for group in marked]
    return cells


def own_entry(job: Job, rows: Sequence[Row], own: Row, level: float) -> dict[str, dict[str, Any]]:
    """What a model of the user's own is compared with, by variant of the score."""
    entries = {}
    for place, variant in enumerate(job.variants):
        null = np.array([row.scores[place, 0, 0] for row in rows])
        value, controls = float(own.scores[place, 0, 0]), own.scores[place, 0, 1:]
        rejected = [row.sensitivity[place, 0, 0] <= level for row in rows]
        entries[variant] = {
            "title": VARIANTS[variant],
            "value": value,
            "null": spread(null),
            "rank_p": rank_p_value(value, null, level),
            "control_rank_p": rank_p_value(value, controls) if len(controls) else None,
            "n_null": len(null),
            "n_controls": len(controls),
            "sensitivity": {
                **{test: float(own.sensitivity[place, 0, column]) for column, test in enumerate(_TESTS)},
                "null_share": _share(np.array(rejected)),
            },
        }
    return entries


def score_columns(job: Job, rows: Mapping[str, Sequence[Row]], cells: Sequence[Cell], record: np.ndarray) -> dict:
    """``scores.csv``: a row per model.

    Args:
        job: The job.
        rows: Every model's row, by cohort.
        cells: Their cells.
        record: Number of each pool record in the data set it came from.
    """
    found = {(cell.entry["regularise"], cell.entry["copies"]): cell for cell in cells}
    lines: list[dict[str, Any]] = []
    for name, cohort in job.cohorts.items():
        for member, row in zip(cohort.members, rows[name], strict=True):
            label = _label(job, member.canary)
            cell = found.get((name, member.copies))
            line = {
                "model": member.name,
                "regularise": name,
                "copies": member.copies,
                "pair": member.pair,
                "canary": int(record[job.marks[member.canary, 0]]) if job.marks.size else "",
                "label": job.labels[label] if job.labels[label] is not None else "",
                "seed": member.seed,
                "train_accuracy": row.accuracy[0],
                "test_accuracy": row.accuracy[1],
            }
            for place, variant in enumerate(job.variants):
                line[variant] = row.scores[place, label, 0]
                line[f"{variant}_rank_p"] = cell.rank_p[place, member.pair] if cell else ""
                line[f"{variant}_control_rank_p"] = cell.control_rank_p[place, member.pair] if cell else ""
                line[f"{variant}_sensitivity_t_p"] = row.sensitivity[place, label, 0]
            lines.append(line)
    return {name: np.array([line[name] for line in lines], dtype=object) for name in lines[0]}


def _cell(job: Job, name: str, marked: _Group, null: _Group, level: float, seed: int) -> Cell:
    pairs = np.arange(len(marked.label))
    # [P, V, ...], each pair's scores for its own label
    ours, theirs = marked.scores[pairs, :, marked.label], null.scores[pairs, :, null.label]
    canary, partner = ours[:, :, 0].T, theirs[:, :, 0].T
    controls = ours[:, :, 1:].transpose(1, 0, 2)
    # The null score that a pair is ranked among are all null models', for that pair's label: [P, V, P].
    among = null.scores[:, :, marked.label, 0].transpose(2, 1, 0)
    rank_p = np.array([[rank_p_value(canary[v, p], among[p, v]) for p in pairs] for v in range(len(canary))])
    others = ~np.eye(len(pairs), dtype=bool)
    null_rank_p = np.array(
        [[rank_p_value(partner[v, p], among[p, v][others[p]]) for p in pairs] for v in range(len(canary))]
    )
    control_p = _control_ranks(canary, controls)
    null_controls = theirs[:, :, 1:].transpose(1, 0, 2)
    null_control_p = _control_ranks(partner, null_controls)
    tests, null_tests = marked.sensitivity[pairs, :, marked.label], null.sensitivity[pairs, :, null.label]
    variants = {}
    for v, variant in enumerate(job.variants):
        entry: dict[str, Any] = {
            "title": VARIANTS[variant],
            "canary": spread(canary[v]),
            "null": spread(partner[v]),
            "paired": memorisation_test(canary[v], partner[v], seed=seed).to_dict(),
            "power": _share(rank_p[v] <= level),
            "null_power": _share(null_rank_p[v] <= level),
            "control_rank": {"canary": _share(control_p[v] <= level), "null": _share(null_control_p[v] <= level)},
            "sensitivity": {
                test: {
                    "canary": _share(tests[:, v, place] <= level),
                    "null": _share(null_tests[:, v, place] <= level),
                }
                for place, test in enumerate(_TESTS)
            },
            "controls": {},
        }
        half = len(pairs) // 2
        if half >= _LEAST_CONTROL_PAIRS:
            # The same label on both sides, models of different seeds, none of which saw the mark.
            first = among[pairs[:half], v, pairs[:half]]
            second = among[pairs[:half], v, pairs[half : 2 * half]]
            entry["controls"]["never_saw"] = memorisation_test(first, second, seed=seed).to_dict()
        if controls.shape[2]:
            entry["controls"]["other_marks"] = memorisation_test(
                controls[v].mean(axis=1), null_controls[v].mean(axis=1), seed=seed
            ).to_dict()
        variants[variant] = entry
    summary = {
        "regularise": name,
        "copies": marked.copies,
        "pairs": len(pairs),
        "train_accuracy": spread(np.concatenate([marked.accuracy[:, 0], null.accuracy[:, 0]])),
        "test_accuracy": spread(np.concatenate([marked.accuracy[:, 1], null.accuracy[:, 1]])),
        "variants": variants,
    }
    return Cell(summary, canary, partner, controls, rank_p, control_p, tests[:, :, 0].T)


def _group(job: Job, cohort: Cohort, rows: Sequence[Row], copies: int) -> _Group:
    chosen = [(member, row) for member, row in zip(cohort.members, rows, strict=True) if member.copies == copies]
    return _Group(
        scores=np.stack([row.scores for _, row in chosen]),
        sensitivity=np.stack([row.sensitivity for _, row in chosen]),
        accuracy=np.stack([row.accuracy for _, row in chosen]),
        label=np.array([_label(job, member.canary) for member, _ in chosen]),
        copies=copies,
    )


def _label(job: Job, canary: int) -> int:
    """The place of a canary's label among the job's."""
    return job.labels.index(int(job.y[job.marks[canary, 0]])) if job.marks.size else 0


def _control_ranks(scores: np.ndarray, controls: np.ndarray) -> np.ndarray:
    """Rank p-values [V, P] of scores [V, P] among the control marks of the same model [V, P, G]."""
    count = controls.shape[2]
    if count == 0:
        return np.full(scores.shape, np.nan)
    return (1 + (controls >= scores[..., None]).sum(axis=2)) / (count + 1)


def _share(found: np.ndarray) -> dict[str, float]:
    """A share with its exact 95% interval."""
    k, n = int(found.sum()), len(found)
    low, high = clopper_pearson(k, n)
    return {"share": k / n, "k": k, "n": n, "low": float(low), "high": float(high)}

"""One membership attack, evaluated: its numbers, its two controls, and what each record's score says.

The controls are the same attack where there is nothing to find: with the membership mask permuted over the records
(*shuffled*), and on models that never saw the pool, with a mask that had no effect (*never saw*). The second also
catches an attack that reads membership off the design instead of off the models.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmem.attacks import Attack, make_attack
from fastmem.engine import Engine, Plan, Task
from fastmem.metrics import AuditMetrics, Roc, audit_metrics, log_mia_over_targets
from fastmem.signals import Signals, stored_groups

__all__ = ["Outcome", "Tables", "evaluate", "evaluate_stored", "open_tables"]

_ROC_POINTS = 400
_HISTOGRAM_BINS = 60
_HISTOGRAM_QUANTILES = 200

# A level is resolved by a population that has ten records above its threshold, and 0.1% is what audits report.
_RECORDS_A_LEVEL = 10
_FINEST_LEVEL = 0.001


@dataclass(frozen=True, eq=False)
class Tables:
    """What the attacks read.

    Args:
        pool: The records under attack, in models that trained on halves of them.
        population: Records that none of these models trained on.
        null: The same records in models that never saw them, with a mask that means nothing.
        null_population: The population in those models.
    """

    pool: Signals
    population: Signals | None = None
    null: Signals | None = None
    null_population: Signals | None = None

    @classmethod
    def of(cls, groups: Mapping[str, Signals]) -> Tables:
        """The tables by the groups of a store: "" (the pool), "population", "null", "null/population"."""
        return cls(**{group.replace("/", "_") or "pool": signals for group, signals in groups.items()})


@dataclass(frozen=True, eq=False)
class Outcome:
    """One attack's results, reduced to what is shown.

    Args:
        key: The attack.
        entry: Its entry in ``summary.json``.
        arrays: Its curves and histograms for the report.
        mean_in: Mean score of each record over the targets that trained on it [N]; NaN where none did.
        mean_out: The same over the other targets [N].
        found: Share of the targets that trained on a record in which the attack names it at 1% FPR [N].
        rank_std: Standard deviation of a record's place among all, over the targets that trained on it [N].
    """

    key: str
    entry: dict[str, Any]
    arrays: dict[str, np.ndarray]
    mean_in: np.ndarray
    mean_out: np.ndarray
    found: np.ndarray
    rank_std: np.ndarray


def evaluate(attack: Attack, tables: Tables, targets: Sequence[int], seed: int) -> Outcome:
    """Runs an attack and its controls.

    Args:
        attack: The attack.
        tables: What it reads.
        targets: The models under attack.
        seed: Of the permutation and the bootstrap.

    Raises:
        InputError: If the attack cannot work with these tables.
    """
    start = time.perf_counter()
    result = attack.run(tables.pool, targets, tables.population if attack.needs_population else None)
    members = tables.pool.keep[list(targets)]
    metrics = audit_metrics(result.scores, members, seed=seed)
    controls, control_arrays = _controls(attack, tables, targets, seed)
    numbers = {**metrics.to_dict(), "log_mia": log_mia_over_targets(result.scores, members)}
    ties = _mark_tied_levels(numbers["tpr_at_fpr"], metrics.pooled.roc)
    entry = {
        "title": attack.title,
        "options": attack.options,
        **numbers,
        "controls": controls,
        "details": result.details,
        "seconds": time.perf_counter() - start,
        "warnings": [*result.warnings, *ties, *_coarse_population(attack, tables)],
    }
    key = attack.key
    arrays = {
        **_curve(f"roc_{key}", metrics.pooled.roc),
        **_histogram(f"hist_{key}", result.scores, members),
        **control_arrays,
    }
    return Outcome(key, entry, arrays, **_by_record(result.scores, members, metrics))


def open_tables(store: str) -> Tables:
    """The tables of a signals store; their rows are read, and verified, when an attack asks for them."""
    return Tables.of({group: Signals.open(store, group) for group in stored_groups(store)})


def evaluate_stored(
    store: str, keys: Sequence[str], targets: Sequence[int], seed: int, engine: Engine
) -> Iterator[Outcome]:
    """Evaluates several attacks on a signals store, each a task of its own.

    Yields:
        The outcomes, as they are ready.
    """
    yield from engine.run(Plan(_evaluate_task, (store, targets, seed), tuple(map(Task, keys))))


def _evaluate_task(shared: tuple[str, Sequence[int], int], task: Task) -> Outcome:
    store, targets, seed = shared
    return evaluate(make_attack(task.group), open_tables(store), targets, seed)


def _controls(
    attack: Attack, tables: Tables, targets: Sequence[int], seed: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    pool = tables.pool
    order = np.random.default_rng([seed, 2]).permutation(pool.num_samples)
    runs = {"shuffled": (pool.with_keep(pool.keep[:, order]), tables.population, list(targets))}
    if tables.null is not None:
        runs["never_saw"] = (tables.null, tables.null_population, list(range(tables.null.num_models)))
    entries, arrays = {}, {}
    for name, (signals, population, rows) in runs.items():
        scores = attack(signals, rows, population if attack.needs_population else None)
        metrics = audit_metrics(scores, signals.keep[rows], seed=seed)
        entries[name] = {**metrics.to_dict(), "log_mia": log_mia_over_targets(scores, signals.keep[rows])}
        arrays |= _curve(f"roc_{attack.key}__{name}", metrics.pooled.roc)
    return entries, arrays


def _mark_tied_levels(levels: dict[str, Any], curve: Roc) -> list[str]:
    """Marks the levels that the scores cannot tell apart from none, and says so.

    Where the highest score is shared by more non-members than a level admits, nobody can be named at that level. A TPR
    of 0 there is a property of the scores' steps, not of the model.
    """
    tied = float(curve.fpr[1])
    lost = {name: value for name, value in levels.items() if value["resolvable"] and float(name) < tied}
    for value in lost.values():
        value["resolvable"] = False
        value["unresolved"] = f"{tied:.2g} of the non-members share the highest score"
    if not lost:
        return []
    return [
        f"{tied:.2%} of the non-members share the highest score with {curve.tpr[1]:.1%} of the members, so false positive "
        f"rates below that cannot be resolved (asked for: {', '.join(f'{float(name):.3g}' for name in lost)}); a TPR of 0 "
        "there says nothing of the model"
    ]


def _coarse_population(attack: Attack, tables: Tables) -> list[str]:
    """What a small population means for an attack whose scores are shares of it."""
    if not attack.needs_population or tables.population is None:
        return []
    size = tables.population.num_samples
    if size * _FINEST_LEVEL >= _RECORDS_A_LEVEL:
        return []
    return [
        f"its scores are shares of a population of {size} records: within a target they resolve false positive rates from "
        f"about {_RECORDS_A_LEVEL / size:.2g} up, and {_FINEST_LEVEL:.1%} needs {round(_RECORDS_A_LEVEL / _FINEST_LEVEL)} "
        "records (--population)"
    ]


def _by_record(scores: np.ndarray, members: np.ndarray, metrics: AuditMetrics) -> dict[str, np.ndarray]:
    threshold = metrics.pooled.tpr_at_fpr[0.01].threshold
    places = scores.argsort(axis=1).argsort(axis=1).astype(np.float64)
    mean_place = _mean(places, members)
    return {
        "mean_in": _mean(scores, members),
        "mean_out": _mean(scores, ~members),
        "found": _mean((scores >= threshold).astype(np.float64), members),
        "rank_std": np.sqrt(_mean((places - mean_place) ** 2, members)),
    }


def _mean(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean over targets of the entries chosen by ``where``, NaN where there is none."""
    count = where.sum(axis=0)
    total = np.where(where, values, 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)


def _curve(name: str, curve: Roc) -> dict[str, np.ndarray]:
    """A step curve thinned where no eye, on linear or logarithmic axes, would see it."""
    last = len(curve.fpr) - 1
    if last > _ROC_POINTS:
        share = _ROC_POINTS // 4
        rising = np.geomspace(1, last, share)
        wanted = [
            np.linspace(0, last, share),
            rising,
            last - rising,
            # The left end of the logarithmic plot: a point for each step of the FPR, where the TPR is largest.
            np.searchsorted(curve.fpr, np.geomspace(1 / curve.n_out, 1, share), side="right") - 1,
        ]
        points = np.unique(np.concatenate([[0, last], *wanted]).astype(np.int64))
    else:
        points = np.arange(last + 1)
    return {f"{name}_fpr": curve.fpr[points], f"{name}_tpr": curve.tpr[points]}


def _histogram(name: str, scores: np.ndarray, members: np.ndarray) -> dict[str, np.ndarray]:
    """Counts in bins that are fine where the scores are: even ones, cut again at the quantiles of all scores."""
    finite = scores[np.isfinite(scores)] if np.isfinite(scores).any() else np.zeros(1)
    low, high = finite.min(), finite.max()
    even = np.linspace(low, high if high > low else low + 1.0, _HISTOGRAM_BINS + 1)
    edges = np.unique(np.concatenate([even, np.quantile(finite, np.linspace(0, 1, _HISTOGRAM_QUANTILES + 1))]))
    # Infinite scores are counted in the outermost bins.
    inside = np.clip(scores, edges[0], edges[-1])
    return {
        f"{name}_edges": edges,
        f"{name}_in": np.histogram(inside[members], edges)[0],
        f"{name}_out": np.histogram(inside[~members], edges)[0],
    }

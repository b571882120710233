"""One calibration, evaluated: every attack in every direction on every set, with its nulls.

Intervals of a figure over several targets run from the lowest to the highest end of the targets' own 95% intervals
(Clopper-Pearson for rates, DeLong for areas), so they cover both the records' and the models' share of chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import log_softmax

from fastmem.engine import Task
from fastmem.metrics import TrustMetrics, clopper_pearson, membership_metrics, reliability, trust_metrics
from fastmem.metrics.intervals import mean_interval
from fastmem.studies.trust.calibrated import calibrated_logits, probabilities
from fastmem.studies.trust.config import CALIBRATIONS, TrustConfig
from fastmem.studies.trust.directions import Direction, make_direction
from fastmem.studies.trust.job import Job
from fastmem.studies.trust.scores import ATTACKS, PUBLISHED, Scored, scored

__all__ = ["Evaluation", "Outcome", "evaluate", "log_odds"]

LEVELS = (0.001, 0.01)
_HISTOGRAM_BINS = 60
_N_BINS = 15


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What the evaluation of every calibration shares."""

    job: Job
    config: TrustConfig
    attacks: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Outcome:
    """One calibration's results.

    Args:
        key: The calibration.
        entry: Its entry in ``summary.json``.
        arrays: Its curves and histograms for the report.
    """

    key: str
    entry: dict[str, Any]
    arrays: dict[str, np.ndarray]


def evaluate(shared: Evaluation, task: Task) -> Outcome:
    """Evaluates the calibration that the task names."""
    job, config, key = shared.job, shared.config, task.group
    logits, fitted = calibrated_logits(job, config, key)
    directions = [make_direction(job, target, config.attack_size, config.seed) for target in range(config.targets or 0)]
    attacks = {attack: _attack(attack, job, directions, logits, config.seed) for attack in shared.attacks}
    calibration, arrays = _calibration(job, logits, directions)
    entry = {
        "title": _title(key, config),
        **fitted,
        **calibration,
        "attacks": attacks,
    }
    return Outcome(key, entry, {f"{name}__{key}": value for name, value in arrays.items()})


def log_odds(logits: np.ndarray) -> np.ndarray:
    """How sure a model is, ``log p - log(1 - p)`` of its largest probability: it does not saturate. float64 [n]."""
    log_p = -np.sort(-log_softmax(logits.astype(np.float64), axis=1), axis=1)
    return log_p[:, 0] - np.logaddexp.reduce(log_p[:, 1:], axis=1)


def _title(key: str, config: TrustConfig) -> str:
    detail = {
        "label_smoothing": f" {config.smoothing:g}",
        "weight_decay": f" {config.decay:g}",
        "temperature": f" {config.temperature:g}",
        "ensemble": f" of {config.ensemble_size}",
    }
    return CALIBRATIONS[key] + detail.get(key, "")


def _attack(key: str, job: Job, directions: Sequence[Direction], logits: np.ndarray, seed: int) -> dict[str, Any]:
    runs = [scored(key, job, direction, logits) for direction in directions]
    by_set: dict[str, list[TrustMetrics]] = {name: [] for name in directions[0].sets}
    for direction, run in zip(directions, runs, strict=True):
        sure = {name: _sure(logits, direction.target, rows) for name, rows in direction.sets.items()}
        sure_in = _sure(logits, direction.target, direction.members)
        for name, scores in run.sets.items():
            by_set[name].append(trust_metrics(run.rule, run.members, scores, sure_in, sure[name]))
    original = [_membership(run.members, run.sets["test"]) for run in runs]
    return {
        "title": ATTACKS[key],
        "published": key in PUBLISHED,
        "rules": [{"threshold": run.rule.threshold, "strict": run.rule.strict} for run in runs],
        "recall": _over([_rate(metrics.recall) for metrics in by_set["test"]]),
        "recall_with_ties": _over([_rate(metrics.recall_with_ties) for metrics in by_set["test"]]),
        "original": [metrics.to_dict() for metrics in original],
        "sets": {name: _set(metrics) for name, metrics in by_set.items()},
        "swap": _swap(by_set),
        "controls": {
            "never_saw": [_area(*run.unseen) for run in runs],
            "shuffled": [_shuffled(run, seed) for run in runs],
        },
    }


def _sure(logits: np.ndarray, model: int, rows: np.ndarray) -> np.ndarray:
    return probabilities(logits[model, rows]).max(axis=1)


def _membership(members: np.ndarray, others: np.ndarray) -> Any:
    both = np.concatenate([members, others])
    return membership_metrics(both, np.arange(len(both)) < len(members), levels=LEVELS)


def _area(members: np.ndarray, others: np.ndarray) -> dict[str, float]:
    metrics = _membership(members, others)
    return {"auc": metrics.auc, "auc_low": metrics.auc_low, "auc_high": metrics.auc_high}


def _shuffled(run: Scored, seed: int) -> dict[str, float]:
    both = np.concatenate([run.members, run.sets["test"]])
    mixed = np.random.default_rng([seed, 23]).permutation(both)
    return _area(mixed[: len(run.members)], mixed[len(run.members) :])


def _rate(rate: Any) -> tuple[float, float, float]:
    return rate.value, rate.low, rate.high


def _over(values: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    """A figure over targets: mean, interval, and each target's own."""
    array = np.array(values, np.float64)
    return {
        "mean": float(array[:, 0].mean()),
        "low": float(array[:, 1].min()),
        "high": float(array[:, 2].max()),
        "values": array[:, 0].tolist(),
    }


def _set(metrics: Sequence[TrustMetrics]) -> dict[str, Any]:
    first = metrics[0]
    return {
        "n_in": first.recall.n,
        "n_out": first.fpr.n,
        "fpr": _over([_rate(one.fpr) for one in metrics]),
        "auc": _over([(one.auc, one.auc_low, one.auc_high) for one in metrics]),
        "precision": _over([_rate(one.precision) for one in metrics]),
        "precision_at": {
            f"{prior:g}": float(np.mean([one.precision_at[prior] for one in metrics])) for prior in first.precision_at
        },
        # A group that is empty in some targets has the mean of the others, and null where all are.
        "mmps": {group: _mean([one.mmps[group] for one in metrics]) for group in first.mmps},
        "saturated_in": [one.saturated_in for one in metrics],
        "saturated_out": [one.saturated_out for one in metrics],
        "tied": float(np.mean([one.tied for one in metrics])),
    }


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def _swap(by_set: dict[str, list[TrustMetrics]]) -> dict[str, dict[str, Any]]:
    """What changes when target and shadow model change places.

    Two models differ by more than their records' chance, so where there are several pairs it is their mean difference
    that must be 0 within its interval over pairs.

    Returns:
        By set and figure: the difference in each pair, whether the 95% interval over its records holds 0, and the mean over
        pairs with its interval (NaN for one pair).
    """
    out = {}
    for name, metrics in by_set.items():
        pairs = list(zip(metrics[::2], metrics[1::2], strict=True))
        auc = [(a.auc - b.auc, _half(a.auc_low, a.auc_high), _half(b.auc_low, b.auc_high)) for a, b in pairs]
        fpr = [
            (a.fpr.value - b.fpr.value, _half(a.fpr.low, a.fpr.high), _half(b.fpr.low, b.fpr.high)) for a, b in pairs
        ]
        out[name] = {
            figure: {
                "differences": [difference for difference, *_ in values],
                "inside": [abs(difference) <= np.hypot(one, other) for difference, one, other in values],
                "over_pairs": vars(mean_interval([difference for difference, *_ in values])),
            }
            for figure, values in (("auc", auc), ("fpr", fpr))
        }
    return out


def _half(low: float, high: float) -> float:
    return (high - low) / 2


def _calibration(
    job: Job, logits: np.ndarray, directions: Sequence[Direction]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Accuracy and calibration of the targets (each is a shadow model too), and what the report draws of the first."""
    test = job.places["test"]
    y, models = job.labels[test], [direction.target for direction in directions]
    bins = [reliability(probabilities(logits[model, test]), y, _N_BINS) for model in models]
    right = [logits[model, test].argmax(axis=1) == y for model in models]
    own = [np.flatnonzero(job.train[model]) for model in models]
    train = [
        (logits[model, rows].argmax(axis=1) == job.labels[rows]).mean() for model, rows in zip(models, own, strict=True)
    ]
    loss = [-log_softmax(logits[model, test].astype(np.float64), 1)[np.arange(len(y)), y].mean() for model in models]
    entry = {
        "train_accuracy": _plain(train),
        "test_accuracy": _over([_share(values) for values in right]),
        "test_loss": _plain(loss),
        "ece": _plain([one.expected_calibration_error for one in bins]),
        "overconfidence": _plain([one.overconfidence_error for one in bins]),
    }
    first = bins[0]
    arrays = {"bin_count": first.count, "bin_confidence": first.confidence, "bin_accuracy": first.accuracy}
    return entry, arrays | _histograms(logits, directions[0])


def _share(right: np.ndarray) -> tuple[float, float, float]:
    low, high = clopper_pearson(int(right.sum()), len(right))
    return float(right.mean()), float(low), float(high)


def _plain(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": float(np.mean(values)), "values": [float(value) for value in values]}


def _histograms(logits: np.ndarray, direction: Direction) -> dict[str, np.ndarray]:
    """Counts of the log-odds of the largest probability, in the same bins for members and every set."""
    sure = {
        name: log_odds(logits[direction.target, rows])
        for name, rows in {"members": direction.members, **direction.sets}.items()
    }
    known = np.concatenate([sure["members"], sure["test"]])
    # Scaled inputs are sure beyond all measure: they are counted in the last bin.
    edges = np.linspace(min(known.min(), 0.0), 1.5 * max(np.quantile(known, 0.99), 1.0), _HISTOGRAM_BINS + 1)
    counts = {
        f"hist_{name}": np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] for name, values in sure.items()
    }
    return {"hist_edges": edges, **counts}

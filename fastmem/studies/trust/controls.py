"""Where there is nothing to find: an untrained target, asked the same; and which mistakes attacks share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fastmem.data.shifts import permute_pixels
from fastmem.metrics import Rate, membership_metrics, trust_metrics
from fastmem.studies.trust.calibrated import probabilities
from fastmem.studies.trust.directions import Direction
from fastmem.studies.trust.job import Job
from fastmem.studies.trust.scores import Scored
from fastmem.studies.trust.sets import Records
from fastmem.studies.trust.task import answers, build

__all__ = ["agreement", "untrained"]

_SHIFTED = ("test", "permuted", "scaled", "unnormalised")


def untrained(job: Job, direction: Direction, runs: dict[str, Scored], seed: int) -> dict[str, Any]:
    """The published attacks on a network with initial weights.

    Against the test records it must be at chance. Against the other sets its AUC says how far the network's answers
    alone tell the inputs apart: no membership is in it, so that is what a trained target's AUC there must be read
    against. Members and test records that are shifted alike must be at chance again.

    Args:
        job: The job.
        direction: Whose records are asked about.
        runs: Attacks with a fitted rule, by key.
        seed: Of the initial weights and of the permutation.

    Returns:
        ``sets``: by attack and set AUC and FPR; ``alike``: AUC by kind of shift.
    """
    network = build(job, seed + 1).to(job.device)
    p = probabilities(answers(job, network, "untrained", 0)[:, 0])
    entry: dict[str, Any] = {"sets": {}, "alike": {}}
    for key, run in runs.items():
        fitted = run.fitted
        if fitted is None or key == "max_prob_float64":
            continue
        members = fitted.score(p[direction.members])
        entry["sets"][key] = {}
        for name, rows in direction.sets.items():
            sure = p[direction.members].max(axis=1), p[rows].max(axis=1)
            metrics = trust_metrics(run.rule, members, fitted.score(p[rows]), *sure)
            entry["sets"][key][name] = {
                "auc": metrics.auc,
                "auc_low": metrics.auc_low,
                "auc_high": metrics.auc_high,
                "fpr": metrics.fpr.value,
                "recall": metrics.recall.value,
            }
    shifts = {records.name: records.view for records in job.asked if records.name in _SHIFTED}
    x = job.x[direction.members]
    for name, view in shifts.items():
        shown = permute_pixels(torch.from_numpy(np.array(x)), seed + 5).numpy() if name == "permuted" else x
        asked = (Records(name, name, "", shown, None, view),)
        sure = probabilities(answers(replace(job, asked=asked), network, "untrained", 0)[:, 0]).max(axis=1)
        other = p[direction.sets[name]].max(axis=1)
        both = np.concatenate([sure, other])
        area = membership_metrics(both, np.arange(len(both)) < len(sure), levels=(0.01,))
        entry["alike"][name] = {"auc": area.auc, "auc_low": area.auc_low, "auc_high": area.auc_high}
    return entry


def agreement(runs: dict[str, Scored]) -> dict[str, dict[str, Any]]:
    """Do the attacks make the same mistakes?

    Returns:
        By set: of the false members of the first attack, the share that each other one accuses too.
    """
    first, *others = runs
    called = {key: {name: run.rule(scores) for name, scores in run.sets.items()} for key, run in runs.items()}
    out: dict[str, dict[str, Any]] = {}
    for name, false in called[first].items():
        both = {key: int((called[key][name] & false).sum()) for key in others}
        rates = {key: Rate.of(count, int(false.sum())) for key, count in both.items()}
        out[name] = {
            "false_members": int(false.sum()),
            "shared": {key: {"value": rate.value, "low": rate.low, "high": rate.high} for key, rate in rates.items()},
        }
    return out

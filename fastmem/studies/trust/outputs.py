"""What a trust study leaves in its folder: summary.json, scores.csv and the report's arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmem.attacks import FalseMembers
from fastmem.studies.results import summary_of, write_arrays, write_scores, write_summary
from fastmem.studies.trust.answer import answer_sentence, trust_warnings
from fastmem.studies.trust.controls import agreement, untrained
from fastmem.studies.trust.directions import Direction
from fastmem.studies.trust.evaluate import Outcome, log_odds
from fastmem.studies.trust.job import Job
from fastmem.studies.trust.plan import TrustPlan
from fastmem.studies.trust.scores import Scored
from fastmem.training.gan import TrainedGan

__all__ = ["Findings", "write_trust_results"]

_PICTURES = 12


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that was found.

    Args:
        outcomes: A result per calibration, ``none`` first.
        logits: What the uncalibrated models say [M, R, C].
        direction: The first direction.
        runs: Its attacks on the uncalibrated target.
        gan: The generator, where one was trained.
        stream: The false members that were drawn.
    """

    outcomes: Sequence[Outcome]
    logits: np.ndarray
    direction: Direction
    runs: dict[str, Scored]
    gan: TrainedGan | None
    stream: FalseMembers | None


def write_trust_results(plan: TrustPlan, findings: Findings, stages: dict[str, float]) -> dict[str, Any]:
    """Writes the results; returns the summary."""
    folder, job, config = plan.config.run_dir, plan.job, plan.config
    calibrations = {outcome.key: outcome.entry for outcome in findings.outcomes}
    sets = {
        records.name: {"title": records.title, "kind": records.kind, "records": len(records.x)}
        for records in job.asked
        if records.name not in ("pool", "held_out")
    }
    control = untrained(job, findings.direction, findings.runs, config.seed)
    stream = _stream_entry(findings.stream)
    summary = {
        "answer": answer_sentence(calibrations, sets, stream),
        "data": {
            "name": plan.dataset.name,
            "fingerprint": plan.dataset.fingerprint(),
            "pool": config.pool,
            "test": config.test,
            "held_out": config.held_out,
            "num_classes": plan.dataset.num_classes,
            "input_shape": list(plan.dataset.input_shape),
            "class_names": list(plan.dataset.class_names or ()),
        },
        "design": {
            "kind": "paired",
            "num_models": config.num_models,
            "targets": config.targets,
            "attack_size": config.attack_size,
        },
        "models": {"name": config.model, "parameters": plan.parameters, "trained": len(job.cohorts) * len(job.train)},
        "sets": sets,
        # What every study with membership attacks states: the first target, against the test records.
        "attacks": {
            key: {"title": entry["title"], **entry["original"][0]}
            for key, entry in calibrations["none"]["attacks"].items()
        },
        "calibrations": calibrations,
        "untrained": control,
        "agreement": agreement(findings.runs),
        "stream": stream,
        "generator": _generator_entry(plan, findings.gan),
        "stages": stages,
        "warnings": trust_warnings(calibrations, control, config),
    }
    write_scores(folder, _score_columns(plan, findings))
    arrays = _pictures(job, findings) | _grids(findings)
    for outcome in findings.outcomes:
        arrays |= outcome.arrays
    write_arrays(folder, arrays)
    whole = summary_of("trust", config, summary)
    write_summary(folder, whole)
    return whole


def _stream_entry(stream: FalseMembers | None) -> dict[str, Any] | None:
    if stream is None:
        return None
    names = ("wanted", "found", "drawn", "rate", "low", "high", "seconds")
    return {name: getattr(stream, name) for name in names}


def _generator_entry(plan: TrustPlan, gan: TrainedGan | None) -> dict[str, Any] | None:
    if not plan.has_fakes:
        return None
    if gan is None:
        return {"source": plan.config.generator}
    tail = gan.history[-min(100, len(gan.history)) :].mean(dim=0).tolist()
    return {
        "source": "dcgan",
        "steps": gan.step,
        "records": plan.config.held_out,
        "loss_discriminator": tail[0],
        "loss_generator": tail[1],
        "grid_steps": list(gan.grid_steps),
    }


def _score_columns(plan: TrustPlan, findings: Findings) -> dict[str, np.ndarray]:
    """A row per record that the first target's attacker asks about: where it is from, its scores, who calls it."""
    direction, job = findings.direction, plan.job
    places = job.places
    groups = {"member": direction.members, **direction.sets}
    index = {"member": plan.split.pool_index[direction.members]}
    for name, rows in direction.sets.items():
        offset = rows - places[name].start
        records = next(part for part in job.asked if part.name == name)
        index[name] = plan.split.test_index[offset] if records.halves else offset
    columns = {
        "set": np.array([name for name, rows in groups.items() for _ in rows]),
        "record": np.concatenate(list(index.values())),
        "answer": np.concatenate([findings.logits[0, rows].argmax(axis=1) for rows in groups.values()]),
    }
    for key, run in findings.runs.items():
        scores = np.concatenate([run.members, *run.sets.values()])
        columns[key], columns[f"{key}_calls"] = scores, run.rule(scores).astype(np.int64)
    return columns


def _pictures(job: Job, findings: Findings) -> dict[str, np.ndarray]:
    """The most confident false members of each set, by log-odds, where the records are images."""
    arrays: dict[str, np.ndarray] = {}
    if job.x.ndim != 4:
        return arrays
    run = findings.runs["max_prob"]
    for name, rows in findings.direction.sets.items():
        said = findings.logits[0, rows]
        sure = log_odds(said)
        false = np.flatnonzero(run.rule(run.sets[name]))
        first = false[np.argsort(-sure[false], kind="stable")[:_PICTURES]]
        records = next(part for part in job.asked if part.name == name)
        if not len(first):
            continue
        arrays |= {
            f"false_picture__{name}": records.x[rows[first] - job.places[name].start],
            f"false_log_odds__{name}": sure[first],
            f"false_answer__{name}": said[first].argmax(axis=1),
        }
    return arrays


def _grids(findings: Findings) -> dict[str, np.ndarray]:
    if findings.gan is None:
        return {}
    return {"gan_grids": findings.gan.grids.numpy(), "gan_history": findings.gan.history.numpy()}

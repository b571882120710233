"""What a rewinding study leaves in its folder: summary.json, scores.csv and the report's arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastmem.errors import StoreError
from fastmem.studies.results import spread, summary_of, write_arrays, write_scores, write_summary
from fastmem.studies.rewind.answer import answer_sentence, headline_attack, ordering, rewind_warnings
from fastmem.studies.rewind.entangle import read_entanglement
from fastmem.studies.rewind.evaluate import ArmOutcome, difference
from fastmem.studies.rewind.plan import RewindPlan
from fastmem.studies.rewind.task import DELIVERED

__all__ = ["write_rewind_results"]


def write_rewind_results(plan: RewindPlan, found: Sequence[ArmOutcome], stages: dict[str, float]) -> dict[str, Any]:
    """Writes the results; returns the summary."""
    folder, job, config = plan.config.run_dir, plan.job, plan.config
    outcomes = {outcome.key: outcome for outcome in found}
    claims = ordering(outcomes, config)
    compared, arrays = _entanglement(plan)
    base = outcomes["none"]
    for outcome in found:
        outcome.entry["against_none"] = {
            "test_accuracy": difference(outcome.accuracy, base.accuracy),
            "auc": {key: difference(auc, base.auc[key]) for key, auc in outcome.auc.items()},
        }
        for one in outcome.outcomes:
            arrays |= {f"{name}@{outcome.key}": value for name, value in one.arrays.items() if name.startswith("roc_")}
    summary = {
        "answer": answer_sentence(outcomes, claims),
        "data": {
            "name": plan.dataset.name,
            "fingerprint": plan.dataset.fingerprint(),
            **{name: len(rows) for name, rows in plan.index.items()},
            "num_classes": plan.dataset.num_classes,
            "input_shape": list(plan.dataset.input_shape),
        },
        "design": {"kind": "rank", "num_models": job.num_models, "targets": len(job.targets)},
        "models": {
            "name": config.model,
            "parameters": plan.parameters,
            "eligible": plan.eligible,
            "initial": "seeds of this run" if job.given is None else job.given.source,
        },
        "headline": headline_attack(base.auc),
        "attacks": base.entry["attacks"],
        "arms": {outcome.key: outcome.entry for outcome in found},
        "ordering": claims,
        "entanglement": compared,
        "repaired": None if job.given is None else DELIVERED,
        "stages": stages,
        "warnings": rewind_warnings(outcomes, config, None if job.given is None else job.given.source, job.num_classes),
    }
    write_scores(folder, _score_columns(plan, found))
    write_arrays(folder, arrays)
    whole = summary_of("rewind", config, summary)
    write_summary(folder, whole)
    return whole


def _entanglement(plan: RewindPlan) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Figures over the compared models, and the arrays of their means."""
    job = plan.job
    saved = [read_entanglement(job.entanglement(row), key) for row, key in enumerate(job.entangle_keys)]
    whole = [one for one in saved if one is not None]
    if len(whole) < len(saved):
        raise StoreError(str(job.entanglement(0).parent), "was changed during the run", "run the same command again")
    first = whole[0][0]
    pairs = {
        pair: {
            kind: {name: _over([found["pairs"][pair][kind][name] for found, _ in whole]) for name in figures}
            for kind, figures in kinds.items()
        }
        for pair, kinds in first["pairs"].items()
    }
    mass = {
        score: {top: _over([found["mass"][score][top] for found, _ in whole]) for top in tops}
        for score, tops in first["mass"].items()
    }
    names = [name for name in whole[0][1] if name.startswith("share_")]
    arrays = {name: np.mean([own[name] for _, own in whole], axis=0) for name in names}
    arrays |= {name: whole[0][1][name] for name in ("cloud", "cloud_x", "cloud_y")}
    return {"models": len(whole), "pairs": pairs, "mass": mass, "layers": first["layers"]}, arrays


def _over(values: list[float | None]) -> dict[str, float]:
    known = np.array([np.nan if value is None else value for value in values], np.float64)
    return spread(known)


def _score_columns(plan: RewindPlan, found: Sequence[ArmOutcome]) -> dict[str, np.ndarray]:
    """A row per record of the pool: its mean scores under the headline attack, by arm, most exposed first."""
    job = plan.job
    key = headline_attack(found[0].auc)
    runs = {outcome.key: next(one for one in outcome.outcomes if one.key == key) for outcome in found}
    columns: dict[str, np.ndarray] = {"record": plan.index["pool"], "label": job.y[: job.pool]}
    for arm, one in runs.items():
        columns[f"{arm}_in"], columns[f"{arm}_out"] = one.mean_in, one.mean_out
    order = np.argsort(-np.nan_to_num(runs["none"].mean_in, nan=-np.inf), kind="stable")
    return {name: column[order] for name, column in columns.items()}

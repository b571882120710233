"""The canary study itself: train and score what is missing, test, and write the results.

A second call with the same config trains nothing: every file carries the hash of all that decided it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastmem.attacks.unique_feature import ask
from fastmem.engine import Engine, Plan, RunFolder, make_tasks, open_engine
from fastmem.errors import FastmemError, InputError, StoreError
from fastmem.imports import import_object
from fastmem.metrics import Answers
from fastmem.report.canary import write_canary_report
from fastmem.studies.canary.answer import HEADLINE_RULE, answer_sentence, headline_variant, own_sentence
from fastmem.studies.canary.config import CanaryConfig
from fastmem.studies.canary.outcome import Cell, cells_of, own_entry, score_columns
from fastmem.studies.canary.plan import CanaryPlan, bytes_on_disk, make_plan
from fastmem.studies.canary.questions import answers_from, read_answers
from fastmem.studies.canary.store import FOLDERS, Row, load_row, missing_rows, sweep
from fastmem.studies.canary.task import answers_of, build, score, train_and_score, try_training
from fastmem.studies.interruption import StudyInterruptedError
from fastmem.studies.results import (
    OUTPUTS,
    spread,
    summary_of,
    write_arrays,
    write_config,
    write_scores,
    write_summary,
)
from fastmem.studies.terminal import Terminal
from fastmem.training import load_checkpoint, load_into

__all__ = ["CanaryResult", "run_canary"]

_ROUNDS = 2
_SHOWN_CANARIES, _SHOWN_IMAGES, _SHOWN_CONTROLS = 6, 4, 6


@dataclass(frozen=True)
class CanaryResult:
    """A finished canary study.

    Args:
        run_dir: Where its files are.
        summary: The content of ``summary.json``.
        trained: How many models this call had to train.
    """

    run_dir: Path
    summary: dict[str, Any]
    trained: int


def run_canary(config: CanaryConfig, fresh: bool = False, terminal: Terminal | None = None) -> CanaryResult:
    """Runs a canary study, or what is left of it, and writes its folder.

    Args:
        config: What to do.
        fresh: Start over: forget what an earlier run left in the folder.
        terminal: Where progress is shown; by default nowhere.

    Returns:
        Where the results are, and the summary.

    Raises:
        InputError: If the config does not fit the data or the machine; nothing is written then.
        StoreError: If the folder is used by another process, damaged, full or cannot be written.
        StudyInterruptedError: After Ctrl-C.
    """
    terminal = terminal or Terminal(quiet=True)
    with terminal.stage("prepare", 1) as advance:
        plan = make_plan(config)
        own = _own_row(plan)
        try_training(plan.job)
        advance(1)
    folder = RunFolder(plan.config.run_dir)
    there = sum(path.stat().st_size for path in folder.path.rglob("*") if path.is_file()) if folder.path.is_dir() else 0
    folder.require_space(bytes_on_disk(plan) - there)
    # The engine first: what is refused here leaves no trace.
    with open_engine(config.engine, plan.workers, ray_address=config.ray_address) as engine, folder.locked():
        if fresh:
            folder.remove([*OUTPUTS, "config.yaml", *FOLDERS])
        trained, work = _fill(plan, folder, engine, terminal)
        summary = _write(plan, own, work, terminal)
    return CanaryResult(folder.path, summary, trained)


def _fill(plan: CanaryPlan, folder: RunFolder, engine: Engine, terminal: Terminal) -> tuple[int, Counter[str]]:
    """Trains and scores the models that are missing; how many were trained, and the seconds by kind of work."""
    if sweep(plan.job):
        terminal.say(f"{folder.path} held models of another canary study; they are replaced")
    missing = _missing(plan)
    if any(missing.values()):
        # The old results would stand beside models that they do not describe.
        folder.remove(OUTPUTS)
    write_config(folder.path, plan.config)
    total = plan.num_rows
    done, trained, work = total - _count(missing), 0, Counter[str]()
    if done:
        terminal.say(f"{done} of {total} models are already there")
    try:
        with terminal.stage("train and score", total, done) as advance:
            for _ in range(_ROUNDS):
                tasks = make_tasks(missing, engine.slots, plan.rows_per_task)
                for report in engine.run(Plan(train_and_score, plan.job, tasks)):
                    done, trained = done + report.rows, trained + report.trained
                    work.update(report.seconds)
                    advance(report.rows)
                # Read back: the tests are about to trust them.
                missing = _missing(plan)
                if not any(missing.values()):
                    return trained, work
    except KeyboardInterrupt as interrupt:
        raise StudyInterruptedError(f"{done} of {total} models are kept in {folder.path}") from interrupt
    raise StoreError(str(folder.path), f"{_count(missing)} files are damaged as soon as written", "check the disk")


def _missing(plan: CanaryPlan) -> dict[str, list[int]]:
    return {name: missing_rows(plan.job, cohort) for name, cohort in plan.job.cohorts.items()}


def _count(missing: dict[str, list[int]]) -> int:
    return sum(map(len, missing.values()))


def _own_row(plan: CanaryPlan) -> Row | None:
    """The scores of a model of the user's own, where there is one; asked first, since it may not answer."""
    config, job = plan.config, plan.job
    if config.black_box is not None:
        function = import_object("black_box", config.black_box)
        if not callable(function):
            raise InputError("black_box", f"{config.black_box} is a {type(function).__name__}", "name a function")
        images = torch.from_numpy(job.evaluation)
        marked = np.stack([ask(function, mark.apply(images), "black_box") for mark in job.features])
        clean, patched = (ask(function, torch.from_numpy(each), "black_box") for each in (job.evaluation, job.patched))
        if clean.shape[1] != job.num_classes:
            raise InputError(
                "black_box", f"answers {clean.shape[1]} classes", f"{plan.dataset.name} has {job.num_classes}"
            )
        answers = Answers.of(clean, marked, patched, from_logits=config.black_box_logits)
        return score(job, answers, (np.nan, np.nan))
    if config.answers is not None:
        saved = read_answers(config.answers, job)
        return score(job, answers_from(saved, config.black_box_logits), (np.nan, np.nan))
    if config.checkpoint is not None:
        network = build(job, next(iter(job.cohorts.values())).training, seed=0)
        state, _ = load_checkpoint(config.checkpoint)
        load_into(network, state, "checkpoint")
        network.to(job.device)
        try:
            return score(job, answers_of(job, network), (np.nan, np.nan))
        except InputError as error:
            raise FastmemError("checkpoint", error.problem, error.remedy) from error
    return None


def _write(plan: CanaryPlan, own: Row | None, work: Counter[str], terminal: Terminal) -> dict[str, Any]:
    config, job = plan.config, plan.job
    with terminal.stage("test", 1) as advance:
        rows = _rows(plan)
        cells = cells_of(job, rows, config.level, config.seed)
        variant = headline_variant(job.variants)
        settings = [cell.entry for cell in cells]
        if own is None:
            answer = answer_sentence(settings, variant, job.pool, config.level)
            found: dict[str, Any] = {"cells": settings}
        else:
            owned = own_entry(job, next(iter(rows.values())), own, config.level)
            answer = own_sentence(owned, variant, config.level)
            found = {"own": {"model": config.own_model, "variants": owned}}
        advance(1)
    with terminal.stage("report", 1) as advance:
        write_scores(config.run_dir, score_columns(job, rows, cells, plan.split.pool_index))
        write_arrays(config.run_dir, _arrays(plan, rows, cells, own))
        entries = {
            "answer": answer,
            "headline": {"variant": variant, "rule": HEADLINE_RULE, "level": config.level},
            **_about(plan, rows),
            **found,
            "stages": dict(terminal.seconds),
            "work": dict(work),
            "warnings": [],
        }
        summary = summary_of("canary", config, entries)
        write_summary(config.run_dir, summary)
        write_canary_report(config.run_dir)
        advance(1)
    return summary


def _rows(plan: CanaryPlan) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {}
    for name, cohort in plan.job.cohorts.items():
        loaded = [load_row(plan.job, cohort, member) for member in range(len(cohort.members))]
        rows[name] = [row for row in loaded if row is not None]
        if len(rows[name]) < len(loaded):
            raise StoreError(plan.job.folder, "scores vanished while they were read", "run the same command again")
    return rows


def _about(plan: CanaryPlan, rows: dict[str, list[Row]]) -> dict[str, Any]:
    config, job, feature = plan.config, plan.job, plan.feature
    accuracy = np.stack([row.accuracy for row in next(iter(rows.values()))])
    return {
        "data": {
            "name": plan.dataset.name,
            "fingerprint": plan.dataset.fingerprint(),
            "pool": job.pool,
            "held_out": len(job.held_out[0]),
            "validation": 0 if job.validation is None else len(job.validation[0]),
            "num_classes": job.num_classes,
            "input_shape": list(job.input_shape),
            "class_names": list(plan.dataset.class_names or ()),
        },
        "feature": {
            "name": feature.name,
            "size": list(feature.size),
            "offset": list(feature.offset),
            "mode": feature.mode,
            "ink": feature.ink,
            "controls": len(job.features) - 1,
        },
        "evaluation": {"name": plan.evaluation.name, "images": len(plan.evaluation.x)},
        "design": {
            "pairs": config.nulls,
            "canaries": len(job.marks) if job.marks.size else 0,
            "copies": list(config.copy_counts),
            "regularise": list(job.cohorts),
            "models": plan.num_rows,
            "records": plan.split.pool_index[job.marks[:, 0]].tolist() if job.marks.size else [],
        },
        "models": {
            "name": config.model,
            "parameters": plan.parameters,
            "train_accuracy": spread(accuracy[:, 0]),
            "test_accuracy": spread(accuracy[:, 1]),
        },
    }


def _arrays(plan: CanaryPlan, rows: dict[str, list[Row]], cells: list[Cell], own: Row | None) -> dict[str, np.ndarray]:
    """What the report draws: the scores [cells, V, P] and [cells, V, P, G], and pictures."""
    job, feature = plan.job, plan.feature
    shown = plan.evaluation.x[:_SHOWN_IMAGES]
    arrays = {
        "variants": np.array(job.variants),
        "feature_picture": _picture(feature.pattern),
        "control_pictures": np.stack([_picture(mark.pattern) for mark in job.features[1 : 1 + _SHOWN_CONTROLS]])
        if len(job.features) > 1
        else np.zeros((0, *feature.pattern.shape), np.uint8),
        "image_clean": shown.numpy(),
        "image_marked": feature.apply(shown).numpy(),
        "image_patched": job.patched[:_SHOWN_IMAGES],
    }
    if own is not None:
        null = np.stack([row.scores[:, 0, 0] for row in next(iter(rows.values()))], axis=1)
        return arrays | {"own_scores": own.scores[:, 0], "null_scores": null[None]}
    few = job.marks[:_SHOWN_CANARIES, 0]
    first = job.pool + np.arange(len(few)) * job.marks.shape[1]
    return arrays | {
        "canary_record": plan.split.pool_index[few],
        "canary_label": job.y[few],
        "canary_original": job.x[few],
        "canary_marked": job.x[first],
        "canary_scores": np.stack([cell.canary for cell in cells]),
        "null_scores": np.stack([cell.null for cell in cells]),
        "control_scores": np.stack([cell.controls for cell in cells]),
    }


def _picture(pattern: np.ndarray) -> np.ndarray:
    return np.rint(pattern * 255).astype(np.uint8)

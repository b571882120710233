"""The study itself: train and ask what is missing, attack in episodes, compare, and write the results.

A second call with the same config trains nothing: every model and every answer carries the hash of all that decided it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmem.attacks.membership.few_shot import METHODS, EpisodeScores, access
from fastmem.attacks.membership.few_shot.episodes import check_features
from fastmem.engine import Engine, Plan, RunFolder, Task, code_version, make_tasks, open_engine
from fastmem.errors import StoreError
from fastmem.report.few_shot import write_few_shot_report
from fastmem.signals import Signals
from fastmem.studies.few_shot.answer import HEADLINE_RULE, answer_sentence, few_shot_warnings, headline
from fastmem.studies.few_shot.cells import Bench, cell_tasks, finished_slice, run_cell, sliced_table
from fastmem.studies.few_shot.compare import Rival, evaluate_all, rival_tables, rivals, tables_of
from fastmem.studies.few_shot.config import FewShotConfig
from fastmem.studies.few_shot.plan import FewShotPlan, make_plan
from fastmem.studies.few_shot.slices import SLICE_CODE, sweep_slices
from fastmem.studies.few_shot.store import FOLDERS, Answers, load_answers, missing_rows, sweep
from fastmem.studies.few_shot.task import train_and_ask
from fastmem.studies.interruption import StudyInterruptedError
from fastmem.studies.membership import Outcome, Tables
from fastmem.studies.results import OUTPUTS, mask_counts, spread, write_config, write_results
from fastmem.studies.terminal import Terminal

__all__ = ["FewShotResult", "run_few_shot"]

_ROUNDS = 2
_PACK = 8
_OVERHEAD = 4 << 20  # the report and the tables
_VALUE_BYTES = 4


@dataclass(frozen=True)
class FewShotResult:
    """A finished study.

    Args:
        run_dir: Where its files are.
        summary: The content of ``summary.json``.
        trained: How many models this call had to train.
    """

    run_dir: Path
    summary: dict[str, Any]
    trained: int


def run_few_shot(config: FewShotConfig, fresh: bool = False, terminal: Terminal | None = None) -> FewShotResult:
    """Runs a few-shot study, or what is left of it, and writes its folder.

    Args:
        config: What to do.
        fresh: Start over: forget what an earlier run left in the folder.
        terminal: Where progress is shown; by default nowhere.

    Returns:
        Where the results are, and the summary.

    Raises:
        InputError: If the config does not fit the data, the files or the machine; nothing is written then.
        StoreError: If the folder is used by another process, damaged, full or cannot be written.
        StudyInterruptedError: After Ctrl-C.
    """
    terminal = terminal or Terminal(quiet=True)
    with terminal.stage("prepare", 1) as advance:
        plan = make_plan(config)
        advance(1)
    folder = RunFolder(plan.config.run_dir)
    folder.require_space(_OVERHEAD + _VALUE_BYTES * plan.parameters * plan.num_models)
    # The engine first: what is refused here leaves no trace.
    with open_engine(config.engine, plan.workers, ray_address=config.ray_address) as engine, folder.locked():
        if fresh:
            folder.remove([*OUTPUTS, "config.yaml", "signals.zarr", *FOLDERS])
        trained = _fill(plan, folder, engine, terminal)
        try:
            summary = _attack(plan, engine, terminal)
        except KeyboardInterrupt as interrupt:
            kept = "all models, and finished episodes of fine-tuning, are kept"
            raise StudyInterruptedError(f"{kept} in {folder.path}") from interrupt
    return FewShotResult(folder.path, summary, trained)


def _fill(plan: FewShotPlan, folder: RunFolder, engine: Engine, terminal: Terminal) -> int:
    """Trains and asks the models that are missing; returns how many were trained."""
    write_config(folder.path, plan.config)
    # The old results would stand beside others; they take seconds to make again.
    folder.remove(OUTPUTS)
    job = plan.job
    if job is None:
        return 0
    sweep(job)
    missing = missing_rows(job)
    total = plan.num_models
    done, trained = total - sum(map(len, missing.values())), 0
    if done:
        terminal.say(f"{done} of {total} models are already there")
    pack = 1 if job.language is not None else _PACK
    try:
        with terminal.stage("train and ask", total, done) as advance:
            for _ in range(_ROUNDS):
                tasks = make_tasks(missing, engine.slots, pack)
                for asked, new in engine.run(Plan(train_and_ask, job, tasks)):
                    done, trained = done + asked, trained + new
                    advance(asked)
                # Read back: the attacks are about to trust them.
                missing = missing_rows(job)
                if not any(missing.values()):
                    return trained
    except KeyboardInterrupt as interrupt:
        raise StudyInterruptedError(f"{done} of {total} models are kept in {folder.path}") from interrupt
    raise StoreError(str(folder.path), "models are damaged as soon as written", "check the disk")


def _attack(plan: FewShotPlan, engine: Engine, terminal: Terminal) -> dict[str, Any]:
    config = plan.config
    answers = _answers(plan)
    bench = _bench(plan, answers)
    cells = _cells(plan, bench, engine, terminal)
    found: list[Rival] = []
    left_out: list[str] = []
    with terminal.stage("compare", 1) as advance:
        if plan.job is None:
            tables = Tables(
                Signals(labels=plan.labels, keep=plan.keep, stats={"margin": np.zeros((*plan.keep.shape, 1))})
            )
        else:
            tables = tables_of(plan, answers)
            _save_signals(plan, tables)
            found, left_out = rivals(plan, answers, tables)
        baselines = {
            rival.key: {
                "title": rival.title,
                "shadow_models": rival.shadow_models,
                "needs_class": rival.needs_class,
                "seconds": rival.seconds,
                "shots": rival_tables(bench, rival, config.shot_counts, config.episodes),
            }
            for rival in found
        }
        outcomes = evaluate_all(plan, bench, tables, found, config.shot_counts[-1])
        advance(1)
    return _write(plan, bench, answers, cells, baselines, outcomes, left_out, terminal)


def _cells(plan: FewShotPlan, bench: Bench, engine: Engine, terminal: Terminal) -> dict[str, dict[str, Any]]:
    """All cells of the table by SUBJECT/METHOD/SHOTS; slices of episodes that an earlier run left are not done again."""
    tasks = cell_tasks(bench, plan.config.shot_counts)
    slices = tuple(task for task in tasks if task.rows)
    if plan.job is not None:
        sweep_slices(plan.job, slices)
    missing = tuple(task for task in tasks if not task.rows or finished_slice(bench, task) is None)
    cells: dict[str, dict[str, Any]] = {}
    with terminal.stage("episodes", len(tasks), len(tasks) - len(missing)) as advance:
        for name, table in engine.run(Plan(run_cell, bench, missing)):
            if table is not None:
                cells[name] = table
            advance(1)
    for group in dict.fromkeys(task.group for task in slices):
        cells[group] = sliced_table(bench, group, [_finished(bench, task) for task in slices if task.group == group])
    return cells


def _finished(bench: Bench, task: Task) -> EpisodeScores:
    scores = finished_slice(bench, task)
    if scores is None:
        raise StoreError(task.group, "episodes are damaged since they were written", "run the same command again")
    return scores


def _answers(plan: FewShotPlan) -> list[Answers]:
    """What each model of the pool said, then the blind one."""
    if plan.job is None:
        return []
    found = [
        load_answers(plan.job, name, row) for name, group in plan.job.groups.items() for row in range(len(group.seeds))
    ]
    whole = [answers for answers in found if answers is not None]
    if len(whole) < len(found):
        raise StoreError(plan.job.folder, "answers are damaged since they were written", "run the same command again")
    return whole


def _bench(plan: FewShotPlan, answers: list[Answers]) -> Bench:
    config = plan.config
    if plan.saved is not None:
        features, blind = plan.saved.features[None], plan.saved.blind
    else:
        features = np.stack([_features(plan, one) for one in answers[: config.targets]])
        blind = _features(plan, answers[-1]) if len(answers) > config.models else None
    for row in features:
        check_features("features", row)
    return Bench(
        features=features,
        blind=blind,
        members=plan.keep[: config.targets],
        n_val=config.n_val,
        n_query=config.n_query,
        episodes={method: plan.episodes_of(method) for method in config.variant_keys},
        seed=config.seed,
        job=plan.job,
        code=code_version(*SLICE_CODE),
    )


def _features(plan: FewShotPlan, answers: Answers) -> np.ndarray:
    values = answers.arrays[f"pool:features:{plan.layer}"].astype(np.float64)
    if plan.layer != "statistics":
        return values
    # Statistics have units of their own. Their scale comes from blocks that no model trained on, which anybody has.
    public = answers.arrays.get("population:features:statistics", values)
    return (values - public.mean(axis=0)) / np.maximum(public.std(axis=0), 1e-12)


def _save_signals(plan: FewShotPlan, tables: Tables) -> None:
    store = plan.config.run_dir / "signals.zarr"
    tables.pool.save(store, overwrite=True)
    if tables.population is not None:
        tables.population.save(store, "population", overwrite=True)


def _variants(plan: FewShotPlan, cells: dict[str, dict[str, Any]]) -> dict[str, Any]:
    variants: dict[str, Any] = {}
    for method in plan.config.variant_keys:
        about = METHODS[method]
        entry: dict[str, Any] = {
            "title": about.title,
            "transductive": about.transductive,
            "access": access(method, plan.answers_only),
            "shots": {},
            "controls": {},
        }
        for name, table in cells.items():
            subject, of, shots = name.split("/")
            if of != method:
                continue
            if subject == "target":
                entry["shots"][shots] = table
            elif subject == "alone":
                entry["alone"] = {"shots": int(shots), **table}
            else:
                entry["controls"].setdefault(subject, {})[shots] = table
        entry["shots"] = dict(sorted(entry["shots"].items(), key=lambda item: int(item[0])))
        variants[method] = entry
    return variants


def _write(
    plan: FewShotPlan,
    bench: Bench,
    answers: list[Answers],
    cells: dict[str, dict[str, Any]],
    baselines: dict[str, Any],
    outcomes: list[Outcome],
    left_out: list[str],
    terminal: Terminal,
) -> dict[str, Any]:
    config = plan.config
    variants = _variants(plan, cells)
    method, shots = headline(variants)
    members, others = int(bench.members[0].sum()), int((~bench.members[0]).sum())
    training = [one.seconds for one in answers]
    own = {
        "answer": answer_sentence(variants),
        "headline": {"attack": f"few_shot_{method}", "variant": method, "shots": int(shots), "rule": HEADLINE_RULE},
        "data": {**plan.data, "pool": config.pool, "population": config.population, "bystanders": config.bystanders},
        "design": {
            "kind": "rank" if plan.job is not None else "as given",
            "num_models": len(plan.keep) if plan.job is not None else 0,
            "blind_models": int(bench.blind is not None),
            "targets": config.targets,
            "features": plan.layer,
            "feature_width": bench.features.shape[2],
            **mask_counts(plan.keep, range(config.targets)),
        },
        "models": _models(plan, answers),
        "variants": variants,
        "baselines": baselines,
        "training_seconds": {
            "one_model": float(np.nanmean(training)) if training else None,
            "shadow_models": float(np.nansum(training[1 : len(plan.keep)])) if training else None,
        },
        "stages": dict(terminal.seconds),
        "warnings": [*few_shot_warnings(variants, members, others), *left_out],
    }
    with terminal.stage("report", 1) as advance:
        summary = write_results(config.run_dir, "few-shot", config, outcomes, plan.labels, plan.index, own)
        write_few_shot_report(config.run_dir)
        advance(1)
    return summary


def _models(plan: FewShotPlan, answers: list[Answers]) -> dict[str, Any]:
    """Name, size and accuracies; for text the share of next tokens that are predicted."""
    if plan.job is None:
        return {"name": "none: features from a file", "parameters": 0}
    name = "right" if plan.job.language is not None else "hinge"
    right = np.stack([one.arrays[f"pool:{name}"] for one in answers[: len(plan.keep)]])
    if plan.job.language is None:
        right = (right > 0).astype(np.float64)
    train = np.array([row[mask].mean() for row, mask in zip(right, plan.keep, strict=True)])
    test = np.array([row[~mask].mean() for row, mask in zip(right, plan.keep, strict=True)])
    return {
        "name": plan.job.model,
        "parameters": plan.parameters,
        "train_accuracy": spread(train),
        "test_accuracy": spread(test),
        "target_train_accuracy": float(train[0]),
        "target_test_accuracy": float(test[0]),
    }

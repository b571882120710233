"""The trust study itself: train, generate, ask, attack, draw false members, and write the results.

A second call with the same config trains nothing: every model, the generator and every row of answers carries the hash
of all that decided it.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmem.attacks import FalseMembers, draw_false_members
from fastmem.data.generators import Generate
from fastmem.data.shifts import network_inputs
from fastmem.engine import Engine, Plan, RunFolder, Task, make_tasks, open_engine
from fastmem.errors import StoreError
from fastmem.report.trust import write_trust_report
from fastmem.signals.stored import open_table, stored_groups
from fastmem.studies.interruption import StudyInterruptedError
from fastmem.studies.results import OUTPUTS, write_config
from fastmem.studies.terminal import Terminal
from fastmem.studies.trust.calibrated import calibrated_logits, probabilities
from fastmem.studies.trust.config import TrustConfig
from fastmem.studies.trust.directions import make_direction
from fastmem.studies.trust.evaluate import Evaluation, Outcome, evaluate
from fastmem.studies.trust.job import Job
from fastmem.studies.trust.outputs import Findings, write_trust_results
from fastmem.studies.trust.plan import TrustPlan, make_plan, try_training, with_fakes
from fastmem.studies.trust.scores import Scored, scored
from fastmem.studies.trust.task import as_tensor, ask, build, load_saved, open_writer, train
from fastmem.training import load_into
from fastmem.training.gan import TrainedGan, sample_images, train_gan

__all__ = ["TrustResult", "run_trust"]

# Generous: headers, the report, the pictures.
_OVERHEAD = 4 << 20


@dataclass(frozen=True)
class TrustResult:
    """A finished study.

    Args:
        run_dir: Where its files are.
        summary: The content of ``summary.json``.
        trained: How many models this call had to train, the generator not counted.
    """

    run_dir: Path
    summary: dict[str, Any]
    trained: int


def run_trust(config: TrustConfig, fresh: bool = False, terminal: Terminal | None = None) -> TrustResult:
    """Runs a trust study, or what is left of it, and writes its folder.

    Args:
        config: What to do.
        fresh: Start over: forget what an earlier run left in the folder.
        terminal: Where progress is shown; by default nowhere.

    Returns:
        Where the results are, and the summary.

    Raises:
        InputError: If the config does not fit the data, the attacks or the machine; nothing is written then.
        StoreError: If the folder is used by another process, damaged, full or cannot be written.
        StudyInterruptedError: After Ctrl-C.
    """
    terminal = terminal or Terminal(quiet=True)
    with terminal.stage("prepare", 1) as advance:
        plan = make_plan(config)
        try_training(plan)
        advance(1)
    folder = RunFolder(plan.config.run_dir)
    folder.require_space(_bytes_on_disk(plan))
    shared_bytes = sum(records.x.nbytes for records in plan.job.asked)
    with (
        open_engine(
            plan.config.engine, plan.workers, ray_address=plan.config.ray_address, shared_bytes=shared_bytes
        ) as engine,
        folder.locked(),
    ):
        if fresh:
            folder.remove([*OUTPUTS, "config.yaml", "signals.zarr", "models"])
        try:
            trained = _train(plan, folder, engine, terminal)
            gan = _train_gan(plan, terminal)
            generate = plan.generate or (None if gan is None else _sampler(gan))
            if generate is not None:
                plan = with_fakes(plan, generate(plan.config.attack_size, plan.config.seed))
            _ask(plan, folder, engine, terminal)
            outcomes = _attack(plan, engine, terminal)
            findings = _find(plan, outcomes, gan, generate, terminal)
            with terminal.stage("report", 1) as advance:
                summary = write_trust_results(plan, findings, dict(terminal.seconds))
                write_trust_report(folder.path)
                advance(1)
        except KeyboardInterrupt as interrupt:
            kept = len(list((folder.path / "models").rglob("*.safetensors")))
            raise StudyInterruptedError(f"{kept} models are kept in {folder.path}") from interrupt
    return TrustResult(folder.path, summary, trained)


def _bytes_on_disk(plan: TrustPlan) -> int:
    models = len(plan.job.cohorts) * len(plan.job.train)
    rows = sum(len(records.x) for records in plan.job.asked) + plan.config.attack_size
    answers = (len(plan.job.cohorts) + 1) * len(plan.job.train) * rows * plan.job.num_classes * 4
    return models * plan.parameters * 4 + answers + _OVERHEAD


def _train(plan: TrustPlan, folder: RunFolder, engine: Engine, terminal: Terminal) -> int:
    """Trains the models that are missing; returns how many."""
    job, total = plan.job, len(plan.job.cohorts) * len(plan.job.train)
    expected = {job.checkpoint(name, row) for name in job.cohorts for row in range(len(job.train))}
    for path in (Path(job.folder) / "models").glob("*/*.safetensors"):
        if path not in expected:
            path.unlink()
    missing = {
        name: [row for row in range(len(job.train)) if load_saved(job, name, row) is None] for name in job.cohorts
    }
    left = sum(map(len, missing.values()))
    if left:
        # The old results would stand beside models that they do not describe.
        folder.remove(OUTPUTS)
    write_config(folder.path, plan.config)
    if left < total:
        terminal.say(f"{total - left} of {total} models are already there")
    with terminal.stage("train", total, total - left) as advance:
        for count in engine.run(Plan(train, job, make_tasks(missing, engine.slots, plan.rows_per_task))):
            advance(count)
    return left


def _train_gan(plan: TrustPlan, terminal: Terminal) -> TrainedGan | None:
    if not plan.trains_gan:
        return None
    threads = torch.get_num_threads()
    # One thread: then the images do not depend on the number of cores.
    torch.set_num_threads(1)
    try:
        steps = plan.config.gan.steps
        with terminal.stage("train the generator", steps) as advance:
            done = 0

            def on_step(step: int) -> None:
                nonlocal done
                advance(step - done)
                done = step

            return train_gan(
                plan.split.held_out.x,
                plan.config.gan,
                plan.config.seed,
                plan.gan_checkpoint,
                plan.gan_key,
                plan.job.device,
                on_step,
            )
    finally:
        torch.set_num_threads(threads)


def _sampler(gan: TrainedGan) -> Generate:
    def generate(count: int, seed: int) -> Tensor:
        return sample_images(gan.generator, count, seed)

    return generate


def _ask(plan: TrustPlan, folder: RunFolder, engine: Engine, terminal: Terminal) -> None:
    job = plan.job
    missing = {group: _missing_rows(job, group) for group in job.row_keys}
    for group in set(stored_groups(job.store)) - set(job.row_keys):
        shutil.rmtree(Path(job.store) / group, ignore_errors=True)
    left, total = sum(map(len, missing.values())), len(job.row_keys) * len(job.train)
    if left:
        folder.remove(OUTPUTS)
    with terminal.stage("ask the models", total, total - left) as advance:
        for count in engine.run(Plan(ask, job, make_tasks(missing, engine.slots, 1))):
            advance(count)
    damaged = {group: _missing_rows(job, group) for group in job.row_keys}
    if any(damaged.values()):
        raise StoreError(job.store, "rows are damaged as soon as written", "check the disk")


def _missing_rows(job: Job, group: str) -> list[int]:
    try:
        writer = open_writer(job, group)
    except StoreError as refusal:
        try:
            open_table(job.store, group)
        except StoreError:
            raise refusal from None
        # It is whole, so it was refused because it belongs to another config.
        writer = open_writer(job, group, fresh=True)
    return np.flatnonzero(~np.asarray(writer.completed(job.row_keys[group]))).tolist()


def _attack(plan: TrustPlan, engine: Engine, terminal: Terminal) -> list[Outcome]:
    keys = plan.config.calibration_keys
    shared = Evaluation(plan.job, plan.config, plan.attacks)
    found: dict[str, Outcome] = {}
    with terminal.stage("attack", len(keys)) as advance:
        for outcome in engine.run(Plan(evaluate, shared, tuple(map(Task, keys)))):
            found[outcome.key] = outcome
            advance(1)
    return [found[key] for key in keys]


def _find(
    plan: TrustPlan, outcomes: list[Outcome], gan: TrainedGan | None, generate: Generate | None, terminal: Terminal
) -> Findings:
    """What is looked at in the first, uncalibrated target only: each record's scores, controls, false members."""
    config, job = plan.config, plan.job
    logits, _ = calibrated_logits(job, config, "none")
    direction = make_direction(job, 0, config.attack_size, config.seed)
    with terminal.stage("controls", 1) as advance:
        runs = {key: scored(key, job, direction, logits) for key in plan.attacks}
        advance(1)
    stream = None
    if generate is not None and config.false_members:
        with terminal.stage("draw false members", config.false_members) as advance:
            stream = _stream(plan, generate, runs["max_prob"], advance)
    return Findings(outcomes, logits, direction, runs, gan, stream)


def _stream(plan: TrustPlan, generate: Generate, run: Scored, advance: Callable[[int], None]) -> FalseMembers:
    job, fitted = plan.job, run.fitted
    assert fitted is not None, "the published attack reads probabilities"
    state = load_saved(job, "none", 0)
    if state is None:
        raise StoreError(str(job.checkpoint("none", 0)), "was changed during the run", "run the same command again")
    network = build(job, seed=0)
    load_into(network, state)
    network.to(job.device).eval()
    view = functools.partial(network_inputs, view="normalised", mean=as_tensor(job.mean), std=as_tensor(job.std))

    def predict(images: Tensor) -> np.ndarray:
        with torch.no_grad():
            return fitted.predict(probabilities(network(view(images.to(job.device))).float().cpu().numpy()))

    # Seeds beyond the one that drew the evaluated fakes.
    first = plan.config.seed + 1_000_003
    return draw_false_members(generate, predict, plan.config.false_members, seed=first, on_found=advance)

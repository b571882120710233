"""What one task does: train a few models of a variant, or load those already saved, show them the marks, keep scores.

A model is saved before its scores, so whatever instant a run is killed at, the next one finds something whole or nothing.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from fastmem.data import make_queries
from fastmem.engine import Task
from fastmem.errors import FastmemError, InputError
from fastmem.metrics import LABEL_VARIANTS, Answers, image_tests, score_features
from fastmem.models import build_model
from fastmem.signals.query import query_model
from fastmem.studies.canary.job import Cohort, Job
from fastmem.studies.canary.regularisers import Training
from fastmem.studies.canary.store import Row, load_model, save_model, save_row
from fastmem.studies.tensors import as_tensor
from fastmem.training import load_into, train_models

__all__ = ["TaskReport", "answers_of", "build", "score", "train_and_score", "try_training"]

_TESTS = ("t", "mann_whitney")


@dataclass(frozen=True)
class TaskReport:
    """What a task did.

    Args:
        rows: Models it was asked for.
        trained: How many of them it had to train.
        seconds: Time by kind of work: ``training``, ``queries``, ``divergences`` (the KLs), ``scores``.
    """

    rows: int
    trained: int
    seconds: dict[str, float]


def train_and_score(job: Job, task: Task) -> TaskReport:
    """Does a task; its scores are on disk when this returns."""
    cohort = job.cohorts[task.group]
    seconds: dict[str, float] = dict.fromkeys(("training", "queries", "divergences", "scores"), 0.0)
    found = {member: load_model(job, cohort, member) for member in task.rows} if job.save_models else {}
    states = {member: saved for member, saved in found.items() if saved is not None}
    missing = [member for member in task.rows if member not in states]
    start = time.perf_counter()
    states |= _train(job, cohort, missing)
    seconds["training"] += time.perf_counter() - start
    for member in task.rows:
        state, train_accuracy = states[member]
        network = build(job, cohort.training, seed=0)
        load_into(network, state)
        network.to(job.device)
        try:
            start = time.perf_counter()
            answers, test_accuracy = answers_of(job, network), _accuracy(job, network)
            seconds["queries"] += time.perf_counter() - start
        except InputError as error:
            raise FastmemError(f"model {cohort.members[member].name}", error.problem, error.remedy) from error
        row = score(job, answers, (train_accuracy, test_accuracy), seconds)
        save_row(job, cohort, member, row)
    return TaskReport(len(task.rows), len(missing), seconds)


def answers_of(job: Job, network: nn.Module) -> Answers:
    """What a network answers to the evaluation images, clean, with every mark and with the random patches."""
    clean = make_queries("none")[0]
    shown = [clean, *(feature.apply for feature in job.features)]
    marked = _logits(job, network, job.evaluation, shown)
    patched = _logits(job, network, job.patched, [clean])
    return Answers.of(marked[:, 0], marked[:, 1:].transpose(1, 0, 2), patched[:, 0], from_logits=True)


def score(job: Job, answers: Answers, accuracy: tuple[float, float], seconds: dict[str, float] | None = None) -> Row:
    """Every variant's score of every mark, for every canary's label, and the image-level tests of the mark."""
    start = time.perf_counter()
    if "kl_contrast" in job.variants:
        _ = answers.divergences  # kept by the answers: this only takes the time of the kernel
    middle = time.perf_counter()
    shape = (len(job.variants), len(job.labels))
    scores, sensitivity = np.zeros((*shape, len(job.features))), np.zeros((*shape, len(_TESTS)))
    for place, variant in enumerate(job.variants):
        known = variant in LABEL_VARIANTS
        for column, label in enumerate(job.labels if known else job.labels[:1]):
            found = score_features(answers, variant, label)
            tests = image_tests(found.with_feature, found.without_feature)
            columns = column if known else slice(None)
            scores[place, columns] = found.value
            sensitivity[place, columns] = [tests[name] for name in _TESTS]
    if seconds is not None:
        seconds["divergences"] += middle - start
        seconds["scores"] += time.perf_counter() - middle
    return Row(scores, sensitivity, np.array(accuracy, dtype=np.float64))


def build(job: Job, training: Training, seed: int) -> nn.Module:
    """The network of a training variant with initial weights from ``seed``."""
    return build_model(job.model, job.input_shape, job.num_classes, seed, **training.model_args)


def try_training(job: Job) -> None:
    """Trains one model of every variant on a single batch and forgets it: what cannot be trained shows at once.

    Raises:
        InputError: If a recipe does not fit the records, the network or the device.
    """
    for cohort in job.cohorts.values():
        recipe = cohort.training.recipe
        short = replace(recipe, epochs=1, schedule="constant", milestones=(), warmup_epochs=0.0, patience=None)
        short = replace(short, stop_at_train_accuracy=None)
        few = replace(job, pool=min(recipe.batch_size, job.pool), marks=job.marks[:, :0], save_models=False)
        _train(few, replace(cohort, training=replace(cohort.training, recipe=short)), [0])


def _train(job: Job, cohort: Cohort, members: Sequence[int]) -> dict[int, tuple[dict[str, Tensor], float]]:
    """Trains some models of a variant, saves them where asked; weights and training accuracy by number."""
    if not members:
        return {}
    held = None if job.validation is None else (as_tensor(job.validation[0]), as_tensor(job.validation[1]))
    trained = train_models(
        functools.partial(build, job, cohort.training),
        as_tensor(job.x),
        as_tensor(job.y),
        [job.records(cohort.members[member]) for member in members],
        cohort.training.recipe,
        [cohort.members[member].seed for member in members],
        (as_tensor(job.mean), as_tensor(job.std)),
        device=job.device,
        validation=held,
    )
    for member, result in zip(members, trained, strict=True):
        if job.save_models:
            save_model(job, cohort, member, result.state, result.train_accuracy)
    return {member: (result.state, result.train_accuracy) for member, result in zip(members, trained, strict=True)}


def _logits(job: Job, network: nn.Module, images: np.ndarray, shown: Sequence) -> np.ndarray:
    normalisation = (as_tensor(job.mean), as_tensor(job.std))
    x, y = as_tensor(images), torch.zeros(len(images), dtype=torch.int64)
    found = query_model(network, x, y, shown, ["logits"], normalisation, job.query_batch, job.device)
    return found["logits"]


def _accuracy(job: Job, network: nn.Module) -> float:
    logits = _logits(job, network, job.held_out[0], make_queries("none"))
    return float((logits[:, 0].argmax(axis=1) == job.held_out[1]).mean())

"""What one task does: train a few models, or load those that are already saved, query them and write their rows.

A model is saved before its rows are written, so whatever instant a run is killed at, the next one finds either nothing
or something whole. A model of which only the answers are missing or stale (another statistic asked for, say) is not
trained again; and what another worker, a shard or an earlier try of the same task has done is left as it is, so a task
may run any number of times, in several places at once.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from fastmem.data import make_queries
from fastmem.engine import Task
from fastmem.errors import FastmemError, InputError, StoreError
from fastmem.models import build_model
from fastmem.signals.query import query_models
from fastmem.studies.audit.job import Cohort, Job, Table
from fastmem.studies.audit.store import load_saved, save, writer_in_task
from fastmem.studies.tensors import as_tensor
from fastmem.training import load_into, train_models

__all__ = ["TaskReport", "build", "query", "train", "train_and_query", "try_training"]


@dataclass(frozen=True)
class TaskReport:
    """What a task did: how many models it was asked for, and how many of them it had to train."""

    rows: int
    trained: int


def train_and_query(job: Job, task: Task) -> TaskReport:
    """Does a task; its rows are in the store when this returns."""
    cohort = job.cohorts[task.group]
    writers = [(writer_in_task(job, table), table) for table in cohort.tables]
    # By model, the places of the tables in which its row is missing.
    unanswered = {
        model: [
            place for place, (writer, table) in enumerate(writers) if not writer.is_complete(model, table.keys[model])
        ]
        for model in task.rows
    }
    saved = {model: load_saved(job, cohort, model) for model in task.rows if cohort.keeps(model)}
    states = {model: state for model, state in saved.items() if state is not None}
    wanted = [model for model in task.rows if model not in states and (unanswered[model] or cohort.keeps(model))]
    if cohort.given in wanted:
        raise StoreError(job.models, "the saved copy of the audited model is not there", "run the same command again")
    states |= train(job, cohort, wanted)
    # A GPU does not give the same bits twice: all rows are of the model that is saved.
    asked = {model: range(len(writers)) if model in wanted else places for model, places in unanswered.items()}
    networks = {model: _network(job, states[model]) for model, places in asked.items() if places}
    for place, (writer, table) in enumerate(writers):
        here = {model: network for model, network in networks.items() if place in asked[model]}
        for model, row in query(job, here, table, cohort.name).items():
            writer.write_row(model, row, table.keys[model])
    return TaskReport(len(task.rows), len(wanted))


def train(job: Job, cohort: Cohort, models: Sequence[int]) -> dict[int, dict[str, Tensor]]:
    """Trains some models of a cohort, and saves those that are to be kept; their states by number."""
    if not models:
        return {}
    held_out = None if cohort.held_out is None else (as_tensor(cohort.held_out[0]), as_tensor(cohort.held_out[1]))
    trained = train_models(
        functools.partial(build, job),
        as_tensor(cohort.x),
        as_tensor(cohort.y),
        cohort.train[list(models)],
        job.recipe,
        [cohort.seeds[model] for model in models],
        (as_tensor(job.mean), as_tensor(job.std)),
        device=job.device,
        validation=held_out,
    )
    for model, result in zip(models, trained, strict=True):
        if cohort.keep_models:
            about = {
                "model": f"{cohort.name} {model}",
                "epochs_run": result.epochs_run,
                "train_accuracy": result.train_accuracy,
            }
            save(job, cohort, model, result.state, about)
    return {model: result.state for model, result in zip(models, trained, strict=True)}


def try_training(job: Job, epochs: int = 1) -> None:
    """Trains one model on a single batch and forgets it: what cannot be trained shows before anything is written.

    Args:
        job: The job; its recipe is used as far as it concerns a step.
        epochs: Steps to make.

    Raises:
        InputError: If the recipe does not fit the records, the network or the device.
    """
    cohort = job.cohorts["shadow"]
    size = min(job.recipe.batch_size, len(cohort.x))
    recipe = replace(
        job.recipe,
        epochs=epochs,
        schedule="constant",
        milestones=(),
        warmup_epochs=0.0,
        patience=None,
        stop_at_train_accuracy=None,
    )
    first = np.arange(len(cohort.x))[None] < size
    train(replace(job, recipe=recipe), replace(cohort, keep_models=False, train=first, held_out=None, given=None), [0])


def build(job: Job, seed: int) -> nn.Module:
    """The job's network with initial weights from ``seed``."""
    return build_model(job.model, job.input_shape, job.num_classes, seed, **job.model_args)


def query(job: Job, networks: Mapping[int, nn.Module], table: Table, cohort: str) -> dict[int, dict[str, np.ndarray]]:
    """What networks, by the number of their model, say about the records of a table: in one pass over these."""
    if not networks:
        return {}
    try:
        rows = query_models(
            list(networks.values()),
            as_tensor(table.x),
            as_tensor(table.y),
            make_queries(job.queries),
            job.arrays,
            (as_tensor(job.mean), as_tensor(job.std)),
            batch_size=job.query_batch,
            device=job.device,
        )
    except InputError as error:
        named = {f"models[{place}]": f"{cohort} model {model}" for place, model in enumerate(networks)}
        raise FastmemError(named.get(error.argument, cohort), error.problem, error.remedy) from error
    return dict(zip(networks, rows, strict=True))


def _network(job: Job, state: Mapping[str, Tensor]) -> nn.Module:
    network = build(job, seed=0)
    load_into(network, state)
    return network.to(job.device)

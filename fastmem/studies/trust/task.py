"""What the tasks do: train a few models and save them; then ask saved models, and write their rows of answers."""

from __future__ import annotations

import functools
import json
import warnings

import numpy as np
import torch
from torch import Tensor, nn

from fastmem.data.shifts import network_inputs
from fastmem.defenses import LastLayerLaplace
from fastmem.engine import Task
from fastmem.errors import FastmemError, InputError, StoreError
from fastmem.models import build_model
from fastmem.signals.query import query_model
from fastmem.signals.store import SignalsWriter
from fastmem.studies.trust.job import LAPLACE, Job
from fastmem.studies.trust.sets import Records
from fastmem.training import Recipe, load_checkpoint, load_into, save_checkpoint, train_models

__all__ = ["answers", "ask", "build", "load_saved", "open_writer", "train", "train_states"]

METADATA = "fastmem_trust"

# Records that the Laplace approximation chooses its prior on, and noise images beside them.
_LAPLACE_RECORDS = 1000
_UNLABELLED = 0


def train(job: Job, task: Task) -> int:
    """Trains the models of a task and saves each; returns how many."""
    cohort = job.cohorts[task.group]
    states = train_states(job, cohort.recipe, task.rows, tuple(cohort.seeds[row] for row in task.rows))
    for row, (state, accuracy) in zip(task.rows, states, strict=True):
        about = {"key": cohort.keys[row], "model": f"{cohort.name} {row}", "train_accuracy": accuracy}
        # One entry: safetensors writes several in an order of its own, and equal runs should give equal bytes.
        save_checkpoint(job.checkpoint(task.group, row), state, {METADATA: json.dumps(about)})
    return len(task.rows)


def train_states(
    job: Job, recipe: Recipe, rows: tuple[int, ...], seeds: tuple[int, ...], train: np.ndarray | None = None
) -> list[tuple[dict[str, Tensor], float]]:
    """Trained states of some models and their train accuracies; ``train`` replaces the job's mask [M, N]."""
    mask = job.train if train is None else train
    trained = train_models(
        functools.partial(build, job),
        as_tensor(job.x),
        as_tensor(job.y),
        mask[list(rows)],
        recipe,
        list(seeds),
        (as_tensor(job.mean), as_tensor(job.std)),
        device=job.device,
    )
    return [(result.state, result.train_accuracy) for result in trained]


def ask(job: Job, task: Task) -> int:
    """Asks the saved models of a task and writes their rows; returns how many."""
    cohort = "none" if task.group == LAPLACE else task.group
    writer = open_writer(job, task.group)
    for row in task.rows:
        state = load_saved(job, cohort, row)
        if state is None:
            raise StoreError(str(job.checkpoint(cohort, row)), "was changed during the run", "run the same again")
        network = build(job, seed=0)
        load_into(network, state)
        network.to(job.device)
        if task.group == LAPLACE:
            network = _laplace(job, network, row)
        writer.write_row(row, {"logits": answers(job, network, task.group, row)}, job.row_keys[task.group][row])
    return len(task.rows)


def answers(job: Job, network: nn.Module, cohort: str, model: int) -> np.ndarray:
    """Logits of a network on everything that is asked, float32 [R, 1, C]."""
    try:
        return np.concatenate([_answers_of(job, network, records) for records in job.asked])
    except InputError as error:
        raise FastmemError(f"{cohort} model {model}", error.problem, error.remedy) from error


def build(job: Job, seed: int) -> nn.Module:
    """The job's network with initial weights from ``seed``."""
    return build_model(job.model, job.input_shape, job.num_classes, seed, **job.model_args)


def open_writer(job: Job, group: str, fresh: bool = False) -> SignalsWriter:
    """The place of a group's rows in the store, made if it is not there."""
    return SignalsWriter(
        job.store, job.labels, job.keep, ("logits",), num_classes=job.num_classes, group=group, fresh=fresh
    )


def load_saved(job: Job, cohort: str, model: int) -> dict[str, Tensor] | None:
    """The saved state of a model, or None if it is absent, damaged or of another key."""
    try:
        state, metadata = load_checkpoint(job.checkpoint(cohort, model))
    except StoreError:
        return None
    about = json.loads(metadata.get(METADATA, "{}"))
    return state if about.get("key") == job.cohorts[cohort].keys[model] else None


class _LaplaceModel(nn.Module):
    """A fitted Laplace approximation as a classifier."""

    def __init__(self, laplace: LastLayerLaplace, device: str) -> None:
        super().__init__()
        self._laplace = laplace
        self.place = nn.Parameter(torch.zeros((), device=device), requires_grad=False)  # says where the model is

    def forward(self, x: Tensor) -> Tensor:
        return self._laplace.logits(x)


def _laplace(job: Job, network: nn.Module, row: int) -> nn.Module:
    """The Laplace approximation of a model on its own training records."""
    held_out = next(records for records in job.asked if records.name == "held_out")
    assert held_out.y is not None, "held-out records are labelled"
    own = np.flatnonzero(job.train[row])
    some = slice(_LAPLACE_RECORDS)
    laplace = LastLayerLaplace(network, job.input_shape).fit(
        _inputs(job, job.x[own]),
        as_tensor(job.y[own]).to(job.device),
        (_inputs(job, held_out.x[some]), as_tensor(held_out.y[some]).to(job.device)),
        _inputs(job, job.noise[some]),
    )
    return _LaplaceModel(laplace, job.device)


def _inputs(job: Job, x: np.ndarray, view: str = "normalised") -> Tensor:
    return network_inputs(as_tensor(x).to(job.device), view, as_tensor(job.mean), as_tensor(job.std))


def _answers_of(job: Job, network: nn.Module, records: Records) -> np.ndarray:
    view = functools.partial(
        network_inputs,
        view=records.view,
        mean=as_tensor(job.mean).to(job.device),
        std=as_tensor(job.std).to(job.device),
    )
    x = as_tensor(records.x)
    y = torch.full((len(x),), _UNLABELLED) if records.y is None else as_tensor(records.y)
    return query_model(network, x, y, [view], ("logits",), batch_size=job.query_batch, device=job.device)["logits"]


def as_tensor(array: np.ndarray) -> Tensor:
    """The same memory as a tensor, to be read only."""
    # Arrays that reach a worker through shared memory are read-only, which torch remarks on; nothing here writes.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        return torch.from_numpy(array)

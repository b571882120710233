"""What one training task does: train a few models, or load those that are saved, ask them, and write what they say.

A model is saved before its answers are, so whatever instant a run is killed at, the next one finds something whole.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fastmem.data import make_queries
from fastmem.engine import Task
from fastmem.errors import FastmemError, InputError
from fastmem.models import build_model
from fastmem.models.language import LanguageModel, build_language_model
from fastmem.signals.features import LayerReader, record_features
from fastmem.signals.language import query_language_model
from fastmem.signals.query import query_model
from fastmem.studies.few_shot.job import Job
from fastmem.studies.few_shot.store import Answers, load_model, save_answers, save_model
from fastmem.studies.tensors import as_tensor
from fastmem.training import load_into, train_models
from fastmem.training.language import train_language_models

__all__ = ["IMAGE_STATISTICS", "build", "check_layers", "train_and_ask"]

IMAGE_STATISTICS = ("margin", "hinge", "max_prob", "entropy")


def train_and_ask(job: Job, task: Task) -> tuple[int, int]:
    """Does a task; the answers are on disk when this returns.

    Returns:
        How many models it was asked for, and how many of them it had to train.
    """
    saved = {row: load_model(job, task.group, row) for row in task.rows}
    states = {row: found for row, found in saved.items() if found is not None}
    missing = [row for row in task.rows if row not in states]
    states |= _train(job, task.group, missing)
    for row in task.rows:
        state, seconds = states[row]
        network = build(job, seed=0)
        load_into(network, state)
        network.to(job.device)
        save_answers(job, task.group, row, Answers(_ask(job, network, row < job.groups[task.group].read), seconds))
    return len(task.rows), len(missing)


def build(job: Job, seed: int) -> nn.Module:
    """The job's network with initial weights from ``seed``."""
    if job.language is not None:
        return build_language_model(job.language, job.vocabulary, seed)
    return build_model(job.model, job.input_shape, job.num_classes, seed, **job.model_args)


def check_layers(job: Job, layers: Sequence[str]) -> None:
    """Looks the layers up in a network that is not trained yet.

    Raises:
        InputError: If there is no such layer; all names are given.
    """
    network = build(job, seed=0)
    for layer in layers:
        LayerReader(network, layer)


def _train(job: Job, name: str, rows: list[int]) -> dict[int, tuple[dict[str, Tensor], float]]:
    if not rows:
        return {}
    group, start = job.groups[name], time.perf_counter()
    make, seeds = functools.partial(build, job), [group.seeds[row] for row in rows]
    if job.language is not None:
        trained = train_language_models(make, as_tensor(group.x), group.train[rows], job.recipe, seeds, job.device)
    else:
        trained = train_models(
            make,
            as_tensor(group.x),
            as_tensor(group.y),
            group.train[rows],
            job.recipe,
            seeds,
            (as_tensor(job.mean), as_tensor(job.std)),
            device=job.device,
        )
    seconds = (time.perf_counter() - start) / len(rows)
    for row, result in zip(rows, trained, strict=True):
        save_model(job, name, row, result.state, seconds)
    return {row: (result.state, seconds) for row, result in zip(rows, trained, strict=True)}


def _ask(job: Job, network: nn.Module, features: bool) -> dict[str, np.ndarray]:
    layers = job.layers if features else ()
    arrays: dict[str, np.ndarray] = {}
    parts = {"pool": (job.pool, job.pool_labels), "population": (job.population, job.population_labels)}
    for part, (x, y) in parts.items():
        if not len(x):
            continue
        try:
            found = _text(job, network, x, layers) if job.language is not None else _images(job, network, x, y, layers)
        except InputError as error:
            raise FastmemError(error.argument, error.problem, error.remedy) from error
        # Only the pool's features are attacked; the population's statistics give their scale.
        arrays |= {
            f"{part}:{key}": value
            for key, value in found.items()
            if part == "pool" or not key.startswith("features:") or key == "features:statistics"
        }
    return arrays


def _images(
    job: Job, network: nn.Module, x: np.ndarray, y: np.ndarray, layers: tuple[str, ...]
) -> dict[str, np.ndarray]:
    normalisation = as_tensor(job.mean), as_tensor(job.std)
    records = as_tensor(x)
    stats = query_model(
        network, records, as_tensor(y), make_queries("none"), IMAGE_STATISTICS, normalisation, device=job.device
    )
    found = {name: values[:, 0] for name, values in stats.items()}
    if layers:
        read = record_features(network, records, layers, normalisation, job.device)
        found |= {f"features:{layer}": values for layer, values in read.items()}
    return found


def _text(job: Job, network: nn.Module, x: np.ndarray, layers: tuple[str, ...]) -> dict[str, np.ndarray]:
    assert isinstance(network, LanguageModel)
    read = tuple(layer for layer in layers if layer != "statistics")
    answers = query_language_model(network, torch.from_numpy(np.array(x)), read, job.device)
    found = {"log_p": answers.log_p, "loss": answers.loss, "entropy": answers.entropy, "right": answers.right}
    # A block's loss is a mean over tokens; as the probability exp(-loss) its log-odds are what LiRA and RMIA read.
    found["margin"] = -answers.loss - np.log(-np.expm1(-answers.loss))
    found |= {f"features:{layer}": answers.features[layer] for layer in read}
    if "statistics" in layers:
        found["features:statistics"] = answers.statistics
    return found

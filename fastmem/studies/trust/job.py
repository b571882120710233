"""What the tasks of a trust study share: plain values and numpy arrays, so that they travel to other processes.

A *cohort* is M models of one recipe on the same halves of the pool: the uncalibrated models, those with smoothed labels
or decaying weights, and further uncalibrated ones from other seeds, which make ensembles. Calibrations that change
outputs only have no models of their own; the Laplace approximation has a row of answers for each uncalibrated model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmem.studies.trust.sets import Records
from fastmem.training import Recipe

__all__ = ["LAPLACE", "Cohort", "Job"]

#: The group of the store that holds the answers of Laplace models.
LAPLACE = "laplace"

_BATCH_VALUES = 1 << 17
_SMALLEST_BATCH, _LARGEST_BATCH = 32, 1024


@dataclass(frozen=True, eq=False)
class Cohort:
    """Models of one recipe.

    Args:
        name: Its folder of models and its group of the store.
        recipe: How they are trained.
        seeds: Seed of each model.
        keys: Content key of each trained model.
    """

    name: str
    recipe: Recipe
    seeds: tuple[int, ...]
    keys: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Job:
    """What every task shares.

    Args:
        cohorts: By name.
        x: The pool [N, ...].
        y: Its labels [N].
        train: Which of them each model trains on, bool [M, N].
        asked: What the models are asked about, in the order of a row: the pool, the held-out records, the sets.
        labels: Labels of all of them [R]; 0 where a record has none.
        keep: The mask of a table, bool [M, R]: ``train``, and nothing beyond the pool.
        row_keys: Content key of each row of answers, by group of the store.
        model: Name or import path of the network.
        model_args: Its options.
        num_classes: C.
        mean: Normalisation of the inputs.
        std: The same.
        noise: Records that the Laplace approximation should not be sure of [K, ...].
        device: ``"cpu"`` or ``"cuda"``.
        folder: Of the run.
    """

    cohorts: dict[str, Cohort]
    x: np.ndarray
    y: np.ndarray
    train: np.ndarray
    asked: tuple[Records, ...]
    labels: np.ndarray
    keep: np.ndarray
    row_keys: dict[str, tuple[str, ...]]
    model: str
    model_args: dict[str, Any]
    num_classes: int
    mean: np.ndarray
    std: np.ndarray
    noise: np.ndarray
    device: str
    folder: str

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one record."""
        return tuple(self.x.shape[1:])

    @property
    def store(self) -> str:
        """Folder of the answers."""
        return str(Path(self.folder) / "signals.zarr")

    @property
    def query_batch(self) -> int:
        """Records shown to a model at a time: as many as a core's caches hold, on a GPU many."""
        if self.device != "cpu":
            return _LARGEST_BATCH
        return min(max(_BATCH_VALUES // math.prod(self.input_shape), _SMALLEST_BATCH), _LARGEST_BATCH)

    @property
    def places(self) -> dict[str, slice]:
        """Where each of ``asked`` stands in a row."""
        ends = np.cumsum([len(records.x) for records in self.asked]).tolist()
        starts = [0, *ends]
        return {records.name: slice(*ends) for records, *ends in zip(self.asked, starts, ends, strict=False)}

    def checkpoint(self, cohort: str, model: int) -> Path:
        """Where a model is saved."""
        return Path(self.folder) / "models" / cohort / f"{model:04d}.safetensors"

"""What the tasks of an audit share: plain values and numpy arrays, so that they travel to other processes.

Two cohorts of models are trained. The *shadow* models train on the pool, each on its half. The *null* models train on
bystanders and never see the pool; the mask that the attacks get for them is of the same design and means nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmem.training import Recipe

__all__ = ["Cohort", "Job", "Table"]

_BATCH_VALUES = 1 << 17
_SMALLEST_BATCH, _LARGEST_BATCH = 32, 1024


@dataclass(frozen=True, eq=False)
class Table:
    """Records that a cohort is queried on, and where the answers go.

    Args:
        group: Group of the signals store.
        x: Records [N, ...].
        y: Labels [N].
        keep: The mask [M, N] that the attacks will get.
        keys: Content key of each model's row.
    """

    group: str
    x: np.ndarray
    y: np.ndarray
    keep: np.ndarray
    keys: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Cohort:
    """Models that are trained on parts of one set of records.

    Args:
        name: ``"shadow"`` or ``"null"``.
        x: Training records [R, ...].
        y: Their labels [R].
        train: Which of them each model trains on, bool [M, R].
        seeds: Seed of each model's initial weights, batch order, augmentation and dropout.
        keys: Content key of each trained model.
        tables: What the models are queried on.
        keep_models: Whether the models are saved.
        held_out: Records and labels that early stopping watches, where the recipe asks for it.
        given: The one model, if any, that is not trained but given: its saved copy is there before any task runs.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    train: np.ndarray
    seeds: tuple[int, ...]
    keys: tuple[str, ...]
    tables: tuple[Table, ...]
    keep_models: bool
    held_out: tuple[np.ndarray, np.ndarray] | None
    given: int | None = None

    def keeps(self, model: int) -> bool:
        """Whether the model is saved."""
        return self.keep_models or model == self.given


@dataclass(frozen=True, eq=False)
class Job:
    """What every task shares; plain values and numpy arrays, so that it travels to other processes.

    Args:
        cohorts: By name.
        model: Name or import path of the network.
        model_args: Its options.
        input_shape: Shape of one record.
        num_classes: C.
        mean: Normalisation of the inputs.
        std: The same.
        recipe: How to train.
        queries: Kind of the views shown.
        stats: Statistics to store.
        save_logits: Whether logits are stored too.
        device: ``"cpu"`` or ``"cuda"``.
        store: Folder or URL of the signals.
        models: Folder or URL of the saved models.
    """

    cohorts: dict[str, Cohort]
    model: str
    model_args: dict[str, Any]
    input_shape: tuple[int, ...]
    num_classes: int
    mean: np.ndarray
    std: np.ndarray
    recipe: Recipe
    queries: str
    stats: tuple[str, ...]
    save_logits: bool
    device: str
    store: str
    models: str

    @property
    def shared_bytes(self) -> int:
        """Size of the arrays."""
        cohorts = self.cohorts.values()
        arrays = [array for cohort in cohorts for array in (cohort.x, cohort.train)]
        arrays += [array for cohort in cohorts for table in cohort.tables for array in (table.x, table.keep)]
        return sum(array.nbytes for array in arrays)

    @property
    def query_batch(self) -> int:
        """Records shown to a model at a time: as many as a core's caches hold, on a GPU many."""
        if self.device != "cpu":
            return _LARGEST_BATCH
        # Measured: resnet18 at 32 x 32 takes 9.1 ms a record in batches of 32 and 13.1 ms from 256 on, most of the
        # difference in page faults; perceptrons gain from larger ones.
        return min(max(_BATCH_VALUES // math.prod(self.input_shape), _SMALLEST_BATCH), _LARGEST_BATCH)

    @property
    def arrays(self) -> tuple[str, ...]:
        """What a row of the store holds."""
        return (*self.stats, "logits") if self.save_logits else self.stats
